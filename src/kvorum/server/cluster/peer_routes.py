"""What members ask each other over plain HTTP, besides raft itself: paths, answers and status codes
are etcd's."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Protocol
from urllib.parse import unquote

from google.protobuf.message import DecodeError

from kvorum import errors, failpoint
from kvorum.errors import EtcdError
from kvorum.h2.http import Headers, HttpHandler, HttpRequest, HttpResponse, text_response
from kvorum.lease.lessor import NotPrimary
from kvorum.log import get_logger
from kvorum.membership import Cluster
from kvorum.pb import etcdserverpb as pb
from kvorum.pb import leasepb
from kvorum.server.awaited import RequestFailed, until_fresh
from kvorum.server.catchup import CatchUp
from kvorum.server.cluster.lease_forward import INTERNAL_PATH, RENEW_PATH, Leases
from kvorum.server.cluster.members import (
    NOT_FOUND_TEXT,
    NOT_LEARNER_TEXT,
    PROMOTE_PATH,
    MemberChanges,
    members_to_json,
)
from kvorum.server.cluster.versions import versions_document
from kvorum.server.reads import ReadGate
from kvorum.types import LeaseID, MemberID

MAX_LEASE_REQUEST: Final = 64 * 1024

_JSON: Final = ("Content-Type", "application/json")
_DECIMAL: Final = re.compile(r"\d{1,20}", re.ASCII)
_NOT_CAUGHT_UP: Final = "waiting for node to catch up its applied index has timed out"
_NO_LEASE: Final = "lease not found"

Answer = HttpResponse | Awaitable[HttpResponse]

lg = get_logger()


class Served(Protocol):
    """The parts of a member that its peers may ask."""

    @property
    def cluster(self) -> Cluster: ...
    @property
    def members(self) -> MemberChanges: ...
    @property
    def leases(self) -> Leases: ...
    @property
    def catch_up(self) -> CatchUp: ...
    @property
    def reads(self) -> ReadGate: ...
    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...
    @property
    def storage_version(self) -> str: ...


def peer_routes(server: Served) -> dict[str, HttpHandler]:
    """Handlers by path; one that ends with a slash is for all paths below it."""
    members = _MemberRoutes(server)
    leases = _LeaseRoutes(server)
    versions = _VersionRoutes(server)
    return {
        "/members": partial(_only, "GET", members.list),
        PROMOTE_PATH: partial(_only, "POST", members.promote),
        RENEW_PATH: leases.renew,
        INTERNAL_PATH: leases.time_to_live,
        "/version": partial(_only, "GET", versions.versions),
        "/downgrade/enabled": partial(_only, "GET", versions.downgrade_enabled),
    }


def _only(
    method: str, handler: Callable[[HttpRequest], Answer], request: HttpRequest
) -> HttpResponse | Awaitable[HttpResponse]:
    if request.method == method:
        return handler(request)
    refusal = text_response(405, "Method Not Allowed")
    refusal.headers.append(("Allow", method))
    return refusal


class _MemberRoutes:
    def __init__(self, server: Served) -> None:
        self._server = server
        self._identity: Headers = [_identity(server.cluster)]

    def list(self, request: HttpRequest) -> HttpResponse:
        del request
        return self._members(members_to_json(self._server.cluster.sorted()))

    def _members(self, body: bytes) -> HttpResponse:
        return HttpResponse(200, body, [_JSON, *self._identity])

    async def promote(self, request: HttpRequest) -> HttpResponse:
        text = unquote(request.path).removeprefix(PROMOTE_PATH)
        if not _DECIMAL.fullmatch(text) or int(text) >= 1 << 64:
            return self._refusal(404, f"member {text} not found in cluster")
        member = MemberID(int(text))
        try:
            token = request.header("authorization")
            return self._members(
                members_to_json(await self._server.members.promote(member, token=token))
            )
        except (EtcdError, RequestFailed) as error:
            lg.warn("failed to promote a member", member_id=f"{member:x}", error=str(error))
            return self._promote_refusal(error)

    def _promote_refusal(self, error: Exception) -> HttpResponse:
        if isinstance(error, errors.MemberNotFound):
            return self._refusal(404, NOT_FOUND_TEXT)
        if isinstance(error, errors.MemberNotLearner):
            return self._refusal(412, NOT_LEARNER_TEXT)
        if isinstance(error, errors.LearnerNotReady):
            return self._refusal(412, str(error))
        body = b'{"message":"Internal Server Error"}'
        return HttpResponse(500, body, [_JSON, *self._identity])

    def _refusal(self, status: int, text: str) -> HttpResponse:
        response = text_response(status, text)
        response.headers.extend(self._identity)
        return response


class _LeaseRoutes:
    """Renewals and remaining times for members that do not lead."""

    def __init__(self, server: Served) -> None:
        self._server = server

    def renew(self, request: HttpRequest) -> Answer:
        return self._parsed(request, pb.LeaseKeepAliveRequest, self._renew)

    def time_to_live(self, request: HttpRequest) -> Answer:
        return self._parsed(request, leasepb.LeaseInternalRequest, self._time_to_live)

    def _parsed(
        self,
        request: HttpRequest,
        kind: Any,
        handle: Callable[[Any], Awaitable[HttpResponse]],
    ) -> Answer:
        if request.method != "POST":
            return text_response(405, "Method Not Allowed")
        if len(request.body) > MAX_LEASE_REQUEST:
            return text_response(413, "request body too large")
        try:
            message = kind.FromString(request.body)
        except DecodeError:
            return text_response(400, "error unmarshalling request")
        return self._caught_up(message, handle)

    async def _caught_up(
        self, message: Any, handle: Callable[[Any], Awaitable[HttpResponse]]
    ) -> HttpResponse:
        try:
            await self._server.catch_up.until_done()
        except errors.TimeoutWaitAppliedIndex:
            return text_response(408, _NOT_CAUGHT_UP)
        return await handle(message)

    async def _renew(self, request: pb.LeaseKeepAliveRequest) -> HttpResponse:
        if failpoint.active:
            failpoint.hit("beforeServeHTTPLeaseRenew")
        try:
            ttl = await self._server.leases.renew_here(LeaseID(request.ID))
        except (NotPrimary, RequestFailed, EtcdError) as error:
            return text_response(400, str(error))
        if not ttl:
            return text_response(404, _NO_LEASE)
        return _protobuf(pb.LeaseKeepAliveResponse(ID=request.ID, TTL=ttl))

    async def _time_to_live(self, request: leasepb.LeaseInternalRequest) -> HttpResponse:
        if failpoint.active:
            failpoint.hit("beforeLookupWhenForwardLeaseTimeToLive")
        wanted = request.LeaseTimeToLiveRequest
        try:
            found = self._server.leases.look_up(LeaseID(wanted.ID), keys=wanted.keys)
        except errors.LeaderChanged:
            return text_response(500, str(NotPrimary()))
        if not found.grantedTTL:
            return text_response(404, _NO_LEASE)
        found.header.SetInParent()
        response = leasepb.LeaseInternalResponse()
        response.LeaseTimeToLiveResponse.CopyFrom(found)
        return _protobuf(response)


class _VersionRoutes:
    def __init__(self, server: Served) -> None:
        self._server = server

    def versions(self, request: HttpRequest) -> HttpResponse:
        del request
        server = self._server
        body = versions_document(server.cluster.version, server.storage_version)
        return HttpResponse(200, body, [_JSON])

    async def downgrade_enabled(self, request: HttpRequest) -> HttpResponse:
        del request
        server = self._server
        identity = _identity(server.cluster)
        try:
            await until_fresh(server.reads, server.loop)
        except (EtcdError, RequestFailed) as error:
            response = text_response(500, f"failed linearized read: {error}")
            response.headers.append(identity)
            return response
        body = b"true" if server.cluster.downgrade_target else b"false"
        return HttpResponse(200, body, [("Content-Type", "text/plain"), identity])


def _identity(cluster: Cluster) -> tuple[str, str]:
    return "X-Etcd-Cluster-ID", f"{cluster.id:x}"


def _protobuf(message: Any) -> HttpResponse:
    headers = [("Content-Type", "application/protobuf")]
    return HttpResponse(200, message.SerializeToString(), headers)
