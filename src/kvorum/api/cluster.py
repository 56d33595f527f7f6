"""etcdserverpb.Cluster."""

from __future__ import annotations

from typing import Any

from kvorum.api.unary import unary
from kvorum.h2 import Call, Method
from kvorum.membership import Member
from kvorum.pb import etcdserverpb as pb
from kvorum.server.proposer import Caller
from kvorum.server.server import Server


class ClusterService:
    """MemberList. Changes of the membership come with clusters of more than one."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def methods(self) -> dict[str, Method]:
        return {
            "/etcdserverpb.Cluster/MemberList": unary(pb.MemberListRequest, self.member_list),
        }

    def member_list(self, call: Call, request: pb.MemberListRequest, message: bytes) -> None:
        if request.linearizable:
            self._server.reads.read(self._send_list, request, call)
        else:
            self._send_list(request, call)

    def _send_list(self, request: Any, caller: Caller) -> None:
        server = self._server
        response = pb.MemberListResponse(
            members=[_message(m) for m in server.cluster.sorted()],
        )
        # etcd leaves the revision out of this one header.
        response.header.cluster_id = server.cluster.id
        response.header.member_id = server.id
        response.header.raft_term = server.header.term
        caller.reply(response.SerializeToString())


def _message(member: Member) -> pb.Member:
    return pb.Member(
        ID=member.id,
        name=member.name,
        peerURLs=member.peer_urls,
        clientURLs=member.client_urls,
        isLearner=member.is_learner,
    )
