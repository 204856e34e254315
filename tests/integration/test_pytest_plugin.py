"""The fixtures that users' tests get, in a session of their own and in this one."""

import re
from pathlib import Path

import pytest

import kvorum


def test_the_server_is_ready_in_a_test_that_is_not_async(kvorum_etcd: kvorum.EmbeddedEtcd) -> None:
    assert kvorum_etcd.url.startswith("etcd://127.0.0.1:")
    assert kvorum_etcd.pid > 0


def test_each_url_is_on_the_server_and_ends_with_a_prefix(
    kvorum_etcd: kvorum.EmbeddedEtcd, kvorum_url: str
) -> None:
    assert re.fullmatch(re.escape(kvorum_etcd.url) + "/test-[0-9a-f]{12}", kvorum_url)


async def test_the_client_is_open_and_sees_nothing_of_other_tests(
    kvorum_client: kvorum.Client,
) -> None:
    assert (await kvorum_client.backend.list("")).entries == []
    await kvorum_client.backend.set("a", b"1")


async def test_the_client_of_the_next_test_sees_nothing_either(
    kvorum_client: kvorum.Client,
) -> None:
    """The same as above: one of the two comes second, in whatever order they run."""
    assert (await kvorum_client.backend.list("")).entries == []
    await kvorum_client.backend.set("a", b"1")


async def test_a_test_may_restart_the_server_from_its_own_event_loop(
    kvorum_etcd: kvorum.EmbeddedEtcd, kvorum_client: kvorum.Client
) -> None:
    await kvorum_client.backend.set("kept", b"yes")

    await kvorum_etcd.restart()

    async with kvorum.connect(kvorum_client.settings) as another:
        assert await another.backend.exists("kept")


SESSION = """
    import pytest

    pids = set()

    def test_one(kvorum_etcd, kvorum_url):
        pids.add(kvorum_etcd.pid)
        assert kvorum_url not in pids
        pids.add(kvorum_url)

    def test_two(kvorum_etcd, kvorum_url):
        pids.add(kvorum_etcd.pid)
        pids.add(kvorum_url)
        assert len(pids) == 3
        print("pid", kvorum_etcd.pid, "in", kvorum_etcd.data_dir, kvorum_etcd.binary)
"""


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """Run a session in a process of its own, in the order of the file, with warnings as errors."""
    pytester.makepyfile(SESSION)
    return pytester.runpytest_subprocess("-W", "error", "-p", "no:randomly", "-s", *arguments)


def test_one_server_serves_the_session_and_is_gone_after_it(pytester: pytest.Pytester) -> None:
    result = run(pytester)

    result.assert_outcomes(passed=2)
    found = re.search(r"pid (\d+) in (\S+)", result.stdout.str())
    assert found is not None
    assert not Path(f"/proc/{found[1]}").exists()
    assert not Path(found[2]).exists()


def test_the_option_names_the_binary(
    pytester: pytest.Pytester, kvorum_etcd: kvorum.EmbeddedEtcd
) -> None:
    link = pytester.path / "my-etcd"
    link.symlink_to(kvorum_etcd.binary)

    result = run(pytester, f"--kvorum-etcd-bin={link}")

    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*my-etcd*"])


def test_without_a_binary_the_fixture_fails_with_a_reason(pytester: pytest.Pytester) -> None:
    """Skipped tests would look like passed ones."""
    result = run(pytester, "--kvorum-etcd-bin=/nowhere/etcd")

    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(
        ["*EmbeddedEtcdError: the binary asked for cannot be used: /nowhere/etcd does not run*"]
    )


def test_the_client_works_with_anyios_plugin(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def anyio_backend():
            return "asyncio"

        async def test_it(kvorum_client):
            await kvorum_client.backend.set("a", b"1")
            assert await kvorum_client.backend.exists("a")
        """
    )

    result = pytester.runpytest_subprocess("-W", "error", "-o", "anyio_mode=auto")

    result.assert_outcomes(passed=1)
