"""etcdserverpb.Lease."""

from __future__ import annotations

from kvorum import errors, failpoint
from kvorum.api.unary import parse_stream_message, unary
from kvorum.h2 import Call, Method
from kvorum.lease.lessor import CheckpointFirst, LeaseExpired, NotPrimary
from kvorum.pb import etcdserverpb as pb
from kvorum.pb.wire import delimited, int64_field
from kvorum.server.quota import LEASE_COST
from kvorum.server.server import Server
from kvorum.types import LeaseID

_POSITIVE = (1 << 63) - 1


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
        self._leases = server.leases
        self._leadership = server.leadership
        self._catch_up = server.catch_up
        self._fast = server.config.feature_gates.enabled("FastLeaseKeepAlive")

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
        """Renew at once where that is possible: at a leader that is sure of being one."""
        now = self._now()
        if self._leadership.is_sure(now) and (self._fast or self._catch_up.is_done()):
            try:
                call.send(head + int64_field(3, self._lessor.renew(lease, now)))
                return
            except errors.LeaseNotFound:
                if self._catch_up.is_done():
                    call.send(head)
                    return
            except (LeaseExpired, CheckpointFirst, NotPrimary):
                pass
        # Renewals of one stream are answered in order, so the next one has to wait.
        call.pause_reading()
        self._server.run(call, self._renew_slowly(call, lease, head))

    async def _renew_slowly(self, call: Call, lease: LeaseID, head: bytes) -> None:
        ttl = await self._leases.renew(lease)
        call.send(head + int64_field(3, ttl))
        call.resume_reading()

    def time_to_live(self, call: Call, request: pb.LeaseTimeToLiveRequest, message: bytes) -> None:
        if self._leadership.leads_here and self._catch_up.is_done():
            if failpoint.active:
                failpoint.hit("beforeLookupWhenLeaseTimeToLive")
            self._send_time(call, self._leases.look_up(LeaseID(request.ID), keys=request.keys))
        else:
            self._server.run(call, self._time_to_live(call, request))

    async def _time_to_live(self, call: Call, request: pb.LeaseTimeToLiveRequest) -> None:
        lease = LeaseID(request.ID)
        self._send_time(call, await self._leases.time_to_live(lease, keys=request.keys))

    def _send_time(self, call: Call, found: pb.LeaseTimeToLiveResponse) -> None:
        call.reply(self._header.field(self._store.rev) + found.SerializeToString())

    def leases(self, call: Call, request: pb.LeaseLeasesRequest, message: bytes) -> None:
        ids = self._lessor.leases(self._now())
        body = b"".join(delimited(2, int64_field(1, lease)) for lease in ids)
        call.reply(self._header.field(self._store.rev) + body)
