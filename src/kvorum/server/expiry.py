"""Ends leases whose time is up, and writes down how much time long ones have left.

Only the leader does; expiry never deletes anything by itself, a revocation in the log does.
"""

from __future__ import annotations

from typing import Final

from kvorum.lease.lessor import Lessor
from kvorum.pb import etcdserverpb as pb
from kvorum.server.proposer import Proposer
from kvorum.types import LeaseID

INTERVAL: Final = 0.5
MAX_IN_FLIGHT: Final = 16
BATCH: Final = 500


class _Revocation:
    """The caller of one revocation: whatever the answer, there is room for the next."""

    __slots__ = ("_expiry",)
    leaders_own: Final = True

    def __init__(self, expiry: LeaseExpiry) -> None:
        self._expiry = expiry

    def reply(self, message: bytes) -> None:
        self._expiry.expired += 1
        self._expiry.settled()

    def fail(self, code: int, message: str) -> None:
        self._expiry.settled()  # gone already, or the lessor will name it again


class _Checkpoint:
    """The caller of a checkpoint: it says how much time the leader sees left."""

    __slots__ = ()
    leaders_own: Final = True

    def reply(self, message: bytes) -> None:
        pass

    def fail(self, code: int, message: str) -> None:
        pass  # the next checkpoint says it again


class LeaseExpiry:
    """Proposes what the primary lessor finds due. `check` belongs every half second. ``expired``
    counts the leases that were revoked.
    """

    def __init__(self, lessor: Lessor, proposer: Proposer, *, checkpoints: bool) -> None:
        self.expired = 0
        self._lessor = lessor
        self._proposer = proposer
        self._checkpoints = checkpoints
        self._due: list[LeaseID] = []
        self._in_flight = 0
        self._proposing = False

    def check(self, now: float) -> None:
        """Take up what has expired by now."""
        if not self._due:
            self._due = list(self._lessor.expired(now, BATCH))
            self._due.reverse()
        self._propose()
        if self._checkpoints:
            self._checkpoint(now)

    def demoted(self) -> None:
        """This member does not lead any more: what it found due may be renewed by who does."""
        self._due.clear()

    def settled(self) -> None:
        """A revocation was answered."""
        self._in_flight -= 1
        self._propose()

    def _propose(self) -> None:
        if self._proposing:
            return  # a refusal comes from within the call, and the loop below goes on after it
        self._proposing = True
        while self._due and self._in_flight < MAX_IN_FLIGHT:
            self._in_flight += 1
            request = pb.LeaseRevokeRequest(ID=self._due.pop())
            message = request.SerializeToString()
            self._proposer.propose("lease_revoke", message, request, _Revocation(self))
        self._proposing = False

    def _checkpoint(self, now: float) -> None:
        due = self._lessor.due_checkpoints(now)
        if due:
            request = pb.LeaseCheckpointRequest(
                checkpoints=[pb.LeaseCheckpoint(ID=i, remaining_TTL=left) for i, left in due]
            )
            message = request.SerializeToString()
            self._proposer.propose("lease_checkpoint", message, request, _Checkpoint())
