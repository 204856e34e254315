"""The size of the pages of a list, chosen so that each arrives in time.

1. A page holds as many keys as the settings say, or fewer: about `MAX_PAGE` bytes, by the sizes of
   the values last seen under that prefix.
2. When a page of more than twenty keys has taken a fifth of the remaining time, a page of a
   twentieth of its size is requested beside it, and so on down to one key. The first answer counts
   and cancels the other requests. So a page that is slow, but arrives, is not lost; one that cannot
   arrive costs no more than its own deadline.
3. What was learned applies to the next page under that prefix, of this list or another. Pages
   shrink only if a smaller one arrived first, or if none arrived: mere slowness may be latency,
   which is the same for one key. If a smaller one arrived, the next page is as large as should
   arrive in a tenth of the timeout. If none arrived, it asks for a twentieth of the keys. It grows
   again, at most fourfold each time, to what arrives in a fifth of the timeout.
4. The measure is the client's timeout, not the time that one caller has left: a short deadline
   affects its caller only.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

import anyio
import msgspec

from kvorum.deadlines import now
from kvorum.errors import UnavailableError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

MAX_PAGE: Final = 8 * 1024 * 1024  # bytes of values; gRPC and etcd hold a page several times over
_MAX_PREFIXES: Final = 256  # remembered
_SHARE: Final = 5  # a page is slow once it takes this part of the time
_LEAST_PAGE: Final = 16 * 1024  # bytes; if so few take long, size is not the reason
_GROWTH: Final = 4
_CUT: Final = 20


class Arrival(msgspec.Struct, Generic[T_co], frozen=True):
    """A page that has arrived.

    Attributes:
        answer: the server's answer.
        asked: how many keys were requested.
        seconds: how long it took.
        is_fallback: whether a larger one was requested first and had not arrived.
    """

    answer: T_co
    asked: int
    seconds: float
    is_fallback: bool


class PageSizes:
    """The page sizes of the prefixes that were listed last.

    Args:
        most: keys of a page, whatever their size.
        timeout: how long a call may take, in seconds.
    """

    def __init__(self, most: int, timeout: float) -> None:
        self._most = most
        self._timeout = timeout
        self._sizes: OrderedDict[bytes, int] = OrderedDict()

    def of(self, prefix: bytes) -> int:
        """Return how many keys the next page under a prefix may ask for."""
        return self._sizes.get(prefix, self._most)

    def learn(self, prefix: bytes, arrival: Arrival[object], keys: int, size: int) -> None:
        """Record a page: how many keys it held, of how many bytes."""
        before = self.of(prefix)
        if not keys or (before < self._most and not arrival.is_fallback and keys < arrival.asked):
            return  # the last page of a list: no evidence about larger ones
        fitting = keys * MAX_PAGE // max(size, 1)
        if before < self._most or arrival.is_fallback:
            fitting = min(fitting, self._in_time(arrival, keys, size), _GROWTH * arrival.asked)
        self._keep(prefix, max(1, min(fitting, self._most)))

    def _in_time(self, arrival: Arrival[object], keys: int, size: int) -> int:
        """Return how many keys should arrive in good time, by how long these took."""
        # Half of the time that makes a page slow: the link may get slower, or busier.
        aim = self._timeout / _SHARE / (2 if arrival.is_fallback else 1)
        in_time = int(keys * aim / max(arrival.seconds, 0.001))
        if not arrival.is_fallback:
            in_time = max(in_time, keys)
        return max(in_time, keys * _LEAST_PAGE // max(size, 1))

    def learn_of_silence(self, prefix: bytes, asked: int, seconds: float) -> None:
        """Record that no page arrived in so many seconds. The next one is a twentieth of it."""
        if seconds >= self._timeout / _SHARE:
            self._keep(prefix, max(1, min(asked, self.of(prefix)) // _CUT))

    def _keep(self, prefix: bytes, size: int) -> None:
        self._sizes.pop(prefix, None)
        if size < self._most:
            self._sizes[prefix] = size
        while len(self._sizes) > _MAX_PREFIXES:
            self._sizes.popitem(last=False)


async def first_to_arrive(
    ask: Callable[[int], Awaitable[T]], size: int, seconds: float
) -> Arrival[T]:
    """Request a page, and smaller ones beside it while none arrives; return the first (rule 2).

    Args:
        ask: requests a page of so many keys, and has a deadline of its own.
        size: the largest number of keys.
        seconds: until that deadline, or fewer.

    Raises:
        KvorumError: the first refusal; if no request reached etcd, the last error.
        Exception: what an observer raised.
    """
    started = now()
    # Small already; and the tasks below cost a tenth of a small list.
    if size <= _CUT or seconds <= 0:
        return Arrival(await ask(size), size, now() - started, is_fallback=False)
    found: list[Arrival[T]] = []
    errors: list[Exception] = []
    end, pending = started + seconds, 1

    async with anyio.create_task_group() as group:

        async def attempt(asked: int) -> None:
            nonlocal pending
            started = now()
            try:
                answer = await ask(asked)
                found.append(Arrival(answer, asked, now() - started, asked < size))
            except Exception as exc:  # noqa: BLE001 - raised below: the group would wrap it
                errors[:] = [exc]
                pending -= 1
                if pending and isinstance(exc, UnavailableError):
                    return  # another request is under way, and may still be answered
            group.cancel_scope.cancel()

        group.start_soon(attempt, size)
        asked = size
        while asked > 1:
            await anyio.sleep(max(end - now(), 0) / _SHARE)
            asked = max(1, asked // _CUT)
            pending += 1
            group.start_soon(attempt, asked)
    if not found:
        raise errors.pop()  # not left in this frame, which its traceback holds
    return found[0]
