"""An operator's actions on a cluster, over etcd's HTTP: no code shared with what is judged.

Requests go through the JSON gateway. Hashes are read from the peer port, which needs no user.
"""

import base64
from http.client import HTTPConnection, HTTPException
from typing import Any, Final, NamedTuple

import anyio
import anyio.to_thread
import msgspec

TIMEOUT: Final = 10.0
WAIT_LIMIT: Final = 20.0  # seconds to wait for a state of the cluster


class OperatorError(Exception):
    """Etcd refused an operation. The message holds its words."""


class Hash(NamedTuple):
    """The hash of a member's data.

    Attributes:
        revision: the revision that it covers.
        compacted: the revision of the last compaction; -1 if there was none.
        value: the hash.
    """

    revision: int
    compacted: int
    value: int


class Operator:
    """Operates the members of a cluster.

    Args:
        endpoints: `host:port` of each member, for clients.
        peers: `host:port` of each member, for peers.
        wait: how many seconds to wait for a state of the cluster.

    Attributes:
        credentials: the name and password of a user with all rights, once authentication is
            enabled.
    """

    def __init__(
        self, endpoints: tuple[str, ...], peers: tuple[str, ...], *, wait: float = WAIT_LIMIT
    ) -> None:
        self.endpoints: tuple[str, ...] = endpoints
        self.peers: tuple[str, ...] = peers
        self.credentials: tuple[str, str] | None = None
        self._wait = wait

    async def ask(self, path: str, *, member: int = 0, **body: Any) -> Any:
        """Send a request to a member and return the answer.

        Raises:
            OperatorError: it was refused, or not answered.
        """
        token = await self.token()
        return await anyio.to_thread.run_sync(
            _request, self.endpoints[member], "POST", f"/v3/{path}", body, token
        )

    async def token(self) -> str:
        """Return a new token; empty without authentication. Tokens are short-lived."""
        if self.credentials is None:
            return ""
        name, password = self.credentials
        body = {"name": name, "password": password}
        path = "/v3/auth/authenticate"
        answer = await anyio.to_thread.run_sync(_request, self.endpoints[0], "POST", path, body, "")
        return str(answer["token"])

    # --- space ---

    async def compact(self, revision: int) -> None:
        """Compact the history before a revision."""
        await self.ask("kv/compaction", revision=revision)

    async def make_room(self) -> None:
        """Defragment every member, then disarm all alarms."""
        for member in range(len(self.endpoints)):
            await self.ask("maintenance/defragment", member=member)
        for alarm in await self.alarms():
            await self.ask("maintenance/alarm", action="DEACTIVATE", **alarm)

    async def alarms(self) -> list[Any]:
        """Return the active alarms."""
        return list((await self.ask("maintenance/alarm", action="GET")).get("alarms", ()))

    # --- members ---

    async def ids(self) -> list[int]:
        """Return the id of each member."""
        return [
            int((await self.ask("maintenance/status", member=member))["header"]["member_id"])
            for member in range(len(self.endpoints))
        ]

    async def leader(self) -> int:
        """Return the index of the leader, as soon as there is one."""
        ids = await self.ids()
        with anyio.fail_after(self._wait):
            while True:
                leader = int((await self.ask("maintenance/status")).get("leader", 0))
                if leader in ids:
                    return ids.index(leader)
                await anyio.sleep(0.05)

    async def move_leader(self) -> int:
        """Transfer leadership to the next member; return its index."""
        ids, leader = await self.ids(), await self.leader()
        target = (leader + 1) % len(ids)
        await self.ask("maintenance/transfer-leadership", member=leader, targetID=str(ids[target]))
        return target

    async def add_learner(self, peer: str) -> int:
        """Add a member as a learner; return its id."""
        answer = await self.ask("cluster/member/add", peerURLs=[f"http://{peer}"], isLearner=True)
        return int(answer["member"]["ID"])

    async def promote(self, learner: int) -> None:
        """Promote a learner as soon as it has caught up."""
        with anyio.fail_after(self._wait):
            while True:
                try:
                    await self.ask("cluster/member/promote", ID=str(learner))
                except OperatorError as exc:
                    if "in sync with leader" not in str(exc):
                        raise
                    await anyio.sleep(0.1)
                else:
                    return

    async def hashes(self) -> list[Hash]:
        """Return the hash of each member, as soon as they agree, or when the wait ends."""
        found: list[Hash] = []
        with anyio.move_on_after(self._wait):
            while True:
                found = [await anyio.to_thread.run_sync(_hash, peer) for peer in self.peers]
                if len(set(found)) == 1:
                    return found
                await anyio.sleep(0.1)
        return found

    # --- users ---

    async def add_user(self, name: str, password: str, *roles: str) -> None:
        """Add a user with roles."""
        await self.ask("auth/user/add", name=name, password=password)
        for role in roles:
            await self.ask("auth/user/grant", user=name, role=role)

    async def grant(self, role: str, prefix: str) -> None:
        """Grant a role read and write access to a prefix."""
        key, end = _range(prefix)
        permission = {"permType": "READWRITE", "key": key, "range_end": end}
        await self.ask("auth/role/grant", name=role, perm=permission)

    async def withdraw(self, role: str, prefix: str) -> None:
        """Revoke a role's access to a prefix."""
        key, end = _range(prefix)
        await self.ask("auth/role/revoke", role=role, key=key, range_end=end)

    async def check_users(self, password: str) -> None:
        """Enable authentication. This creates the user root."""
        await self.ask("auth/role/add", name="root")
        await self.add_user("root", password, "root")
        await self.ask("auth/enable")
        self.credentials = ("root", password)


def _range(prefix: str) -> tuple[str, str]:
    start = prefix.encode()
    end = start[:-1] + bytes([start[-1] + 1])
    return base64.b64encode(start).decode(), base64.b64encode(end).decode()


def _hash(peer: str) -> Hash:
    answer = _request(peer, "GET", "/members/hashkv", {"revision": 0}, "")
    return Hash(
        int(answer["header"]["revision"]),
        int(answer.get("compact_revision", 0)),
        int(answer.get("hash", 0)),
    )


def _request(endpoint: str, method: str, path: str, body: object, token: str) -> Any:
    headers = {"Content-Type": "application/json", **({"Authorization": token} if token else {})}
    connection = HTTPConnection(endpoint, timeout=TIMEOUT)
    try:
        connection.request(method, path, msgspec.json.encode(body), headers)
        response = connection.getresponse()
        answer = response.read()
    except (OSError, HTTPException) as exc:
        raise OperatorError(f"{endpoint}{path}: {exc!r}") from exc
    finally:
        connection.close()
    if response.status != 200:
        raise OperatorError(f"{endpoint}{path}: {response.status} {answer[:500]!r}")
    return msgspec.json.decode(answer)
