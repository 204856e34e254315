"""Which calls may share a request now: by the members' versions, the user, and the store's room."""

from kvorum.etcd.pipeline.calls import AnyCall
from kvorum.etcd.pipeline.capabilities import Capabilities, capabilities_of
from kvorum.etcd.pipeline.queue_policy import Room
from kvorum.etcd.pipeline.quota import Quota
from kvorum.etcd.transport import Connection, Members


class Admission:
    """Decides which calls may share a request.

    Args:
        connection: what they are sent by.
        quota: what is known about the store's room.

    Attributes:
        members: what is known about the members of the cluster.
        capabilities: the forms that follow from that.
    """

    capabilities: Capabilities

    def __init__(self, connection: Connection, quota: Quota) -> None:
        settings = connection.settings
        self._is_on = settings.pipeline
        self._cluster = connection.cluster
        self._quota = quota
        # A certificate may make its client a user.
        self._has_identity = self._cluster.tokens.has_user or settings.cert is not None
        self.members: Members = Members(connection, self.refresh)
        self.refresh()
        if self._is_on:
            self.members.start()

    def refresh(self) -> None:
        """Derive the forms of batches again, since what they follow from has changed."""
        self.capabilities = capabilities_of(
            self._cluster.hazards, self.members.known, has_identity=self._has_identity
        )

    def may_wait(self, call: AnyCall) -> bool:
        """Return whether a call may wait for others to share a request with.

        A first look, for each call. `is_prepared` and `may_batch` are asked just before a batch is
        sent.
        """
        if not self._is_on or not self._cluster.current.is_ready:
            return False
        if self.may_batch(call):
            return True
        # While it is unknown whether there is room, concurrent writes wait for the answer: see
        # `room`.
        quota = self._quota
        return call.is_write and self.capabilities.writes and (quota.is_awaited or quota.is_due)

    def may_batch(self, call: AnyCall) -> bool:
        """Return whether the servers can be trusted with batches of such calls."""
        capabilities = self.capabilities
        if not call.is_write:
            return capabilities.reads != "single"
        return capabilities.writes and (self._quota.has_room or not capabilities.guard_quota)

    @property
    def is_prepared(self) -> bool:
        """Whether the current server is known and authenticated, so that a call can be sent now."""
        return self._cluster.is_prepared(self._cluster.current)

    @property
    def room(self) -> Room:
        """How many writes the next request may hold. With `Room.ONE`, `Quota.look` is due."""
        quota, capabilities = self._quota, self.capabilities
        if quota.is_awaited:
            return Room.UNKNOWN
        if capabilities.writes and capabilities.guard_quota and quota.is_due:
            return Room.ONE
        return Room.PLENTY
