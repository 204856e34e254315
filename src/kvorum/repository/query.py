"""What a list asks for, and how it is answered: page by page, all of them at one revision."""

from collections.abc import Callable
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
    stray_key,
)
from kvorum.selectors import Selector
from kvorum.storage import Entry, Selection, StorageBackend, may_match

R = TypeVar("R", bound=AnyResource)
R_co = TypeVar("R_co", bound=AnyResource, covariant=True)

OnCorrupt: TypeAlias = Literal["fail", "collect"]
"""What a list does about a value that is no resource of its kind.

Raise, or go on and say so in the end.
"""

_TRIES: Final = 3


class Decode(Protocol[R_co]):
    """Makes a resource of an entry, at the entry's revision or another.

    Raises `CorruptResourceError`.
    """

    def __call__(self, entry: Entry, *, revision: int | None = None) -> R_co:
        """Decode an entry."""
        ...


class Query(Generic[R]):
    """The resources of a kind, or of one namespace of it, that a selector matches.

    Field selectors that ask for one name or namespace narrow what the store is asked for, so that
    no other key is read.

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
            self._namespaces = []  # their keys have none to go by
        self.prefix: str = self._narrowed(kind_prefix(self._kind, namespace), namespace)

    def _narrowed(self, prefix: str, namespace: str | None) -> str:
        """Return what the keys of those start with that have the name and namespace that are asked for."""
        if namespace is None and self._namespaces and not problems_of_label(self._namespaces[0]):
            namespace = self._namespaces[0]
            prefix = kind_prefix(self._kind, namespace)
        knows_place = namespace is not None or not self._kind.namespaced
        if knows_place and self._names and not problems_of_subdomain(self._names[0]):
            prefix += self._names[0]
        return prefix

    # --- one entry ---

    def select(self, entry: Entry, *, revision: int | None = None) -> R | None:
        """Return the resource that an entry holds, or None if it is not one of those asked for.

        The one way to select: lists, watches and whatever else selects decide alike, and in this
        order: is it at a key of those asked for; do its labels match, of which no more is decoded;
        is it a resource of the kind; do its fields match. So what is corrupt is passed over if its
        key or its labels say that it was not asked for.

        Raises:
            CorruptResourceError: it is no resource of this kind, and its key and labels do not say
                that it was not asked for.
        """
        if not self._may_be_at(entry.key):
            return None
        labels = self.selector.labels
        if not labels.is_everything and not may_match(labels, entry):
            return None
        resource = self._decode(entry, revision=revision)
        return resource if self.selector.fields.matches(resource) else None

    def key_of(self, error: CorruptResourceError) -> str:
        """Return the key of what cannot be read, as the port knows it."""
        return stray_key(self._kind, error.name, error.namespace)

    def _may_be_at(self, key: str) -> bool:
        if not self._names and not self._namespaces:
            return True
        namespace, name = split_key(self._kind, key)
        return all(each == name for each in self._names) and all(
            each == namespace for each in self._namespaces
        )

    # --- all of them ---

    async def page(
        self,
        backend: StorageBackend,
        *,
        limit: int | None = None,
        continue_from: str | None = None,
        at: int | None = None,
        on_corrupt: OnCorrupt = "fail",
    ) -> ResourceList[R]:
        """Return at most `limit` of what matches (None: all of it), and where it goes on.

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
            # A list of now that takes many requests can be overtaken by a compaction: then it
            # begins again.
            again = retry_if_exception_type(HistoryLostError)
            return await AsyncRetrying(
                retry=again, stop=stop_after_attempt(1 if at else _TRIES), reraise=True
            )(select)
        try:
            return await select()
        except HistoryLostError as exc:
            anew = str(Continuation.at(digest, 0, start.key))
            lost, oldest = exc.revision, exc.compact_revision
            raise HistoryLostError(
                revision=lost, compact_revision=oldest, continuation=anew
            ) from exc

    async def count(self, backend: StorageBackend, *, on_corrupt: OnCorrupt = "fail") -> int:
        """Count what matches; without reading it if that need not be known.

        See `Repository.count`.
        """
        self._check_on_corrupt(on_corrupt)
        if self.selector.is_everything and on_corrupt == "fail":
            return await backend.count(self.prefix)
        return len(await self.page(backend, on_corrupt=on_corrupt))

    def _answer(
        self, found: Selection[R], corrupt: list[CorruptResourceError], digest: bytes
    ) -> ResourceList[R]:
        goes_on = found.remaining and found.last is not None
        return ResourceList(
            found.items,
            found.revision,
            continuation=str(Continuation.at(digest, found.revision, found.last or ""))
            if goes_on
            else None,
            remaining=found.remaining if self.selector.is_everything else None,
            corrupt=corrupt,
        )

    def _digest(self, backend: StorageBackend) -> bytes:
        """Identify what is asked for, so that no continuation of another list can be mistaken for one of this."""
        asked = [self.selector.labels, self.selector.fields]
        parts = [
            self._kind.api_version,
            self._kind.name,
            backend.location(self.prefix),
            *map(str, asked),
        ]
        return blake2b("\n".join(parts).encode(errors="surrogateescape"), digest_size=8).digest()

    def _keep(
        self, corrupt: list[CorruptResourceError], on_corrupt: OnCorrupt
    ) -> Callable[[Entry], R | None]:
        """Return what makes a resource of an entry, or None if it is not one of those asked for."""
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
