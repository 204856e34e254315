"""Recorders: wrappers of a backend or a repository that write a history."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from typing_extensions import override

from kvorum.errors import (
    AlreadyExistsError,
    ConflictError,
    KvorumError,
    LeaseNotFoundError,
    NotFoundError,
    OutcomeUnknownError,
)
from kvorum.repository import Repository
from kvorum.resources import AnyResource, Resource, resource_key
from kvorum.storage import Change, Entry, Operation, Page, StorageBackend, StorageWatch
from kvorum.testing.evidence.history import (
    Answer,
    Count,
    History,
    Observation,
    OpenCall,
    Outcome,
    Snapshot,
    Write,
)

T = TypeVar("T")
R = TypeVar("R", bound=AnyResource)


class Recorder:
    """Records the calls of one client in a history."""

    def __init__(self, history: History, client: str) -> None:
        self.history: History = history
        self.client: str = client
        self._lost: WeakKeyDictionary[OutcomeUnknownError, int] = WeakKeyDictionary()

    async def call(
        self,
        name: str,
        about: tuple[Write, ...] | str,
        answer: Awaitable[T],
        seen: Callable[[T], Answer],
        *,
        ttl: float = 0.0,
        lease: int = 0,
        settles: OutcomeUnknownError | None = None,
    ) -> T:
        """Await `answer` and record its outcome: what `seen` makes of the result, or the error.

        `about` is the requested writes, or else the key, prefix or resource that the call concerns.
        A call that is cancelled has no end in the history.
        """
        requested, subject = ((), about) if isinstance(about, str) else (about, "")
        number = self._lost.get(settles) if settles is not None else None
        call = self.history.start(self.client, name, requested, subject, ttl=ttl, settles=number)
        try:
            result = await answer
        except KvorumError as exc:
            self._refused(call, exc, lease)
            raise
        except BaseException as exc:
            self.history.end(
                call, Outcome.UNKNOWN, Answer(error=repr(exc), lease=lease), is_cut_off=True
            )
            raise
        self.history.end(call, Outcome.DONE, seen(result))
        return result

    def _refused(self, call: OpenCall, error: KvorumError, lease: int) -> None:
        outcome = Outcome.REFUSED
        if isinstance(error, OutcomeUnknownError):
            outcome = Outcome.UNKNOWN
            self._lost[error] = call.started
        if isinstance(error, LeaseNotFoundError):
            lease = error.lease or lease or _lease_of(call.requested)
        # Only a conflict settles the lost call; any other error leaves its outcome unknown.
        is_given_up = call.settles is not None and not isinstance(error, ConflictError)
        answer = Answer(
            error=str(error),
            observation=_observation_of(error, call),
            lease=lease,
            is_given_up=is_given_up,
        )
        self.history.end(call, outcome, answer)


def _lease_of(requested: tuple[Write, ...]) -> int:
    """Return the lease that a call attaches keys to; 0 for none or several."""
    leases = {write.lease for write in requested if isinstance(write.lease, int) and write.lease}
    return leases.pop() if len(leases) == 1 else 0


def _observation_of(error: KvorumError, call: OpenCall) -> Observation | None:
    """Return what an error reports about a key."""
    match error:
        case ConflictError(subject=key, current=Entry() as current, expected=int()):
            return Observation.of(key, current, unlike=_unlike(error))
        case ConflictError(subject=key, current=None, expected=int(expected)) if call.requested:
            return Observation.of(key, None, unlike=expected)  # a repository may not have read it
        case ConflictError(current=Resource() as current):
            return _observation_of_resource(current, unlike=_unlike(error))
        case AlreadyExistsError(subject=key):
            return Observation(key, exists=True)
        case NotFoundError(subject=key):
            return Observation(key, exists=False)
        case _:
            return None


def _unlike(error: ConflictError) -> int | None:
    """Return the expected revision that was not found; None if a uid or a value was compared."""
    return error.expected if isinstance(error.expected, int) and not error.recurred else None


def _observation_of_resource(
    resource: AnyResource, *, unlike: int | None = None
) -> Observation | None:
    stored = resource.metadata.stored
    if stored is None:
        return None
    return Observation(
        stored.key, exists=True, revision=stored.revision, value=stored.value, unlike=unlike
    )


class RecordingBackend(StorageBackend):
    """Forwards every call and records it. Watches are not recorded: see `WatchedStream`."""

    def __init__(self, backend: StorageBackend, history: History, client: str) -> None:
        self._backend = backend
        self._call = Recorder(history, client).call

    @property
    @override
    def page_size(self) -> int:
        return self._backend.page_size

    @override
    def location(self, key: str) -> str:
        return self._backend.location(key)

    @override
    async def get(self, key: str, *, revision: int | None = None) -> Entry | None:
        answer = self._backend.get(key, revision=revision)
        return await self._call(
            "get",
            key,
            answer,
            lambda entry: Answer(observation=Observation.of(key, entry, at=revision)),
        )

    @override
    async def exists(self, key: str) -> bool:
        return await self._call(
            "exists",
            key,
            self._backend.exists(key),
            lambda there: Answer(observation=Observation(key, there)),
        )

    @override
    async def list(
        self,
        prefix: str,
        *,
        limit: int | None = None,
        after: str | None = None,
        revision: int | None = None,
    ) -> Page:
        def seen(page: Page) -> Answer:
            entries = tuple(page.entries)
            snapshot = Snapshot(
                prefix, after, limit, entries, page.remaining, page.revision, revision
            )
            return Answer(snapshot=snapshot)

        answer = self._backend.list(prefix, limit=limit, after=after, revision=revision)
        return await self._call("list", prefix, answer, seen)

    @override
    async def count(self, prefix: str, *, revision: int | None = None) -> int:
        answer = self._backend.count(prefix, revision=revision)
        return await self._call(
            "count", prefix, answer, lambda number: Answer(count=Count(prefix, number, revision))
        )

    @override
    async def keys(self, pattern: str = "*") -> Sequence[str]:
        # Not recorded: the answer names no revision.
        return await self._backend.keys(pattern)

    @override
    async def set(self, key: str, value: bytes, *, lease: int = 0, unique: bool = False) -> int:
        answer = self._backend.set(key, value, lease=lease, unique=unique)
        return await self._call("set", (Write(key, value, lease=lease),), answer, _written)

    @override
    async def create(self, key: str, value: bytes, *, lease: int = 0, unique: bool = False) -> int:
        answer = self._backend.create(key, value, lease=lease, unique=unique)
        return await self._call("create", (Write(key, value, 0, lease=lease),), answer, _written)

    @override
    async def compare_and_swap(
        self,
        key: str,
        value: bytes,
        *,
        expected: int,
        lease: int | None = None,
        unique: bool = False,
        expected_value: bytes | None = None,
    ) -> int:
        answer = self._backend.compare_and_swap(
            key, value, expected=expected, lease=lease, unique=unique, expected_value=expected_value
        )
        return await self._call(
            "compare_and_swap", (Write(key, value, expected, lease=lease),), answer, _written
        )

    @override
    def may_recur(self, revision: int) -> bool:
        return self._backend.may_recur(revision)

    @override
    async def delete(
        self, key: str, *, expected: int | None = None, expected_value: bytes | None = None
    ) -> Change:
        answer = self._backend.delete(key, expected=expected, expected_value=expected_value)
        return await self._call(
            "delete",
            (Write(key, None, expected),),
            answer,
            lambda change: Answer(revision=change.revision, change=change),
        )

    @override
    async def commit(self, operations: Sequence[Operation]) -> int:
        requested = tuple(
            Write(each.key, each.value, each.expected, each.writes, each.lease)
            for each in operations
        )
        return await self._call("commit", requested, self._backend.commit(operations), _written)

    @override
    async def settle(self, lost: OutcomeUnknownError) -> int:
        # A call that was lost elsewhere is not in this history.
        answer = self._backend.settle(lost)
        return await self._call("settle", lost.subject, answer, _written, settles=lost)

    @override
    async def grant_lease(self, ttl: float) -> int:
        answer = self._backend.grant_lease(ttl)
        return await self._call(
            "grant_lease", "", answer, lambda lease: Answer(lease=lease), ttl=ttl
        )

    @override
    async def grant_lease_for(self, key: str, ttl: float) -> int:
        # That `delete` revokes it is not recorded: this removes no key.
        answer = self._backend.grant_lease_for(key, ttl)
        return await self._call(
            "grant_lease", "", answer, lambda lease: Answer(lease=lease), ttl=ttl
        )

    @override
    async def revoke_lease(self, lease: int) -> None:
        answer = self._backend.revoke_lease(lease)
        await self._call(
            "revoke_lease", f"lease {lease:x}", answer, lambda _: Answer(lease=lease), lease=lease
        )

    @override
    def watch(
        self, prefix: str, *, since: int | None = None, bookmarks: bool = False
    ) -> StorageWatch:
        return self._backend.watch(prefix, since=since, bookmarks=bookmarks)

    @override
    async def open(self) -> None:
        await self._backend.open()

    @override
    async def aclose(self) -> None:
        await self._backend.aclose()


def _written(revision: int) -> Answer:
    return Answer(revision=revision)


class RecordingRepository(Generic[R]):
    """Records the calls to a repository in a history, to compare results with the server's history.

    It shows what users see; a `RecordingBackend` below the repository shows the requests sent for
    it. Give each its own history. This one does not hold every write, because a call that changes
    nothing looks like one that does: use `check_revisions(..., is_complete=False)`.
    """

    def __init__(self, repository: Repository[R], history: History, client: str) -> None:
        self._repository = repository
        self._call = Recorder(history, client).call

    async def add(self, resource: R, *, ttl: float | None = None) -> R:
        """Record what was stored."""
        return await self._call(
            "add", resource.metadata.name, self._repository.add(resource, ttl=ttl), _returned
        )

    async def get(self, name: str, *, namespace: str | None = None) -> R:
        """Record what was observed."""
        return await self._call(
            "get", name, self._repository.get(name, namespace=namespace), _returned
        )

    async def exists(self, name: str, *, namespace: str | None = None) -> bool:
        """Record what was observed."""
        key = resource_key(self._repository.kind, name, namespace)
        answer = self._repository.exists(name, namespace=namespace)
        return await self._call(
            "exists", name, answer, lambda there: Answer(observation=Observation(key, there))
        )

    async def update(self, resource: R) -> R:
        """Record what was stored."""
        return await self._call(
            "update", resource.metadata.name, self._repository.update(resource), _returned
        )

    async def update_status(self, resource: R) -> R:
        """Record what was stored."""
        return await self._call(
            "update_status",
            resource.metadata.name,
            self._repository.update_status(resource),
            _returned,
        )

    async def mutate(
        self,
        name: str,
        change: Callable[[R], R | Awaitable[R | None] | None],
        *,
        namespace: str | None = None,
    ) -> R:
        """Record what was stored."""
        answer = self._repository.mutate(name, change, namespace=namespace)
        return await self._call("mutate", name, answer, _returned)

    async def patch(
        self, name: str, merge_patch: Mapping[str, Any], *, namespace: str | None = None
    ) -> R:
        """Record what was stored."""
        answer = self._repository.patch(name, merge_patch, namespace=namespace)
        return await self._call("patch", name, answer, _returned)

    async def delete(
        self,
        name: str,
        *,
        namespace: str | None = None,
        resource_version: int | None = None,
        uid: str | None = None,
    ) -> R:
        """Record that it was absent at the returned revision, unless it has finalizers."""
        key = resource_key(self._repository.kind, name, namespace)

        def seen(result: R) -> Answer:
            metadata = result.metadata
            if metadata.finalizers:  # it is only marked for deletion
                return _returned(result)
            return Answer(observation=Observation(key, exists=False, at=metadata.resource_version))

        answer = self._repository.delete(
            name, namespace=namespace, resource_version=resource_version, uid=uid
        )
        return await self._call("delete", name, answer, seen)


def _returned(result: AnyResource) -> Answer:
    observation = _observation_of_resource(result)
    assert observation is not None
    return Answer(observation=observation)
