"""Between etcd's messages and the words in which histories are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from kvorum.pb import etcdserverpb as pb
from kvorum.pb import mvccpb
from kvorum.testing.history import (
    Compare,
    Delete,
    DeleteResult,
    Event,
    Get,
    GetResult,
    KeyValue,
    Put,
    PutResult,
    Request,
    Result,
    Revoke,
    RevokeResult,
    TxnResult,
)

PUT: Final = "/etcdserverpb.KV/Put"
RANGE: Final = "/etcdserverpb.KV/Range"
DELETE: Final = "/etcdserverpb.KV/DeleteRange"
TXN: Final = "/etcdserverpb.KV/Txn"
COMPACT: Final = "/etcdserverpb.KV/Compact"
WATCH: Final = "/etcdserverpb.Watch/Watch"
GRANT: Final = "/etcdserverpb.Lease/LeaseGrant"
REVOKE: Final = "/etcdserverpb.Lease/LeaseRevoke"
KEEP_ALIVE: Final = "/etcdserverpb.Lease/LeaseKeepAlive"
TIME_TO_LIVE: Final = "/etcdserverpb.Lease/LeaseTimeToLive"
MEMBER_ADD: Final = "/etcdserverpb.Cluster/MemberAdd"
MEMBER_PROMOTE: Final = "/etcdserverpb.Cluster/MemberPromote"
MEMBER_REMOVE: Final = "/etcdserverpb.Cluster/MemberRemove"
MOVE_LEADER: Final = "/etcdserverpb.Maintenance/MoveLeader"

_TARGETS: Final = {
    "version": (pb.Compare.VERSION, "version"),
    "create": (pb.Compare.CREATE, "create_revision"),
    "mod": (pb.Compare.MOD, "mod_revision"),
    "value": (pb.Compare.VALUE, "value"),
    "lease": (pb.Compare.LEASE, "lease"),
}
_RELATIONS: Final = {
    "=": pb.Compare.EQUAL,
    "!=": pb.Compare.NOT_EQUAL,
    "<": pb.Compare.LESS,
    ">": pb.Compare.GREATER,
}


def encode(request: Request) -> tuple[str, bytes]:
    """The method and the message of a request."""
    path, message = _message(request)
    return path, message.SerializeToString()


def _message(request: Request) -> tuple[str, Any]:
    if isinstance(request, Put):
        put = pb.PutRequest(key=request.key, value=request.value, lease=request.lease)
        put.prev_kv = request.prev
        return PUT, put
    if isinstance(request, Get):
        get = pb.RangeRequest(key=request.key, range_end=request.end, limit=request.limit)
        get.revision, get.serializable = request.revision, request.serializable
        return RANGE, get
    if isinstance(request, Delete):
        delete = pb.DeleteRangeRequest(key=request.key, range_end=request.end)
        delete.prev_kv = request.prev
        return DELETE, delete
    if isinstance(request, Revoke):
        return REVOKE, pb.LeaseRevokeRequest(ID=request.lease)
    txn = pb.TxnRequest(
        compare=map(_compare, request.compares),
        success=map(_operation, request.success),
        failure=map(_operation, request.failure),
    )
    return TXN, txn


def _compare(compare: Compare) -> pb.Compare:
    target, field = _TARGETS[compare.target]
    made = pb.Compare(
        key=compare.key,
        range_end=compare.end,
        target=target,
        result=_RELATIONS[compare.relation],
    )
    setattr(made, field, compare.operand)
    return made


def _operation(request: Request) -> pb.RequestOp:
    path, message = _message(request)
    names = {PUT: "request_put", RANGE: "request_range", DELETE: "request_delete_range"}
    names[TXN] = "request_txn"
    return pb.RequestOp(**{names[path]: message})


def decode(request: Request, message: bytes) -> Result:
    """The answer to a request."""
    if isinstance(request, Put):
        return _put_result(pb.PutResponse.FromString(message))
    if isinstance(request, Get):
        return _get_result(pb.RangeResponse.FromString(message))
    if isinstance(request, Delete):
        return _delete_result(pb.DeleteRangeResponse.FromString(message))
    if isinstance(request, Revoke):
        return RevokeResult(pb.LeaseRevokeResponse.FromString(message).header.revision)
    return _txn_result(pb.TxnResponse.FromString(message))


def _put_result(response: Any) -> PutResult:
    prev = pair(response.prev_kv) if response.HasField("prev_kv") else None
    return PutResult(response.header.revision, prev)


def _get_result(response: Any) -> GetResult:
    return GetResult(response.header.revision, tuple(map(pair, response.kvs)), response.count)


def _delete_result(response: Any) -> DeleteResult:
    prev = tuple(map(pair, response.prev_kvs))
    return DeleteResult(response.header.revision, response.deleted, prev)


def _txn_result(response: Any) -> TxnResult:
    results = tuple(map(_operation_result, response.responses))
    return TxnResult(response.header.revision, response.succeeded, results)


def _operation_result(response: Any) -> Result:
    kind = response.WhichOneof("response")
    decoders: dict[str, Callable[[Any], Result]] = {
        "response_put": _put_result,
        "response_range": _get_result,
        "response_delete_range": _delete_result,
        "response_txn": _txn_result,
    }
    return decoders[kind](getattr(response, kind))


def pair(kv: Any) -> KeyValue:
    """A pair as histories have it."""
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def event(made: Any) -> Event:
    """An event of a watch."""
    prev = pair(made.prev_kv) if made.HasField("prev_kv") else None
    if made.type == mvccpb.Event.DELETE:
        return Event("delete", KeyValue(made.kv.key, b"", mod=made.kv.mod_revision), prev)
    return Event("put", pair(made.kv), prev)
