"""The token of the user: fetched, renewed before it ends, and renewed when a server refuses it.

A simple token is known to the members that were up when it was made, and each forgets it some
minutes after its last use. Its end cannot be predicted, so a refusal renews it. A JWT names its
end.
"""

import base64
import logging
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeAlias

import anyio
import anyio.to_thread
import msgspec

from kvorum.errors import ConfigurationError, ServerError
from kvorum.etcd.transport import _rpc as rpc
from kvorum.etcd.transport.policies import TokenTiming
from kvorum.settings import EtcdSettings

_log = logging.getLogger(__name__)

Metadata: TypeAlias = tuple[tuple[str, str], ...]

# A member that knows no leader refuses a call or a watch with this, instead of keeping it waiting.
_REQUIRE_LEADER: Final[Metadata] = (("hasleader", "true"),)


class Tokens:
    """The user's token, as each call sends it.

    Attributes:
        token: the token; empty without a user, or before it is fetched.
        metadata: what a call sends beside its request.
        has_user: whether there is a user to authenticate as.
    """

    def __init__(self, settings: EtcdSettings, timing: TokenTiming) -> None:
        self.token: str = ""
        self.metadata: Metadata = _REQUIRE_LEADER
        self.has_user: bool = settings.user is not None
        self._settings = settings
        self._timing = timing
        self._ends = math.inf
        self._renewing = anyio.Lock()

    def __repr__(self) -> str:
        user = self._settings.user or "no user"
        return f"<Tokens of {user} [{'fetched' if self.token else 'none'}]>"

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
                # As in Go's client: the same settings work before authentication is enabled and
                # after it is disabled. Old servers (3.4.23, 3.5.1) then still refuse a token that
                # they do not know, but need none.
                _log.warning(
                    "user %s is configured, but authentication is disabled in etcd",
                    user,
                )
                self.token, self.metadata, self._ends = "", _REQUIRE_LEADER, math.inf
                return True
            timing = self._timing
            life = _life_of(answer.token, timing)
            self.token = answer.token
            self.metadata = (*_REQUIRE_LEADER, ("token", answer.token))
            self._ends = anyio.current_time() + timing.spent * life
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


def _life_of(token: str, timing: TokenTiming) -> float:
    """Return for how many seconds a token is valid; infinity if it does not say.

    etcd's tokens name when they end, not when they were made, so this compares two clocks. If they
    differ, a token is renewed too early, or the server refuses it: nothing depends on it.
    """
    parts = token.split(".")
    if len(parts) != 3:
        return math.inf
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        end = msgspec.json.decode(payload, type=_Claims).exp
        return max(end - timing.wall_clock(), timing.least_life)
    except (ValueError, msgspec.MsgspecError):
        return math.inf
