"""The first phase of a client: find a server that answers."""

import asyncio
import random
from collections.abc import Sequence
from typing import Final

import anyio

from kvorum.deadlines import deadline_of, now
from kvorum.errors import TlsError, UnavailableError, without_frames
from kvorum.etcd.transport.cluster import Cluster
from kvorum.etcd.transport.diagnosis import tls_error_of
from kvorum.settings import EtcdSettings

_DEFINITE: Final = (TlsError,)  # waiting does not help


async def find_server(cluster: Cluster, settings: EtcdSettings) -> None:
    """Find a server that answers, and make it the current one.

    Servers that are still starting are retried until the timeout.

    Raises:
        UnavailableError: no server answered within the timeout.
        TlsError: no secure connection can be made.
        AuthenticationError: the server does not accept the user.
        ConfigurationError: a certificate, key or password cannot be read.
    """
    deadline = deadline_of(settings.timeout)
    while True:
        failures = await _try_each(cluster, settings, deadline)
        if not failures:
            return
        pause = random.uniform(*cluster.timing.round)  # noqa: S311 - no secret
        if all(isinstance(each, _DEFINITE) for each in failures) or now() + pause >= deadline:
            try:
                raise _combined(failures)
            finally:
                del failures  # the error's traceback holds this frame
        await asyncio.sleep(pause)


async def _try_each(
    cluster: Cluster, settings: EtcdSettings, deadline: float
) -> Sequence[UnavailableError]:
    """Try each server once. Return why each failed; nothing once one answers."""
    failures: list[UnavailableError] = []
    for _ in cluster.servers:
        server = cluster.current
        try:
            await cluster.prepare(server, deadline)
        except UnavailableError as exc:
            failures.append(without_frames(exc))
            cluster.leave(server)
        else:
            return ()
        if now() >= deadline:
            break
    seconds = max(deadline - now(), cluster.timing.diagnosis)
    return await _diagnosed(failures, settings, seconds)


async def _diagnosed(
    failures: Sequence[UnavailableError], settings: EtcdSettings, seconds: float
) -> Sequence[UnavailableError]:
    """Replace failures that TLS explains. All servers are asked concurrently."""
    found: dict[str, TlsError] = {}

    async def ask(address: str) -> None:
        if error := await tls_error_of(address, settings):
            found[address] = error

    with anyio.move_on_after(seconds):
        async with anyio.create_task_group() as group:
            for failure in failures:
                group.start_soon(ask, failure.endpoint)
    return [found.get(failure.endpoint, failure) for failure in failures]


def _combined(failures: Sequence[UnavailableError]) -> UnavailableError:
    """Return one error for the failures of all servers."""
    if len(failures) == 1:
        return failures[0]
    kinds = {type(failure) for failure in failures}
    kind = kinds.pop() if len(kinds) == 1 else UnavailableError
    where = ", ".join(failure.endpoint for failure in failures)
    return kind(where, "; ".join(f"{failure.endpoint}: {failure.reason}" for failure in failures))
