"""The lessor: which leases there are, what hangs on them, and when they end.

Every member keeps every lease and its keys, since grants, revocations and puts come from the log.
Only the *primary*, the leader, lets time pass for them: it renews, and it names those that have
expired, which end when a revocation has gone through the log. Elsewhere a lease is endless. Times
are monotonic seconds, passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, NamedTuple

from kvorum import errors, failpoint
from kvorum.instruments import Registry
from kvorum.lease.due import DueQueue
from kvorum.lease.records import decode_record, encode_record, record_key
from kvorum.telemetry import LeaseMetrics
from kvorum.types import LeaseID

MAX_TTL: Final = 9_000_000_000
"""etcd's bound: this many seconds in nanoseconds still fit into 64 bits."""

NO_LEASE: Final = LeaseID(0)

PutRecord = Callable[[bytes, bytes], None]
DeleteRecord = Callable[[bytes], None]
Gone = Callable[[Exception], None]


class NotPrimary(Exception):
    """This member is not the leader, or no longer; the leader has to be asked."""

    def __str__(self) -> str:
        return "not a primary lessor"


class LeaseExpired(Exception):
    """The lease's time is up, but it is not revoked yet: see `Lessor.when_gone`."""


class CheckpointFirst(Exception):
    """A checkpoint with remaining time 0 has to be applied, then the lease may be renewed.

    Otherwise a new leader would take the shorter time of the last checkpoint for this renewal's."""


class TimeToLive(NamedTuple):
    """Whole seconds; ``ttl`` is what is left, cut off, below 0 when a revocation is overdue."""

    ttl: int
    granted: int


@dataclass(frozen=True, slots=True)
class LessorLimits:
    """Times in seconds."""

    min_ttl: int = 2
    """Shorter leases are lengthened: ceil(1.5 * the election timeout), as a lease must outlive a
    change of leader."""
    revoke_rate: int = 1000
    """Leases that may expire per second."""
    retry_interval: float = 7.0
    """After which an expired lease that is still there is named again."""
    checkpoint_interval: float = 300.0
    checkpoint_batch: int = 1000
    waiters: int = 1000
    """Renewals that may wait for one lease's revocation."""


class Lease:
    """One lease; times in seconds.

    ``remaining`` is what was left at the last checkpoint, 0 if there was none; ``expiry`` and
    ``queued`` (when the expiry queue looks at it, never after ``expiry``) hold on the primary only.
    """

    __slots__ = ("expiry", "id", "keys", "queued", "remaining", "ttl")

    def __init__(self, id: LeaseID, ttl: int, remaining: int = 0) -> None:
        self.id = id
        self.ttl = ttl
        self.remaining = remaining
        self.expiry = math.inf
        self.queued = math.inf
        self.keys: set[bytes] | None = None  # made with the first key: many leases have none

    def time(self) -> int:
        """The time that the lease has when its clock starts."""
        return self.remaining if self.remaining > 0 else self.ttl


class Lessor:
    """All leases of a member.

    Args:
        put: stores a lease record in the bucket ``lease``.
        delete: removes one.
        checkpoints: the feature gate LeaseCheckpoint.
        persist: whether checkpoints are stored: the gate LeaseCheckpointPersist, or a cluster
            version of 3.6 or more.
    """

    def __init__(
        self,
        put: PutRecord,
        delete: DeleteRecord,
        *,
        limits: LessorLimits | None = None,
        checkpoints: bool = False,
        persist: Callable[[], bool] = lambda: True,
        metrics: LeaseMetrics | None = None,
    ) -> None:
        self.limits = limits or LessorLimits()
        self.primary = False
        self._put = put
        self._delete = delete
        self._checkpoints = checkpoints
        self._persist = persist
        self._leases: dict[LeaseID, Lease] = {}
        self._lease_of: dict[bytes, Lease] = {}
        self._expiries = DueQueue()
        self._checkpoint_times = DueQueue()
        self._waiting: dict[LeaseID, list[Gone]] = {}
        self._metrics = metrics or LeaseMetrics(Registry())

    # Grant, revoke, renew

    def grant(self, id: LeaseID, ttl: int, now: float) -> int:
        """Make a lease, and return the time it was given.

        Raises:
            errors.LeaseNotFound: the id is 0; the member that is asked makes ids.
            errors.LeaseTTLTooLarge: ``ttl`` is above `MAX_TTL`.
            errors.LeaseExist: the id is taken.
        """
        if not id:
            raise errors.LeaseNotFound
        if ttl > MAX_TTL:
            raise errors.LeaseTTLTooLarge
        if id in self._leases:
            raise errors.LeaseExist
        if ttl < self.limits.min_ttl:
            ttl = self.limits.min_ttl
        lease = self._leases[id] = Lease(id, ttl)
        self._put(record_key(id), encode_record(id, ttl, 0))
        if self.primary:
            lease.expiry = lease.queued = now + ttl
            self._expiries.set(id, lease.expiry)
            if self._checkpoints:
                self._plan_checkpoint(lease, now)
        self._metrics.granted.value += 1
        self._metrics.ttls.observe(ttl)
        return ttl

    def revoke(self, id: LeaseID) -> list[bytes]:
        """End a lease: it is gone here and in the store of records, and its keys hang on nothing.

        The caller deletes the keys, in the order given (sorted by bytes, so that all members delete
        in the same order), in one store transaction and in the same backend batch.

        Raises:
            errors.LeaseNotFound: there is none.
        """
        lease = self._leases.pop(id, None)
        if lease is None:
            raise errors.LeaseNotFound
        keys = sorted(lease.keys or ())
        for key in keys:
            del self._lease_of[key]
        self._expiries.discard(id)
        self._checkpoint_times.discard(id)
        self._delete(record_key(id))
        self._metrics.revoked.value += 1
        for gone in self._waiting.pop(id, ()):
            gone(errors.LeaseNotFound())
        return keys

    def renew(self, id: LeaseID, now: float) -> int:
        """Give a lease its full time again, and return that.

        Raises:
            NotPrimary: only the primary renews.
            errors.LeaseNotFound: there is none.
            LeaseExpired: too late; the answer is known when it is revoked, see `when_gone`.
            CheckpointFirst: see there.
        """
        if not self.primary:
            raise NotPrimary
        lease = self._leases.get(id)
        if lease is None:
            raise errors.LeaseNotFound
        if lease.expiry <= now:
            raise LeaseExpired
        if lease.remaining > 0 and self._checkpoints:
            if failpoint.active:
                failpoint.hit("beforeCheckpointInLeaseRenew")
            raise CheckpointFirst
        self._refresh(lease, now)
        self._metrics.renewed.value += 1
        return lease.ttl

    def _refresh(self, lease: Lease, now: float) -> None:
        """The queue looks at a renewed lease at its former time, finds that it was renewed, and
        only then puts it at its new time: a renewal costs the queue nothing."""
        expiry = lease.expiry = now + lease.time()
        if expiry < lease.queued:
            lease.queued = expiry
            self._expiries.set(lease.id, expiry)

    def when_gone(self, id: LeaseID, gone: Gone) -> None:
        """Call ``gone`` with errors.LeaseNotFound when an expired lease has been revoked, or with
        NotPrimary when this member stops being primary first; at once if that is so already.

        Raises:
            errors.RequestTooManyRequests: too many wait for this lease.
        """
        if not self.primary or id not in self._leases:
            gone(errors.LeaseNotFound() if self.primary else NotPrimary())
            return
        waiting = self._waiting.setdefault(id, [])
        if len(waiting) >= self.limits.waiters:
            raise errors.RequestTooManyRequests
        waiting.append(gone)

    # Looking

    def has(self, id: LeaseID) -> bool:
        return id in self._leases

    def get(self, id: LeaseID) -> Lease | None:
        return self._leases.get(id)

    def keys(self, id: LeaseID) -> list[bytes]:
        """The keys that hang on a lease, sorted; none if there is no such lease."""
        lease = self._leases.get(id)
        return sorted(lease.keys or ()) if lease is not None else []

    def time_to_live(self, id: LeaseID, now: float) -> TimeToLive | None:
        """What is left of a lease; None if there is none.

        Raises:
            errors.LeaderChanged: this member is not primary, and can't know.
        """
        lease = self._leases.get(id)
        if lease is None:
            return None
        if not self.primary:
            raise errors.LeaderChanged
        return TimeToLive(int(lease.expiry - now), lease.ttl)

    def leases(self, now: float) -> list[LeaseID]:
        """All ids: on the primary by what is left, as in etcd; elsewhere, and for ties, by id."""
        if not self.primary:
            return sorted(self._leases)
        return [x.id for x in sorted(self._leases.values(), key=lambda x: (x.expiry - now, x.id))]

    # Keys

    def attach(self, id: LeaseID, key: bytes) -> None:
        """Hang a key on a lease, and take it off the one it may have hung on.

        Raises:
            errors.LeaseNotFound: there is none.
        """
        lease = self._leases.get(id)
        if lease is None:
            raise errors.LeaseNotFound
        former = self._lease_of.get(key)
        if former is lease:
            return
        if former is not None and former.keys is not None:
            former.keys.discard(key)
        if lease.keys is None:
            lease.keys = set()
        lease.keys.add(key)
        self._lease_of[key] = lease

    def detach(self, key: bytes) -> None:
        """Take a key off its lease, if it hangs on one."""
        lease = self._lease_of.pop(key, None)
        if lease is not None and lease.keys is not None:
            lease.keys.discard(key)

    def lease_of(self, key: bytes) -> LeaseID:
        """The lease on which a key hangs, or 0."""
        lease = self._lease_of.get(key)
        return NO_LEASE if lease is None else lease.id

    # Being primary

    def promote(self, now: float, extend: float) -> None:
        """Become primary: every lease gets what its last checkpoint left it, or else its full time,
        and ``extend`` (the election timeout) on top, as nobody could renew for a while."""
        self.primary = True
        for lease in self._leases.values():
            lease.expiry = now + extend + lease.time()
        if len(self._leases) >= self.limits.revoke_rate:
            self._spread(now, extend)
        times = {}
        for lease in self._leases.values():
            times[lease.id] = lease.queued = lease.expiry
        self._expiries.reset(times)
        self._checkpoint_times.reset()
        if self._checkpoints:
            for lease in self._leases.values():
                self._plan_checkpoint(lease, now)

    def _spread(self, now: float, extend: float) -> None:
        """Keep leases that were piled up by the change of leader from expiring together.

        At most three quarters of the revoke rate stay in a window of a second; those beyond are put
        off in proportion to how many came before them, and the window grows with them. The rule is
        etcd's, so that a cluster of both kinds expires leases alike.
        """
        per_second = 3 * self.limits.revoke_rate // 4
        leases = sorted(self._leases.values(), key=attrgetter("expiry"))
        base = leases[0].expiry
        window_end = base + 1.0
        expiries = 0
        for lease in leases:
            if lease.expiry > window_end:
                base = lease.expiry
                window_end = base + 1.0
                expiries = 1
                continue
            expiries += 1
            if expiries > per_second:
                delay = expiries / per_second - (lease.expiry - base)
                window_end = base + delay
                lease.expiry = now + extend + delay + lease.time()

    def demote(self) -> None:
        """Stop being primary: leases have no end any more, and who waits for one is told."""
        self.primary = False
        self._expiries.reset()
        self._checkpoint_times.reset()
        waiting, self._waiting = self._waiting, {}
        for callbacks in waiting.values():
            for gone in callbacks:
                gone(NotPrimary())

    def expired(self, now: float, limit: int = 500) -> list[LeaseID]:
        """Leases whose time is up, at most ``limit``, for the caller to have them revoked; one that
        is still there after the retry interval is named again. Empty unless primary."""
        found: list[LeaseID] = []
        while len(found) < limit:
            id = self._expiries.pop(now)
            if id is None:
                break
            lease = self._leases[id]
            renewed = lease.expiry > now
            lease.queued = lease.expiry if renewed else now + self.limits.retry_interval
            self._expiries.set(id, lease.queued)
            if not renewed:
                found.append(id)
        return found

    # Checkpoints

    def _plan_checkpoint(self, lease: Lease, now: float) -> None:
        interval = self.limits.checkpoint_interval
        if lease.time() > interval:
            self._checkpoint_times.set(lease.id, now + interval)

    def due_checkpoints(self, now: float) -> list[tuple[LeaseID, int]]:
        """Leases and their remaining seconds, rounded up, for the caller to propose as one
        checkpoint; each is due again an interval after it was applied. Empty unless primary."""
        due: list[tuple[LeaseID, int]] = []
        while len(due) < self.limits.checkpoint_batch:
            id = self._checkpoint_times.pop(now)
            if id is None:
                break
            lease = self._leases[id]
            left = math.ceil(lease.expiry - now)
            if left >= lease.ttl:  # just renewed: nothing to write down for another interval
                self._plan_checkpoint(lease, now)
            elif left > 0:
                due.append((id, left))
        return due

    def checkpoint(self, id: LeaseID, remaining: int, now: float) -> None:
        """Apply a checkpoint: a later promotion starts from ``remaining`` seconds (0: from the full
        time). One for an unknown lease is nothing."""
        lease = self._leases.get(id)
        if lease is None:
            return
        lease.remaining = remaining
        if self._persist():
            self._put(record_key(id), encode_record(id, lease.ttl, remaining))
        if self.primary and self._checkpoints:
            self._plan_checkpoint(lease, now)

    # Restart

    def restore(self, records: Iterable[bytes]) -> None:
        """Replace everything by stored records, as a member that is not primary. The keys are not
        stored with them: the caller attaches each key whose newest KeyValue names a lease.

        Raises:
            google.protobuf.message.DecodeError: a record is no lease.
        """
        self.demote()
        self._leases = {}
        self._lease_of = {}
        for value in records:
            id, ttl, remaining = decode_record(value)
            self._leases[id] = Lease(id, max(ttl, self.limits.min_ttl), remaining)
