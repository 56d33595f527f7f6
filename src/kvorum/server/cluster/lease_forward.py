"""Leases asked about at any member: renewals and remaining times, which only the leader knows.

The quick way, at a leader that is sure of itself, is in `api.lease`; this is every other way. The
messages between members and their status codes are etcd's (leasehttp).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from google.protobuf.message import DecodeError

from kvorum import errors, failpoint
from kvorum.errors import Code
from kvorum.lease.lessor import CheckpointFirst, LeaseExpired, Lessor, NotPrimary
from kvorum.pb import etcdserverpb as pb
from kvorum.pb import leasepb
from kvorum.server.awaited import Awaited, RequestFailed
from kvorum.server.catchup import CatchUp
from kvorum.server.cluster.leadership import Leadership
from kvorum.server.cluster.to_leader import PAUSE, LedHere, ToLeader, TryAgain
from kvorum.server.proposer import Proposer
from kvorum.types import LeaseID

RENEW_PATH: Final = "/leases"
INTERNAL_PATH: Final = "/leases/internal"
MAX_REPLY: Final = 100 * 1024 * 1024
"""A reply may list every key of a lease."""

_PROTOBUF: Final = {"Content-Type": "application/protobuf"}


class Leases:
    """Renewals and remaining times. ``fast`` is the gate FastLeaseKeepAlive: a lease that is known
    is renewed although not everything that is committed has been applied."""

    def __init__(
        self,
        *,
        lessor: Lessor,
        proposer: Proposer,
        leadership: Leadership,
        catch_up: CatchUp,
        to_leader: ToLeader,
        fast: bool,
        now: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._lessor = lessor
        self._proposer = proposer
        self._leadership = leadership
        self._catch_up = catch_up
        self._to_leader = to_leader
        self._fast = fast
        self._now = now
        self._loop = loop

    # Renewing

    async def renew(self, lease: LeaseID) -> int:
        """Renew a lease, wherever the leader is; returns its time to live, 0 if there is no such
        lease.

        Raises:
            EtcdError: the leader could not be asked.
            RequestFailed: this member led, and cannot tell whether it still does.
        """
        deadline = self._to_leader.deadline()
        while True:
            try:
                if self._leadership.leads_here:
                    return await self.renew_here(lease)
            except NotPrimary:
                await self._not_yet_primary(deadline)
            try:
                return await self._to_leader.ask(
                    lambda url, timeout: self._renew_there(url, timeout, lease), deadline
                )
            except LedHere:
                await self._not_yet_primary(deadline)

    async def _not_yet_primary(self, deadline: float) -> None:
        """A new leader's lessor is not primary before all of the former term is applied."""
        if self._loop.time() >= deadline:
            raise errors.Timeout
        await asyncio.sleep(PAUSE)

    async def renew_here(self, lease: LeaseID) -> int:
        """Renew a lease as the leader; 0 if there is no such lease.

        Raises:
            NotPrimary: this member does not lead, or does not yet.
            RequestFailed: it cannot tell whether it leads.
            EtcdError: too much waits to be applied.
        """
        if not self._leadership.leads_here:
            raise NotPrimary
        handing_over = self._leadership.handing_over
        if not await self._leadership.is_confirmed():
            if handing_over and not self._leadership.leads_here:
                raise NotPrimary
            raise RequestFailed(Code.UNKNOWN, str(NotPrimary()))
        if not (self._fast and self._lessor.has(lease)):
            await self._catch_up.until_done()
        try:
            return await self._renew_primary(lease)
        except errors.LeaseNotFound:
            return 0

    async def _renew_primary(self, lease: LeaseID) -> int:
        try:
            return self._lessor.renew(lease, self._now())
        except LeaseExpired:
            raise await self._end_of(lease) from None
        except CheckpointFirst:
            await self._forget_checkpoint(lease)
            return self._lessor.renew(lease, self._now())

    async def _end_of(self, lease: LeaseID) -> Exception:
        """What becomes of a lease whose time is up, once it is known."""
        ended: asyncio.Future[Exception] = self._loop.create_future()

        def gone(why: Exception) -> None:
            if not ended.done():
                ended.set_result(why)

        self._lessor.when_gone(lease, gone)
        return await ended

    async def _forget_checkpoint(self, lease: LeaseID) -> None:
        """Have all members forget how much time was left."""
        checkpoint = pb.LeaseCheckpoint(ID=lease, remaining_TTL=0)
        request = pb.LeaseCheckpointRequest(checkpoints=[checkpoint])
        answer = Awaited(self._loop)
        self._proposer.propose("lease_checkpoint", request.SerializeToString(), request, answer)
        await answer

    async def _renew_there(self, url: str, timeout: float, lease: LeaseID) -> int:  # noqa: ASYNC109
        body = pb.LeaseKeepAliveRequest(ID=lease).SerializeToString()
        data = await self._post(url, RENEW_PATH, body, timeout)
        if data is None:
            return 0
        reply = _parse(pb.LeaseKeepAliveResponse, data)
        if lease != reply.ID:
            raise TryAgain("lease: renew id mismatch")
        return int(reply.TTL)

    # Remaining time

    async def time_to_live(self, lease: LeaseID, *, keys: bool) -> pb.LeaseTimeToLiveResponse:
        """What is left of a lease, without a header; a TTL of -1 if there is no such lease.

        Raises:
            EtcdError: the leader could not be asked, or changed meanwhile.
        """
        deadline = self._to_leader.deadline()
        while True:
            if self._leadership.leads_here:
                await self._catch_up.until_done()
                if failpoint.active:
                    failpoint.hit("beforeLookupWhenLeaseTimeToLive")
                return self.look_up(lease, keys=keys)
            try:
                return await self._to_leader.ask(
                    lambda url, timeout: self._time_there(url, timeout, lease, keys), deadline
                )
            except LedHere:
                continue

    def look_up(self, lease: LeaseID, *, keys: bool) -> pb.LeaseTimeToLiveResponse:
        """The same as this member knows it now. Raises errors.LeaderChanged if it is not primary
        and so cannot know."""
        left = self._lessor.time_to_live(lease, self._now())
        if left is None:
            return pb.LeaseTimeToLiveResponse(ID=lease, TTL=-1)
        return pb.LeaseTimeToLiveResponse(
            ID=lease,
            TTL=left.ttl,
            grantedTTL=left.granted,
            keys=self._lessor.keys(lease) if keys else (),
        )

    async def _time_there(
        self,
        url: str,
        timeout: float,  # noqa: ASYNC109
        lease: LeaseID,
        keys: bool,
    ) -> pb.LeaseTimeToLiveResponse:
        request = leasepb.LeaseInternalRequest()
        request.LeaseTimeToLiveRequest.ID = lease
        request.LeaseTimeToLiveRequest.keys = keys
        data = await self._post(url, INTERNAL_PATH, request.SerializeToString(), timeout)
        if data is None:
            return pb.LeaseTimeToLiveResponse(ID=lease, TTL=-1)
        response: leasepb.LeaseInternalResponse = _parse(leasepb.LeaseInternalResponse, data)
        reply = response.LeaseTimeToLiveResponse
        if lease != reply.ID:
            raise TryAgain("lease: TTL id mismatch")
        reply.ClearField("header")
        return reply

    async def _post(self, url: str, path: str, body: bytes, timeout: float) -> bytes | None:  # noqa: ASYNC109
        """The body of the answer; None if there is no such lease."""
        reply = await self._to_leader.http.request(
            "POST", url, path, headers=_PROTOBUF, body=body, timeout=timeout, max_body=MAX_REPLY
        )
        if reply.status == 404:
            return None
        if reply.status != 200:
            raise TryAgain(reply.body.decode(errors="replace"))
        return reply.body


def _parse(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise TryAgain(str(error)) from error
