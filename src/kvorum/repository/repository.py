"""Repositories: typed resources in a store, with optimistic concurrency.

Every write is a compare-and-swap on the revision that the resource was read at, so no update is
lost. The loser of a race gets a `ConflictError` with the current state; `mutate` retries for the
caller.
"""

import builtins
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar, overload

from kvorum.arguments import (
    check_function,
    check_items,
    check_limit,
    check_mapping,
    check_revision,
    check_type,
)
from kvorum.encoding import codec_for
from kvorum.errors import KvorumError, NotFoundError
from kvorum.repository.decoder import Decoder
from kvorum.repository.event_queue import DEFAULT_POLICY, WatchPolicy
from kvorum.repository.query import OnCorrupt, Query
from kvorum.repository.resource_list import ResourceList
from kvorum.repository.scan import Scan
from kvorum.repository.transitions import OnCorruptEvent
from kvorum.repository.watch import TolerantWatch, Watch, watch_of
from kvorum.repository.write_plan import (
    Preconditions,
    WritePlan,
    plan_add,
    plan_change,
    plan_delete,
    plan_patch,
    plan_status,
    plan_update,
)
from kvorum.repository.writer import ContentionPolicy, Writer
from kvorum.resources import AnyResource, Kind, Stored, resource_key, stray_key
from kvorum.runtime import gather
from kvorum.selectors import FieldSelectorLike, LabelSelectorLike, Selector
from kvorum.storage import HasBackend, StorageBackend

R = TypeVar("R", bound=AnyResource)
Default = TypeVar("Default")

# Changes a resource in place, or returns another one; may be async.
Change: TypeAlias = Callable[[R], R | Awaitable[R | None] | None]

_REQUIRED: Final = object()
_CONTENTION: Final = ContentionPolicy()


class Repository(Generic[R]):
    """The resources of one kind. Cheap: make one per request, or keep one as long as the client.

    Names and namespaces are checked before anything is sent. For a namespaced kind, every method
    that takes a name takes its `namespace`, too.

    In addition to the errors listed, every method may raise:
        InvalidResourceError: a name or a resource breaks a rule. Nothing was sent.
        CorruptResourceError: the stored bytes are not a resource of this kind.
        UnavailableError: the store was not reached. Nothing was changed.
        OutcomeUnknownError: a write was sent, and whether it was applied is not known.
        PermissionDeniedError, AuthenticationError: the store refuses the user.
        ClientClosedError: the client is not open.

    Args:
        client: where the resources are stored.
        resource_type: the class of the resources.
        contention: how long `mutate`, `patch` and `delete` retry after conflicts.
        watching: the limits and waits of watches.
    """

    def __init__(
        self,
        client: HasBackend,
        resource_type: type[R],
        *,
        contention: ContentionPolicy = _CONTENTION,
        watching: WatchPolicy = DEFAULT_POLICY,
    ) -> None:
        check_type("contention", contention, ContentionPolicy)
        check_type("watching", watching, WatchPolicy)
        self._client = client
        self._codec = codec_for(resource_type)
        self._decoder = Decoder(client, self._codec)
        self._writer = Writer(client, self._codec, self._decoder, contention)
        self._watching = watching
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
        """Return a resource as it is now (linearizable), or the default if there is none.

        Raises:
            NotFoundError: there is no such resource, and no default was given.
        """
        key = resource_key(self.kind, name, namespace)
        entry = await self._backend.get(key)
        if entry is not None:
            return self._decoder.decode(entry)
        if default is _REQUIRED:
            raise NotFoundError(key)
        return default

    async def exists(self, name: str, *, namespace: str | None = None) -> bool:
        """Return whether there is such a resource, even one that cannot be decoded."""
        return await self._backend.exists(resource_key(self.kind, name, namespace))

    async def get_many(
        self, names: Iterable[str], *, namespace: str | None = None
    ) -> builtins.list[R | KvorumError]:
        """Return what `get` returns for each name, or its error, in the order of the names.

        Many names share few requests. Each is read separately: unlike those of `list`, the results
        may be from different revisions.
        """
        check_items(self.kind.plural, names, "names")
        return await gather(partial(self.get, namespace=namespace), names)

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
        """Return the resources that match, or all, at one revision, in the order of their keys.

        It takes one request for each 1000 resources (`EtcdSettings.page_size`). With a selector and
        a `limit`, the requests grow until there are enough matches. Only the labels of a resource
        are decoded if a label selector rejects it.

        Args:
            labels: a label selector, such as `lab-track=comp-sci-101,!draining`.
            fields: a field selector, such as `status.phase=Ready`.
            namespace: only this namespace of a namespaced kind.
            limit: the maximum number of resources; `ResourceList.continuation` says where the next
                page starts. With a selector, the last page can be empty.
            continue_from: `ResourceList.continuation` of the previous page. The other arguments
                must be the same, except for the limit. All pages show the revision of the first
                one. A continuation can be used more than once.
            at: the revision to list at; now by default.
            on_corrupt: what to do about a value that is not a resource of this kind: "fail", or
                "collect" it in `ResourceList.corrupt`.

        Raises:
            InvalidSelectorError: a selector cannot be parsed. Nothing was sent.
            InvalidResourceError: `limit` or `at` is not an int of 1 or more; `continue_from` was
                changed, or belongs to another list.
            CorruptResourceError: a value is not a resource of this kind; the first one is named.
            HistoryLostError: `at` or the revision of `continue_from` has been compacted. In the
                second case the error has a `continuation` that resumes at the current revision.
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
        """Iterate over what `list` returns, a page at a time: `async for worker in workers.scan()`.

        All pages show one revision, however long the scan takes. The arguments are those of `list`,
        but `limit` is the size of a page (`EtcdSettings.page_size` by default).

        Raises:
            InvalidSelectorError: a selector cannot be parsed.
            InvalidResourceError: `limit` or `at` is not an int of 1 or more.
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
        """Count the resources that match, which reads all; or all of them, which reads none.

        The selection is that of `list`. Values that are not read are counted even if they are not
        resources of this kind; with `on_corrupt="collect"` all are read, and those are left out.
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
        """Follow the resources that match, or all of them; see `Watch`.

        Args:
            labels: a label selector, as for `list`.
            fields: a field selector.
            namespace: only this namespace of a namespaced kind.
            since: deliver everything after this revision: `ResourceList.resource_version` or
                `Watch.checkpoint`. By default, everything after the watch is first entered or
                iterated.
            initial: first deliver all current resources as `Added`, then a `Bookmark` with the
                revision of that state.
            bookmarks: deliver a `Bookmark` now and then, even while nothing changes: everything up
                to its revision has been delivered. The server sets the interval: ten minutes
                without events, by default of etcd.
            on_corrupt: what to do about a value that is not a resource of this kind: "raise"
                `CorruptResourceError` and end, or deliver a `Corrupt` "event" and continue; see
                `TolerantWatch`.

        Raises:
            InvalidSelectorError: a selector cannot be parsed.
            InvalidResourceError: both `since` and `initial` are given, or `since` is not an int of
                0 or more.
        """
        return watch_of(
            self._client,
            self._decoder.decode,
            self._query(labels, fields, namespace),
            since=since,
            initial=initial,
            bookmarks=bookmarks,
            on_corrupt=on_corrupt,
            policy=self._watching,
        )

    def _query(
        self, labels: LabelSelectorLike, fields: FieldSelectorLike, namespace: str | None
    ) -> Query[R]:
        resource_type = self._codec.resource_type
        selector = Selector(resource_type, labels, fields)
        return Query(resource_type, self._decoder.decode, selector, namespace=namespace)

    # --- write ---

    async def add(self, resource: R, *, ttl: float | None = None) -> R:
        """Store a new resource; return it with uid, version, generation 1 and creation time.

        Args:
            resource: it must not carry a resource version. It is not modified.
            ttl: seconds after which the store removes it; updates do not extend them. The store
                rounds them up, and has a minimum (etcd: 1.5 election timeouts, 2 s by default).

        Raises:
            AlreadyExistsError: there is one with that name; it was not changed.
            InvalidResourceError: it carries a resource version, so it is stored already.
        """
        return await self._writer.create(plan_add(self._codec, resource), ttl=ttl)

    async def update(self, resource: R) -> R:
        """Store a resource unless it was changed since it was read; return it as it is stored.

        An unchanged resource writes nothing. What the store owns (uid, timestamps, generation)
        stays; so do fields that this version of the type does not know, and the lease of a resource
        with a TTL. A resource that is being deleted is removed with its last finalizer, and its
        last state is returned.

        Raises:
            ConflictError: it has been changed since. `current` is the current state.
            NotFoundError: it is gone.
            InvalidResourceError: it carries no resource version, so it was never read: add it.
        """
        base = await self._writer.base_of(resource)
        return await self._writer.send(plan_update(self._codec, resource, base))

    async def add_many(
        self, resources: Iterable[R], *, ttl: float | None = None
    ) -> builtins.list[R | KvorumError]:
        """Add each resource as `add` does; return the results or errors in their order.

        Each is added separately, whatever happens to the others. Concurrent ones share requests.
        """
        check_items(self.kind.plural, resources, "resources")
        return await gather(partial(self.add, ttl=ttl), resources)

    async def update_many(self, resources: Iterable[R]) -> builtins.list[R | KvorumError]:
        """Update each resource as `update` does, and otherwise like `add_many`."""
        check_items(self.kind.plural, resources, "resources")
        return await gather(self.update, resources)

    async def update_status(self, resource: R) -> R:
        """Store only the status, unless the resource was changed since it was read.

        Other changes in `resource` are not stored. Otherwise like `update`.
        """
        base = await self._writer.base_of(resource)
        return await self._writer.send(plan_status(self._codec, resource, base))

    async def mutate(
        self,
        name: str,
        change: Change[R],
        *,
        namespace: str | None = None,
        resource_version: int | None = None,
        uid: str | None = None,
    ) -> R:
        """Read a resource, change it, and store it; on a conflict, start over.

        Args:
            name: the resource.
            change: called with the current resource; it changes it in place, or returns another
                one. It may be async. It is called once for each attempt, so it should have no other
                effect. What it raises is raised unchanged, and nothing is written.
            namespace: its namespace.
            resource_version: only if it is at this version; then there is one attempt.
            uid: only if it has this uid, so is not another resource with the same name.

        Raises:
            NotFoundError: there is no such resource.
            ConflictError: a precondition does not hold; or other clients won for
                `ContentionPolicy.timeout`.
        """
        key = resource_key(self.kind, name, namespace)
        check_function(key, change, "change")

        async def plan_from(current: R, base: Stored) -> WritePlan[R]:
            result = change(current)
            if inspect.isawaitable(result):
                result = await result
            return plan_change(self._codec, current if result is None else result, base)

        return await self._writer.retry(key, plan_from, Preconditions(resource_version, uid))

    async def patch(
        self,
        name: str,
        merge_patch: Mapping[str, Any],
        *,
        namespace: str | None = None,
        resource_version: int | None = None,
        uid: str | None = None,
    ) -> R:
        """Apply a JSON merge patch (RFC 7396) to the current resource; on a conflict, start over.

        Args:
            name: the resource.
            merge_patch: fields by their names in the stored JSON, such as
                `{"spec": {"labTrack": "x"}}`; None removes a field. In the metadata, only labels,
                annotations and finalizers can be patched.
            namespace: its namespace.
            resource_version: only if it is at this version; then there is one attempt.
            uid: only if it has this uid, so is not another resource with the same name.

        Raises:
            NotFoundError: there is no such resource.
            InvalidResourceError: the patch touches what the store owns, or names a field that does
                not exist.
            ConflictError: a precondition does not hold; or other clients won for
                `ContentionPolicy.timeout`.
        """
        key = resource_key(self.kind, name, namespace)
        check_mapping(key, merge_patch, "merge_patch")

        async def plan_from(_: R, base: Stored) -> WritePlan[R]:
            return plan_patch(self._codec, base, merge_patch)

        return await self._writer.retry(key, plan_from, Preconditions(resource_version, uid))

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

        A resource with finalizers is not removed yet: it gets a `deletion_timestamp`, and is
        removed when an `update`, `mutate` or `patch` removes its last finalizer. The lease of a
        resource with a TTL is revoked, if the store can be reached within a second.

        Args:
            name: the resource.
            namespace: its namespace.
            resource_version: only if it is at this version.
            uid: only if it has this uid, so is not another resource with the same name.
            corrupt: remove a value that is not a resource of this kind, and nothing else; return
                None. Name and namespace are then those of the `CorruptResourceError`, even if they
                break the rules.

        Raises:
            NotFoundError: there is no such resource.
            ConflictError: a precondition does not hold, and the resource stays; or other clients
                won for `ContentionPolicy.timeout`.
            InvalidResourceError: `corrupt` was given, but the value can be decoded; it stays.
        """
        required = Preconditions(resource_version, uid)
        if corrupt:
            key = stray_key(self.kind, name, namespace)
            await self._writer.delete_corrupt(key, required)
            return None

        async def plan_from(current: R, base: Stored) -> WritePlan[R]:
            return plan_delete(self._codec, current, base, now=datetime.now(UTC))

        key = resource_key(self.kind, name, namespace)
        return await self._writer.retry(key, plan_from, required)
