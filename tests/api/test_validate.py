"""The rules for KV requests, each with what it lets through and what it stops."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import product

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from kvorum import errors
from kvorum.api.validate import (
    KeyRanges,
    check_delete,
    check_put,
    check_range,
    check_txn,
)
from kvorum.pb import etcdserverpb as pb
from kvorum.server.request import decode_request, encode_request

MANY = 10_000


def put(key: bytes = b"k", **fields: object) -> pb.RequestOp:
    return pb.RequestOp(request_put=pb.PutRequest(key=key, **fields))  # type: ignore[arg-type]


def get(key: bytes = b"k", **fields: object) -> pb.RequestOp:
    return pb.RequestOp(request_range=pb.RangeRequest(key=key, **fields))  # type: ignore[arg-type]


def delete(key: bytes = b"k", end: bytes = b"") -> pb.RequestOp:
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key, range_end=end))


def txn(
    success: Iterable[pb.RequestOp] = (),
    failure: Iterable[pb.RequestOp] = (),
    compares: int = 0,
) -> pb.TxnRequest:
    compare = [pb.Compare(key=b"c")] * compares
    return pb.TxnRequest(compare=compare, success=success, failure=failure)


def nested(success: Iterable[pb.RequestOp] = (), failure: Iterable[pb.RequestOp] = ()) -> object:
    return pb.RequestOp(request_txn=txn(success, failure))


# Single requests


@pytest.mark.parametrize(
    "request_",
    [
        pb.RangeRequest(key=b"a"),
        pb.RangeRequest(key=b"\0", range_end=b"\0"),
        pb.RangeRequest(key=b"b", range_end=b"a", limit=-1, revision=-1),
        pb.RangeRequest(key=b"a", sort_order=2, sort_target=4),
    ],
)
def test_ranges_that_may_be(request_: pb.RangeRequest) -> None:
    check_range(request_)


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({}, errors.EmptyKey),
        ({"range_end": b"z", "sort_order": 9}, errors.EmptyKey),
        ({"key": b"a", "sort_order": 3}, errors.InvalidSortOption),
        ({"key": b"a", "sort_order": -1}, errors.InvalidSortOption),
        ({"key": b"a", "sort_target": 5}, errors.InvalidSortOption),
        ({"key": b"a", "sort_target": -1}, errors.InvalidSortOption),
    ],
)
def test_ranges_that_may_not(fields: dict[str, object], refusal: type[errors.EtcdError]) -> None:
    with pytest.raises(refusal):
        check_range(pb.RangeRequest(**fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"value": b"v"}, errors.EmptyKey),
        ({"ignore_value": True, "value": b"v"}, errors.EmptyKey),
        ({"key": b"k", "ignore_value": True, "value": b"v"}, errors.ValueProvided),
        ({"key": b"k", "ignore_lease": True, "lease": 1}, errors.LeaseProvided),
        (
            {"key": b"k", "ignore_value": True, "value": b"v", "ignore_lease": True, "lease": 1},
            errors.ValueProvided,
        ),
        ({"key": b"k"}, None),
        ({"key": b"k", "value": b"v", "lease": -1}, None),
        ({"key": b"k", "ignore_value": True, "ignore_lease": True}, None),
        ({"key": b"k", "ignore_value": True, "lease": 1}, None),
        ({"key": b"k", "ignore_lease": True, "value": b"v"}, None),
    ],
)
def test_puts(fields: dict[str, object], refusal: type[errors.EtcdError] | None) -> None:
    request = pb.PutRequest(**fields)  # type: ignore[arg-type]
    if refusal is None:
        check_put(request)
    else:
        with pytest.raises(refusal):
            check_put(request)


def test_a_delete_needs_a_key_and_nothing_else() -> None:
    check_delete(pb.DeleteRangeRequest(key=b"b", range_end=b"a"))
    with pytest.raises(errors.EmptyKey):
        check_delete(pb.DeleteRangeRequest(range_end=b"z"))


# How many operations


def test_each_list_has_the_limit_for_itself() -> None:
    three = [put(b"%d" % i) for i in range(3)]
    check_txn(txn(three, three, compares=3), 3)
    for request in (txn(three), txn((), three), txn(compares=3)):
        with pytest.raises(errors.TooManyOps):
            check_txn(request, 2)


def test_what_a_transaction_takes_up_is_not_there_for_those_inside() -> None:
    inner = [put(b"%d" % i) for i in range(3)]
    request = txn([nested(inner)], compares=2)  # type: ignore[list-item]
    check_txn(request, 5)
    with pytest.raises(errors.TooManyOps):
        check_txn(request, 4)


def test_the_branch_not_taken_counts_too() -> None:
    request = txn((), [nested((), [put(b"a"), put(b"b")])])  # type: ignore[list-item]
    check_txn(request, 3)
    with pytest.raises(errors.TooManyOps):
        check_txn(request, 2)


def test_a_limit_of_nothing_lets_only_nothing_through() -> None:
    check_txn(txn(), 0)
    with pytest.raises(errors.TooManyOps):
        check_txn(txn([get()]), 0)


# The operations inside


@pytest.mark.parametrize("branch", ["success", "failure"])
@pytest.mark.parametrize("depth", [0, 1, 5])
@pytest.mark.parametrize(
    ("bad", "refusal"),
    [
        (get(b""), errors.EmptyKey),
        (get(sort_order=7), errors.InvalidSortOption),
        (put(b""), errors.EmptyKey),
        (put(ignore_value=True, value=b"v"), errors.ValueProvided),
        (put(ignore_lease=True, lease=2), errors.LeaseProvided),
        (delete(b""), errors.EmptyKey),
        (pb.RequestOp(), errors.KeyNotFound),
    ],
)
def test_a_bad_operation_is_found_wherever_it_is(
    bad: pb.RequestOp, refusal: type[errors.EtcdError], depth: int, branch: str
) -> None:
    request = pb.TxnRequest(**{branch: [put(b"good"), bad]})  # type: ignore[arg-type]
    for _ in range(depth):
        request = pb.TxnRequest(**{branch: [pb.RequestOp(request_txn=request)]})  # type: ignore[arg-type]
    with pytest.raises(refusal):
        check_txn(request, 128)


def test_a_compare_needs_a_key_also_inside() -> None:
    bad = pb.TxnRequest(compare=[pb.Compare(key=b"a"), pb.Compare(range_end=b"z")])
    for request in (bad, txn([pb.RequestOp(request_txn=bad)])):
        with pytest.raises(errors.EmptyKey):
            check_txn(request, 128)


def test_the_order_of_checks_is_etcds() -> None:
    """Counts, then compares, then the operations from first to last, then keys written twice."""
    twice = [put(b"a"), put(b"a")]
    with pytest.raises(errors.TooManyOps):
        check_txn(pb.TxnRequest(compare=[pb.Compare()], success=twice), 1)
    with pytest.raises(errors.EmptyKey):
        check_txn(pb.TxnRequest(compare=[pb.Compare()], success=[pb.RequestOp()]), 2)
    with pytest.raises(errors.KeyNotFound):
        check_txn(txn([*twice, pb.RequestOp(), put(b"")]), 9)
    with pytest.raises(errors.EmptyKey):
        check_txn(txn(twice, [delete(b"")]), 9)


@pytest.mark.parametrize("inner", [txn([put()]), txn(compares=1)], ids=["put", "compare"])
def test_what_the_check_lets_through_can_be_read_from_the_log(inner: pb.TxnRequest) -> None:
    """An entry of the log holds the request one level deeper than it came, and the parser goes
    only so deep: a transaction that just fits by itself would be there, and never be read."""
    refused = 0
    for depth in range(100):
        message = nested_txn(depth, inner)
        try:
            check_txn(pb.TxnRequest.FromString(message), MANY)
        except (errors.TooManyOps, DecodeError):
            refused += 1
        else:
            assert decode_request(encode_request("txn", message, b"\x01"))[1] == "txn"
    assert refused == 100 - 41


def nested_txn(depth: int, request: pb.TxnRequest) -> bytes:
    for _ in range(depth):
        outer = pb.TxnRequest()
        try:
            outer.success.add().request_txn.MergeFrom(request)
        except DecodeError:
            break
        request = outer
    return request.SerializeToString()


# Keys that are written twice

A, B, C = b"a", b"b", b"c"


@pytest.mark.parametrize(
    "ops",
    [
        [put(A), put(A)],
        [put(A), delete(A)],
        [delete(A), put(A)],
        [put(B), delete(A, C)],
        [nested([put(A)]), put(A)],
        [put(A), nested((), [put(A)])],
        [nested([put(A)]), nested((), [put(A)])],
        [nested([delete(A)]), put(A)],
        [nested((), [delete(A, C)]), put(B)],
        [nested([put(A)]), delete(A)],
        [nested([delete(A)]), nested([put(A)])],
        [nested([nested([put(A)])]), nested((), [nested((), [put(A)])])],
        [nested([put(A), put(A)])],
        [nested((), [put(A), delete(A)])],
        [nested([put(B)], [put(A), nested([put(A)])])],
    ],
)
@pytest.mark.parametrize("branch", ["success", "failure"])
def test_a_key_has_one_value_in_a_revision(ops: list[pb.RequestOp], branch: str) -> None:
    with pytest.raises(errors.DuplicateKey):
        check_txn(pb.TxnRequest(**{branch: ops}), 128)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "ops",
    [
        [put(A), put(B), delete(C)],
        [delete(A), delete(A), delete(A, C)],
        [put(C), delete(A, C)],
        [put(A), delete(A + b"\0")],
        [get(A), put(A), get(A)],
        [nested([put(A)], [put(A)])],
        [nested([put(A)], [delete(A)])],
        [nested([delete(A)], [put(A)])],
        [put(B), delete(C, A)],
    ],
)
def test_keys_that_do_not_meet(ops: list[pb.RequestOp]) -> None:
    check_txn(txn(ops, ops), 128)


@pytest.mark.parametrize(
    "ops",
    [
        [put(B), delete(A, b"\0")],
        [nested([put(A)]), nested([delete(A)])],
    ],
)
def test_what_etcd_does_not_see_either(ops: list[pb.RequestOp]) -> None:
    """An open range, and a delete in a transaction that comes after the put's."""
    check_txn(txn(ops), 128)


KEYS = st.binary(min_size=1, max_size=3).map(lambda key: bytes(b"\0ab"[c % 3] for c in key))
RANGES = st.tuples(KEYS, KEYS)
UNIVERSE = [bytes(key) for size in (1, 2, 3, 4) for key in product(b"\0ab", repeat=size)]


@given(st.lists(RANGES, max_size=12), st.lists(RANGES, max_size=4))
def test_key_ranges_against_sets(
    first: list[tuple[bytes, bytes]], second: list[tuple[bytes, bytes]]
) -> None:
    ranges, more = KeyRanges(), KeyRanges()
    for start, end in first:
        ranges.add(start, end)
    for start, end in second:
        more.add(start, end)
    assert [key in ranges for key in UNIVERSE] == [covered(key, first) for key in UNIVERSE]
    ranges.update(more)
    assert [key in ranges for key in UNIVERSE] == [covered(key, first + second) for key in UNIVERSE]


def covered(key: bytes, ranges: list[tuple[bytes, bytes]]) -> bool:
    return any(start <= key < end for start, end in ranges)


OPS = st.deferred(
    lambda: st.one_of(
        KEYS.map(put),
        KEYS.map(get),
        st.builds(delete, KEYS, st.one_of(st.just(b""), KEYS)),
        st.builds(nested, st.lists(OPS, max_size=3), st.lists(OPS, max_size=3)),
    )
)


class Naive(Exception):
    """A key that would be written twice."""


@given(st.lists(OPS, max_size=5))
def test_duplicates_against_a_naive_reading_of_the_rule(ops: list[pb.RequestOp]) -> None:
    try:
        naive_keys(ops)
    except Naive:
        with pytest.raises(errors.DuplicateKey):
            check_txn(txn(ops), 128)
    else:
        check_txn(txn(ops), 128)


def naive_keys(ops: Iterable[pb.RequestOp]) -> tuple[set[bytes], set[bytes]]:
    """Over the keys there can be, as sets: own deletes, then nested transactions in order, then
    own puts; each put against all that came before."""
    ops = list(ops)
    puts: set[bytes] = set()
    gone: set[bytes] = set()
    for op in ops:
        if op.HasField("request_delete_range"):
            gone |= deleted_by(op.request_delete_range)
    for op in ops:
        if op.HasField("request_txn"):
            then, otherwise = map(naive_keys, (op.request_txn.success, op.request_txn.failure))
            new = then[0] | otherwise[0]
            if new & (puts | gone):
                raise Naive
            puts |= new
            gone |= then[1] | otherwise[1]
    for op in ops:
        if op.HasField("request_put"):
            if op.request_put.key in puts | gone:
                raise Naive
            puts.add(op.request_put.key)
    return puts, gone


def deleted_by(request: pb.DeleteRangeRequest) -> set[bytes]:
    start, end = request.key, request.range_end
    return {key for key in UNIVERSE if (start <= key < end if end else key == start)}


def test_no_request_makes_its_own_check_expensive() -> None:
    """Interleaved ranges and puts: a check that compared each with each would take minutes."""
    ops = [delete(b"%06d" % i, b"%06d5" % i) for i in range(MANY)]
    ops += [put(b"%06d7" % i) for i in range(MANY)]
    started = time.process_time()
    check_txn(txn(ops), 2 * MANY)
    assert time.process_time() - started < 5
