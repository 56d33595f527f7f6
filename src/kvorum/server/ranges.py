"""Range requests, carried out: from the store's KeyValue bytes to a RangeResponse's."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from operator import attrgetter
from typing import Any, Final, Protocol

from kvorum.mvcc.store import RangeResult
from kvorum.pb import etcdserverpb as pb
from kvorum.pb import mvccpb
from kvorum.pb.wire import int64_field, varint
from kvorum.types import Revision

NO_END: Final = b""
_NO_LIMIT: Final = (1 << 63) - 1
FEW_SIZES: Final = 4
"""Sizes of KeyValues in one answer up to which they are taken to come in runs."""
_SORT_KEYS: Final[dict[int, Callable[[mvccpb.KeyValue], Any]]] = {
    pb.RangeRequest.KEY: attrgetter("key"),
    pb.RangeRequest.VERSION: attrgetter("version"),
    pb.RangeRequest.CREATE: attrgetter("create_revision"),
    pb.RangeRequest.MOD: attrgetter("mod_revision"),
    pb.RangeRequest.VALUE: attrgetter("value"),
}


class ReadView(Protocol):
    """What can be read: the store as it is, or a write transaction that sees its own changes."""

    def range_kvs(self, key: bytes, end: bytes, *, limit: int = 0, rev: int = 0) -> RangeResult: ...
    def range_keys(
        self, key: bytes, end: bytes, *, limit: int = 0, rev: int = 0
    ) -> RangeResult: ...
    def count(self, key: bytes, end: bytes, rev: int = 0) -> RangeResult: ...


def has_default_order(request: pb.RangeRequest) -> bool:
    """Whether the store's own order, ascending by key, is what was asked for."""
    order, target = request.sort_order, request.sort_target
    return order == pb.RangeRequest.NONE or (
        target == pb.RangeRequest.KEY and order == pb.RangeRequest.ASCEND
    )


def has_revision_filters(request: pb.RangeRequest) -> bool:
    return bool(
        request.min_mod_revision
        or request.max_mod_revision
        or request.min_create_revision
        or request.max_create_revision
    )


def execute_range(view: ReadView, request: pb.RangeRequest) -> tuple[bytes, Revision]:
    """The body of a RangeResponse (fields 2 to 4, no header), and the revision for its header.

    Raises:
        errors.FutureRev, errors.Compacted: the revision asked for is not there.
    """
    key, end, limit, rev = request.key, request.range_end, request.limit, request.revision
    if request.count_only:
        found = view.count(key, end, rev)
        return int64_field(4, found.count), Revision(found.rev)
    special = not has_default_order(request) or has_revision_filters(request)
    # One more than the limit tells whether there is more; sorting and filters need all.
    fetch = limit + 1 if 0 < limit < _NO_LIMIT and not special else 0
    keys_only = request.keys_only
    needs_values = not keys_only or request.sort_target == pb.RangeRequest.VALUE
    read = view.range_kvs if needs_values else view.range_keys
    found = read(key, end, limit=fetch, rev=rev)
    kvs = found.kvs
    if special or request.sort_target != pb.RangeRequest.KEY:
        kvs = _filter_and_sort(kvs, request)
    more = b""
    if 0 < limit < len(kvs):
        kvs = kvs[:limit]
        more = b"\x18\x01"
    if keys_only and needs_values:
        kvs = [_without_value(kv) for kv in kvs]
    return b"%b%b%b" % (encode_kvs(kvs), more, int64_field(4, found.count)), Revision(found.rev)


def encode_kvs(kvs: list[bytes], prefix: bytes = b"\x12") -> bytes:
    """KeyValues as a repeated field: each copied behind its key and length."""
    heads = {length: prefix + varint(length) for length in set(map(len, kvs))}
    if len(heads) > FEW_SIZES:
        return b"".join([part for kv in kvs for part in (heads[len(kv)], kv)])
    # Runs of one size, as tables of alike values are: each is joined in one go.
    return b"".join([heads[size] + heads[size].join(run) for size, run in groupby(kvs, len)])


def _without_value(kv: bytes) -> bytes:
    message = mvccpb.KeyValue.FromString(kv)
    message.ClearField("value")
    return message.SerializeToString()


def _filter_and_sort(kvs: list[bytes], request: pb.RangeRequest) -> list[bytes]:
    decoded = [(mvccpb.KeyValue.FromString(kv), kv) for kv in kvs]
    decoded = [pair for pair in decoded if _passes(pair[0], request)]
    order, target = request.sort_order, request.sort_target
    if order != pb.RangeRequest.NONE or target != pb.RangeRequest.KEY:
        sort_key = _SORT_KEYS[target]
        descending = order == pb.RangeRequest.DESCEND
        decoded.sort(key=lambda pair: sort_key(pair[0]), reverse=descending)
    return [kv for _, kv in decoded]


def _passes(kv: mvccpb.KeyValue, request: pb.RangeRequest) -> bool:
    """The four bounds; zero is no bound."""
    mod, create = kv.mod_revision, kv.create_revision
    return not (
        (request.max_mod_revision and mod > request.max_mod_revision)
        or (request.min_mod_revision and mod < request.min_mod_revision)
        or (request.max_create_revision and create > request.max_create_revision)
        or (request.min_create_revision and create < request.min_create_revision)
    )
