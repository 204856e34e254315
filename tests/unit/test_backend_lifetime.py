"""A client opens the backend that it was given, and closes it whatever happens."""

import anyio
import pytest
from typing_extensions import override

import kvorum
from kvorum import ClientClosedError, MemoryStorageBackend, UnavailableError


class Backend(MemoryStorageBackend):
    """Notes when it is opened and closed. Its opening takes as long, or fails, as a test says."""

    def __init__(self, failure: kvorum.KvorumError | None = None, *, hangs: bool = False) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.failure = failure
        self.hangs = hangs

    @override
    async def open(self) -> None:
        self.calls.append("open")
        if self.failure is not None:
            raise self.failure
        if self.hangs:
            await anyio.sleep_forever()

    @override
    async def aclose(self) -> None:
        await super().aclose()
        self.calls.append("aclose")


async def test_a_backend_is_opened_on_entering_and_closed_on_leaving() -> None:
    backend = Backend()
    async with kvorum.connect(backend) as client:
        assert backend.calls == ["open"]
    await client.aclose()

    assert backend.calls == ["open", "aclose"]


async def test_a_backend_that_does_not_open_is_closed() -> None:
    backend = Backend(UnavailableError("here", "it is a test"))
    client = kvorum.connect(backend)

    with pytest.raises(UnavailableError, match="it is a test"):
        await client.__aenter__()

    assert backend.calls == ["open", "aclose"]
    assert repr(client) == "<Client Backend [closed]>"


async def test_a_backend_whose_opening_is_cancelled_is_closed() -> None:
    backend = Backend(hangs=True)

    with anyio.move_on_after(0) as scope:
        await kvorum.connect(backend).__aenter__()

    assert scope.cancelled_caught
    assert backend.calls == ["open", "aclose"]


async def test_closing_a_client_ends_the_opening_of_its_backend() -> None:
    backend = Backend(hangs=True)
    client = kvorum.connect(backend)

    async def enter() -> None:
        with pytest.raises(ClientClosedError):
            await client.__aenter__()

    async with anyio.create_task_group() as group:
        group.start_soon(enter)
        with anyio.fail_after(5):
            while not backend.calls:
                await anyio.lowlevel.checkpoint()
            with pytest.raises(ClientClosedError):  # not open yet
                _ = client.backend
            await client.aclose()

    assert backend.calls == ["open", "aclose"]
