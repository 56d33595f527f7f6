"""Leases from grant to revocation, on the primary and elsewhere."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError

from kvorum import errors, failpoint
from kvorum.lease.lessor import (
    MAX_TTL,
    CheckpointFirst,
    LeaseExpired,
    Lessor,
    LessorLimits,
    NotPrimary,
)
from kvorum.lease.records import decode_record, record_key
from kvorum.types import LeaseID

A, B, C = LeaseID(10), LeaseID(20), LeaseID(30)
NOBODY = LeaseID(99)


class Bucket(dict[bytes, bytes]):
    """The bucket ``lease``, for a lessor to write to."""

    def lessor(self, *, primary_at: float | None = None, **options: object) -> Lessor:
        lessor = Lessor(self.__setitem__, self.__delitem__, **options)  # type: ignore[arg-type]
        if primary_at is not None:
            lessor.promote(primary_at, 0.0)
        return lessor

    def record(self, id: LeaseID) -> tuple[int, int, int]:
        return tuple(decode_record(self[record_key(id)]))


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture
def lessor(bucket: Bucket) -> Lessor:
    return bucket.lessor()


@pytest.fixture
def primary(bucket: Bucket) -> Lessor:
    return bucket.lessor(primary_at=0.0)


def granted(lessor: Lessor, *ttls: int, now: float = 0.0) -> list[LeaseID]:
    """Leases 1, 2, ... with these times."""
    ids = [LeaseID(i + 1) for i in range(len(ttls))]
    for id, ttl in zip(ids, ttls, strict=True):
        lessor.grant(id, ttl, now)
    return ids


# Grant


@pytest.mark.parametrize(
    ("asked", "given"), [(-5, 2), (0, 2), (1, 2), (2, 2), (3, 3), (MAX_TTL, MAX_TTL)]
)
def test_grant_stores_the_time_that_it_gives(
    bucket: Bucket, lessor: Lessor, asked: int, given: int
) -> None:
    assert lessor.grant(A, asked, 0.0) == given
    assert bucket.record(A) == (A, given, 0)
    assert lessor.has(A)
    assert not lessor.has(B)


@pytest.mark.parametrize(
    ("id", "ttl", "error"),
    [
        (0, MAX_TTL + 1, errors.LeaseNotFound),
        (A, MAX_TTL + 1, errors.LeaseTTLTooLarge),
        (A, 5, errors.LeaseExist),
    ],
)
def test_grant_refuses_in_this_order(
    bucket: Bucket, lessor: Lessor, id: int, ttl: int, error: type[Exception]
) -> None:
    lessor.grant(A, 10, 0.0)
    before = dict(bucket)
    with pytest.raises(error):
        lessor.grant(LeaseID(id), ttl, 0.0)
    assert bucket == before
    assert lessor.leases(0.0) == [A]


def test_negative_ids_are_leases_too(bucket: Bucket, lessor: Lessor) -> None:
    lessor.grant(LeaseID(-7), 5, 0.0)
    assert bucket.record(LeaseID(-7)) == (-7, 5, 0)


def test_an_id_can_be_granted_again_after_its_revocation(primary: Lessor) -> None:
    primary.grant(A, 5, 0.0)
    primary.revoke(A)
    primary.grant(A, 50, 1.0)
    assert primary.expired(20.0) == []
    assert primary.expired(51.0) == [A]


# Keys and revocation


def test_revoke_returns_the_keys_sorted_by_bytes(bucket: Bucket, lessor: Lessor) -> None:
    lessor.grant(A, 5, 0.0)
    lessor.grant(B, 5, 0.0)
    for key in (b"b", b"a\xff", b"a", b"B", b"\xff", b"a\0"):
        lessor.attach(A, key)
    lessor.attach(B, b"other")
    assert lessor.keys(A) == [b"B", b"a", b"a\0", b"a\xff", b"b", b"\xff"]
    assert lessor.revoke(A) == [b"B", b"a", b"a\0", b"a\xff", b"b", b"\xff"]
    assert record_key(A) not in bucket
    assert not lessor.has(A)
    assert lessor.get(A) is None
    assert lessor.lease_of(b"a") == 0
    assert lessor.keys(B) == [b"other"]
    with pytest.raises(errors.LeaseNotFound):
        lessor.revoke(A)


def test_a_lease_without_keys(lessor: Lessor) -> None:
    lessor.grant(A, 5, 0.0)
    assert lessor.keys(A) == []
    assert lessor.revoke(A) == []
    assert lessor.keys(A) == []


def test_a_key_hangs_on_one_lease_the_last_it_was_put_with(lessor: Lessor) -> None:
    lessor.grant(A, 5, 0.0)
    lessor.grant(B, 5, 0.0)
    lessor.attach(A, b"k")
    lessor.attach(A, b"k")
    assert lessor.lease_of(b"k") == A
    lessor.attach(B, b"k")
    assert (lessor.keys(A), lessor.keys(B)) == ([], [b"k"])
    lessor.detach(b"k")
    lessor.detach(b"k")
    assert lessor.lease_of(b"k") == 0
    assert lessor.keys(B) == []


def test_nothing_hangs_on_an_unknown_lease(lessor: Lessor) -> None:
    lessor.grant(A, 5, 0.0)
    lessor.attach(A, b"k")
    with pytest.raises(errors.LeaseNotFound):
        lessor.attach(NOBODY, b"k")
    assert lessor.lease_of(b"k") == A


def test_keys_detached_while_their_lease_is_revoked(lessor: Lessor) -> None:
    """The store tells of each key that it deletes; by then the key hangs on nothing."""
    lessor.grant(A, 5, 0.0)
    lessor.attach(A, b"k")
    for key in lessor.revoke(A):
        lessor.detach(key)
    assert lessor.lease_of(b"k") == 0


# Time


def test_elsewhere_leases_are_endless(lessor: Lessor) -> None:
    lessor.grant(A, 5, 0.0)
    assert lessor.expired(1e12) == []
    assert lessor.due_checkpoints(1e12) == []
    with pytest.raises(NotPrimary, match="not a primary lessor"):
        lessor.renew(A, 1.0)
    with pytest.raises(errors.LeaderChanged):
        lessor.time_to_live(A, 1.0)
    assert lessor.time_to_live(NOBODY, 1.0) is None


@pytest.mark.parametrize(("now", "ttl"), [(0.0, 10), (0.1, 9), (9.99, 0), (10.5, 0), (12.5, -2)])
def test_time_to_live_is_cut_to_whole_seconds(primary: Lessor, now: float, ttl: int) -> None:
    primary.grant(A, 10, 0.0)
    assert primary.time_to_live(A, now) == (ttl, 10)


def test_a_lease_expires_at_its_time_and_is_named_until_revoked(primary: Lessor) -> None:
    primary.grant(A, 10, 0.0)
    assert primary.expired(9.9) == []
    assert primary.expired(10.0) == [A]
    assert primary.expired(16.9) == []
    assert primary.expired(17.0) == [A], "again after the retry interval"
    assert primary.has(A), "expiry by itself deletes nothing"
    primary.revoke(A)
    assert primary.expired(99.0) == []


def test_a_renewed_lease_lives_on(primary: Lessor) -> None:
    primary.grant(A, 10, 0.0)
    for now in (4.0, 9.0, 18.5):
        assert primary.renew(A, now) == 10
    assert primary.expired(28.4) == []
    assert primary.expired(28.5) == [A]


def test_expired_leases_come_in_order_and_in_batches(primary: Lessor) -> None:
    ids = granted(primary, *range(20, 10, -1))
    assert primary.expired(30.0, limit=4) == ids[:-5:-1]
    assert primary.expired(30.0, limit=4) == ids[5:1:-1]
    assert primary.expired(30.0, limit=4) == ids[1::-1]
    assert primary.expired(30.0, limit=4) == []
    big = Bucket().lessor(primary_at=0.0)
    granted(big, *[5] * 501)
    assert len(big.expired(5.0)) == 500


def test_leases_are_listed_by_what_is_left(primary: Lessor) -> None:
    granted(primary, 30, 10, 20, 10)
    assert primary.leases(1.0) == [2, 4, 3, 1]
    primary.renew(LeaseID(2), 9.0)
    assert primary.leases(9.0) == [4, 2, 3, 1]
    primary.demote()
    assert primary.leases(9.0) == [1, 2, 3, 4]


# Renewals that can't be answered at once


def test_renewing_an_unknown_lease(primary: Lessor) -> None:
    with pytest.raises(errors.LeaseNotFound):
        primary.renew(A, 0.0)


def test_a_renewal_that_comes_too_late_is_answered_by_the_revocation(primary: Lessor) -> None:
    primary.grant(A, 10, 0.0)
    with pytest.raises(LeaseExpired):
        primary.renew(A, 10.0)
    told: list[Exception] = []
    primary.when_gone(A, told.append)
    primary.when_gone(A, told.append)
    assert told == []
    primary.revoke(A)
    assert [type(e) for e in told] == [errors.LeaseNotFound] * 2
    primary.when_gone(A, told.append)
    assert type(told[2]) is errors.LeaseNotFound, "at once"


def test_a_renewal_that_comes_too_late_is_answered_by_a_change_of_leader(primary: Lessor) -> None:
    primary.grant(A, 10, 0.0)
    told: list[Exception] = []
    primary.when_gone(A, told.append)
    primary.demote()
    primary.demote()
    primary.when_gone(A, told.append)
    assert [type(e) for e in told] == [NotPrimary] * 2
    primary.promote(20.0, 0.0)
    primary.revoke(A)
    assert len(told) == 2, "each is told once"


def test_few_may_wait_for_one_lease(bucket: Bucket) -> None:
    lessor = bucket.lessor(primary_at=0.0, limits=LessorLimits(waiters=2))
    granted(lessor, 5, 5)
    told: list[Exception] = []
    for id in (1, 1, 2):
        lessor.when_gone(LeaseID(id), told.append)
    with pytest.raises(errors.RequestTooManyRequests):
        lessor.when_gone(LeaseID(1), told.append)
    lessor.revoke(LeaseID(1))
    assert len(told) == 2


# Changes of leader


def test_promotion_starts_all_clocks_anew_with_the_extension(lessor: Lessor) -> None:
    granted(lessor, 10, 5)
    lessor.promote(100.0, 1.5)
    assert lessor.time_to_live(LeaseID(1), 100.0) == (11, 10)
    assert lessor.expired(106.4) == []
    assert lessor.expired(106.5) == [2]
    assert lessor.expired(111.5) == [1]


def test_demotion_and_promotion_forget_the_former_times(lessor: Lessor) -> None:
    lessor.promote(0.0, 0.0)
    lessor.grant(A, 10, 0.0)
    lessor.demote()
    assert lessor.expired(50.0) == []
    lessor.promote(100.0, 0.0)
    assert lessor.expired(109.0) == []
    assert lessor.expired(110.0) == [A]


def test_a_renewal_right_after_promotion_gives_up_the_extension(lessor: Lessor) -> None:
    lessor.grant(A, 10, 0.0)
    lessor.promote(0.0, 5.0)
    lessor.renew(A, 1.0)
    assert lessor.expired(10.9) == []
    assert lessor.expired(11.0) == [A]
    lessor.revoke(A)
    assert lessor.expired(99.0) == [], "the later time is forgotten"


def expiries_by_second(lessor: Lessor, now: float, until: float) -> list[int]:
    counts = []
    while now < until:
        now += 1.0
        ids = lessor.expired(now, limit=10**6)
        counts.append(len(ids))
        for id in ids:
            lessor.revoke(id)
    return counts


def test_a_pile_of_leases_is_spread(lessor: Lessor) -> None:
    granted(lessor, *[10] * 3000)
    lessor.promote(0.0, 1.0)
    counts = expiries_by_second(lessor, 10.0, 20.0)
    assert counts == [750, 0, 750, 750, 750, 0, 0, 0, 0, 0]


def test_the_spread_by_hand(bucket: Bucket) -> None:
    """Eight a second are kept to six: the rest is put off in proportion to its place."""
    lessor = bucket.lessor(limits=LessorLimits(revoke_rate=8))
    granted(lessor, *[10] * 8, 11, 12, 40)
    lessor.promote(0.0, 0.0)
    left = {}
    for id in lessor.leases(0.0):
        lease = lessor.get(id)
        assert lease is not None
        left[id] = lease.expiry
    assert [left[LeaseID(i)] for i in range(1, 7)] == [10.0] * 6
    assert left[LeaseID(7)] == pytest.approx(10 + 7 / 6)
    assert left[LeaseID(8)] == pytest.approx(10 + 8 / 6)
    assert left[LeaseID(9)] == pytest.approx(11 + 9 / 6 - 1), "a second later, so put off less"
    assert left[LeaseID(10)] == 12.0, "beyond the window, which ends at 11.5"
    assert left[LeaseID(11)] == 40.0


def test_few_leases_are_not_spread(bucket: Bucket) -> None:
    lessor = bucket.lessor(limits=LessorLimits(revoke_rate=8))
    granted(lessor, *[10] * 7)
    lessor.promote(0.0, 0.0)
    assert len(lessor.expired(10.0)) == 7


# Checkpoints


@pytest.fixture
def checkpointing(bucket: Bucket) -> Lessor:
    return bucket.lessor(primary_at=0.0, checkpoints=True)


def test_long_leases_are_checkpointed_every_interval(checkpointing: Lessor) -> None:
    checkpointing.grant(A, 1000, 0.0)
    checkpointing.grant(B, 300, 0.0)  # not longer than the interval
    assert checkpointing.due_checkpoints(299.0) == []
    assert checkpointing.due_checkpoints(300.5) == [(A, 700)]
    assert checkpointing.due_checkpoints(900.0) == [], "until it is applied"
    checkpointing.checkpoint(A, 700, 301.0)
    assert checkpointing.due_checkpoints(600.0) == []
    assert checkpointing.due_checkpoints(601.5) == [(A, 399)]
    checkpointing.checkpoint(A, 399, 601.5)
    assert checkpointing.due_checkpoints(901.5) == [(A, 99)]
    checkpointing.checkpoint(A, 99, 901.5)
    assert checkpointing.due_checkpoints(5000.0) == [], "the rest is shorter than an interval"


def test_without_the_gate_there_are_none(bucket: Bucket) -> None:
    lessor = bucket.lessor(primary_at=0.0)
    lessor.grant(A, 1000, 0.0)
    assert lessor.due_checkpoints(900.0) == []
    lessor.checkpoint(A, 500, 0.0)
    assert lessor.renew(A, 1.0) == 1000, "and a renewal waits for none"


def test_a_lease_renewed_just_now_is_looked_at_again_later(checkpointing: Lessor) -> None:
    checkpointing.grant(A, 1000, 0.0)
    checkpointing.renew(A, 300.0)
    assert checkpointing.due_checkpoints(300.0) == []
    assert checkpointing.due_checkpoints(600.0) == [(A, 700)]


def test_revoked_and_expired_leases_are_not_checkpointed(checkpointing: Lessor) -> None:
    granted(checkpointing, 1000, 301)
    checkpointing.revoke(LeaseID(1))
    assert checkpointing.due_checkpoints(301.0) == []


def test_checkpoints_come_in_batches(bucket: Bucket) -> None:
    lessor = bucket.lessor(
        primary_at=0.0, checkpoints=True, limits=LessorLimits(checkpoint_batch=3)
    )
    granted(lessor, *[1000] * 5)
    assert [id for id, _ in lessor.due_checkpoints(300.0)] == [1, 2, 3]
    assert [id for id, _ in lessor.due_checkpoints(300.0)] == [4, 5]


def test_a_checkpoint_is_where_the_next_primary_starts(bucket: Bucket, lessor: Lessor) -> None:
    granted(lessor, 1000, 1000)
    lessor.checkpoint(LeaseID(1), 400, 0.0)
    lessor.checkpoint(NOBODY, 5, 0.0)
    assert bucket.record(LeaseID(1)) == (1, 1000, 400)
    assert len(bucket) == 2
    lessor.promote(0.0, 10.0)
    assert lessor.time_to_live(LeaseID(1), 0.0) == (410, 1000)
    assert lessor.time_to_live(LeaseID(2), 0.0) == (1010, 1000)


def test_a_checkpoint_is_stored_only_if_the_cluster_keeps_them(bucket: Bucket) -> None:
    keep = False
    lessor = bucket.lessor(persist=lambda: keep)
    lessor.grant(A, 1000, 0.0)
    lessor.checkpoint(A, 400, 0.0)
    assert bucket.record(A) == (A, 1000, 0)
    keep = True
    lessor.checkpoint(A, 300, 0.0)
    assert bucket.record(A) == (A, 1000, 300)


def test_a_checkpointed_lease_is_renewed_after_it_was_set_back(checkpointing: Lessor) -> None:
    checkpointing.grant(A, 1000, 0.0)
    checkpointing.checkpoint(A, 400, 600.0)
    failpoint.enable("beforeCheckpointInLeaseRenew", "print")
    try:
        with pytest.raises(CheckpointFirst):
            checkpointing.renew(A, 700.0)
        assert failpoint.status("beforeCheckpointInLeaseRenew")[1] == 1
    finally:
        failpoint.disable_all()
    assert checkpointing.time_to_live(A, 700.0) == (300, 1000), "not renewed yet"
    checkpointing.checkpoint(A, 0, 701.0)
    assert checkpointing.renew(A, 702.0) == 1000
    assert checkpointing.time_to_live(A, 702.0) == (1000, 1000)


def test_a_lease_is_checkpointed_once_an_interval_whatever_happened(checkpointing: Lessor) -> None:
    checkpointing.grant(A, 10_000, 0.0)
    for now in (10.0, 20.0, 30.0):
        checkpointing.checkpoint(A, 0, now)
    assert checkpointing.due_checkpoints(400.0) == [(A, 9600)]
    assert checkpointing.due_checkpoints(400.0) == []


def test_promotion_plans_and_demotion_drops_checkpoints(bucket: Bucket) -> None:
    lessor = bucket.lessor(checkpoints=True)
    granted(lessor, 1000, 100)
    lessor.promote(0.0, 0.0)
    lessor.demote()
    assert lessor.due_checkpoints(999.0) == []
    lessor.promote(1000.0, 0.0)
    assert lessor.due_checkpoints(1299.0) == []
    assert lessor.due_checkpoints(1300.0) == [(1, 700)]


# Restart


def test_restore_brings_back_what_was_stored(bucket: Bucket, lessor: Lessor) -> None:
    granted(lessor, 1000, 50)
    lessor.attach(LeaseID(1), b"k")
    lessor.checkpoint(LeaseID(1), 400, 0.0)
    again = Bucket(bucket).lessor()
    again.restore(bucket.values())
    assert again.leases(0.0) == [1, 2]
    assert again.keys(LeaseID(1)) == [], "keys come from the store"
    again.attach(LeaseID(1), b"k")
    again.promote(0.0, 0.0)
    assert again.time_to_live(LeaseID(1), 0.0) == (400, 1000)
    assert again.time_to_live(LeaseID(2), 0.0) == (50, 50)


def test_restore_replaces_everything(bucket: Bucket, primary: Lessor) -> None:
    granted(primary, 5, 5)
    primary.attach(LeaseID(1), b"k")
    told: list[Exception] = []
    primary.when_gone(LeaseID(1), told.append)
    other = Bucket()
    other.lessor().grant(A, 1000, 0.0)
    primary.restore(other.values())
    assert not primary.primary
    assert [type(e) for e in told] == [NotPrimary]
    assert primary.leases(0.0) == [A]
    assert primary.lease_of(b"k") == 0
    primary.promote(0.0, 0.0)
    assert primary.expired(999.0) == []


def test_restore_raises_times_below_the_minimum(bucket: Bucket) -> None:
    bucket.lessor(limits=LessorLimits(min_ttl=1)).grant(A, 1, 0.0)
    lessor = Bucket().lessor(limits=LessorLimits(min_ttl=8))
    lessor.restore(bucket.values())
    lessor.promote(0.0, 0.0)
    assert lessor.time_to_live(A, 0.0) == (8, 8)


def test_restore_refuses_junk(lessor: Lessor) -> None:
    with pytest.raises(DecodeError):
        lessor.restore([b"\xff\xff"])


# Counts and bounds


def test_metrics(primary: Lessor) -> None:
    granted(primary, 10, 100)
    primary.renew(LeaseID(1), 0.0)
    primary.revoke(LeaseID(2))
    metrics = primary._metrics
    assert (metrics.granted.value, metrics.revoked.value, metrics.renewed.value) == (2, 1, 1)
    assert (metrics.ttls.count, metrics.ttls.sum) == (2, 110)


def test_memory_does_not_grow_with_what_is_over(checkpointing: Lessor) -> None:
    for n in range(2000):
        id = LeaseID(n + 1)
        checkpointing.grant(id, MAX_TTL, float(n))
        checkpointing.renew(id, float(n))
        checkpointing.attach(id, b"k%d" % n)
        checkpointing.checkpoint(id, 5000, float(n))
        checkpointing.revoke(id)
    assert checkpointing._expiries.heap_size < 100
    assert checkpointing._checkpoint_times.heap_size < 100
    assert not checkpointing._lease_of
    assert not checkpointing._waiting
