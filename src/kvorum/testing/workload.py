"""A mixed workload of concurrent clients, reproducible from its seed."""

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
    """The calls to make, and how many.

    The seed determines which calls each client makes; how they interleave is up to the store.

    Attributes:
        operations: the total number of calls.
        clients: the number of clients; each makes one call at a time.
        keys: the number of keys; fewer keys mean more contention.
        seed: the seed of all random choices.
        mix: the weight of each kind of call.
        prefix: the prefix of all keys.
        batch: the maximum number of keys that a commit writes or compares.
        value: makes the value to write, from its key and a unique text.
        rest: the pause of a client after a failed call, in seconds.
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
        """Make all calls and record them; client n uses `backends[n % len(backends)]`.

        Errors of Kvorum are recorded and stop no client. Any other exception is raised.

        Args:
            backends: the backends to call.
            history: the record.
            until: keep making calls until this is set.
            name: the names of the clients, before their numbers.
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
        self._random = random.Random(f"{workload.seed}/{number}")  # noqa: S311 - repeatable
        self._values = count()
        self._seen: dict[str, int] = {}  # the mod_revisions that a swap may expect
        self._names = list(workload.mix)
        self._weights = list(workload.mix.values())

    async def run(self, calls: int, until: anyio.Event | None) -> None:
        """Make calls one after the other: `calls` of them, or more."""
        for number in count():
            if number >= calls and (until is None or until.is_set()):
                return
            (name,) = self._random.choices(self._names, self._weights)
            try:
                await _CALLS[name](self, self._key())
            except KvorumError:  # it is recorded
                if self._workload.rest:
                    await anyio.sleep(self._workload.rest)

    def _key(self) -> str:
        return f"{self._workload.prefix}{self._random.randrange(self._workload.keys)}"

    def _value(self, key: str) -> bytes:
        """Return a unique value, which identifies a write of unknown outcome."""
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
            # About every other commit compares one key: with more, one of them has always changed.
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
