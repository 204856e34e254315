"""`kvorum demo` shows the main job, and its exit code is the proof that it went as shown."""

import io
import sys

import pytest
from rich.console import Console

import kvorum
from kvorum.cli import main
from kvorum.cli.demo import run_demo
from kvorum.lab import LabWorker, LabWorkerRepository


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=120, highlight=False)


@pytest.fixture
def same_version(kvorum_etcd: kvorum.EmbeddedEtcd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the demo's own server be of the version that is tested."""
    monkeypatch.setenv("ETCD_BIN", str(kvorum_etcd.binary))


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.usefixtures("same_version")
async def test_the_demo_proves_its_claims_on_an_etcd_of_its_own(console: Console) -> None:
    assert await run_demo(console, None)

    text = printed(console)
    assert "/lab-resource-manager/lab-workers/worker-001" in text
    assert text.count("│ yes") == 5
    assert "│ NO" not in text


async def test_on_another_etcd_it_leaves_nothing_behind(
    console: Console, kvorum_url: str, kvorum_client: kvorum.Client
) -> None:
    await kvorum_client.backend.set("kept", b"")

    assert await run_demo(console, kvorum_url)

    assert await kvorum_client.backend.keys() == ["kept"]


async def test_a_watch_that_misses_a_write_is_found_out(
    console: Console, kvorum_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proof that cannot fail proves nothing."""
    advance = kvorum.Watch.__anext__

    async def forget_one(watch: kvorum.Watch[LabWorker]) -> kvorum.WatchEvent[LabWorker]:
        event = await advance(watch)
        return await advance(watch) if isinstance(event, kvorum.Modified) else event

    monkeypatch.setattr(kvorum.Watch, "__anext__", forget_one)

    assert not await run_demo(console, kvorum_url)
    assert "│ NO" in printed(console)


async def test_an_update_that_overwrites_another_is_found_out(
    console: Console, kvorum_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = LabWorkerRepository.update

    async def overwrite(workers: LabWorkerRepository, worker: LabWorker) -> LabWorker:
        worker.metadata.resource_version = (
            await workers.get(worker.metadata.name)
        ).metadata.resource_version
        return await update(workers, worker)

    monkeypatch.setattr(LabWorkerRepository, "update", overwrite)

    assert not await run_demo(console, kvorum_url)


def test_the_command_exits_with_0_once_it_has_proven_its_claims(
    kvorum_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["demo", "--target", kvorum_url])

    assert caught.value.code == 0
    assert "Proof" in capsys.readouterr().out


@pytest.mark.parametrize("target", ["etcd://127.0.0.1:1", "localhost:2379"])
def test_the_command_says_what_is_wrong_and_exits_with_1(
    target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["demo", "--target", target])

    assert caught.value.code == 1
    assert "failed: " in capsys.readouterr().out


def test_without_the_extra_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "kvorum.cli.app", None)
    monkeypatch.setitem(sys.modules, "cyclopts", None)
    monkeypatch.delitem(sys.modules, "kvorum.cli.app")

    with pytest.raises(SystemExit, match=r"pip install 'kvorum\[cli,embedded\]'"):
        main()
