"""The faults of the soak: to connections, servers and history."""

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import anyio
from tests.faults.followers import Follower, Restarting, Slow
from tests.faults.soak import FaultOfSoak, Soak

from kvorum.testing import (
    FaultProxy,
)
from kvorum.testing.faults.operator import Operator, OperatorError

# Seconds after which a watch has noticed that its server is silent, on a busy machine too.
SILENCE: Final = 15.0
HANDSHAKE: Final = 4_000  # bytes; connecting, the version check and creating a watch take less


def in_the_network(name: str, act: Callable[[FaultProxy, random.Random], object]) -> FaultOfSoak:
    """Make a fault of some connections that lasts until they are healed."""

    async def fault(soak: Soak) -> None:
        chosen = soak.some()
        await soak.strike(name)
        for follower in chosen:
            for proxy in follower.proxies:
                act(proxy, soak.random)
        await anyio.sleep(soak.random.uniform(0.02, 0.5))
        for follower in chosen:
            await follower.heal()

    return fault


def cut_in_a_request(proxy: FaultProxy, draw: random.Random) -> None:
    proxy.cut()  # the next bytes reconnect and recreate the watch
    proxy.cut_after(draw.randrange(1, 800), "requests")


async def refuse(soak: Soak) -> None:
    chosen = soak.some()
    await soak.strike("refuse")
    for follower in chosen:
        await follower.cut_off()
    await anyio.sleep(soak.random.uniform(0.1, 0.8))
    for follower in chosen:
        await follower.heal()


async def cut_in_a_batch(soak: Soak) -> None:
    """Cut connections again during the catch-up, which etcd sends in one message."""
    chosen = [each for each in soak.some() if not isinstance(each, Restarting | Slow)]
    for follower in chosen:
        await follower.cut_off()
    target = await soak.some_more(150)
    sizes = [soak.random.randrange(2 * HANDSHAKE, 60_000) for _ in chosen]
    await soak.strike("cut in a batch")
    async with anyio.create_task_group() as group:
        for follower, size in zip(chosen, sizes, strict=True):
            group.start_soon(resume_in_a_batch, soak, follower, target, size)


async def resume_in_a_batch(soak: Soak, follower: Follower, target: int, size: int) -> None:
    """Heal a follower, cut it within its next batch, and count that if it resumed from there."""
    before = follower.resumes
    first = sum(proxy.statistics().replies for proxy in follower.proxies)
    cuts = [proxy.statistics().cuts for proxy in follower.proxies]
    for proxy in follower.proxies:
        await proxy.heal()
        proxy.cut_after(size, "replies")

    def is_cut() -> bool:
        return any(
            proxy.statistics().cuts > cut for proxy, cut in zip(follower.proxies, cuts, strict=True)
        )

    await soak.until(lambda: is_cut() or follower.shown >= target)
    # It was recreated and received more than a handshake, but not all that it had missed: so it
    # was cut within the catch-up.
    resumes, passed = (
        follower.resumes,
        sum(proxy.statistics().replies for proxy in follower.proxies) - first,
    )
    is_within = is_cut() and resumes > before and passed > HANDSHAKE and follower.position < target
    await follower.heal()
    await soak.until(lambda: follower.position >= target)
    soak.counts["resumes in the middle of a batch"] += is_within and follower.resumes > resumes


def paused(seconds: Callable[[random.Random], float], *, cut: bool, name: str) -> FaultOfSoak:
    """Make a pause of a server, the leader if there are several. Count the watches that resumed."""

    async def fault(soak: Soak) -> None:
        member = await soak.leader()
        before_it = await soak.now()
        await soak.until(lambda: all(follower.position >= before_it for follower in soak.followers))
        await soak.strike(name)
        await soak.etcd.pause(member)
        if cut:
            for follower in soak.followers:
                follower.cut()
        before = [follower.resumes for follower in soak.followers]
        await anyio.sleep(seconds(soak.random))
        await soak.etcd.resume(member)
        target = await soak.now()
        await soak.until(lambda: all(follower.position >= target for follower in soak.followers))
        after = [follower.resumes for follower in soak.followers]
        resumed = sum(now > was for now, was in zip(after, before, strict=True))
        soak.counts["resumes after a pause"] += resumed
        if name == "long pause":
            soak.counts["of these, noticed by keep-alive"] += resumed

    return fault


async def restart(soak: Soak) -> None:
    member = await soak.leader()
    await soak.strike("restart")
    await soak.etcd.restart(member)


async def kill(soak: Soak) -> None:
    """Kill a server, the leader if there are several, and restart it later."""
    member = await soak.leader()
    await soak.strike("kill")
    await soak.etcd.kill(member)
    await anyio.sleep(soak.random.uniform(0, 1))
    await soak.etcd.restart(member)


async def compact_during_a_disconnect(soak: Soak) -> None:
    chosen = soak.some(least=[each for each in soak.followers if each.is_initial])
    await soak.strike("compaction during a disconnect")
    for follower in chosen:
        await follower.cut_off()
    await soak.some_more(30)
    await soak.forget()
    await soak.some_more(20)
    for follower in chosen:
        await follower.heal()


async def compact_while_one_lags(soak: Soak) -> None:
    """Compact between a consumer that does not read and the present."""
    lagging = [follower for follower in soak.followers if isinstance(follower, Slow)]
    for follower in lagging:
        follower.is_held = True
    await soak.some_more(soak.random.randrange(300, 900))
    before = [follower.position for follower in lagging]
    await soak.strike("compaction while one lags")
    await soak.forget()
    soak.counts["watches behind a compaction"] += sum(
        position < soak.server_history.end for position in before
    )
    for follower in lagging:
        follower.is_held = False


async def compact_behind_a_slow_link(soak: Soak) -> None:
    """Compact history that slow links have not delivered yet."""
    chosen = soak.some(least=[each for each in soak.followers if each.is_initial])
    for follower in chosen:
        for proxy in follower.proxies:
            proxy.throttle(20_000, "replies")
    await soak.some_more(200)
    before = [follower.shown for follower in chosen]
    await soak.strike("compaction behind a slow link")
    await soak.forget()
    soak.counts["watches behind a compaction"] += sum(
        shown < soak.server_history.end for shown in before
    )
    await soak.some_more(20)
    for follower in chosen:
        await follower.heal()


async def hand_over(soak: Soak) -> None:
    """Transfer leadership to the next member."""
    operator = Operator(soak.etcd.endpoints, soak.etcd.peer_endpoints)
    await soak.strike("leader handed over")
    with suppress(OperatorError):  # it is no longer the leader
        await operator.move_leader()


async def restart_in_turn(soak: Soak) -> None:
    """Restart all members, one after the other."""
    for member in range(len(soak.etcd.endpoints)):
        await soak.strike("restart in turn")
        await soak.etcd.restart(member)


CUT: Final = in_the_network("cut", lambda proxy, _: proxy.cut())
IN_THE_NETWORK: Final = (
    CUT,
    CUT,
    in_the_network("cut in a request", cut_in_a_request),
    in_the_network(
        "cut in a reply", lambda proxy, draw: proxy.cut_after(draw.randrange(1, 2_000), "replies")
    ),
    in_the_network(
        "cut in a reply", lambda proxy, draw: proxy.cut_after(draw.randrange(1, 60_000), "replies")
    ),
    in_the_network("delay", lambda proxy, draw: proxy.delay(draw.uniform(0.01, 0.2))),
    in_the_network("throttle", lambda proxy, _: proxy.throttle(100_000)),
    in_the_network("hold replies", lambda proxy, _: proxy.hold("replies")),
    in_the_network("hold requests", lambda proxy, _: proxy.hold("requests")),
    in_the_network("drop replies", lambda proxy, _: proxy.drop("replies")),
    in_the_network("mute", lambda proxy, _: proxy.mute()),
    refuse,
)
SHORT_PAUSE: Final = paused(lambda draw: draw.uniform(0.1, 1), cut=False, name="pause")
PAUSE_AND_CUT: Final = paused(lambda draw: draw.uniform(0.1, 1), cut=True, name="pause, and cut")
LONG_PAUSE: Final = paused(lambda _: SILENCE, cut=False, name="long pause")


def shuffled(faults: Sequence[FaultOfSoak], seed: int) -> list[FaultOfSoak]:
    return random.Random(seed).sample(faults, len(faults))


def faults_for(
    version: tuple[int, ...], members: int, seed: int, *, is_long: bool
) -> list[FaultOfSoak]:
    """Return the faults. 3.5.1 is not killed: it loses committed entries then."""
    kills = [kill] if version < (3, 5) or version >= (3, 5, 3) else [restart]
    servers = [restart, *kills, SHORT_PAUSE, PAUSE_AND_CUT]
    compactions = [compact_during_a_disconnect, compact_while_one_lags, compact_behind_a_slow_link]
    if members > 1:
        leaders = [hand_over, hand_over, restart_in_turn, compact_during_a_disconnect]
        return shuffled([*IN_THE_NETWORK[::3], *servers, *leaders] * (4 if is_long else 1), seed)
    if not is_long:
        return shuffled(
            [*IN_THE_NETWORK, *servers, *compactions, cut_in_a_batch, cut_in_a_batch], seed
        )
    often = [
        *IN_THE_NETWORK * 9,
        *servers * 12,
        *compactions * 12,
        *[cut_in_a_batch] * 26,
        *[LONG_PAUSE] * 3,
    ]
    return shuffled(often, seed)
