"""What a KV request must look like before it may go into the log, in etcd's order of checks."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Any, Final

from kvorum import errors
from kvorum.pb import etcdserverpb as pb

_SORT_ORDERS: Final = frozenset(pb.RangeRequest.SortOrder.values())
_SORT_TARGETS: Final = frozenset(pb.RangeRequest.SortTarget.values())

MAX_NESTING: Final = 40
"""Transactions in transactions. protobuf parses a hundred messages inside each other and no more;
an entry of the log, which holds the request one level deeper, must stay well below that, or a
member could not start again."""


class RangeStreamUnsupported(
    errors.EtcdError,
    code=errors.Code.UNIMPLEMENTED,
    message="RangeStream does not support custom sort orders",
):
    """Chunks can only follow the order of keys."""


class RangeStreamFiltersUnsupported(
    errors.EtcdError,
    code=errors.Code.UNIMPLEMENTED,
    message="RangeStream does not support revision filters",
):
    """A chunk that a filter empties would tell nothing about what follows."""


def check_range(request: pb.RangeRequest) -> None:
    """Raise EmptyKey or InvalidSortOption for a range that cannot be."""
    if not request.key:
        raise errors.EmptyKey
    if request.sort_order not in _SORT_ORDERS or request.sort_target not in _SORT_TARGETS:
        raise errors.InvalidSortOption


def check_put(request: pb.PutRequest) -> None:
    """Raise EmptyKey, ValueProvided or LeaseProvided for a put that contradicts itself."""
    if not request.key:
        raise errors.EmptyKey
    if request.ignore_value and request.value:
        raise errors.ValueProvided
    if request.ignore_lease and request.lease:
        raise errors.LeaseProvided


def check_delete(request: pb.DeleteRangeRequest) -> None:
    """Raise EmptyKey for a delete without a key."""
    if not request.key:
        raise errors.EmptyKey


def check_txn(request: pb.TxnRequest, max_ops: int) -> None:
    """Raise TooManyOps, EmptyKey, what an operation's own check raises, or DuplicateKey."""
    _check_ops(request, max_ops, MAX_NESTING)
    for ops in (request.success, request.failure):
        # A single operation can only collide with itself if it is a transaction of its own.
        if len(ops) > 1 or (ops and ops[0].WhichOneof("request") == "request_txn"):
            _written_keys(ops)


def _check_ops(request: pb.TxnRequest, max_ops: int, levels: int) -> None:
    """Each of the three lists may hold ``max_ops``; what the longest takes up is not there for the
    transactions nested in this one. ``levels`` of them may be nested in each other."""
    compares, success, failure = request.compare, request.success, request.failure
    count = max(len(compares), len(success), len(failure))
    if count > max_ops or levels < 0:
        raise errors.TooManyOps
    for compare in compares:
        if not compare.key:
            raise errors.EmptyKey
    rest = max_ops - count
    for op in success:
        _check_op(op, rest, levels)
    for op in failure:
        _check_op(op, rest, levels)


def _check_op(op: pb.RequestOp, max_ops: int, levels: int) -> None:
    kind = op.WhichOneof("request")
    if kind == "request_range":
        check_range(op.request_range)
    elif kind == "request_put":
        check_put(op.request_put)
    elif kind == "request_delete_range":
        check_delete(op.request_delete_range)
    elif kind == "request_txn":
        _check_ops(op.request_txn, max_ops, levels - 1)
    else:
        raise errors.KeyNotFound  # etcd's answer to an operation of no kind


class KeyRanges:
    """A set of keys given by ranges, as disjoint ranges in order; asked for single keys.

    It answers in logarithmic time however the ranges were given, so that no request can make its
    own check expensive.
    """

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[bytes] = []
        self._ends: list[bytes] = []

    def add(self, start: bytes, end: bytes) -> None:
        """Add all keys from ``start`` to below ``end``; none if the end is not above the start."""
        if start >= end:
            return
        low = bisect_left(self._ends, start)
        high = bisect_right(self._starts, end)
        if low < high:
            start = min(start, self._starts[low])
            end = max(end, self._ends[high - 1])
        self._starts[low:high] = [start]
        self._ends[low:high] = [end]

    def update(self, other: KeyRanges) -> None:
        for start, end in zip(other._starts, other._ends, strict=True):
            self.add(start, end)

    def __contains__(self, key: bytes) -> bool:
        place = bisect_right(self._starts, key)
        return place > 0 and key < self._ends[place - 1]


def _written_keys(ops: Iterable[Any]) -> tuple[set[bytes], KeyRanges]:
    """The keys that a branch puts and those that it deletes.

    No key may be put twice, or put and deleted: a transaction has one revision, in which a key has
    one value. The two branches of one nested transaction exclude each other and may share keys.
    A delete of everything from a key on (``range_end`` of one zero byte) is not seen here, nor is
    it by etcd.

    Raises:
        errors.DuplicateKey
    """
    puts: set[bytes] = set()
    deletes = KeyRanges()
    by_kind: dict[str, list[Any]] = {
        "request_delete_range": [],
        "request_txn": [],
        "request_put": [],
    }
    for op in ops:
        by_kind.get(op.WhichOneof("request"), []).append(op)
    for op in by_kind["request_delete_range"]:
        delete = op.request_delete_range
        deletes.add(delete.key, delete.range_end or delete.key + b"\0")
    for op in by_kind["request_txn"]:
        _merge_nested(op.request_txn, puts, deletes)
    for op in by_kind["request_put"]:
        _add_put(op.request_put.key, puts, deletes)
    return puts, deletes


def _merge_nested(nested: pb.TxnRequest, puts: set[bytes], deletes: KeyRanges) -> None:
    then_puts, then_deletes = _written_keys(nested.success)
    else_puts, else_deletes = _written_keys(nested.failure)
    for key in then_puts:
        _add_put(key, puts, deletes)
    for key in else_puts - then_puts:
        _add_put(key, puts, deletes)
    deletes.update(then_deletes)
    deletes.update(else_deletes)


def _add_put(key: bytes, puts: set[bytes], deletes: KeyRanges) -> None:
    if key in puts or key in deletes:
        raise errors.DuplicateKey
    puts.add(key)
