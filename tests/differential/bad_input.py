"""Requests that no client library would send: what a server must refuse, or just put up with."""

from __future__ import annotations

from differential import differences
from differential.picture import Picture
from differential.steps import Kind, Step
from support.rpc import (
    COMPACT,
    DELETE_RANGE,
    KEEP_ALIVE_PATH,
    LEASE_GRANT,
    LEASE_TTL,
    PUT,
    RANGE,
    TXN,
    WATCH_PATH,
    Reply,
)

from kvorum.pb import etcdserverpb as pb

_UNARY = [RANGE, PUT, DELETE_RANGE, TXN, COMPACT, LEASE_GRANT, LEASE_TTL]

# Bytes that are no protobuf message at all, for any message type.
_BROKEN = {
    "length beyond the end": b"\x0a\x64abc",
    "varint without an end": b"\x18" + b"\xff" * 12,
    "field number 0": b"\x00\x01",
    "group end alone": b"\x0c",
    "half a tag": b"\xff",
    "reserved wire type": b"\x0f\x01",
    "length of 2^31": b"\x0a\x80\x80\x80\x80\x08",
}

# Odd, but right: key "k00" in some roundabout form, for Range and Put alike.
_ODD = [
    b"\x0a\x03k00\xa2\x1f\x03xyz",  # an unknown field
    b"\x0a\x01a\x0a\x03k00",  # the key twice: the last one counts
    b"\x8a\x00\x03k00",  # a tag longer than needed
    b"\x0a\x83\x00k00",  # a length longer than needed
    b"\xa3\x1f\xa4\x1f\x0a\x03k00",  # an unknown group
]

_PATHS = ["/etcdserverpb.KV/Nope", "/etcdserverpb.Nothing/Range", "/etcdserverpb.Lease/Steal"]


def bad_step(at: Picture) -> Step:
    makers = [_broken, _broken, _odd, _wrong_wire_type, _unknown_sort, _nowhere, _keep_alive]
    return at.rng.choice(makers)(at)


def _broken(at: Picture) -> Step:
    return Step(Kind.CALL, at.rng.choice(_UNARY).path, at.rng.choice(list(_BROKEN.values())))


def _odd(at: Picture) -> Step:
    rpc = at.rng.choice([RANGE, PUT, DELETE_RANGE])
    return Step(Kind.CALL, rpc.path, at.rng.choice(_ODD))


def _wrong_wire_type(at: Picture) -> Step:
    """The key as a number: an unknown field to newer servers, so the key is missing."""
    rpc = at.rng.choice([RANGE, PUT, DELETE_RANGE])
    return Step(
        Kind.CALL, rpc.path, b"\x08\x05", new_only="wrong wire type", expected=differences.EMPTY_KEY
    )


def _unknown_sort(at: Picture) -> Step:
    key = at.key()
    if at.chance(50):
        request = pb.RangeRequest(key=key, range_end=b"\0", sort_order=at.rng.choice([3, 99, -1]))
        return Step(Kind.CALL, RANGE.path, request.SerializeToString())
    request = pb.RangeRequest(key=key, sort_target=at.rng.choice([5, 1000, -4]))
    return Step(
        Kind.CALL,
        RANGE.path,
        request.SerializeToString(),
        new_only="sort option",
        expected=differences.INVALID_SORT,
    )


def _nowhere(at: Picture) -> Step:
    return Step(Kind.CALL, at.rng.choice(_PATHS), b"")


def _keep_alive(at: Picture) -> Step:
    return Step(Kind.KEEP_ALIVE, KEEP_ALIVE_PATH, at.rng.choice(list(_BROKEN.values())))


def oversized_step(at: Picture) -> Step:
    """Above the limit for a request (1.5 MiB), or above what the transport takes (+ 512 KiB)."""
    size = at.rng.choice([1_600_000, 1_900_000, 2_100_000, 3_000_000])
    if at.chance(25):
        request = pb.RangeRequest(key=b"x" * size)
        return Step(Kind.CALL, RANGE.path, request.SerializeToString())
    put = pb.PutRequest(key=at.key(), value=b"\0" * size)
    if at.chance(70):
        return Step(Kind.CALL, PUT.path, put.SerializeToString())
    txn = pb.TxnRequest(success=[pb.RequestOp(request_put=put)])
    return Step(Kind.CALL, TXN.path, txn.SerializeToString())


def negative_watch(at: Picture, stream: int) -> Step:
    create = pb.WatchCreateRequest(key=at.key(), start_revision=-at.rng.randint(1, 5))
    refused = pb.WatchResponse(
        watch_id=-1, created=True, canceled=True, cancel_reason=differences.COMPACTED.details
    )
    return Step(
        Kind.WATCH_CREATE,
        WATCH_PATH,
        pb.WatchRequest(create_request=create).SerializeToString(),
        stream=stream,
        new_only="negative watch start",
        expected=Reply(refused.SerializeToString()),
    )


def broken_watch(at: Picture, stream: int) -> Step:
    return Step(Kind.WATCH_RAW, WATCH_PATH, at.rng.choice(list(_BROKEN.values())), stream=stream)
