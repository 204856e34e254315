"""Repositories: typed resources in a store, with optimistic concurrency.

Every write is a compare-and-swap on the revision that the resource was read at, so no update is
ever lost: whoever comes second gets a `ConflictError`, or, with `mutate`, another go.
"""

import builtins
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar, get_args, overload

import anyio
import msgspec
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from kvorum.arguments import (
    check_function,
    check_given_revision,
    check_items,
    check_limit,
    check_revision,
    check_start,
    check_uid,
    shown,
)
from kvorum.deadlines import own_time
from kvorum.encoding import Draft, codec_for
from kvorum.errors import (
    ConflictError,
    CorruptResourceError,
    InvalidResourceError,
    KvorumError,
    NotFoundError,
)
from kvorum.gather import each
from kvorum.repository.query import OnCorrupt, Query
from kvorum.repository.resource_list import ResourceList
from kvorum.repository.scan import Scan
from kvorum.repository.transitions import OnCorruptEvent
from kvorum.repository.watch import TolerantWatch, Watch
from kvorum.resources import AnyResource, Kind, Metadata, Stored, resource_key, split_key, stray_key
from kvorum.selectors import FieldSelectorLike, LabelSelectorLike, Selector
from kvorum.storage import Entry, HasBackend, StorageBackend

R = TypeVar("R", bound=AnyResource)
Default = TypeVar("Default")

# Changes a resource in place, or returns another; may be async.
Change: TypeAlias = Callable[[R], R | Awaitable[R | None] | None]

# How long `mutate`, `patch` and `delete` go on against others who write the same resource. Somebody
# wins each round, so only a resource that is written all the time, by many, gets here.
CONTENTION_TIMEOUT: Final = 10.0

# Bytes of a stored value up to which a write compares it beside a revision that may have come
# again. Old and new value have to fit one request.
_COMPARED_SIZE: Final = 65_536

_REQUIRED: Final = object()


class Repository(Generic[R]):
    """The resources of one kind. Cheap: make one per request, or keep one for as long as the client lives.

    Names and namespaces are checked before anything is sent. For a namespaced kind every method
    that takes a name takes its `namespace`, too.

    Beside what each method names, all can raise:
        InvalidResourceError: a name or a resource breaks a rule. Nothing was sent.
        CorruptResourceError: the stored bytes are not a resource of this kind.
        UnavailableError: the store was not reached. Nothing was changed.
        OutcomeUnknownError: a write was sent, and whether it was applied is not known.
        PermissionDeniedError, AuthenticationError: the store refuses the user.
        ClientClosedError: the client is not open.
    """

    def __init__(self, client: HasBackend, resource_type: type[R]) -> None:
        self._client = client
        self._codec = codec_for(resource_type)
        self.kind: Kind = self._codec.kind

    def __repr__(self) -> str:
        return f"<Repository {self.kind.plural}>"

    @property
    def _backend(self) -> StorageBackend:
        return self._client.backend

    # --- read ---

    @overload
    async def get(self, name: str, *, namespace: str | None = None) -> R: ...
    @overload
    async def get(
        self, name: str, default: Default, *, namespace: str | None = None
    ) -> R | Default: ...
    async def get(
        self, name: str, default: Any = _REQUIRED, *, namespace: str | None = None
    ) -> Any:
        """Return a resource as it is now (linearizable); or the default, if one is given and there is no such resource.

        Raises:
            NotFoundError: there is no such resource, and no default.
        """
        key = resource_key(self.kind, name, namespace)
        entry = await self._backend.get(key)
        if entry is not None:
            return self._decode(entry)
        if default is _REQUIRED:
            raise NotFoundError(key)
        return default

    async def exists(self, name: str, *, namespace: str | None = None) -> bool:
        """Tell whether there is such a resource, decodable or not."""
        return await self._backend.exists(resource_key(self.kind, name, namespace))

    async def get_many(
        self, names: Iterable[str], *, namespace: str | None = None
    ) -> builtins.list[R | KvorumError]:
        """Return what `get` returns for each of these names, or its error, in their order: few requests for many names.

        Each is read by itself: they need not be of one revision, as those of `list` are.
        """
        check_items(self.kind.plural, names, "names")
        return await each(partial(self.get, namespace=namespace), names)

    async def list(
        self,
        *,
        labels: LabelSelectorLike = None,
        fields: FieldSelectorLike = None,
        namespace: str | None = None,
        limit: int | None = None,
        continue_from: str | None = None,
        at: int | None = None,
        on_corrupt: OnCorrupt = "fail",
    ) -> ResourceList[R]:
        """Return all resources, or those that the selectors match, at one revision, in the order of their keys.

        It takes a request for each 1000 resources (`EtcdSettings.page_size`), never one for each.
        With a selector and a `limit`, the requests grow until there is enough. Of what a label
        selector filters out only labels are decoded.

        Args:
            labels: a label selector, as `lab-track=comp-sci-101,!draining`.
            fields: a field selector, as `status.phase=Ready`.
            namespace: only this one, of a namespaced kind.
            limit: how many at the most; `ResourceList.continuation` then tells where it goes on. A
                last page can be empty if there is a selector.
            continue_from: `ResourceList.continuation` of the page before; all else, but for the
                limit, as it was then. All pages show the revision of the first. One continuation
                can be used any number of times.
            at: the revision to list at; now by default.
            on_corrupt: what to do about a value that is no resource of this kind: "fail", or
                "collect" it in `ResourceList.corrupt`.

        Raises:
            InvalidSelectorError: a selector cannot be read. Nothing was sent.
            InvalidResourceError: `limit` or `at` is no int of 1 or more; `continue_from` was
                changed, or is of another list.
            CorruptResourceError: a value is no resource of this kind; the first one is named.
            HistoryLostError: `at` has been compacted, or the revision of `continue_from` has: then
                the error has a `continuation` to go on with, knowingly, at the revision of now.
            FutureRevisionError: `at` has not been reached.
        """
        query = self._query(labels, fields, namespace)
        check_limit(query.prefix, limit)
        check_revision(query.prefix, at, "at")
        return await query.page(
            self._backend, limit=limit, continue_from=continue_from, at=at, on_corrupt=on_corrupt
        )

    def scan(
        self,
        *,
        labels: LabelSelectorLike = None,
        fields: FieldSelectorLike = None,
        namespace: str | None = None,
        limit: int | None = None,
        continue_from: str | None = None,
        at: int | None = None,
        on_corrupt: OnCorrupt = "fail",
    ) -> Scan[R]:
        """Go through what `list` returns without holding all of it: `async for worker in workers.scan()`.

        All of it is shown as it was at one revision, however long that takes; see `Scan`, also for
        what it raises.

        Args:
            labels: a label selector.
            fields: a field selector.
            namespace: only this one, of a namespaced kind.
            limit: how many to read at once; `EtcdSettings.page_size` by default.
            continue_from: go on where a list or another scan ended.
            at: the revision to show; that of the first request by default.
            on_corrupt: what to do about a value that is no resource of this kind: "fail", or
                "collect" it in `Scan.corrupt`.

        Raises:
            InvalidSelectorError: a selector cannot be read.
            InvalidResourceError: `limit` or `at` is no int of 1 or more.
        """
        query = self._query(labels, fields, namespace)
        check_limit(query.prefix, limit)
        check_revision(query.prefix, at, "at")
        return Scan(
            self._client,
            query,
            limit=limit,
            continue_from=continue_from,
            at=at,
            on_corrupt=on_corrupt,
        )

    async def count(
        self,
        *,
        labels: LabelSelectorLike = None,
        fields: FieldSelectorLike = None,
        namespace: str | None = None,
        on_corrupt: OnCorrupt = "fail",
    ) -> int:
        """Count all resources (which reads none), or those that the selectors match (which reads all).

        What is not read is counted, resource or not. With `on_corrupt="collect"` all is read, and
        what is no resource of this kind is left out; see `list`.
        """
        return await self._query(labels, fields, namespace).count(
            self._backend, on_corrupt=on_corrupt
        )

    @overload
    def watch(
        self,
        *,
        labels: LabelSelectorLike = None,
        fields: FieldSelectorLike = None,
        namespace: str | None = None,
        since: int | None = None,
        initial: bool = False,
        bookmarks: bool = False,
        on_corrupt: Literal["raise"] = "raise",
    ) -> Watch[R]: ...
    @overload
    def watch(
        self,
        *,
        labels: LabelSelectorLike = None,
        fields: FieldSelectorLike = None,
        namespace: str | None = None,
        since: int | None = None,
        initial: bool = False,
        bookmarks: bool = False,
        on_corrupt: Literal["event"],
    ) -> TolerantWatch[R]: ...
    def watch(
        self,
        *,
        labels: LabelSelectorLike = None,
        fields: FieldSelectorLike = None,
        namespace: str | None = None,
        since: int | None = None,
        initial: bool = False,
        bookmarks: bool = False,
        on_corrupt: OnCorruptEvent = "raise",
    ) -> Watch[R] | TolerantWatch[R]:
        """Follow all resources, or those that the selectors match; see `Watch`.

        Args:
            labels: a label selector.
            fields: a field selector.
            namespace: only this one, of a namespaced kind.
            since: everything after this revision: `ResourceList.resource_version` or
                `Watch.checkpoint`. Without it, everything after the moment when the watch is first
                entered or iterated.
            initial: first show all there is as `Added`, then a `Bookmark` with the revision of that
                state.
            bookmarks: show a `Bookmark` now and then, also while nothing happens: everything up to
                its revision has been shown. How often is up to the server: etcd sends one after ten
                minutes without events, unless it is set to another time.
            on_corrupt: what to do about a value that is no resource of this kind: "raise"
                `CorruptResourceError` and end, or show it as an "event", `Corrupt`, and go on; see
                `TolerantWatch`.

        Raises:
            InvalidSelectorError: a selector cannot be read.
            InvalidResourceError: both `since` and `initial` are given, or `since` is no int of 0 or
                more.
        """
        query = self._query(labels, fields, namespace)
        check_start(query.prefix, since)
        if initial and since is not None:
            raise InvalidResourceError(query.prefix, "a watch has either `initial` or `since`")
        if on_corrupt not in get_args(OnCorruptEvent):
            raise InvalidResourceError(
                query.prefix, f"on_corrupt is 'raise' or 'event', not {shown(on_corrupt)}"
            )
        of = self._client, self._decode, query
        if on_corrupt == "event":
            return TolerantWatch(
                *of, since=since, initial=initial, bookmarks=bookmarks, on_corrupt=on_corrupt
            )
        return Watch(*of, since=since, initial=initial, bookmarks=bookmarks, on_corrupt=on_corrupt)

    def _query(
        self, labels: LabelSelectorLike, fields: FieldSelectorLike, namespace: str | None
    ) -> Query[R]:
        selector = Selector(self._codec.resource_type, labels, fields)
        return Query(self._codec.resource_type, self._decode, selector, namespace=namespace)

    def _decode(self, entry: Entry, *, revision: int | None = None) -> R:
        try:
            return self._codec.decode(entry, revision=revision)
        except CorruptResourceError as exc:
            # The codec knows keys as the port does; whoever reads the error needs the one that
            # etcdctl takes, or the name that `delete` does.
            namespace, name = split_key(self.kind, exc.key)
            key = self._backend.location(exc.key)
            raise CorruptResourceError(
                key, exc.revision, exc.reason, name=name, namespace=namespace
            ) from exc.__cause__

    # --- write ---

    async def add(self, resource: R, *, ttl: float | None = None) -> R:
        """Store a new resource and return it as it is stored: with uid, version, generation 1 and creation time.

        Args:
            resource: it must not carry a resource version. It is left as it is.
            ttl: seconds after which the store removes it; updates do not change that. The store
                rounds it up, and has a minimum (etcd: 1.5 election timeouts, 2 s by default).

        Raises:
            AlreadyExistsError: there is one of that name; it was left as it is.
            InvalidResourceError: it carries a resource version, so it is stored already.
        """
        key = self._key_of(resource)
        if resource.metadata.resource_version:
            raise InvalidResourceError(
                key, "it carries a resource version, so it is stored already: update it"
            )
        draft = self._codec.draft_new(resource)
        if ttl is None:
            return draft.written(await self._backend.create(key, draft.stored.value, unique=True))
        return draft.written(await self._create_for(ttl, key, draft.stored.value))

    async def update(self, resource: R) -> R:
        """Store a changed resource if nobody has changed it since it was read; return it as it is stored.

        A resource that is as it was writes nothing. What the store owns (uid, timestamps,
        generation) stays. Fields that this version of the type does not know stay, too. So does the
        lease of a resource that has a TTL. A resource that is being deleted goes when its last
        finalizer is taken off; its last state is returned then.

        Raises:
            ConflictError: it has been changed since. `current` is what it is now.
            NotFoundError: it is gone.
            InvalidResourceError: it carries no resource version, so it was never read: add it.
        """
        key, stored = await self._base_of(resource)
        return await self._confirmed(key, stored, self._codec.draft_update(resource, stored))

    async def add_many(
        self, resources: Iterable[R], *, ttl: float | None = None
    ) -> builtins.list[R | KvorumError]:
        """Do what `add` does for each of these resources, or return its error, in their order.

        Each is added by itself, whatever becomes of the others; those that are under way together
        share requests.
        """
        check_items(self.kind.plural, resources, "resources")
        return await each(partial(self.add, ttl=ttl), resources)

    async def update_many(self, resources: Iterable[R]) -> builtins.list[R | KvorumError]:
        """Do what `update` does for each of these resources, or return its error, in their order.

        See `add_many`.
        """
        check_items(self.kind.plural, resources, "resources")
        return await each(self.update, resources)

    async def update_status(self, resource: R) -> R:
        """Store the status alone, if nobody has changed the resource since it was read; like `update` otherwise.

        Whatever else was changed in `resource` is not stored.
        """
        key, stored = await self._base_of(resource)
        current = self._codec.restore(stored)
        current.status = resource.status
        return await self._confirmed(key, stored, self._codec.draft_update(current, stored))

    async def mutate(
        self,
        name: str,
        change: Change[R],
        *,
        namespace: str | None = None,
        resource_version: int | None = None,
        uid: str | None = None,
    ) -> R:
        """Read a resource, change it, and store it; again from the start if somebody else was faster.

        Args:
            name: which resource.
            change: called with the resource as it is now; it changes it in place, or returns
                another. It may be async. It is called once for each try, so it should do nothing
                else. What it raises comes out as it is, and nothing is written.
            namespace: its namespace.
            resource_version: only if it is at this version; then there is one try.
            uid: only if it is this one, not another of the same name.

        Raises:
            NotFoundError: there is no such resource.
            ConflictError: a precondition does not hold. Or: others were faster for 10 seconds.
        """
        key = resource_key(self.kind, name, namespace)
        check_function(key, change, "change")

        async def changed(current: R, stored: Stored) -> Draft[R]:
            result = change(current)
            if inspect.isawaitable(result):
                result = await result
            resource = current if result is None else result
            if self._key_of(resource) != key:
                raise InvalidResourceError(
                    key, f"the change made another resource of it: {self._key_of(resource)}"
                )
            return self._codec.draft_update(resource, stored)

        return await self._retried(key, changed, resource_version, uid)

    async def patch(
        self,
        name: str,
        merge_patch: Mapping[str, Any],
        *,
        namespace: str | None = None,
        resource_version: int | None = None,
        uid: str | None = None,
    ) -> R:
        """Apply a JSON merge patch (RFC 7396) to a resource as it is now; again if somebody else was faster.

        Args:
            name: which resource.
            merge_patch: fields by their names in the stored JSON, as `{"spec": {"labTrack": "x"}}`;
                None removes one. Of the metadata, labels, annotations and finalizers can be
                patched.
            namespace: its namespace.
            resource_version: only if it is at this version; then there is one try.
            uid: only if it is this one, not another of the same name.

        Raises:
            NotFoundError: there is no such resource.
            InvalidResourceError: the patch touches what the store owns, or names a field that does
                not exist.
            ConflictError: a precondition does not hold. Or: others were faster for 10 seconds.
        """

        async def patched(_: R, stored: Stored) -> Draft[R]:
            return self._codec.patch(stored, merge_patch)

        return await self._retried(
            resource_key(self.kind, name, namespace), patched, resource_version, uid
        )

    @overload
    async def delete(
        self,
        name: str,
        *,
        namespace: str | None = None,
        resource_version: int | None = None,
        uid: str | None = None,
        corrupt: Literal[False] = False,
    ) -> R: ...
    @overload
    async def delete(
        self,
        name: str,
        *,
        namespace: str | None = None,
        resource_version: int | None = None,
        corrupt: Literal[True],
    ) -> None: ...
    async def delete(
        self,
        name: str,
        *,
        namespace: str | None = None,
        resource_version: int | None = None,
        uid: str | None = None,
        corrupt: bool = False,
    ) -> R | None:
        """Remove a resource and return its last state, at the version of the deletion.

        A resource with finalizers is not removed yet: it gets a `deletion_timestamp`, is returned
        with it, and goes when `update` (or `mutate`, or `patch`) takes the last finalizer off. The
        lease of one that was added with a TTL ends with it, if the store can be reached for that
        within a second.

        Args:
            name: which resource.
            namespace: its namespace.
            resource_version: only if it is at this version.
            uid: only if it is this one, not another of the same name.
            corrupt: remove a value that is no resource of this kind, and nothing else; return None.
                Name and namespace are then those of the `CorruptResourceError`, whatever they look
                like.

        Raises:
            NotFoundError: there is no such resource.
            ConflictError: a precondition does not hold; the resource stays. Or: others were faster
                for 10 seconds.
            InvalidResourceError: `corrupt` was asked for, but it can be decoded; it stays.
        """
        if corrupt:
            await self._delete_corrupt(stray_key(self.kind, name, namespace), resource_version, uid)
            return None

        async def deleted(current: R, stored: Stored) -> Draft[R] | None:
            if current.metadata.finalizers:
                return self._codec.draft_update(current, stored, deleted=datetime.now(UTC))
            return None

        return await self._retried(
            resource_key(self.kind, name, namespace), deleted, resource_version, uid
        )

    async def _delete_corrupt(
        self, key: str, resource_version: int | None, uid: str | None
    ) -> None:
        if uid is not None:
            raise InvalidResourceError(
                key, "what cannot be decoded has no uid to rely on; give its resource_version"
            )
        _check_precondition_types(key, resource_version, uid)
        # A read of the key itself takes none that is too long to be written; the first key that
        # starts with it is it.
        first = (await self._backend.list(key, limit=1)).entries
        entry = first[0] if first and first[0].key == key else None
        if entry is None and key.endswith("/"):
            raise InvalidResourceError(key, "a name is needed")
        if entry is None:
            raise NotFoundError(key)
        if self._is_decodable(entry):
            raise InvalidResourceError(key, "it can be decoded: delete it without `corrupt`")
        # Just these bytes, which are known to be no resource: what takes their place may be one.
        expected = entry.mod_revision if resource_version is None else resource_version
        try:
            await self._backend.delete(key, expected=expected)
        except ConflictError as exc:
            found = exc.current.mod_revision if exc.current is not None else ""
            raise ConflictError(key, expected=expected, found=found) from None

    def _is_decodable(self, entry: Entry) -> bool:
        try:
            self._decode(entry)
        except CorruptResourceError:
            return False
        return True

    # --- one write ---

    async def _create_for(self, ttl: float, key: str, value: bytes) -> int:
        """Create a key on a lease of its own.

        If that fails, or is cancelled, nothing is left of either.
        """
        lease = await self._backend.grant_lease_for(key, ttl)
        try:
            return await self._backend.create(key, value, lease=lease, unique=True)
        except BaseException:
            # A create that is still under way then finds no lease, and is refused. If the
            # revocation is lost, too, the lease ends by itself.
            with anyio.move_on_after(1, shield=True), own_time(1), suppress(KvorumError):
                await self._backend.revoke_lease(lease)
            raise

    def _key_of(self, resource: R) -> str:
        if (
            type(resource) is not self._codec.resource_type
            or type(resource.metadata) is not Metadata
        ):
            self._check_fields(resource)
        return resource_key(self.kind, resource.metadata.name, resource.metadata.namespace)

    def _check_fields(self, resource: R) -> None:
        """Refuse what is of another class, unless it is derived from ours, and adds no fields.

        They were not stored.
        """
        if not isinstance(resource, self._codec.resource_type):
            raise InvalidResourceError(
                self.kind.plural, f"a {type(resource).__name__} is no {self.kind.name}"
            )
        if not isinstance(resource.metadata, Metadata):
            raise InvalidResourceError(
                self.kind.plural, f"metadata must be a Metadata, not {shown(resource.metadata)}"
            )
        parts: list[tuple[msgspec.Struct, type[msgspec.Struct]]] = [
            (resource, self._codec.resource_type),
            (resource.metadata, Metadata),
        ]
        for given, declared in parts:
            if added := set(given.__struct_fields__) - set(declared.__struct_fields__):
                what = f"a {type(given).__name__} has fields that are not stored: {', '.join(sorted(added))}"
                raise InvalidResourceError(self.kind.plural, what)

    def _read(self, key: str, entry: Entry | None) -> tuple[R, Stored]:
        """Return what an entry holds, and the bytes of that."""
        if entry is None:
            raise NotFoundError(key)
        resource = self._decode(entry)
        assert resource.metadata.stored is not None  # noqa: S101 - decode has just set it
        return resource, resource.metadata.stored

    async def _base_of(self, resource: R) -> tuple[str, Stored]:
        """Return the bytes that an update of this resource starts from.

        From the store if it does not carry them.
        """
        key, version = self._key_of(resource), resource.metadata.resource_version
        if not version:
            raise InvalidResourceError(
                key, "it carries no resource version, so it was never read: add it"
            )
        stored = resource.metadata.stored
        if stored is None:  # it has come from elsewhere: an HTTP request, say
            check_given_revision(key, version, "resource_version")
            current, stored = self._read(key, await self._backend.get(key))
            if stored.revision != version:
                raise ConflictError(key, expected=version, current=current, found=stored.revision)
        if (
            stored.key != key
        ):  # the version does not tell: a transaction gives several resources the same one
            raise InvalidResourceError(key, f"it was read as {stored.key}, and cannot be renamed")
        return key, stored

    def _confirmed(self, key: str, stored: Stored, draft: Draft[R]) -> Awaitable[R]:
        """Write, or, if there is nothing to write, make sure that what the caller relied on is still true."""
        return self._write(key, stored, draft) if draft.changed else self._unchanged(key, stored)

    async def _unchanged(self, key: str, stored: Stored) -> R:
        current, now = self._read(key, await self._backend.get(key))
        if now.revision != stored.revision or now.value != stored.value:
            raise ConflictError(key, expected=stored.revision, current=current, found=now.revision)
        return current

    async def _retried(
        self,
        key: str,
        prepare: Callable[[R, Stored], Awaitable[Draft[R] | None]],
        resource_version: int | None,
        uid: str | None,
    ) -> R:
        """Read, prepare, write; again while the write conflicts.

        What is raised before the write comes out at once.
        """
        _check_precondition_types(key, resource_version, uid)
        tries = AsyncRetrying(
            retry=retry_if_exception_type(ConflictError),
            wait=wait_random_exponential(multiplier=0.01, max=0.2),
            stop=stop_after_delay(CONTENTION_TIMEOUT),
            reraise=True,
        )
        async for attempt in tries:
            current, stored = self._read(key, await self._backend.get(key))
            _check_preconditions(key, current, resource_version, uid)
            draft = await prepare(current, stored)
            with attempt:
                return await self._write(key, stored, draft)
        raise AssertionError("tenacity leaves its loop by an error only")

    async def _write(self, key: str, stored: Stored, draft: Draft[R] | None) -> R:
        """Write a draft over what is stored, or remove that (None).

        Once, and only if it is still there unchanged.
        """
        if draft is not None and not draft.changed:
            return draft.resource
        if draft is not None and draft.resource.metadata.deletion_timestamp:
            draft = self._finalized(key, stored, draft)
        backend = self._backend
        is_compared = len(stored.value) <= _COMPARED_SIZE and backend.may_recur(stored.revision)
        compared = stored.value if is_compared else None
        try:
            if draft is not None:
                revision = await backend.compare_and_swap(
                    key,
                    draft.stored.value,
                    expected=stored.revision,
                    unique=True,
                    expected_value=compared,
                )
                return draft.written(revision)
            change = await backend.delete(key, expected=stored.revision, expected_value=compared)
        except ConflictError as exc:
            current, now = self._read(key, exc.current)
            raise ConflictError(
                key, expected=stored.revision, current=current, found=now.revision
            ) from None
        assert change.previous is not None  # noqa: S101 - a deletion at a revision has removed something
        return self._decode(change.previous, revision=change.revision)

    def _finalized(self, key: str, stored: Stored, draft: Draft[R]) -> Draft[R] | None:
        """Decide about a resource that is being deleted.

        None (remove it) once its last finalizer is off.
        """
        before, after = self._codec.restore(stored).metadata, draft.resource.metadata
        if added := set(after.finalizers) - set(before.finalizers):
            raise InvalidResourceError(
                key, f"it is being deleted, so it takes no new finalizers: {', '.join(added)}"
            )
        return draft if after.finalizers else None


def _check_precondition_types(key: str, resource_version: int | None, uid: str | None) -> None:
    """Refuse what no resource can have, which would be told as a conflict."""
    if resource_version is not None:
        check_given_revision(key, resource_version, "resource_version")
    check_uid(key, uid)


def _check_preconditions(
    key: str, current: AnyResource, resource_version: int | None, uid: str | None
) -> None:
    found = current.metadata
    if uid is not None and found.uid != uid:
        raise ConflictError(key, expected=uid, current=current, found=found.uid)
    if resource_version is not None and found.resource_version != resource_version:
        raise ConflictError(
            key, expected=resource_version, current=current, found=found.resource_version
        )
