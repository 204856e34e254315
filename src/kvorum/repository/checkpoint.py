"""Where a consumer of watches has got to, kept in the store, so that it goes on there after a restart."""

from contextlib import suppress
from typing import ClassVar

import msgspec

from kvorum.arguments import check_given_revision
from kvorum.errors import NotFoundError
from kvorum.repository.repository import Repository
from kvorum.resources import Kind, Metadata, Resource
from kvorum.storage import HasBackend


class CheckpointSpec(msgspec.Struct, rename="camel"):
    """Nothing: a checkpoint has no wishes."""


class CheckpointStatus(msgspec.Struct, rename="camel"):
    """What is kept.

    Attributes:
        revision: the last revision that was handled whole.
    """

    revision: int = 0


class StoredCheckpoint(Resource[CheckpointSpec, CheckpointStatus]):
    """A checkpoint as the store holds it: `checkpoints/<name>`."""

    kind: ClassVar[Kind] = Kind("Checkpoint", plural="checkpoints", api_version="kvorum.dev/v1")


class Checkpoint:
    """The last revision that a consumer has handled, under a name of its own. `Client.checkpoint` makes it.

    It is used like this::

        checkpoint = client.checkpoint("billing")
        async with workers.watch(since=await checkpoint.load()) as watch:
            async for events in watch.revisions():
                ...                                       # handle them
                await checkpoint.save(watch.checkpoint)   # now and then is enough

    What was handled after the last `save` comes again after a restart: every event is handled at
    least once. Two consumers of one name get in each other's way: whoever finds that the other one
    has saved gets a `ConflictError`.

    Args:
        client: whose store keeps it.
        name: a DNS-1123 subdomain, unique among the consumers under the client's prefix.
    """

    def __init__(self, client: HasBackend, name: str) -> None:
        self.name: str = name
        self._repository = Repository(client, StoredCheckpoint)
        self._stored: StoredCheckpoint | None = None

    def __repr__(self) -> str:
        at = self._stored.status.revision if self._stored is not None else "not loaded"
        return f"<Checkpoint {self.name} [{at}]>"

    async def load(self) -> int | None:
        """Return the revision that was saved last, for `Repository.watch(since=…)`; None if there is none yet.

        Raises: what `Repository.get` does, but for `NotFoundError`.
        """
        self._stored = await self._repository.get(self.name, default=None)
        return self._stored.status.revision if self._stored is not None else None

    async def save(self, revision: int) -> None:
        """Keep a revision. One that is not beyond the last one is passed over: a checkpoint never goes back.

        Raises:
            ConflictError, AlreadyExistsError: somebody else saves under this name.
            InvalidResourceError: there is no such revision. Nothing was sent.
            OutcomeUnknownError: it may have been kept. The next call finds out.
        """
        check_given_revision(f"checkpoint {self.name}", revision, "revision", least=1)
        if self._stored is None:
            await self.load()
        if self._stored is not None and revision <= self._stored.status.revision:
            return
        try:
            self._stored = await self._write(revision)
        except (
            BaseException
        ):  # also if it is cancelled: whatever is stored now, the next call reads it
            self._stored = None
            raise

    async def forget(self) -> None:
        """Remove it, to start over. Nothing happens if there is none."""
        self._stored = None
        with suppress(NotFoundError):
            await self._repository.delete(self.name)

    async def _write(self, revision: int) -> StoredCheckpoint:
        status = CheckpointStatus(revision=revision)
        if self._stored is not None:
            return await self._repository.update(
                msgspec.structs.replace(self._stored, status=status)
            )
        return await self._repository.add(
            StoredCheckpoint(
                metadata=Metadata(name=self.name), spec=CheckpointSpec(), status=status
            )
        )
