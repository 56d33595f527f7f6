"""What a member says of itself, until it is heard."""

from __future__ import annotations

from kvorum import errors
from kvorum.membership import Cluster, Member
from kvorum.server.proposer import Proposal, Proposer
from kvorum.server.publisher import CLUSTER_VERSION, Publisher
from kvorum.server.request import RequestIds
from kvorum.types import MemberID
from kvorum.version import ETCD_VERSION

ME = MemberID(0xAB)


class Buckets:
    def put(self, bucket: str, key: bytes, value: bytes) -> None: ...
    def delete(self, bucket: str, key: bytes) -> None: ...
    def get(self, bucket: str, key: bytes) -> bytes | None: ...
    def range(self, bucket: str, lo: bytes, hi: bytes | None) -> list[tuple[bytes, bytes]]:
        return []


class Bench:
    def __init__(self) -> None:
        self.ready = 0
        self.cluster = Cluster(7, ME, Buckets())
        self.cluster.add(Member(ME, ("http://p:1",)))
        self.proposer = Proposer(
            RequestIds(ME, 0), max_request_bytes=1 << 20, wake=lambda: None, clock=lambda: 0.0
        )
        self.publisher = Publisher(
            member=ME,
            name="me",
            client_urls=("http://c:1", "http://c:2"),
            cluster=self.cluster,
            proposer=self.proposer,
            ready=self._ready,
        )

    def _ready(self) -> None:
        self.ready += 1

    def proposed(self) -> dict[str, Proposal]:
        """What was proposed since the last time, by kind."""
        found = {}
        for entry in self.proposer.take_batch():
            proposal = self.proposer.done(entry.local.id)  # type: ignore[attr-defined]
            assert proposal is not None
            assert proposal.kind not in found
            found[proposal.kind] = proposal
        return found


def test_a_follower_publishes_itself_and_leaves_the_version_alone() -> None:
    bench = Bench()
    bench.publisher.attempt(is_leader=False)
    proposed = bench.proposed()
    assert list(proposed) == ["cluster_member_attr_set"]
    request = proposed["cluster_member_attr_set"].request
    assert request.member_ID == ME
    assert request.member_attributes.name == "me"
    assert list(request.member_attributes.client_urls) == ["http://c:1", "http://c:2"]


def test_ready_comes_with_the_answer_and_once() -> None:
    bench = Bench()
    bench.publisher.attempt(is_leader=False)
    proposal = bench.proposed()["cluster_member_attr_set"]
    assert (bench.ready, bench.publisher.published) == (0, False)
    proposal.caller.reply(b"")
    assert (bench.ready, bench.publisher.published) == (1, True)
    bench.publisher.attempt(is_leader=False)
    assert bench.proposed() == {}


def test_what_is_under_way_is_not_proposed_again() -> None:
    bench = Bench()
    for _ in range(3):
        bench.publisher.attempt(is_leader=True)
    assert set(bench.proposed()) == {"cluster_member_attr_set", "cluster_version_set"}
    bench.publisher.attempt(is_leader=True)
    assert bench.proposed() == {}


def test_what_failed_is_tried_again() -> None:
    bench = Bench()
    for _ in range(3):
        bench.publisher.attempt(is_leader=True)
        for proposal in bench.proposed().values():
            proposal.caller.fail(errors.Timeout.code, errors.Timeout.message)
        assert bench.ready == 0
    bench.publisher.attempt(is_leader=True)
    for proposal in bench.proposed().values():
        proposal.caller.reply(b"")
    assert bench.ready == 1


def test_a_leader_sets_the_cluster_version_if_it_is_another() -> None:
    bench = Bench()
    bench.cluster.set_version("3.5.0")
    bench.publisher.attempt(is_leader=True)
    request = bench.proposed()["cluster_version_set"].request
    assert request.ver == CLUSTER_VERSION
    bench.cluster.set_version(CLUSTER_VERSION)
    bench.publisher._version_done("")
    bench.publisher.attempt(is_leader=True)
    assert "cluster_version_set" not in bench.proposed()


def test_the_cluster_version_is_the_release_without_its_patch() -> None:
    major, minor, _ = ETCD_VERSION.split(".")
    assert f"{major}.{minor}.0" == CLUSTER_VERSION
