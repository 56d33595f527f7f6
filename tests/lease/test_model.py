"""The lessor under random calls, against a model that looks at every lease every time."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import pytest

from kvorum import errors
from kvorum.lease.lessor import CheckpointFirst, LeaseExpired, Lessor, LessorLimits
from kvorum.lease.records import decode_record
from kvorum.types import LeaseID

MIN_TTL = 3
RETRY = 7.0
IDS = [LeaseID(n) for n in range(1, 25)]
KEYS = [b"k%d" % n for n in range(30)]


@dataclass(slots=True)
class Plain:
    """A lease as the model knows it; ``named`` is when it was last named as expired."""

    ttl: int
    expiry: float = math.inf
    remaining: int = 0
    named: float = -math.inf
    keys: set[bytes] = field(default_factory=set)


class Twins:
    """A lessor and a plain model that get the same calls."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now = 0.0
        self.bucket: dict[bytes, bytes] = {}
        self.plain: dict[LeaseID, Plain] = {}
        self.revoked = 0
        self.lessor = self._lessor()

    def _lessor(self) -> Lessor:
        limits = LessorLimits(min_ttl=MIN_TTL, retry_interval=RETRY, checkpoint_interval=20.0)
        put, delete = self.bucket.__setitem__, self.bucket.__delitem__
        return Lessor(put, delete, limits=limits, checkpoints=True)

    def pick(self) -> LeaseID:
        return self.rng.choice(IDS)

    def grant(self) -> None:
        id, ttl = self.pick(), self.rng.choice([1, 5, 10, 30, 60])
        if id in self.plain:
            with pytest.raises(errors.LeaseExist):
                self.lessor.grant(id, ttl, self.now)
            return
        lease = self.plain[id] = Plain(max(ttl, MIN_TTL))
        assert self.lessor.grant(id, ttl, self.now) == lease.ttl
        if self.lessor.primary:
            lease.expiry = self.now + lease.ttl

    def revoke(self) -> None:
        self._revoke(self.pick())

    def _revoke(self, id: LeaseID) -> None:
        lease = self.plain.pop(id, None)
        if lease is None:
            with pytest.raises(errors.LeaseNotFound):
                self.lessor.revoke(id)
            return
        assert self.lessor.revoke(id) == sorted(lease.keys)
        self.revoked += 1

    def renew(self) -> None:
        id = self.pick()
        lease = self.plain.get(id)
        if not self.lessor.primary:
            return
        if lease is None:
            with pytest.raises(errors.LeaseNotFound):
                self.lessor.renew(id, self.now)
        elif lease.expiry <= self.now:
            with pytest.raises(LeaseExpired):
                self.lessor.renew(id, self.now)
        elif lease.remaining:
            with pytest.raises(CheckpointFirst):
                self.lessor.renew(id, self.now)
        else:
            lease.expiry = self.now + lease.ttl
            assert self.lessor.renew(id, self.now) == lease.ttl

    def put(self) -> None:
        id, key = self.pick(), self.rng.choice(KEYS)
        if id not in self.plain:
            return
        for lease in self.plain.values():
            lease.keys.discard(key)
        self.plain[id].keys.add(key)
        self.lessor.attach(id, key)

    def delete(self) -> None:
        key = self.rng.choice(KEYS)
        for lease in self.plain.values():
            lease.keys.discard(key)
        self.lessor.detach(key)

    def checkpoint(self) -> None:
        id, remaining = self.pick(), self.rng.choice([0, 4])
        if id in self.plain:
            self.plain[id].remaining = remaining
        self.lessor.checkpoint(id, remaining, self.now)

    def wait(self) -> None:
        self.now += self.rng.choice([0.5, 1.0, 3.0])
        due = {
            id
            for id, lease in self.plain.items()
            if lease.expiry <= self.now and lease.named + RETRY <= self.now
        }
        found = self.lessor.expired(self.now)
        assert set(found) == due
        assert len(found) == len(due)
        for id in found:
            self.plain[id].named = self.now
            if self.rng.random() < 0.7:
                self._revoke(id)

    def elect(self) -> None:
        if self.lessor.primary:
            self.lessor.demote()
        else:
            self.lessor.promote(self.now, 1.0)
        for lease in self.plain.values():
            time = self.now + 1.0 + (lease.remaining or lease.ttl)
            lease.expiry = time if self.lessor.primary else math.inf
            lease.named = -math.inf

    def restart(self) -> None:
        self.lessor = self._lessor()
        self.lessor.restore(list(self.bucket.values()))
        for id, lease in self.plain.items():
            lease.expiry, lease.named = math.inf, -math.inf
            for key in lease.keys:
                self.lessor.attach(id, key)

    def compare(self) -> None:
        lessor, plain = self.lessor, self.plain
        order = sorted(plain, key=lambda id: (plain[id].expiry, id))
        assert lessor.leases(self.now) == order
        stored = {r.id: (r.ttl, r.remaining) for r in map(decode_record, self.bucket.values())}
        assert stored == {id: (lease.ttl, lease.remaining) for id, lease in plain.items()}
        for id, lease in plain.items():
            assert lessor.keys(id) == sorted(lease.keys)
            if lessor.primary:
                left = lessor.time_to_live(id, self.now)
                assert left == (int(lease.expiry - self.now), lease.ttl)
        for id, left_seconds in lessor.due_checkpoints(self.now):
            assert left_seconds == math.ceil(plain[id].expiry - self.now) > 0


STEPS = {
    Twins.grant: 12,
    Twins.revoke: 3,
    Twins.renew: 15,
    Twins.put: 20,
    Twins.delete: 8,
    Twins.checkpoint: 5,
    Twins.wait: 12,
    Twins.elect: 2,
    Twins.restart: 1,
}


@pytest.mark.parametrize("seed", range(10))
def test_agrees_with_a_plain_model(seed: int) -> None:
    rng = random.Random(seed)
    twins = Twins(rng)
    steps = list(STEPS)
    for step in rng.choices(steps, weights=[STEPS[s] for s in steps], k=800):
        step(twins)
        twins.compare()
    assert twins.revoked > 20
