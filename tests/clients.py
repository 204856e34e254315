"""What tests of clients look at: tasks, sockets, requests in flight, and each call of a backend."""

import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.waiting import until

import kvorum
from kvorum import Client, EmbeddedEtcd, EtcdSettings, KvorumError, Operation, StorageBackend
from kvorum.observer import SILENT, Call, Observer

DEADLINE = 5.0

USES: dict[str, Callable[[StorageBackend], Awaitable[object]]] = {
    "get": lambda store: store.get("a"),
    "list": lambda store: store.list(""),
    "count": lambda store: store.count(""),
    "keys": lambda store: store.keys(),
    "exists": lambda store: store.exists("a"),
    "set": lambda store: store.set("a", b""),
    "create": lambda store: store.create("a", b""),
    "swap": lambda store: store.compare_and_swap("a", b"", expected=0),
    "delete": lambda store: store.delete("a"),
    "commit": lambda store: store.commit([Operation.put("a", b"")]),
    "grant": lambda store: store.grant_lease(600),
    "revoke": lambda store: store.revoke_lease(1),
    "open": lambda store: store.watch("").open(),
    "next": lambda store: anext(store.watch("")),
}


class InFlight(Observer):
    """Tells which operations are about to be sent, or have been."""

    def __init__(self) -> None:
        self.operations: set[str] = set()

    async def before_request(self, call: Call, _endpoint: str, _message: object, /) -> None:
        self.operations.add(call.operation)

    def clear(self) -> None:
        self.operations.clear()

    async def until(self, *operations: str) -> None:
        await until(lambda: self.operations >= set(operations))


def connections_to(port: int) -> int:
    """Count the sockets of this process that are connected to a port of this host."""
    ours = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            ours.add(str(descriptor.readlink()))
    found = 0
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            found += (
                int(fields[2].rpartition(":")[2], 16) == port and f"socket:[{fields[9]}]" in ours
            )
    return found


def port_of(client: Client) -> int:
    return int(client.settings.endpoints[0].rpartition(":")[2])


def short_timeout(
    etcd: EmbeddedEtcd,
    timeout: float = 0.5,
    *,
    pipeline: bool = True,
    observer: Observer = SILENT,
) -> Client:
    """Return a client that gives up soon, or as late as `timeout` says."""
    settings = EtcdSettings(
        endpoints=etcd.endpoints, prefix="test", timeout=timeout, pipeline=pipeline
    )
    return kvorum.connect(settings, observer=observer)


async def anext_of(watch: kvorum.StorageWatch) -> object:
    """Return what a watch delivers next, or its error."""
    try:
        return await anext(watch)
    except KvorumError as exc:
        return exc
