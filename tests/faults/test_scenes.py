"""Each scene passes in its short form, and finds a planted fault."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kvorum
from kvorum import EmbeddedEtcd, EtcdStorageBackend, OutcomeUnknownError, UnavailableError
from kvorum.cli import main
from kvorum.errors import StorageFullError
from kvorum.etcd.transport.floor import Floor
from kvorum.etcd.watch.watch import EtcdStorageWatch
from kvorum.repository.known import Known
from kvorum.storage.values import Change, Entry
from kvorum.testing import Rule
from kvorum.testing.faults.operator import OperatorError
from kvorum.testing.scenes import (
    SCENES,
    SceneLimits,
    Stage,
    UnplayableError,
    play_scene,
    starting,
    users,
)

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--soak-seed"))


@pytest.mark.parametrize("name", SCENES)
async def test_nothing_is_lost_or_wrong_in_a_scene(
    kvorum_etcd: EmbeddedEtcd, name: str, seed: int, *, is_long: bool
) -> None:
    newer = os.environ.get("KVORUM_NEWER_ETCD")
    upgrade = Path(newer) if newer else None
    rounds = 8 if is_long else 1
    try:
        verdict = await play_scene(
            SCENES[name], binary=kvorum_etcd.binary, rounds=rounds, seed=seed, newer=upgrade
        )
    except UnplayableError as exc:
        pytest.skip(str(exc))
    print(f"\n{name}: {verdict}")

    assert verdict.is_right, str(verdict)


# --- planted faults --------------------------------------------------------------

set_ = EtcdStorageBackend.set
get = EtcdStorageBackend.get
strike = Stage.strike
next_changes = EtcdStorageWatch.__anext__
replace_known = Known.replace


class Every:
    """True at every nth call."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._times = 0

    def __call__(self) -> bool:
        self._times += 1
        return self._times % self._number == 0


def a_stored_write_is_reported_as_refused(patch: pytest.MonkeyPatch) -> None:
    """As etcd answers the write that crosses the quota; whether one does is chance."""
    is_it = Every(7)

    async def believed(self: EtcdStorageBackend, key: str, value: bytes, **rest: Any) -> int:
        revision = await set_(self, key, value, **rest)
        if is_it():
            raise StorageFullError("etcdserver: mvcc: database space exceeded")
        return revision

    patch.setattr(EtcdStorageBackend, "set", believed)


def a_watch_omits_an_event(patch: pytest.MonkeyPatch) -> None:
    is_it = Every(40)

    async def forgetful(self: EtcdStorageWatch) -> tuple[Change, ...]:
        changes = await next_changes(self)
        return await next_changes(self) if is_it() else changes

    patch.setattr(EtcdStorageWatch, "__anext__", forgetful)


def a_dropped_write_is_reported_as_unknown(patch: pytest.MonkeyPatch) -> None:
    is_it = Every(7)

    async def dropped(self: EtcdStorageBackend, key: str, value: bytes, **rest: Any) -> int:
        if is_it():
            raise OutcomeUnknownError(key, "UNKNOWN: raft proposal dropped")
        return await set_(self, key, value, **rest)

    patch.setattr(EtcdStorageBackend, "set", dropped)


def a_done_write_is_sent_again(patch: pytest.MonkeyPatch) -> None:
    is_it = Every(7)

    async def twice(self: EtcdStorageBackend, key: str, value: bytes, **rest: Any) -> int:
        revision = await set_(self, key, value, **rest)
        return await set_(self, key, value, **rest) if is_it() else revision

    patch.setattr(EtcdStorageBackend, "set", twice)


def a_read_that_is_refused_splits_the_members(patch: pytest.MonkeyPatch) -> None:
    """The real bug: in one batch, a limited user reads a forbidden key and another one writes."""

    async def split(self: Stage, name: str) -> Any:
        cluster, root = self.operator, self.operator.credentials
        key = "L2Vsc2V3aGVyZS94"  # /elsewhere/x, which it may write
        put = {"requestPut": {"key": key, "value": key}}
        read = {"requestRange": {"key": "L3NjZW5lL2s="}}
        cluster.credentials = ("limited", users.PASSWORD)
        with pytest.raises(OperatorError, match="permission denied"):
            await cluster.ask("kv/txn", success=[put, read])
        cluster.credentials = root
        return await strike(self, name)

    patch.setattr(Stage, "strike", split)


def a_client_stays_with_a_learner(patch: pytest.MonkeyPatch) -> None:
    async def stays(
        self: EtcdStorageBackend, key: str, *, revision: int | None = None
    ) -> Entry | None:
        if len(self.session.settings.endpoints) > 3:
            raise UnavailableError("a learner", "rpc not supported for learner")
        return await get(self, key, revision=revision)

    patch.setattr(EtcdStorageBackend, "get", stays)


def the_cluster_is_not_checked(patch: pytest.MonkeyPatch) -> None:
    """The real bug: the id of the cluster is not checked."""
    patch.setattr(Floor, "is_foreign", lambda *_: False)


def revisions_are_taken_for_identities(patch: pytest.MonkeyPatch) -> None:
    """The real bug: only the revision is compared, and the revision has recurred."""
    patch.setattr(EtcdStorageBackend, "may_recur", lambda *_: False)


def a_relist_shows_no_difference(patch: pytest.MonkeyPatch) -> None:
    listed: list[Known] = []

    def silent(self: Known, *args: Any, **options: Any) -> list[Any]:
        changes = replace_known(self, *args, **options)
        if self in listed:
            return []
        listed.append(self)
        return changes

    patch.setattr(Known, "replace", silent)


def opening_gives_up_at_once(patch: pytest.MonkeyPatch) -> None:
    opened = kvorum.Client.__aenter__

    async def impatient(self: kvorum.Client) -> kvorum.Client:
        # The scene's working client, which has another timeout, opens as usual.
        with kvorum.deadline(0.02 if self.settings.timeout == starting.TIMEOUT else 10.0):
            return await opened(self)

    patch.setattr(kvorum.Client, "__aenter__", impatient)


PLANTED: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], set[Rule]]] = {
    "quota": (a_stored_write_is_reported_as_refused, {Rule.FALSE_REFUSAL}),
    "slow-link": (a_watch_omits_an_event, {Rule.LOST_EVENT}),
    "leaders": (a_dropped_write_is_reported_as_unknown, {Rule.NEEDLESS_DOUBT}),
    "rolling-restart": (a_done_write_is_sent_again, {Rule.APPLIED_TWICE}),
    "users": (a_read_that_is_refused_splits_the_members, {Rule.MEMBERS_DIFFER}),
    "crowd": (a_read_that_is_refused_splits_the_members, {Rule.MEMBERS_DIFFER}),
    "rolling-upgrade": (a_read_that_is_refused_splits_the_members, {Rule.MEMBERS_DIFFER}),
    "learner": (a_client_stays_with_a_learner, {Rule.OUTAGE}),
    "another-cluster": (the_cluster_is_not_checked, {Rule.INVENTED_WRITE, Rule.LOST_WRITE}),
    "backup": (revisions_are_taken_for_identities, {Rule.BROKEN_EXPECTATION}),
    "backup-bumped": (a_relist_shows_no_difference, {Rule.LOST_EVENT}),
    "starting": (opening_gives_up_at_once, {Rule.OUTAGE}),
}


@pytest.mark.parametrize("name", PLANTED)
async def test_a_scene_finds_a_planted_fault(
    kvorum_etcd: EmbeddedEtcd, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Otherwise a scene would prove nothing.

    An upgrade to the same version restarts the members, which suffices here.
    """
    plant, rules = PLANTED[name]
    plant(monkeypatch)
    limits = SceneLimits(wait=3.0, burst=100)  # a fault makes some waits fail

    found: set[Rule] = set()
    for _ in range(5):  # some need several attempts: it depends on the writes in flight
        try:
            verdict = await play_scene(
                SCENES[name], binary=kvorum_etcd.binary, newer=kvorum_etcd.binary, limits=limits
            )
        except UnplayableError as exc:
            pytest.skip(str(exc))
        found |= {violation.rule for violation in verdict.violations}
        if found & rules:
            break
    assert found & rules


def test_a_fault_is_planted_for_each_scene() -> None:
    assert PLANTED.keys() == SCENES.keys()


def test_scenes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["trial", "--list-scenes"])

    printed = capsys.readouterr().out
    assert not caught.value.code
    assert all(name in printed for name in SCENES)


def test_a_scene_is_played_by_the_command(
    capsys: pytest.CaptureFixture[str], kvorum_etcd: EmbeddedEtcd
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(
            ["trial", "--scene", "starting", "--rounds", "1", "--etcd-bin", str(kvorum_etcd.binary)]
        )

    assert caught.value.code == 0, capsys.readouterr().out


def test_an_unknown_scene_is_named_with_the_known_ones() -> None:
    with pytest.raises(SystemExit, match="there is no scene 'opera'; there are: quota"):
        main(["trial", "--scene", "opera"])


def test_a_scene_without_its_tools_says_so(
    capsys: pytest.CaptureFixture[str], kvorum_etcd: EmbeddedEtcd, tmp_path: Any
) -> None:
    alone = tmp_path / "etcd"
    alone.symlink_to(kvorum_etcd.binary)
    with pytest.raises(SystemExit) as caught:
        main(["trial", "--scene", "backup", "--etcd-bin", str(alone)])

    assert caught.value.code == 2
    assert "cannot run here: there is no etcdctl" in capsys.readouterr().out
