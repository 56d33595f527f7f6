"""etcdserverpb.Cluster."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import Any

from google.protobuf.message import Message

from kvorum.api.unary import unary
from kvorum.h2 import Call, Method
from kvorum.membership import Member
from kvorum.pb import etcdserverpb as pb
from kvorum.server.proposer import Caller
from kvorum.server.server import Server
from kvorum.types import MemberID


class ClusterService:
    """MemberList, and all changes of the membership."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def methods(self) -> dict[str, Method]:
        prefix = "/etcdserverpb.Cluster/Member"
        return {
            f"{prefix}Add": unary(pb.MemberAddRequest, self.member_add),
            f"{prefix}Remove": unary(pb.MemberRemoveRequest, self.member_remove),
            f"{prefix}Update": unary(pb.MemberUpdateRequest, self.member_update),
            f"{prefix}List": unary(pb.MemberListRequest, self.member_list),
            f"{prefix}Promote": unary(pb.MemberPromoteRequest, self.member_promote),
        }

    def member_list(self, call: Call, request: pb.MemberListRequest, message: bytes) -> None:
        if request.linearizable:
            self._server.reads.read(self._send_list, request, call)
        else:
            self._send_list(request, call)

    def _send_list(self, request: Any, caller: Caller) -> None:
        del request
        members = self._server.cluster.sorted()
        self._send(caller, pb.MemberListResponse(members=map(_message, members)))

    def member_add(self, call: Call, request: pb.MemberAddRequest, message: bytes) -> None:
        self._server.run(call, self._add(call, request))

    async def _add(self, call: Call, request: pb.MemberAddRequest) -> None:
        member, members = await self._server.members.add(
            request.peerURLs, learner=request.isLearner
        )
        self._send(
            call, pb.MemberAddResponse(member=_message(member), members=map(_message, members))
        )

    def member_remove(self, call: Call, request: pb.MemberRemoveRequest, message: bytes) -> None:
        changed = self._server.members.remove(MemberID(request.ID))
        self._server.run(call, self._change(call, changed, pb.MemberRemoveResponse))

    def member_update(self, call: Call, request: pb.MemberUpdateRequest, message: bytes) -> None:
        changed = self._server.members.update(MemberID(request.ID), request.peerURLs)
        self._server.run(call, self._change(call, changed, pb.MemberUpdateResponse))

    def member_promote(self, call: Call, request: pb.MemberPromoteRequest, message: bytes) -> None:
        changed = self._server.members.promote(MemberID(request.ID))
        self._server.run(call, self._change(call, changed, pb.MemberPromoteResponse))

    async def _change(
        self, call: Call, changed: Awaitable[Iterable[Member]], response: type[Message]
    ) -> None:
        members = await changed
        self._send(call, response(members=map(_message, members)))

    def _send(self, caller: Caller, response: Any) -> None:
        # etcd leaves the revision out of the headers of this service.
        response.header.cluster_id = self._server.cluster.id
        response.header.member_id = self._server.id
        response.header.raft_term = self._server.header.term
        caller.reply(response.SerializeToString())


def _message(member: Member) -> pb.Member:
    return pb.Member(
        ID=member.id,
        name=member.name,
        peerURLs=member.peer_urls,
        clientURLs=member.client_urls,
        isLearner=member.is_learner,
    )
