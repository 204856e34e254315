"""The token of the user: fetched, renewed before it ends, and renewed when a server does not take it.

A simple token is known to the members that were up when it was made, and each forgets it some
minutes after its last use; so what its end is nobody can tell, and a refusal renews it. A JWT says
when it ends.
"""

import base64
import logging
import math
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeAlias

import anyio
import anyio.to_thread
import msgspec

from kvorum.errors import ConfigurationError, ServerError
from kvorum.etcd.transport import _rpc as rpc
from kvorum.settings import EtcdSettings

_log = logging.getLogger(__name__)

Metadata: TypeAlias = tuple[tuple[str, str], ...]

# A member that knows no leader refuses a call that says this, instead of keeping it, and a stream
# of watches, silent.
_REQUIRE_LEADER: Final[Metadata] = (("hasleader", "true"),)
_SPENT: Final = 0.8  # the part of a JWT's life after which it is renewed
_MIN_LIFE: Final = 1.0  # seconds; a clock that is ahead must not have each call authenticate


class Tokens:
    """What goes with each call.

    Attributes:
        token: the token; empty if there is no user, or it has not been fetched.
        metadata: what a call says beside its request.
        has_user: whether there is a user to authenticate as.
    """

    def __init__(self, settings: EtcdSettings) -> None:
        self.token: str = ""
        self.metadata: Metadata = _REQUIRE_LEADER
        self.has_user: bool = settings.user is not None
        self._settings = settings
        self._ends = math.inf
        self._renewing = anyio.Lock()

    def __repr__(self) -> str:
        return (
            f"<Tokens of {self._settings.user or 'nobody'} [{'fetched' if self.token else 'none'}]>"
        )

    @property
    def is_due(self) -> bool:
        """Whether the token is about to end."""
        return self._ends != math.inf and anyio.current_time() >= self._ends

    async def renew(
        self,
        refused: str,
        authenticate: Callable[[rpc.AuthenticateRequest], Awaitable[rpc.AuthenticateResponse]],
    ) -> bool:
        """Fetch another token, unless another task did so since `refused` was used.

        Returns whether a server was asked.

        Raises:
            AuthenticationError: the server does not accept the user.
            ConfigurationError: the password cannot be read.
        """
        user = self._settings.user
        if user is None:
            return False
        async with self._renewing:
            if self.token != refused:
                return False
            try:
                answer = await authenticate(
                    rpc.AuthenticateRequest(name=user, password=await self._password())
                )
            except ServerError as exc:
                if "authentication is not enabled" not in exc.detail:
                    raise
                # As Go's client does: the same settings work before authentication is enabled, and
                # once it is disabled. Old servers (3.4.23, 3.5.1) still refuse a token then that
                # they do not know. They need none.
                _log.warning(
                    "etcd checks no users: authentication is not enabled, although there is user %s",
                    user,
                )
                self.token, self.metadata, self._ends = "", _REQUIRE_LEADER, math.inf
                return True
            self.token = answer.token
            self.metadata = (*_REQUIRE_LEADER, ("token", answer.token))
            self._ends = anyio.current_time() + _SPENT * _life_of(answer.token)
            return True

    async def _password(self) -> str:
        path = self._settings.password_file
        if path is None:
            return self._settings.password or ""
        try:
            return (await anyio.to_thread.run_sync(Path(path).read_text)).rstrip("\r\n")
        except (OSError, ValueError) as exc:
            raise ConfigurationError(f"the password cannot be read from {path}: {exc}") from exc


class _Claims(msgspec.Struct):
    exp: float


def _life_of(token: str) -> float:
    """Return for how many seconds a token is good; infinity if it does not say.

    etcd's tell when they end, not when they were made, so this rests on the clocks. If they differ,
    one renewal too many is made now and then, or the server's refusal renews the token: nothing
    depends on it.
    """
    parts = token.split(".")
    if len(parts) != 3:
        return math.inf
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        return max(msgspec.json.decode(payload, type=_Claims).exp - time.time(), _MIN_LIFE)
    except (ValueError, msgspec.MsgspecError):
        return math.inf
