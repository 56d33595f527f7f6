"""What a member says of itself, until it is heard."""

from __future__ import annotations

from kvorum import errors
from kvorum.membership import Cluster, Member
from kvorum.server.proposer import Proposal, Proposer
from kvorum.server.publisher import Publisher
from kvorum.server.request import RequestIds
from kvorum.types import MemberID

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


def test_a_member_publishes_itself() -> None:
    bench = Bench()
    bench.publisher.attempt()
    proposed = bench.proposed()
    assert list(proposed) == ["cluster_member_attr_set"]
    request = proposed["cluster_member_attr_set"].request
    assert request.member_ID == ME
    assert request.member_attributes.name == "me"
    assert list(request.member_attributes.client_urls) == ["http://c:1", "http://c:2"]


def test_ready_comes_with_the_answer_and_once() -> None:
    bench = Bench()
    bench.publisher.attempt()
    proposal = bench.proposed()["cluster_member_attr_set"]
    assert (bench.ready, bench.publisher.published) == (0, False)
    proposal.caller.reply(b"")
    assert (bench.ready, bench.publisher.published) == (1, True)
    bench.publisher.attempt()
    assert bench.proposed() == {}


def test_what_is_under_way_is_not_proposed_again() -> None:
    bench = Bench()
    for _ in range(3):
        bench.publisher.attempt()
    assert set(bench.proposed()) == {"cluster_member_attr_set"}
    bench.publisher.attempt()
    assert bench.proposed() == {}


def test_what_failed_is_tried_again() -> None:
    bench = Bench()
    for _ in range(3):
        bench.publisher.attempt()
        for proposal in bench.proposed().values():
            proposal.caller.fail(errors.Timeout.code, errors.Timeout.message)
        assert bench.ready == 0
    bench.publisher.attempt()
    for proposal in bench.proposed().values():
        proposal.caller.reply(b"")
    assert bench.ready == 1
