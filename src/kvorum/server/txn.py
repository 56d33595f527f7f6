"""Transactions, carried out: compare, choose a branch, check it, execute it.

All comparing and checking happens on the state before the transaction, nested ones included, and
before the first write: once writing has begun nothing may fail, or members would differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from kvorum import errors
from kvorum.mvcc.store import Store, WriteTxn
from kvorum.pb import etcdserverpb as pb
from kvorum.pb import mvccpb
from kvorum.pb.wire import delimited, int64_field
from kvorum.server.header import revision_only
from kvorum.server.ranges import NO_END, ReadView, encode_kvs, execute_range
from kvorum.types import LeaseID, Revision

LeaseCheck = Callable[[LeaseID], bool]

_NO_KV: Final = mvccpb.KeyValue()
# The field of the compared pair for each target; the oneof member has the same name.
_TARGETS: Final = {
    pb.Compare.VERSION: "version",
    pb.Compare.CREATE: "create_revision",
    pb.Compare.MOD: "mod_revision",
    pb.Compare.VALUE: "value",
    pb.Compare.LEASE: "lease",
}
_RESULTS: Final[dict[int, Callable[[Any, Any], bool]]] = {
    pb.Compare.EQUAL: lambda a, b: a == b,
    pb.Compare.NOT_EQUAL: lambda a, b: a != b,
    pb.Compare.GREATER: lambda a, b: a > b,
    pb.Compare.LESS: lambda a, b: a < b,
}


@dataclass(slots=True)
class Branch:
    """The operations that a transaction will run: its own, and those of the nested ones."""

    succeeded: bool
    ops: list[tuple[str, Any]]
    nested: list[Branch]


def is_read_only(txn: pb.TxnRequest) -> bool:
    """Whether both branches hold nothing but ranges; a nested txn counts as a write."""
    for ops in (txn.success, txn.failure):
        for op in ops:
            if op.WhichOneof("request") != "request_range":
                return False
    return True


def is_serializable(txn: pb.TxnRequest) -> bool:
    """Whether every range of a read-only transaction asked for no consensus."""
    return all(op.request_range.serializable for ops in (txn.success, txn.failure) for op in ops)


def choose_branch(store: Store, txn: pb.TxnRequest) -> Branch:
    """Evaluate the compares, here and in the nested transactions of the branch taken."""
    succeeded = True
    for compare in txn.compare:
        if not _holds(store, compare):
            succeeded = False
            break
    ops: list[tuple[str, Any]] = []
    nested = []
    for op in txn.success if succeeded else txn.failure:
        kind = op.WhichOneof("request")
        assert kind is not None, "an operation of no kind passed the check"
        request = getattr(op, kind)
        if kind == "request_txn":
            nested.append(choose_branch(store, request))
        ops.append((kind, request))
    return Branch(succeeded, ops, nested)


def check_branch(store: Store, branch: Branch, has_lease: LeaseCheck) -> None:
    """Find every reason why the chosen operations could fail.

    Raises:
        errors.FutureRev, errors.Compacted: a range names a revision that is not there.
        errors.LeaseNotFound: a put names an unknown lease.
        errors.KeyNotFound: a put would keep the value or lease of a key that does not exist.
    """
    nested = iter(branch.nested)
    for kind, request in branch.ops:
        if kind == "request_range":
            _check_revision(store, request.revision)
        elif kind == "request_put":
            check_put(store, request, has_lease)
        elif kind == "request_txn":
            check_branch(store, next(nested), has_lease)


def check_put(view: ReadView, put: pb.PutRequest, has_lease: LeaseCheck) -> None:
    """The rules for a put that depend on the state.

    Raises:
        errors.LeaseNotFound, errors.KeyNotFound: as for `check_branch`.
    """
    if put.lease and not has_lease(LeaseID(put.lease)):
        raise errors.LeaseNotFound
    if not (put.ignore_value or put.ignore_lease):
        return
    kvs = view.range_kvs(put.key, NO_END).kvs
    if not kvs:
        raise errors.KeyNotFound
    # The pair may name a lease that is gone, in a database that etcd repaired; found out only at
    # the write, that would leave the transaction half done.
    kept = mvccpb.KeyValue.FromString(kvs[0]).lease if put.ignore_lease else 0
    if kept and not has_lease(LeaseID(kept)):
        raise errors.LeaseNotFound


def execute_write_txn(store: Store, txn: pb.TxnRequest, has_lease: LeaseCheck) -> bytes:
    """The body of a TxnResponse, without the header; that gets the store's revision afterwards.

    Raises:
        errors.EtcdError: as for `check_branch`; then nothing was written.
    """
    branch = choose_branch(store, txn)
    check_branch(store, branch, has_lease)
    write = store.write()
    body = _execute(write, branch)
    write.end()
    return body


def execute_read_txn(store: Store, txn: pb.TxnRequest) -> bytes:
    """The same for a transaction that only reads, and so needs no place in the log.

    Raises:
        errors.FutureRev, errors.Compacted: a range names a revision that is not there.
    """
    branch = choose_branch(store, txn)
    for _, request in branch.ops:
        _check_revision(store, request.revision)
    responses = [_response_op(1, *execute_range(store, request)) for _, request in branch.ops]
    return _txn_body(branch.succeeded, responses)


def execute_put(write: WriteTxn, put: pb.PutRequest) -> bytes:
    """The body of a PutResponse: the pair before, if it was asked for."""
    value, lease, body = put.value, put.lease, b""
    if put.prev_kv or put.ignore_value or put.ignore_lease:
        before = write.range_kvs(put.key, NO_END).kvs
        if before:
            previous = mvccpb.KeyValue.FromString(before[0])
            value = previous.value if put.ignore_value else value
            lease = previous.lease if put.ignore_lease else lease
            body = delimited(2, before[0]) if put.prev_kv else b""
    write.put(put.key, value, LeaseID(lease))
    return body


def execute_delete(write: WriteTxn, delete: pb.DeleteRangeRequest) -> bytes:
    """The body of a DeleteRangeResponse: how many, and the pairs before if they were asked for."""
    before: list[bytes] = []
    if delete.prev_kv:
        before = write.range_kvs(delete.key, delete.range_end).kvs
    deleted = write.delete_range(delete.key, delete.range_end)
    return int64_field(2, deleted) + encode_kvs(before, b"\x1a")


def _holds(store: Store, compare: pb.Compare) -> bool:
    if compare.range_end:
        kvs = store.range_kvs(compare.key, compare.range_end).kvs
    else:
        found = store.get(compare.key)
        kvs = [] if found is None else [found]
    for kv in kvs:
        if not _compare(compare, mvccpb.KeyValue.FromString(kv)):
            return False
    # A missing key has no value to compare, not even the empty one; its numbers count as 0.
    return bool(kvs) or (compare.target != pb.Compare.VALUE and _compare(compare, _NO_KV))


def _compare(compare: pb.Compare, kv: mvccpb.KeyValue) -> bool:
    field = _TARGETS.get(compare.target)
    # An unknown target compares as equal, an unknown result holds: etcd does the same.
    mine, theirs = (getattr(kv, field), getattr(compare, field)) if field else (0, 0)
    result = _RESULTS.get(compare.result)
    return result is None or result(mine, theirs)


def _check_revision(store: Store, revision: int) -> None:
    if revision > store.rev:
        raise errors.FutureRev
    if revision != 0 and revision < store.compact_rev:
        raise errors.Compacted


def _execute(write: WriteTxn, branch: Branch) -> bytes:
    nested = iter(branch.nested)
    responses = []
    plain_put = b""  # after the first write all answers to puts are alike
    for kind, request in branch.ops:
        if kind == "request_put":
            body = execute_put(write, request)
            if body or not plain_put:
                response = _response_op(2, body, write.rev)
                plain_put = plain_put if body else response
            else:
                response = plain_put
        elif kind == "request_range":
            response = _response_op(1, *execute_range(write, request))
        elif kind == "request_delete_range":
            body = execute_delete(write, request)
            response = _response_op(3, body, write.rev)
        else:
            body = _execute(write, next(nested))
            # The header of a nested answer stays empty in etcd.
            response = delimited(3, delimited(4, b"\n\x00" + body))
        responses.append(response)
    return _txn_body(branch.succeeded, responses)


def _response_op(number: int, body: bytes, revision: Revision) -> bytes:
    return delimited(3, delimited(number, revision_only(revision) + body))


def _txn_body(succeeded: bool, responses: list[bytes]) -> bytes:
    return (b"\x10\x01" if succeeded else b"") + b"".join(responses)
