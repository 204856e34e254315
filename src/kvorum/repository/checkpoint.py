"""The position of a watch consumer, kept in the store so that it can resume after a restart."""

from contextlib import suppress
from typing import ClassVar

import msgspec

from kvorum.arguments import check_given_revision
from kvorum.errors import NotFoundError
from kvorum.repository.repository import Repository
from kvorum.resources import Kind, Metadata, Resource
from kvorum.storage import HasBackend


class CheckpointSpec(msgspec.Struct, rename="camel"):
    """Empty: a checkpoint has no desired state."""


class CheckpointStatus(msgspec.Struct, rename="camel"):
    """The position.

    Attributes:
        revision: the last revision that was handled completely.
    """

    revision: int = 0


class StoredCheckpoint(Resource[CheckpointSpec, CheckpointStatus]):
    """A checkpoint as it is stored, under `checkpoints/<name>`."""

    kind: ClassVar[Kind] = Kind("Checkpoint", plural="checkpoints", api_version="kvorum.dev/v1")


class Checkpoint:
    """The last revision that a consumer has handled. `Client.checkpoint` makes it.

    Use it like this::

        checkpoint = client.checkpoint("billing")
        async with workers.watch(since=await checkpoint.load()) as watch:
            async for events in watch.revisions():
                ...                                       # handle them
                await checkpoint.save(watch.checkpoint)   # occasionally is enough

    After a restart, events that were handled after the last `save` are delivered again: every event
    is handled at least once. Each consumer needs its own name. If two share one, the second to save
    gets a `ConflictError`.

    Args:
        client: the client whose store keeps it.
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
        """Return the last saved revision, for `Repository.watch(since=…)`; None if there is none.

        Raises: what `Repository.get` does, except `NotFoundError`.
        """
        self._stored = await self._repository.get(self.name, default=None)
        return self._stored.status.revision if self._stored is not None else None

    async def save(self, revision: int) -> None:
        """Save a revision. Revisions at or below the saved one are ignored.

        Raises:
            ConflictError, AlreadyExistsError: another consumer saves under this name.
            InvalidResourceError: `revision` is not an int of 1 or more. Nothing was sent.
            OutcomeUnknownError: it may have been saved. The next call finds out.
        """
        check_given_revision(f"checkpoint {self.name}", revision, "revision", least=1)
        if self._stored is None:
            await self.load()
        if self._stored is not None and revision <= self._stored.status.revision:
            return
        try:
            self._stored = await self._write(revision)
        except BaseException:  # also cancellation: the next call reads what is stored now
            self._stored = None
            raise

    async def forget(self) -> None:
        """Delete it, to start over. Does nothing if there is none."""
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
