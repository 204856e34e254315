"""A mixed load on a store, by several clients at once, repeatable by its seed."""

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import count

import anyio
import msgspec

from kvorum.errors import KvorumError
from kvorum.storage import Entry, Operation, StorageBackend
from kvorum.testing.evidence import History, RecordingBackend

DEFAULT_MIX: Mapping[str, int] = {
    "get": 40,
    "set": 15,
    "create": 5,
    "swap": 20,
    "delete": 5,
    "commit": 5,
    "list": 5,
    "count": 3,
    "exists": 2,
}


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What to do to a store, and how much of it.

    Which calls a client makes follows from the seed; in which order they meet in the store does
    not.

    Attributes:
        operations: how many calls in all.
        clients: how many clients make them, each one after the other.
        keys: how many keys there are: the fewer, the more clients meet.
        seed: what everything is drawn from.
        mix: how often which call is drawn.
        prefix: what the keys start with.
        batch: how many keys a commit writes or compares at most.
        value: makes what is written of its key and of a text that nobody else writes.
        rest: how many seconds a client waits after a call that failed.
    """

    operations: int = 1000
    clients: int = 8
    keys: int = 10
    seed: int = 0
    mix: Mapping[str, int] = msgspec.field(default_factory=lambda: DEFAULT_MIX)
    prefix: str = "k"
    batch: int = 2
    value: Callable[[str, str], bytes] = lambda _, unique: unique.encode()
    rest: float = 0.0

    async def run(
        self,
        backends: Sequence[StorageBackend],
        history: History,
        *,
        until: anyio.Event | None = None,
        name: str = "c",
    ) -> None:
        """Make all calls, recorded in a history; client n on `backends[n % len(backends)]`.

        Errors of Kvorum are part of the record, and end no client. Anything else comes out.

        Args:
            backends: what to make them on.
            history: where to record them.
            until: go on after the last one until this has happened.
            name: what the clients are called, before their numbers.
        """
        shares = [
            len(range(number, self.operations, self.clients)) for number in range(self.clients)
        ]
        async with anyio.create_task_group() as group:
            for number, share in enumerate(shares):
                client = _Client(
                    self,
                    name,
                    number,
                    RecordingBackend(backends[number % len(backends)], history, f"{name}{number}"),
                )
                group.start_soon(client.run, share, until)


class _Client:
    def __init__(self, workload: Workload, name: str, number: int, backend: StorageBackend) -> None:
        self._workload = workload
        self._number = f"{number}" if name == "c" else f"{name}{number}"
        self._backend = backend
        self._random = random.Random(f"{workload.seed}/{number}")  # noqa: S311 - to be repeated, not to be secret
        self._values = count()
        self._seen: dict[str, int] = {}  # the mod_revisions that a swap may go by
        self._names = list(workload.mix)
        self._weights = list(workload.mix.values())

    async def run(self, calls: int, until: anyio.Event | None) -> None:
        """Make so many calls, one after the other, or more."""
        for number in count():
            if number >= calls and (until is None or until.is_set()):
                return
            (name,) = self._random.choices(self._names, self._weights)
            try:
                await _CALLS[name](self, self._key())
            except KvorumError:  # it is in the history
                if self._workload.rest:
                    await anyio.sleep(self._workload.rest)

    def _key(self) -> str:
        return f"{self._workload.prefix}{self._random.randrange(self._workload.keys)}"

    def _value(self, key: str) -> bytes:
        """Return a value that nobody else writes.

        By it, a write of unknown outcome is known again.
        """
        return self._workload.value(key, f"{self._number}-{next(self._values)}")

    def _saw(self, key: str, entry: Entry | None) -> None:
        self._seen[key] = entry.mod_revision if entry is not None else 0

    async def get(self, key: str) -> None:
        self._saw(key, await self._backend.get(key))

    async def exists(self, key: str) -> None:
        await self._backend.exists(key)

    async def set(self, key: str) -> None:
        self._seen[key] = await self._backend.set(key, self._value(key), unique=True)

    async def create(self, key: str) -> None:
        self._seen[key] = await self._backend.create(key, self._value(key), unique=True)

    async def swap(self, key: str) -> None:
        if key not in self._seen or self._random.random() < 0.5:
            await self.get(key)
        expected = self._seen[key]
        self._seen[key] = await self._backend.compare_and_swap(
            key, self._value(key), expected=expected, unique=True
        )

    async def delete(self, key: str) -> None:
        await self._backend.delete(key)

    async def commit(self, key: str) -> None:
        operations = [Operation.put(key, self._value(key), unique=True)]
        taken = {key}
        for _ in range(self._workload.batch - 1):
            other = self._key()
            if other in taken:
                continue
            taken.add(other)
            # About every other commit compares a key: of many, one is always another meanwhile.
            if other in self._seen and self._random.random() < 0.5 / (self._workload.batch - 1):
                operations.append(Operation.check(other, expected=self._seen[other]))
            else:
                operations.append(Operation.put(other, self._value(other), unique=True))
        await self._backend.commit(operations)

    async def list(self, key: str) -> None:
        limit = self._random.choice([None, 1, 3])
        for entry in (
            await self._backend.list(key[: len(self._workload.prefix)], limit=limit)
        ).entries:
            self._saw(entry.key, entry)

    async def count(self, key: str) -> None:
        await self._backend.count(key[: len(self._workload.prefix)])


_CALLS: Mapping[str, Callable[[_Client, str], Awaitable[None]]] = {
    "get": _Client.get,
    "exists": _Client.exists,
    "set": _Client.set,
    "create": _Client.create,
    "swap": _Client.swap,
    "delete": _Client.delete,
    "commit": _Client.commit,
    "list": _Client.list,
    "count": _Client.count,
}
