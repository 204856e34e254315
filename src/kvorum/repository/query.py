"""Which resources a list, a watch or a cache is about, and how they are listed."""

from collections.abc import Awaitable, Callable
from hashlib import blake2b
from typing import Final, Generic, Literal, Protocol, TypeAlias, TypeVar, get_args

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

from kvorum.errors import (
    CorruptResourceError,
    HistoryLostError,
    InvalidResourceError,
    without_frames,
)
from kvorum.repository.continuation import Continuation
from kvorum.repository.resource_list import ResourceList
from kvorum.resources import (
    AnyResource,
    kind_prefix,
    problems_of_label,
    problems_of_subdomain,
    split_key,
)
from kvorum.runtime import raised_alone
from kvorum.selectors import Selector
from kvorum.storage import Entry, Selection, StorageBackend, may_match

R = TypeVar("R", bound=AnyResource)
R_co = TypeVar("R_co", bound=AnyResource, covariant=True)
T = TypeVar("T")

OnCorrupt: TypeAlias = Literal["fail", "collect"]
"""What a list does about a value that is not a resource of its kind.

Raise its error, or continue and return all such errors with the list.
"""

_TRIES: Final = 3


class Decode(Protocol[R_co]):
    """A function that decodes an entry."""

    def __call__(self, entry: Entry, *, revision: int | None = None) -> R_co:
        """Return the resource that an entry holds, with the entry's revision or another.

        Raises:
            CorruptResourceError: it is not such a resource.
        """
        ...


async def retry_overtaken(read: Callable[[], Awaitable[T]]) -> T:
    """Return what `read` returns. It lists the current state in as many requests as it takes.

    A compaction can overtake such a list: then it is read again, at a newer revision.

    Raises:
        HistoryLostError: three lists in a row were overtaken. And whatever `read` raises.
    """
    retry = retry_if_exception_type(HistoryLostError)
    tries = AsyncRetrying(retry=retry, stop=stop_after_attempt(_TRIES), reraise=True)
    return await raised_alone(tries(read))


class Query(Generic[R]):
    """The resources of a kind, or of one namespace of it, that a selector matches.

    A field selector that names one name or namespace narrows the prefix, so that no other keys are
    read.

    Attributes:
        prefix: what their keys start with.
        selector: which of them.
    """

    def __init__(
        self,
        resource_type: type[R],
        decode: Decode[R],
        selector: Selector[R],
        *,
        namespace: str | None,
    ) -> None:
        self.selector: Selector[R] = selector
        self._kind = resource_type.kind
        self._decode = decode
        wanted = [each for each in selector.fields.requirements if each.is_equal]
        self._names = [each.value for each in wanted if each.path == "metadata.name"]
        self._namespaces = [each.value for each in wanted if each.path == "metadata.namespace"]
        if not self._kind.namespaced:
            self._namespaces = []  # their keys have none
        self.prefix: str = self._narrowed(kind_prefix(self._kind, namespace), namespace)

    def _narrowed(self, prefix: str, namespace: str | None) -> str:
        """Return the prefix of the keys that have the selected name and namespace."""
        if namespace is None and self._namespaces and not problems_of_label(self._namespaces[0]):
            namespace = self._namespaces[0]
            prefix = kind_prefix(self._kind, namespace)
        is_one_level = namespace is not None or not self._kind.namespaced
        if is_one_level and self._names and not problems_of_subdomain(self._names[0]):
            prefix += self._names[0]
        return prefix

    def select(self, entry: Entry, *, revision: int | None = None) -> R | None:
        """Return the resource that an entry holds, or None if it is not selected.

        Lists, watches and caches all select by this method, so they agree. It decides in this
        order: does the key match; do the labels match, without decoding anything else; is it a
        resource of the kind; do its fields match. So an unreadable value is skipped if its key or
        its labels do not match.

        Raises:
            CorruptResourceError: it is not a resource of this kind, and its key and labels do not
                exclude it.
        """
        if not self._may_be_at(entry.key):
            return None
        labels = self.selector.labels
        if not labels.is_everything and not may_match(labels, entry):
            return None
        resource = self._decode(entry, revision=revision)
        return resource if self.selector.fields.matches(resource) else None

    def _may_be_at(self, key: str) -> bool:
        if not self._names and not self._namespaces:
            return True
        namespace, name = split_key(self._kind, key)
        return all(each == name for each in self._names) and all(
            each == namespace for each in self._namespaces
        )

    async def page(
        self,
        backend: StorageBackend,
        *,
        limit: int | None = None,
        continue_from: str | None = None,
        at: int | None = None,
        on_corrupt: OnCorrupt = "fail",
    ) -> ResourceList[R]:
        """Return at most `limit` of what matches (None: all of it), and a continuation.

        See `Repository.list`.
        """
        digest = self._digest(backend)
        start = None
        if continue_from is not None:
            if at is not None:
                raise InvalidResourceError(
                    self.prefix, "a list has either `at` or `continue_from`, which has its own"
                )
            start = Continuation.parse(continue_from, query=digest, subject=self.prefix)
            at = start.revision or None

        async def select() -> ResourceList[R]:
            corrupt: list[CorruptResourceError] = []
            keep, after = self._keep(corrupt, on_corrupt), start.key if start else None
            found = await backend.select(self.prefix, keep, limit=limit, after=after, revision=at)
            return self._answer(found, corrupt, digest)

        if start is None:
            return await (retry_overtaken(select) if at is None else select())
        try:
            return await select()
        except HistoryLostError as exc:
            raise HistoryLostError(
                revision=exc.revision,
                compact_revision=exc.compact_revision,
                continuation=str(Continuation.at(digest, 0, start.key)),
            ) from exc

    async def count(self, backend: StorageBackend, *, on_corrupt: OnCorrupt = "fail") -> int:
        """Count what matches, without reading it if the number of keys is enough.

        See `Repository.count`.
        """
        self._check_on_corrupt(on_corrupt)
        if self.selector.is_everything and on_corrupt == "fail":
            return await backend.count(self.prefix)
        return len(await self.page(backend, on_corrupt=on_corrupt))

    def _answer(
        self, found: Selection[R], corrupt: list[CorruptResourceError], digest: bytes
    ) -> ResourceList[R]:
        has_more = found.remaining and found.last is not None
        return ResourceList(
            found.items,
            found.revision,
            continuation=str(Continuation.at(digest, found.revision, found.last or ""))
            if has_more
            else None,
            remaining=found.remaining if self.selector.is_everything else None,
            corrupt=corrupt,
        )

    def _digest(self, backend: StorageBackend) -> bytes:
        """Identify the query, so that a continuation of another list is rejected."""
        parts = [
            self._kind.api_version,
            self._kind.name,
            backend.location(self.prefix),
            str(self.selector.labels),
            str(self.selector.fields),
        ]
        return blake2b("\n".join(parts).encode(errors="surrogateescape"), digest_size=8).digest()

    def _keep(
        self, corrupt: list[CorruptResourceError], on_corrupt: OnCorrupt
    ) -> Callable[[Entry], R | None]:
        """Return a function like `select` that collects errors, if that was asked for."""
        self._check_on_corrupt(on_corrupt)

        def keep(entry: Entry) -> R | None:
            try:
                return self.select(entry)
            except CorruptResourceError as exc:
                if on_corrupt == "fail":
                    raise
                corrupt.append(without_frames(exc))
                return None

        return keep

    def _check_on_corrupt(self, on_corrupt: OnCorrupt) -> None:
        if on_corrupt not in get_args(OnCorrupt):
            raise InvalidResourceError(
                self.prefix, f"on_corrupt is 'fail' or 'collect', not {on_corrupt!r}"
            )
