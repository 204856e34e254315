"""Which forms of a batch a cluster can be trusted with: by its members, and by the client."""

import pytest
from aetcd import rpc

from kvorum.etcd.pipeline.capabilities import Capabilities, capabilities_of
from kvorum.etcd.transport.members import UNKNOWN, Versions, is_of_cluster, summarize
from kvorum.etcd.transport.versions import QUOTA, ROLES, Version, hazard_names


def capabilities(
    reads: str, *, writes: bool = True, guard: bool = True, identity: bool = False
) -> Capabilities:
    return Capabilities(reads, writes, probe=not identity, guard_quota=guard)  # type: ignore[arg-type]  # one of three words


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        # Reads of old servers go through the log; those of fixed versions need not.
        ([(3, 4, 22)], capabilities("nested")),
        ([(3, 4, 23)], capabilities("flat")),
        ([(3, 5, 1)], capabilities("nested")),
        ([(3, 5, 7)], capabilities("flat")),
        ([(3, 6, 14)], capabilities("flat", guard=False)),
        ([(3, 7, 0)], capabilities("flat")),
        # Of several servers each counts: the oldest is not the worst.
        ([(3, 4, 23), (3, 5, 1)], capabilities("nested")),
        # Some members count what is nested and others do not: when the store is full, the first
        # refuse what the others take.
        ([(3, 5, 33), (3, 5, 32)], capabilities("flat", writes=False)),
        # One whose version is not known may be of either kind.
        ([(3, 5, 33), None], capabilities("flat", writes=False)),
        ([], capabilities("flat", writes=False)),
    ],
)
def test_what_a_client_without_a_user_may_send(
    versions: list[Version | None], expected: Capabilities
) -> None:
    hazards = hazard_names(*filter(None, versions))

    assert capabilities_of(hazards, summarize(versions), has_identity=False) == expected


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        # Nothing of a user's is nested where roles are not checked.
        ([(3, 4, 23)], capabilities("flat", writes=False, identity=True)),
        ([(3, 5, 1)], capabilities("single", writes=False, identity=True)),
        ([(3, 4, 44)], capabilities("flat", identity=True)),
        ([(3, 5, 30)], capabilities("flat", identity=True)),
        ([(3, 5, 33)], capabilities("flat", guard=False, identity=True)),
        ([(3, 8, 0)], capabilities("flat", guard=False, identity=True)),
        # Writes are batched only if each member checks roles: also one that the client never talks
        # to, and one that cannot be asked.
        ([(3, 5, 30), (3, 5, 29)], capabilities("flat", writes=False, identity=True)),
        ([(3, 5, 30), None], capabilities("flat", writes=False, identity=True)),
        ([], capabilities("flat", writes=False, identity=True)),
    ],
)
def test_what_a_client_that_may_be_a_user_may_send(
    versions: list[Version | None], expected: Capabilities
) -> None:
    asked = hazard_names(
        *(version for version in versions[:1] if version)
    )  # by the client, on connecting

    assert capabilities_of(asked, summarize(versions), has_identity=True) == expected


def test_a_member_of_an_unknown_version_may_have_every_hazard() -> None:
    assert summarize([]) == summarize([None]) == UNKNOWN
    assert summarize([(3, 8, 0), None]).hazards == UNKNOWN.hazards


def test_members_are_uneven_in_what_one_has_and_another_one_is_free_of() -> None:
    assert summarize([(3, 5, 30), (3, 5, 30)]).uneven == frozenset()
    assert summarize([(3, 5, 30), (3, 5, 29)]).uneven == {ROLES}
    assert summarize([(3, 5, 30), None]).uneven == UNKNOWN.hazards
    assert summarize([(3, 5, 30), (3, 5, 33)]).uneven == {QUOTA}


def list_of(*ids: int, cluster_id: int = 7, member_id: int = 1) -> rpc.MemberListResponse:
    header = {"cluster_id": cluster_id, "member_id": member_id}
    return rpc.MemberListResponse(header=header, members=[{"ID": each} for each in ids])


@pytest.mark.parametrize(
    "answer",
    [
        list_of(0, cluster_id=0, member_id=0),  # of `etcd grpc-proxy`
        list_of(0, member_id=0),
        list_of(1, 2, cluster_id=0),
        list_of(2, 3),
        list_of(1, 0),
        list_of(),
        rpc.MemberListResponse(),
    ],
)
def test_a_list_without_the_member_that_answers_is_not_that_of_a_cluster(
    answer: rpc.MemberListResponse,
) -> None:
    assert not is_of_cluster(answer)


def test_a_list_with_the_member_that_answers_is_that_of_its_cluster() -> None:
    assert is_of_cluster(list_of(1))
    assert is_of_cluster(list_of(2, 1, 3))


def test_a_version_counts_for_the_member_that_told_it_and_two_make_it_unknown() -> None:
    versions = Versions(list_of(1, 2), tls=False)
    versions.note(list_of(member_id=1).header, (3, 5, 30))
    versions.note(list_of(member_id=1).header, (3, 5, 30))
    versions.note(list_of(member_id=2, cluster_id=8).header, (3, 5, 30))
    versions.note(list_of(member_id=0).header, (3, 5, 30))
    assert [versions.of(each) for each in (0, 1, 2)] == [None, (3, 5, 30), None]

    for version in ((3, 5, 16), (3, 5, 30)):
        versions.note(list_of(member_id=1).header, version)
        assert versions.of(1) is None


def test_the_address_of_one_member_alone_leads_to_no_other() -> None:
    answer = list_of(1, 2, 3)
    for member, hosts in zip(
        answer.members, (("a", "balancer"), ("b", "balancer"), ()), strict=True
    ):
        member.clientURLs.extend(f"http://{host}:2379" for host in hosts)
    versions = Versions(answer, tls=False)

    own = {
        (address, member)
        for address in ("a:2379", "b:2379", "balancer:2379", "elsewhere:2379")
        for member in (1, 2, 3, 4)
        if versions.is_own_address(address, member)
    }
    assert own == {("a:2379", 1), ("b:2379", 2)}


def test_every_address_leads_to_the_only_member() -> None:
    versions = Versions(list_of(1), tls=False)

    assert versions.is_own_address("elsewhere:2379", 1)
    assert not versions.is_own_address("elsewhere:2379", 2)
