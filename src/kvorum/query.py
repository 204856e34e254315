"""What a list asks for, and how it is answered: page by page, all of them at one revision."""

from collections.abc import Callable
from hashlib import blake2b
from typing import Final, Generic, Literal, Protocol, TypeAlias, TypeVar, get_args

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

from kvorum.continuation import Continuation
from kvorum.errors import CorruptResourceError, HistoryLostError, InvalidResourceError
from kvorum.keys import kind_prefix
from kvorum.resource_list import ResourceList
from kvorum.resources import AnyResource
from kvorum.selectors import Selector
from kvorum.storage import Entry, Selection, StorageBackend, may_match

R = TypeVar("R", bound=AnyResource)
R_co = TypeVar("R_co", bound=AnyResource, covariant=True)

OnCorrupt: TypeAlias = Literal["fail", "collect"]
"""What a list does about a value that is no resource of its kind: raise, or go on and say so in the end."""

_TRIES: Final = 3


class Decode(Protocol[R_co]):
    """Makes a resource of an entry, at the entry's revision or another; raises `CorruptResourceError`."""

    def __call__(self, entry: Entry, *, revision: int | None = None) -> R_co:
        """Decode an entry."""
        ...


class Query(Generic[R]):
    """The resources of a kind, or of one namespace of it, that a selector matches.

    Attributes:
        prefix: what their keys start with.
        selector: which of them.
    """

    def __init__(
        self, resource_type: type[R], decode: Decode[R], selector: Selector[R], *, namespace: str | None
    ) -> None:
        self.prefix: str = kind_prefix(resource_type.kind, namespace)
        self.selector: Selector[R] = selector
        self._kind = resource_type.kind
        self._decode = decode

    async def page(
        self,
        backend: StorageBackend,
        *,
        limit: int | None = None,
        continue_from: str | None = None,
        at: int | None = None,
        on_corrupt: OnCorrupt = "fail",
    ) -> ResourceList[R]:
        """Return at most `limit` of what matches (None: all of it), and where it goes on. See `Repository.list`."""
        digest = self._digest(backend)
        start = None
        if continue_from is not None:
            if at is not None:
                raise InvalidResourceError(self.prefix, "a list has either `at` or `continue_from`, which has its own")
            start = Continuation.parse(continue_from, query=digest, subject=self.prefix)
            at = start.revision or None

        async def select() -> ResourceList[R]:
            corrupt: list[CorruptResourceError] = []
            keep, after = self._keep(corrupt, on_corrupt), start.key if start else None
            found = await backend.select(self.prefix, keep, limit=limit, after=after, revision=at)
            return self._answer(found, corrupt, digest)

        if start is None:
            # A list of now that takes many requests can be overtaken by a compaction: then it begins again.
            again = retry_if_exception_type(HistoryLostError)
            return await AsyncRetrying(retry=again, stop=stop_after_attempt(1 if at else _TRIES), reraise=True)(select)
        try:
            return await select()
        except HistoryLostError as exc:
            anew = str(Continuation.at(digest, 0, start.key))
            lost, oldest = exc.revision, exc.compact_revision
            raise HistoryLostError(revision=lost, compact_revision=oldest, continuation=anew) from exc

    async def count(self, backend: StorageBackend) -> int:
        """Count what matches; without a selector, without reading it."""
        if self.selector.is_everything:
            return await backend.count(self.prefix)
        return len(await self.page(backend))

    def _answer(self, found: Selection[R], corrupt: list[CorruptResourceError], digest: bytes) -> ResourceList[R]:
        goes_on = found.remaining and found.last is not None
        return ResourceList(
            found.items,
            found.revision,
            continuation=str(Continuation.at(digest, found.revision, found.last or "")) if goes_on else None,
            remaining=found.remaining if self.selector.is_everything else None,
            corrupt=corrupt,
        )

    def _digest(self, backend: StorageBackend) -> bytes:
        """Identify what is asked for, so that no continuation of another list can be mistaken for one of this."""
        asked = [self.selector.labels, self.selector.fields]
        parts = [self._kind.api_version, self._kind.name, backend.location(self.prefix), *map(str, asked)]
        return blake2b("\n".join(parts).encode(errors="surrogateescape"), digest_size=8).digest()

    def _keep(self, corrupt: list[CorruptResourceError], on_corrupt: OnCorrupt) -> Callable[[Entry], R | None]:
        """Return what makes a resource of an entry, or None if it is not one of those asked for."""
        if on_corrupt not in get_args(OnCorrupt):
            raise InvalidResourceError(self.prefix, f"on_corrupt is 'fail' or 'collect', not {on_corrupt!r}")
        labels, fields = self.selector.labels, self.selector.fields

        def keep(entry: Entry) -> R | None:
            if not labels.is_everything and not may_match(labels, entry):
                return None
            try:
                resource = self._decode(entry)
            except CorruptResourceError as exc:
                if on_corrupt == "fail":
                    raise
                corrupt.append(exc)
                return None
            return resource if fields.matches(resource) else None

        return keep
