"""Clients that hold leases, and the judge of how long they were held."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from kvorum.pb import etcdserverpb as pb
from kvorum.testing.history import Operation, Put, Revoke
from sim import words
from sim.calls import ClientCall, Outcome
from sim.clients import Caller

KEYS: Final = 3
PATIENCE: Final = 5.0
"""Seconds that a renewal may take."""


@dataclass(slots=True)
class Hold:
    """A lease as its client knows it. ``renewals``: (asked at, answered at, time to live), the
    grant first, in the world's seconds."""

    id: int
    renewals: list[tuple[float, float, int]] = field(default_factory=list)
    asked_to_end: float | None = None
    """When its revocation was first asked for."""


class LeaseClient:
    """Grants a lease, hangs keys on it, renews it for a while, and lets it go: by itself, or by a
    revocation. Then another one."""

    def __init__(self, caller: Caller, number: int) -> None:
        self.stopped = False
        self.holds: list[Hold] = []
        self._caller = caller
        self._random = caller.random
        self._number = number
        self._left = 0

    def start(self) -> None:
        self._caller.world.after(self._random.expovariate(1 / 0.5), self._grant)

    def _grant(self) -> None:
        if self.stopped:
            return
        lease = (self._number << 20) + len(self.holds) + 1
        hold = Hold(lease)
        self.holds.append(hold)
        ttl = self._random.randint(1, 5)
        request = pb.LeaseGrantRequest(ID=lease, TTL=ttl).SerializeToString()
        began = self._caller.world.now

        def done(outcome: Outcome) -> None:
            if outcome.code:
                self._forget(hold, began)
                return
            granted = pb.LeaseGrantResponse.FromString(outcome.message).TTL
            hold.renewals.append((began, self._caller.world.now, granted))
            # It may end by itself from when its first time is up, as all members count it.
            self._may_end(hold, began)
            self._left = self._random.randint(0, 12)
            self._put(hold, KEYS)

        if not self._caller.unary(words.GRANT, request, done):
            self._forget(hold, began)

    def _forget(self, hold: Hold, began: float) -> None:
        """Nobody knows whether it was granted; nothing hangs on it."""
        self._may_end(hold, began)
        self.start()

    def _may_end(self, hold: Hold, began: float) -> None:
        self._caller.records.operations.append(Operation("expiry", Revoke(hold.id), began))

    def _put(self, hold: Hold, left: int) -> None:
        if self.stopped or not left:
            self._renew_later(hold)
            return
        key = b"lease%d.%d" % (self._number, left)
        value = b"%d.%d" % (hold.id, left)
        put = Put(key, value, lease=hold.id)
        self._caller.ask(put, lambda operation: self._put(hold, left - 1))

    def _renew_later(self, hold: Hold) -> None:
        if self.stopped:
            return
        if self._left <= 0:
            self._let_go(hold)
            return
        self._left -= 1
        ttl = hold.renewals[-1][2]
        self._caller.world.after(self._random.uniform(0.05, 0.6) * ttl, self._renew, hold)

    def _renew(self, hold: Hold) -> None:
        if self.stopped:
            return
        began = self._caller.world.now
        calls: list[ClientCall] = []

        def answered(message: bytes) -> None:
            ttl = pb.LeaseKeepAliveResponse.FromString(message).TTL
            if ttl > 0:
                hold.renewals.append((began, self._caller.world.now, ttl))
            else:
                self._left = 0
            calls[0].end(Outcome(0))

        def ended(outcome: Outcome) -> None:
            self._renew_later(hold)

        call = self._caller.stream(words.KEEP_ALIVE, answered, ended)
        if call is None:
            self._renew_later(hold)
            return
        calls.append(call)
        call.send(pb.LeaseKeepAliveRequest(ID=hold.id).SerializeToString())
        self._caller.world.after(PATIENCE, call.end, Outcome(1, error="deadline", by_server=False))

    def _let_go(self, hold: Hold) -> None:
        if self._random.random() < 0.4:
            hold.asked_to_end = self._caller.world.now
            self._caller.ask(Revoke(hold.id), lambda operation: self.start())
        else:
            self._caller.world.after(self._random.uniform(0, 5), self.start)


def judge(holds: list[Hold], revoked: dict[int, float], drift: float) -> list[str]:
    """A lease that is not revoked by its client lives as long as the last answer promised, counted
    from when that was asked for; a clock that gains makes that a little shorter."""
    wrong = []
    for hold in holds:
        end = revoked.get(hold.id)
        if end is None or (hold.asked_to_end is not None and hold.asked_to_end <= end):
            continue
        for asked, answered, ttl in hold.renewals:
            if end < asked + ttl / (1 + drift):
                wrong.append(
                    f"lease {hold.id} ended at {end:.6f}, but asked at {asked:.6f} and answered"
                    f" at {answered:.6f} it was promised {ttl} s"
                )
    return wrong
