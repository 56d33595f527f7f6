"""etcdserverpb.Lease."""

from __future__ import annotations

from collections.abc import Callable

from kvorum import errors, failpoint
from kvorum.api.unary import parse_stream_message, unary
from kvorum.h2 import Call, Method
from kvorum.lease.lessor import CheckpointFirst, LeaseExpired, NotPrimary
from kvorum.pb import etcdserverpb as pb
from kvorum.pb.wire import delimited, int64_field
from kvorum.server.proposer import fail
from kvorum.server.quota import LEASE_COST
from kvorum.server.server import Server
from kvorum.types import LeaseID

_POSITIVE = (1 << 63) - 1


class _Then:
    """A caller that goes on with something after its request was applied."""

    __slots__ = ("_next", "fail")

    def __init__(self, next_step: Callable[[], None], fail: Callable[[int, str], None]) -> None:
        self._next = next_step
        self.fail = fail

    def reply(self, message: bytes) -> None:
        self._next()


class LeaseService:
    """LeaseGrant, LeaseRevoke, LeaseKeepAlive, LeaseTimeToLive, LeaseLeases."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._lessor = server.lessor
        self._store = server.store
        self._header = server.header
        self._quota = server.quota
        self._propose = server.proposer.propose
        self._now = server.now

    def methods(self) -> dict[str, Method]:
        prefix = "/etcdserverpb.Lease/Lease"
        return {
            f"{prefix}Grant": unary(pb.LeaseGrantRequest, self.grant),
            f"{prefix}Revoke": unary(pb.LeaseRevokeRequest, self.revoke),
            f"{prefix}KeepAlive": Method(self.keep_alive, streaming=True),
            f"{prefix}TimeToLive": unary(pb.LeaseTimeToLiveRequest, self.time_to_live),
            f"{prefix}Leases": unary(pb.LeaseLeasesRequest, self.leases),
        }

    def grant(self, call: Call, request: pb.LeaseGrantRequest, message: bytes) -> None:
        if not self._quota.allows(LEASE_COST):
            self._server.raise_no_space()
            raise errors.NoSpace
        if request.ID == 0:
            ids = self._server.proposer.ids
            while request.ID == 0:
                request.ID = ids.next() & _POSITIVE
            message = request.SerializeToString()
        self._propose("lease_grant", message, request, call)

    def revoke(self, call: Call, request: pb.LeaseRevokeRequest, message: bytes) -> None:
        self._propose("lease_revoke", message, request, call)

    def keep_alive(self, call: Call) -> None:
        def renew(message: bytes) -> None:
            request = parse_stream_message(call, pb.LeaseKeepAliveRequest, message)
            if request is not None:
                # Taken before the renewal: an answer must not carry a revision at which the lease
                # could already be gone.
                head = self._header.field(self._store.rev) + int64_field(2, request.ID)
                self._renew(call, LeaseID(request.ID), head)

        call.on_message = renew
        call.on_end = call.finish

    def _renew(self, call: Call, lease: LeaseID, head: bytes) -> None:
        try:
            call.send(head + int64_field(3, self._lessor.renew(lease, self._now())))
        except errors.LeaseNotFound:
            call.send(head)
        except LeaseExpired:
            self._await_end(call, lease, head)
        except CheckpointFirst:
            self._checkpoint(call, lease, head)
        except NotPrimary:
            fail(call, errors.NoLeader())

    def _await_end(self, call: Call, lease: LeaseID, head: bytes) -> None:
        try:
            self._lessor.when_gone(lease, lambda why: self._gone(call, head, why))
        except errors.RequestTooManyRequests as error:
            fail(call, error)

    def _gone(self, call: Call, head: bytes, why: Exception) -> None:
        if isinstance(why, errors.LeaseNotFound):
            call.send(head)
        else:
            fail(call, errors.NoLeader())

    def _checkpoint(self, call: Call, lease: LeaseID, head: bytes) -> None:
        """Forget, on all members, how much time was left, and then renew."""
        checkpoint = pb.LeaseCheckpoint(ID=lease, remaining_TTL=0)
        request = pb.LeaseCheckpointRequest(checkpoints=[checkpoint])
        caller = _Then(lambda: self._renew(call, lease, head), call.fail)
        self._propose("lease_checkpoint", request.SerializeToString(), request, caller)

    def time_to_live(self, call: Call, request: pb.LeaseTimeToLiveRequest, message: bytes) -> None:
        if failpoint.active:
            failpoint.hit("beforeLookupWhenLeaseTimeToLive")
        head = self._header.field(self._store.rev)
        left = self._lessor.time_to_live(LeaseID(request.ID), self._now())
        if left is None:
            call.reply(head + int64_field(2, request.ID) + int64_field(3, -1))
            return
        body = int64_field(2, request.ID) + int64_field(3, left.ttl) + int64_field(4, left.granted)
        if request.keys:
            body += b"".join(delimited(5, key) for key in self._lessor.keys(LeaseID(request.ID)))
        call.reply(head + body)

    def leases(self, call: Call, request: pb.LeaseLeasesRequest, message: bytes) -> None:
        ids = self._lessor.leases(self._now())
        body = b"".join(delimited(2, int64_field(1, lease)) for lease in ids)
        call.reply(self._header.field(self._store.rev) + body)
