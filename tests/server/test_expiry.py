"""What has expired is revoked, a few leases at a time; what lives long is written down."""

from __future__ import annotations

from kvorum import errors
from kvorum.lease.lessor import Lessor, LessorLimits
from kvorum.server.expiry import BATCH, MAX_IN_FLIGHT, LeaseExpiry
from kvorum.server.proposer import Proposer
from kvorum.server.request import RequestIds
from kvorum.types import LeaseID, MemberID


class Bench:
    """A primary lessor, a real proposer, and the log in the test's hands."""

    def __init__(self, *, checkpoints: bool = False) -> None:
        self.lessor = Lessor(
            lambda key, value: None,
            lambda key: None,
            limits=LessorLimits(min_ttl=1),
            checkpoints=checkpoints,
        )
        self.lessor.promote(0.0, 0.0)
        self.proposer = Proposer(
            RequestIds(MemberID(5), 0),
            max_request_bytes=1 << 20,
            wake=lambda: None,
            clock=lambda: 0.0,
        )
        self.expiry = LeaseExpiry(self.lessor, self.proposer, checkpoints=checkpoints)

    def grant(self, count: int, ttl: int = 1) -> None:
        for number in range(1, count + 1):
            self.lessor.grant(LeaseID(number), ttl, 0.0)

    def apply(self) -> list[int]:
        """Carry out the batch that was proposed; the leases that it revoked."""
        revoked = []
        for entry in self.proposer.take_batch():
            proposal = self.proposer.done(entry.local.id)  # type: ignore[attr-defined]
            assert proposal is not None
            assert proposal.kind == "lease_revoke"
            self.lessor.revoke(LeaseID(proposal.request.ID))
            revoked.append(proposal.request.ID)
            proposal.caller.reply(b"")
        return revoked


def test_nothing_is_due() -> None:
    bench = Bench()
    bench.grant(3)
    bench.expiry.check(0.5)
    assert bench.apply() == []


def test_what_expired_is_revoked_once() -> None:
    bench = Bench()
    bench.grant(3)
    bench.expiry.check(1.0)
    bench.expiry.check(1.5)
    assert sorted(bench.apply()) == [1, 2, 3]
    bench.expiry.check(100.0)
    assert bench.apply() == []
    assert bench.expiry.expired == 3


def test_only_so_many_are_under_way_and_answers_make_room() -> None:
    bench = Bench()
    count = 3 * MAX_IN_FLIGHT + 1
    bench.grant(count)
    bench.expiry.check(1.0)
    assert len(bench.proposer.waiting) == MAX_IN_FLIGHT
    done = []
    while revoked := bench.apply():
        assert len(revoked) <= MAX_IN_FLIGHT
        done += revoked
    assert sorted(done) == list(range(1, count + 1))
    assert bench.expiry.expired == count


def test_a_failed_revocation_is_tried_again_and_not_counted() -> None:
    bench = Bench()
    bench.grant(1)
    bench.expiry.check(1.0)
    bench.proposer.drop(bench.proposer.take_batch(), errors.Timeout)
    assert bench.expiry.expired == 0
    bench.expiry.check(2.0)
    assert bench.apply() == []  # not at once
    bench.expiry.check(1.0 + bench.lessor.limits.retry_interval)
    assert bench.apply() == [1]
    assert bench.expiry.expired == 1


def test_a_member_stops_with_many_leases_due() -> None:
    """Each refusal comes from within the proposal; five hundred of them are no recursion."""
    bench = Bench()
    bench.grant(2 * BATCH)
    bench.expiry.check(1.0)
    bench.proposer.close(errors.Stopped)
    assert bench.proposer.waiting == {}
    bench.expiry.check(2.0)
    bench.expiry.check(2.0)
    assert bench.expiry.expired == 0


def test_checkpoints_say_how_much_is_left() -> None:
    bench = Bench(checkpoints=True)
    bench.grant(2, ttl=1000)
    bench.expiry.check(299.0)
    assert bench.proposer.take_batch() == []
    bench.expiry.check(300.0)
    (entry,) = bench.proposer.take_batch()
    proposal = bench.proposer.done(entry.local.id)  # type: ignore[attr-defined]
    assert proposal is not None
    assert proposal.kind == "lease_checkpoint"
    left = [(c.ID, c.remaining_TTL) for c in proposal.request.checkpoints]
    assert sorted(left) == [(1, 700), (2, 700)]
    proposal.caller.reply(b"")


def test_without_the_gate_there_are_none() -> None:
    bench = Bench()
    bench.grant(1, ttl=1000)
    bench.expiry.check(900.0)
    assert bench.proposer.take_batch() == []
