"""Sends write plans, and retries what has to be planned again after a conflict."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Generic, TypeVar

import anyio
from tenacity import (
    AsyncRetrying,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

from kvorum.arguments import check_given_revision
from kvorum.deadlines import own_time
from kvorum.encoding import Codec
from kvorum.errors import (
    ConflictError,
    CorruptResourceError,
    InvalidResourceError,
    KvorumError,
    NotFoundError,
)
from kvorum.repository.decoder import Decoder
from kvorum.repository.write_plan import MAX_GUARD_SIZE, Preconditions, WritePlan, base_in
from kvorum.resources import AnyResource, Stored
from kvorum.runtime import Limits, raised_alone
from kvorum.storage import Entry, HasBackend

R = TypeVar("R", bound=AnyResource)


class ContentionPolicy(Limits, frozen=True):
    """How long `mutate`, `patch` and `delete` retry while other clients write the same resource.

    One client wins each round, so only a resource that many clients write all the time gets to the
    timeout.

    Attributes:
        timeout: seconds after which the last conflict is raised.
        first_wait: the longest wait after the first conflict, in seconds; it doubles each time, and
            is drawn at random.
        longest_wait: the limit of these waits, in seconds.
    """

    timeout: float = 10.0
    first_wait: float = 0.01
    longest_wait: float = 0.2


class Writer(Generic[R]):
    """Sends the writes of one kind."""

    def __init__(
        self,
        client: HasBackend,
        codec: Codec[R],
        decoder: Decoder[R],
        contention: ContentionPolicy,
    ) -> None:
        self._client = client
        self._codec = codec
        self._decoder = decoder
        self._contention = contention

    # --- one plan ---

    async def create(self, plan: WritePlan[R], *, ttl: float | None) -> R:
        """Send a plan for a new resource; with a TTL, on a lease of its own.

        If that fails or is cancelled, neither the resource nor the lease is left behind.
        """
        backend, key, value = self._client.backend, plan.operation.key, plan.draft.stored.value
        if ttl is None:
            return plan.written(await backend.create(key, value, unique=True))
        lease = await backend.grant_lease_for(key, ttl)
        try:
            revision = await backend.create(key, value, lease=lease, unique=True)
        except BaseException:
            # A create that is still in flight then finds no lease and is refused. If the revocation
            # is lost, too, the lease expires.
            with anyio.move_on_after(1, shield=True), own_time(1), suppress(KvorumError):
                await backend.revoke_lease(lease)
            raise
        return plan.written(revision)

    async def send(self, plan: WritePlan[R]) -> R:
        """Send a plan for a stored resource, once.

        Raises:
            ConflictError: its base is not current.
            NotFoundError: the resource is gone.
        """
        if not plan.operation.writes:
            return await self._confirm(plan)
        backend, expected = self._client.backend, plan.operation.expected or 0
        if backend.may_recur(expected):
            plan = plan.guarded()
        operation = plan.operation
        try:
            if operation.value is not None:
                revision = await backend.compare_and_swap(
                    operation.key,
                    operation.value,
                    expected=expected,
                    unique=True,
                    expected_value=operation.expected_value,
                )
                return plan.written(revision)
            change = await backend.delete(
                operation.key, expected=expected, expected_value=operation.expected_value
            )
        except ConflictError as exc:
            raise self._conflict(operation.key, expected, exc.current) from None
        assert change.previous is not None  # noqa: S101 - a deletion at a revision removes something
        return self._decoder.decode(change.previous, revision=change.revision)

    async def _confirm(self, plan: WritePlan[R]) -> R:
        """Check without a write that a plan's base is current."""
        key, expected = plan.operation.key, plan.operation.expected or 0
        entry = await self._client.backend.get(key)
        current, stored = self._read(key, entry)
        if plan.base is None or (stored.revision, stored.value) != (expected, plan.base.value):
            raise ConflictError(key, expected=expected, current=current, found=stored.revision)
        return current

    def _conflict(self, key: str, expected: int, entry: Entry | None) -> ConflictError:
        current, stored = self._read(key, entry)
        return ConflictError(key, expected=expected, current=current, found=stored.revision)

    # --- read, plan, send ---

    async def base_of(self, resource: R) -> Stored:
        """Return the stored bytes that an update of a resource starts from.

        They are read from the store if the resource does not carry them: it came in an HTTP
        request, say.

        Raises:
            InvalidResourceError: it was never read, or it was renamed.
            ConflictError: it does not carry them, and the store is at another version.
        """
        key, base = base_in(self._codec, resource)
        if base is not None:
            return base
        version = resource.metadata.resource_version
        check_given_revision(key, version, "resource_version")
        current, base = self._read(key, await self._client.backend.get(key))
        if base.revision != version:
            raise ConflictError(key, expected=version, current=current, found=base.revision)
        return base

    async def retry(
        self,
        key: str,
        plan_from: Callable[[R, Stored], Awaitable[WritePlan[R]]],
        required: Preconditions,
    ) -> R:
        """Read, plan and send, until there is no conflict or the time is over.

        Only a conflict of the write itself is retried; what `plan_from` raises is raised at once.
        """
        required.check_types(key)
        limits = self._contention
        is_sent = False

        async def attempt() -> R:
            nonlocal is_sent
            is_sent = False
            current, base = self._read(key, await self._client.backend.get(key))
            required.check(key, current)
            plan = await plan_from(current, base)
            if not plan.operation.writes:
                return plan.result  # its base has just been read
            is_sent = True
            return await self.send(plan)

        attempts = AsyncRetrying(
            retry=retry_if_exception(lambda exc: is_sent and isinstance(exc, ConflictError)),
            wait=wait_random_exponential(multiplier=limits.first_wait, max=limits.longest_wait),
            stop=stop_after_delay(limits.timeout),
            reraise=True,
        )
        return await raised_alone(attempts(attempt))

    def _read(self, key: str, entry: Entry | None) -> tuple[R, Stored]:
        """Return the resource in an entry, and its bytes."""
        if entry is None:
            raise NotFoundError(key)
        resource = self._decoder.decode(entry)
        assert resource.metadata.stored is not None  # noqa: S101 - decode has just set it
        return resource, resource.metadata.stored

    # --- values that are not resources ---

    async def delete_corrupt(self, key: str, required: Preconditions) -> None:
        """Remove a value that is not a resource of this kind, and nothing else.

        Raises:
            NotFoundError: there is no such key.
            ConflictError: the value has changed; the new one stays.
            InvalidResourceError: the value can be decoded; it stays.
        """
        if required.uid is not None:
            raise InvalidResourceError(
                key, "a value that cannot be decoded has no uid; give its resource_version"
            )
        required.check_types(key)
        entry = await self._entry_at(key)
        if self._is_decodable(entry):
            raise InvalidResourceError(key, "it can be decoded: delete it without `corrupt`")
        # Only these bytes, which are known not to be a resource: what replaces them may be one.
        version = required.resource_version
        expected = entry.mod_revision if version is None else version
        # The value is compared, too, and always: the store may be restored before this is sent.
        value = entry.value if len(entry.value) <= MAX_GUARD_SIZE else None
        try:
            await self._client.backend.delete(key, expected=expected, expected_value=value)
        except ConflictError as exc:
            found = exc.current.mod_revision if exc.current is not None else ""
            raise ConflictError(key, expected=expected, found=found) from None

    async def _entry_at(self, key: str) -> Entry:
        # `get` refuses a key that is too long to be written. A list does not, and the first key
        # that starts with this one is this one.
        first = (await self._client.backend.list(key, limit=1)).entries
        if first and first[0].key == key:
            return first[0]
        if key.endswith("/"):
            raise InvalidResourceError(key, "a name is needed")
        raise NotFoundError(key)

    def _is_decodable(self, entry: Entry) -> bool:
        try:
            self._decoder.decode(entry)
        except CorruptResourceError:
            return False
        return True
