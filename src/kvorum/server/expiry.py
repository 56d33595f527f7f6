"""Ends leases whose time is up, and writes down how much time long ones have left.

Only the leader does; expiry never deletes anything by itself, a revocation in the log does.
"""

from __future__ import annotations

from typing import Final

from kvorum.lease.lessor import Lessor
from kvorum.pb import etcdserverpb as pb
from kvorum.server.proposer import Ignored, Proposer
from kvorum.types import LeaseID

INTERVAL: Final = 0.5
MAX_IN_FLIGHT: Final = 16
BATCH: Final = 500


class _Revocation:
    """The caller of one revocation: its answer only frees a place."""

    __slots__ = ("_expiry",)

    def __init__(self, expiry: LeaseExpiry) -> None:
        self._expiry = expiry

    def reply(self, message: bytes) -> None:
        self._expiry.revoked()

    def fail(self, code: int, message: str) -> None:
        self._expiry.revoked()  # gone already, or the lessor will name it again


class LeaseExpiry:
    """Proposes what the primary lessor finds due. `check` belongs every half second."""

    def __init__(self, lessor: Lessor, proposer: Proposer, *, checkpoints: bool) -> None:
        self.expired = 0
        self._lessor = lessor
        self._proposer = proposer
        self._checkpoints = checkpoints
        self._due: list[LeaseID] = []
        self._in_flight = 0

    def check(self, now: float) -> None:
        """Take up what has expired by now."""
        if not self._due:
            self._due = list(self._lessor.expired(now, BATCH))
            self._due.reverse()
        self._propose()
        if self._checkpoints:
            self._checkpoint(now)

    def revoked(self) -> None:
        self._in_flight -= 1
        self.expired += 1
        self._propose()

    def _propose(self) -> None:
        while self._due and self._in_flight < MAX_IN_FLIGHT:
            self._in_flight += 1
            request = pb.LeaseRevokeRequest(ID=self._due.pop())
            message = request.SerializeToString()
            self._proposer.propose("lease_revoke", message, request, _Revocation(self))

    def _checkpoint(self, now: float) -> None:
        due = self._lessor.due_checkpoints(now)
        if due:
            request = pb.LeaseCheckpointRequest(
                checkpoints=[pb.LeaseCheckpoint(ID=i, remaining_TTL=left) for i, left in due]
            )
            message = request.SerializeToString()
            self._proposer.propose("lease_checkpoint", message, request, Ignored())
