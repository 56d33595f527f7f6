"""etcdserverpb.Maintenance."""

from __future__ import annotations

from collections.abc import Awaitable

from kvorum import errors
from kvorum.alarm import alarm_name
from kvorum.api.unary import unary
from kvorum.errors import Code
from kvorum.h2 import Call, Method
from kvorum.pb import etcdserverpb as pb
from kvorum.pb.wire import int64_field
from kvorum.server.server import Server
from kvorum.types import MemberID
from kvorum.version import ETCD_VERSION

_ACTIONS = frozenset(pb.AlarmRequest.AlarmAction.values())


class MaintenanceService:
    """Alarm, Status, Defragment, Hash, HashKV, MoveLeader, Downgrade."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def methods(self) -> dict[str, Method]:
        prefix = "/etcdserverpb.Maintenance"
        return {
            f"{prefix}/Alarm": unary(pb.AlarmRequest, self.alarm),
            f"{prefix}/Status": unary(pb.StatusRequest, self.status),
            f"{prefix}/Defragment": unary(pb.DefragmentRequest, self.defragment),
            f"{prefix}/Hash": unary(pb.HashRequest, self.hash),
            f"{prefix}/HashKV": unary(pb.HashKVRequest, self.hash_kv),
            f"{prefix}/MoveLeader": unary(pb.MoveLeaderRequest, self.move_leader),
            f"{prefix}/Downgrade": unary(pb.DowngradeRequest, self.downgrade),
        }

    def alarm(self, call: Call, request: pb.AlarmRequest, message: bytes) -> None:
        if request.action not in _ACTIONS:  # etcd ends on one; a request must not be able to
            call.fail(Code.INVALID_ARGUMENT, f"unknown alarm action {request.action}")
            return
        self._server.proposer.propose("alarm", message, request, call)

    def status(self, call: Call, request: pb.StatusRequest, message: bytes) -> None:
        server = self._server
        response = pb.StatusResponse(
            version=ETCD_VERSION,
            dbSize=server.backend.size(),
            dbSizeInUse=server.backend.size_in_use(),
            leader=server.raft.leader,
            raftIndex=server.raft.committed,
            raftAppliedIndex=server.applier.index,
            raftTerm=server.raft.term,
            isLearner=server.cluster.is_learner(),
            storageVersion=server.storage_version,
            dbSizeQuota=server.quota.limit,
        )
        target = server.cluster.downgrade_target
        response.downgradeInfo.enabled = bool(target)
        response.downgradeInfo.targetVersion = target
        if not server.raft.leader:
            response.errors.append(errors.NoLeader.message)
        for alarm in server.alarms.get():
            kind = alarm_name(alarm.alarm)
            response.errors.append(f"memberID:{alarm.memberID} alarm:{kind} ")
        call.reply(server.header.field(server.store.rev) + response.SerializeToString())

    def defragment(self, call: Call, request: pb.DefragmentRequest, message: bytes) -> None:
        self._server.run(call, self._defragment(call))

    async def _defragment(self, call: Call) -> None:
        await self._server.defragment()
        call.reply(b"")

    def hash(self, call: Call, request: pb.HashRequest, message: bytes) -> None:
        self._server.run(call, self._hash(call))

    async def _hash(self, call: Call) -> None:
        server = self._server
        digest = await server.backend.hash()
        call.reply(server.header.field(server.store.rev) + int64_field(2, digest))

    def hash_kv(self, call: Call, request: pb.HashKVRequest, message: bytes) -> None:
        self._server.run(call, self._hash_kv(call, request.revision))

    async def _hash_kv(self, call: Call, revision: int) -> None:
        found, current = await self._server.store.hash_kv(revision)
        body = b"%b%b%b" % (
            int64_field(2, found.hash),
            int64_field(3, found.compact_rev),
            int64_field(4, found.rev),
        )
        call.reply(self._server.header.field(current) + body)

    def move_leader(self, call: Call, request: pb.MoveLeaderRequest, message: bytes) -> None:
        self._server.run(call, self._move_leader(call, MemberID(request.targetID)))

    async def _move_leader(self, call: Call, target: MemberID) -> None:
        await self._server.members.move_leader(target)
        call.reply(b"")  # etcd sends this one without a header

    def downgrade(self, call: Call, request: pb.DowngradeRequest, message: bytes) -> None:
        downgrades = self._server.downgrades
        if request.action == pb.DowngradeRequest.VALIDATE:
            version = downgrades.validate(request.version)
        elif request.action == pb.DowngradeRequest.ENABLE:
            version = downgrades.enable(request.version)
        elif request.action == pb.DowngradeRequest.CANCEL:
            version = downgrades.cancel()
        else:
            call.fail(Code.UNKNOWN, "etcdserver: unknown method")
            return
        self._server.run(call, self._downgrade(call, version))

    async def _downgrade(self, call: Call, working: Awaitable[str]) -> None:
        version = await working
        response = pb.DowngradeResponse(version=version.rpartition(".")[0])
        server = self._server
        call.reply(server.header.field(server.store.rev) + response.SerializeToString())
