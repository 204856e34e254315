"""The command line of a member."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvorum.embedded.binary import EtcdBinary
from kvorum.embedded.member import EtcdMember, member_command

OLD = EtcdBinary(Path("/opt/etcd"), (3, 4, 23))
NEW = EtcdBinary(Path("/opt/etcd"), (3, 5, 1))


@pytest.fixture
def cluster() -> Iterator[list[EtcdMember]]:
    members = [EtcdMember(f"etcd-{number}", Path("/data")) for number in range(3)]
    yield members
    for member in members:
        member.close()


def test_all_addresses_are_on_the_loopback(cluster: list[EtcdMember]) -> None:
    argv = member_command(NEW, cluster[1], cluster, fsync=True, arguments=())

    urls = [argument for argument in argv if "://" in argument]
    assert len(urls) == 5
    assert all(url.count("http://127.0.0.1:") == url.count("://") for url in urls)


def test_each_member_knows_all_others(cluster: list[EtcdMember]) -> None:
    lists = {
        argument
        for member in cluster
        for argument in member_command(NEW, member, cluster, fsync=True, arguments=())
    }

    assert [flag for flag in lists if flag.startswith("--initial-cluster=")] == [
        "--initial-cluster="
        + ",".join(f"etcd-{n}=http://127.0.0.1:{cluster[n].peer.number}" for n in range(3))
    ]


def test_a_single_member_elects_itself_sooner_than_a_cluster(cluster: list[EtcdMember]) -> None:
    assert "--election-timeout=100" in member_command(
        NEW, cluster[0], cluster[:1], fsync=True, arguments=()
    )
    assert "--election-timeout=500" in member_command(
        NEW, cluster[0], cluster, fsync=True, arguments=()
    )


@pytest.mark.parametrize(
    ("binary", "fsync", "expected"),
    [(NEW, False, True), (NEW, True, False), (OLD, False, False), (OLD, True, False)],
)
def test_only_3_5_and_later_can_do_without_fsync(
    cluster: list[EtcdMember], binary: EtcdBinary, *, fsync: bool, expected: bool
) -> None:
    argv = member_command(binary, cluster[0], cluster[:1], fsync=fsync, arguments=())

    assert ("--unsafe-no-fsync" in argv) is expected


def test_the_users_arguments_come_last(cluster: list[EtcdMember]) -> None:
    """So that they win over ours."""
    argv = member_command(
        NEW, cluster[0], cluster[:1], fsync=False, arguments=["--election-timeout=1000"]
    )

    assert argv[-1] == "--election-timeout=1000"
