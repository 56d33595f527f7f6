"""Transactions: compares, the checks before the first write, and what is answered."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from naive_kv import KEYS, Model, Refused, any_request, run_txn
from server_kit import State, open_state

from kvorum import errors
from kvorum.api.validate import check_txn
from kvorum.mvcc.store import Store
from kvorum.pb import etcdserverpb as pb
from kvorum.pb import mvccpb
from kvorum.server.txn import (
    check_put,
    execute_delete,
    execute_put,
    execute_read_txn,
    execute_write_txn,
    is_read_only,
    is_serializable,
)
from kvorum.types import LeaseID

LEASE = LeaseID(9)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    """``v`` was put twice, at 2 and 3, the second time with a lease; ``w`` once, at 4, empty."""
    with open_state(tmp_path) as state:
        state.lessor.grant(LEASE, 100, 0.0)
        state.store.put(b"v", b"one", LeaseID(0))
        state.store.put(b"v", b"two", LEASE)
        state.store.put(b"w", b"", LeaseID(0))
        yield state


@pytest.fixture
def store(state: State) -> Store:
    return state.store


def put(key: bytes, value: bytes = b"", **fields: object) -> pb.RequestOp:
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value, **fields))  # type: ignore[arg-type]


def get(key: bytes, end: bytes = b"", **fields: object) -> pb.RequestOp:
    request = pb.RangeRequest(key=key, range_end=end, **fields)  # type: ignore[arg-type]
    return pb.RequestOp(request_range=request)


def delete(key: bytes, end: bytes = b"", prev_kv: bool = False) -> pb.RequestOp:
    request = pb.DeleteRangeRequest(key=key, range_end=end, prev_kv=prev_kv)
    return pb.RequestOp(request_delete_range=request)


def txn(
    *ops: pb.RequestOp, orelse: Iterable[pb.RequestOp] = (), **compare: object
) -> pb.TxnRequest:
    compares = [pb.Compare(**compare)] if compare else []  # type: ignore[arg-type]
    return pb.TxnRequest(compare=compares, success=ops, failure=orelse)


def nest(request: pb.TxnRequest) -> pb.RequestOp:
    return pb.RequestOp(request_txn=request)


def write(state: State, request: pb.TxnRequest) -> pb.TxnResponse:
    body = execute_write_txn(state.store, request, state.lessor.has)
    return pb.TxnResponse.FromString(body)


def keys(store: Store) -> list[bytes]:
    found = store.range_kvs(b"\0", b"\0").kvs
    return [mvccpb.KeyValue.FromString(kv).key for kv in found]


# Kinds of transactions


def test_only_ranges_make_it_read_only() -> None:
    assert is_read_only(pb.TxnRequest())
    assert is_read_only(txn(get(b"a"), orelse=[get(b"b")]))
    for op in (put(b"a"), delete(b"a"), nest(txn(get(b"a"))), pb.RequestOp()):
        assert not is_read_only(txn(op))
        assert not is_read_only(txn(orelse=[get(b"a"), op]))


def test_one_range_that_asks_for_consensus_makes_all_do() -> None:
    fast = get(b"a", serializable=True)
    assert is_serializable(pb.TxnRequest())
    assert is_serializable(txn(fast, fast, orelse=[fast]))
    assert not is_serializable(txn(fast, orelse=[fast, get(b"a")]))
    assert not is_serializable(txn(fast, get(b"a")))


# Compares

TARGETS = ["VERSION", "CREATE", "MOD", "VALUE", "LEASE"]
OF_V = {"VERSION": 2, "CREATE": 2, "MOD": 3, "VALUE": b"two", "LEASE": LEASE}
FIELD = {"CREATE": "create_revision", "MOD": "mod_revision"}


def compare_of(target: str, result: str, value: object, key: bytes, end: bytes = b"") -> pb.Compare:
    compare = pb.Compare(key=key, range_end=end)
    compare.target = pb.Compare.CompareTarget.Value(target)
    compare.result = pb.Compare.CompareResult.Value(result)
    setattr(compare, FIELD.get(target, target.lower()), value)
    return compare


def holds(store: Store, compare: pb.Compare) -> bool:
    body = execute_read_txn(store, pb.TxnRequest(compare=[compare]))
    return pb.TxnResponse.FromString(body).succeeded


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("result", ["EQUAL", "NOT_EQUAL", "GREATER", "LESS"])
def test_a_compare_of_one_key(store: Store, target: str, result: str) -> None:
    equal = OF_V[target]
    less, more = (b"twn", b"twoo") if isinstance(equal, bytes) else (equal - 1, equal + 1)
    expected = {
        "EQUAL": [False, True, False],
        "NOT_EQUAL": [True, False, True],
        "GREATER": [True, False, False],  # the stored one is greater than the given one
        "LESS": [False, False, True],
    }[result]
    found = [holds(store, compare_of(target, result, value, b"v")) for value in (less, equal, more)]
    assert found == expected


@pytest.mark.parametrize("end", [b"", b"z", b"\0"])
def test_a_key_that_is_missing(store: Store, end: bytes) -> None:
    """Its numbers are 0; but it has no value, so that no compare of values holds."""
    for target in ("VERSION", "CREATE", "MOD", "LEASE"):
        assert holds(store, compare_of(target, "EQUAL", 0, b"x", end))
        assert holds(store, compare_of(target, "LESS", 1, b"x", end))
        assert not holds(store, compare_of(target, "NOT_EQUAL", 0, b"x", end))
    for result in ("EQUAL", "NOT_EQUAL", "GREATER", "LESS"):
        for value in (b"", b"x"):
            assert not holds(store, compare_of("VALUE", result, value, b"x", end))
    assert holds(store, compare_of("VALUE", "EQUAL", b"", b"w"))  # an empty value is one


def test_a_compare_of_a_range_holds_for_all(store: Store) -> None:
    assert holds(store, compare_of("MOD", "GREATER", 2, b"v", b"x"))
    assert not holds(store, compare_of("MOD", "GREATER", 3, b"v", b"x"))
    assert holds(store, compare_of("VERSION", "GREATER", 0, b"\0", b"\0"))
    assert not holds(store, compare_of("VALUE", "EQUAL", b"two", b"v", b"\0"))
    assert holds(store, compare_of("VALUE", "EQUAL", b"two", b"v", b"w"))


def test_all_compares_must_hold(store: Store) -> None:
    good = compare_of("MOD", "EQUAL", 3, b"v")
    bad = compare_of("MOD", "EQUAL", 4, b"v")
    for compares in ([good, bad], [bad, good]):
        body = execute_read_txn(store, pb.TxnRequest(compare=compares))
        assert not pb.TxnResponse.FromString(body).succeeded
    body = execute_read_txn(store, pb.TxnRequest(compare=[good, good]))
    assert pb.TxnResponse.FromString(body).succeeded


def test_compares_of_unknown_kinds_are_as_in_etcd(store: Store) -> None:
    """An unknown target compares as equal, an unknown result always holds."""
    unknown = pb.Compare(key=b"v", target=77, version=5)  # type: ignore[arg-type]
    for result, expected in (("EQUAL", True), ("NOT_EQUAL", False), ("LESS", False)):
        unknown.result = pb.Compare.CompareResult.Value(result)
        assert holds(store, unknown) is expected
    assert holds(store, pb.Compare(key=b"v", result=77, version=5))  # type: ignore[arg-type]
    # The value of another target than the one that is compared counts as not given.
    assert holds(store, pb.Compare(key=b"x", target=pb.Compare.MOD, version=5))


# Checks


@pytest.mark.parametrize(
    ("op", "refusal"),
    [
        (get(b"v", revision=5), errors.FutureRev),
        (get(b"v", revision=2), errors.Compacted),
        (get(b"v", revision=-5), errors.Compacted),
        (put(b"x", lease=8), errors.LeaseNotFound),
        (put(b"x", ignore_value=True), errors.KeyNotFound),
        (put(b"x", ignore_lease=True), errors.KeyNotFound),
        (put(b"x", ignore_value=True, lease=8), errors.LeaseNotFound),
    ],
)
@pytest.mark.parametrize("depth", [0, 2])
def test_a_refused_operation_leaves_nothing_behind(
    state: State, op: pb.RequestOp, refusal: type[errors.EtcdError], depth: int
) -> None:
    state.store.compact(3)
    request = txn(put(b"new", b"value"), op, delete(b"v"))
    for _ in range(depth):
        request = txn(put(b"other"), nest(request))
    with pytest.raises(refusal):
        execute_write_txn(state.store, request, state.lessor.has)
    assert keys(state.store) == [b"v", b"w"]
    assert state.store.rev == 4
    assert not state.store.writing
    write(state, txn(put(b"after")))  # and the next one is carried out
    assert state.store.rev == 5


def test_the_branch_not_taken_is_not_checked(state: State) -> None:
    bad = [get(b"v", revision=99), put(b"x", lease=8)]
    response = write(state, txn(put(b"y"), nest(txn(orelse=bad)), orelse=bad))
    assert response.succeeded
    assert keys(state.store) == [b"v", b"w", b"y"]


def test_the_first_fault_is_the_answer(state: State) -> None:
    first = txn(get(b"v", revision=99), put(b"x", lease=8))
    second = txn(nest(txn(put(b"x", lease=8))), get(b"v", revision=99))
    for request, refusal in ((first, errors.FutureRev), (second, errors.LeaseNotFound)):
        with pytest.raises(refusal):
            execute_write_txn(state.store, request, state.lessor.has)


def test_reads_are_checked_too(store: Store) -> None:
    store.compact(3)
    for revision, refusal in ((5, errors.FutureRev), (2, errors.Compacted)):
        request = txn(get(b"v"), get(b"v", revision=revision))
        with pytest.raises(refusal):
            execute_read_txn(store, request)


def test_a_put_by_itself_has_the_same_checks(state: State) -> None:
    check_put(
        state.store, pb.PutRequest(key=b"v", ignore_value=True, lease=LEASE), state.lessor.has
    )
    with pytest.raises(errors.LeaseNotFound):
        check_put(state.store, pb.PutRequest(key=b"x", lease=1), state.lessor.has)
    with pytest.raises(errors.KeyNotFound):
        check_put(state.store, pb.PutRequest(key=b"x", ignore_lease=True), state.lessor.has)


# Execution


def test_operations_see_those_before_them(state: State) -> None:
    response = write(
        state,
        txn(
            get(b"\0", b"\0", count_only=True),
            put(b"x", b"1", prev_kv=True),
            get(b"x"),
            delete(b"v", b"x", prev_kv=True),
            get(b"\0", b"\0", keys_only=True),
            delete(b"nothing"),
        ),
    )
    counted, made, seen, gone, rest, nothing = response.responses
    assert counted.response_range == pb.RangeResponse(header=pb.ResponseHeader(revision=4), count=2)
    assert made.response_put == pb.PutResponse(header=pb.ResponseHeader(revision=5))
    x = mvccpb.KeyValue(key=b"x", value=b"1", version=1, create_revision=5, mod_revision=5)
    assert list(seen.response_range.kvs) == [x]
    assert seen.response_range.header.revision == 5
    assert [kv.key for kv in gone.response_delete_range.prev_kvs] == [b"v", b"w"]
    assert gone.response_delete_range.deleted == 2
    assert [kv.key for kv in rest.response_range.kvs] == [b"x"]
    assert nothing.response_delete_range.deleted == 0
    assert nothing.response_delete_range.header.revision == 5
    assert state.store.rev == 5
    assert not response.HasField("header")  # the caller's to add


def test_what_changes_nothing_has_no_revision(state: State) -> None:
    response = write(state, txn(delete(b"nothing"), get(b"v")))
    assert [op.WhichOneof("response") for op in response.responses] == [
        "response_delete_range",
        "response_range",
    ]
    assert response.responses[0].response_delete_range.header.revision == 4
    assert state.store.rev == 4


def test_nested_compares_look_at_the_state_before(state: State) -> None:
    missing = compare_of("VERSION", "EQUAL", 0, b"x")
    inner = pb.TxnRequest(compare=[missing], success=[put(b"y")], failure=[put(b"z")])
    response = write(state, txn(put(b"x"), nest(inner)))
    assert response.responses[1].response_txn.succeeded
    assert keys(state.store) == [b"v", b"w", b"x", b"y"]


def test_nested_answers_are_where_their_requests_were(state: State) -> None:
    inner = txn(put(b"a"), nest(txn(get(b"a"))))
    response = write(state, txn(nest(inner), get(b"a"), nest(txn(orelse=[put(b"n")]))))
    first, second, third = response.responses
    assert first.response_txn.succeeded
    assert first.response_txn.HasField("header")
    assert first.response_txn.header == pb.ResponseHeader()
    innermost = first.response_txn.responses[1].response_txn
    assert innermost.responses[0].response_range.count == 1
    assert second.response_range.kvs[0].key == b"a"
    assert third.response_txn.succeeded
    assert len(third.response_txn.responses) == 0


def test_a_put_keeps_what_it_is_told_to(state: State) -> None:
    write_txn = state.store.write()
    body = execute_put(write_txn, pb.PutRequest(key=b"v", ignore_value=True, prev_kv=True))
    write_txn.end()
    before = pb.PutResponse.FromString(body).prev_kv
    assert (before.value, before.lease, before.version) == (b"two", LEASE, 2)
    now = mvccpb.KeyValue.FromString(state.store.get(b"v") or b"")
    assert (now.value, now.lease, now.version) == (b"two", 0, 3)
    assert state.lessor.keys(LEASE) == []
    write(state, txn(put(b"v", b"three", lease=LEASE)))
    write(state, txn(put(b"v", b"four", ignore_lease=True)))
    now = mvccpb.KeyValue.FromString(state.store.get(b"v") or b"")
    assert (now.value, now.lease) == (b"four", LEASE)
    assert state.lessor.keys(LEASE) == [b"v"]


def test_a_put_of_a_new_key_has_no_pair_before(store: Store) -> None:
    write_txn = store.write()
    assert execute_put(write_txn, pb.PutRequest(key=b"new", prev_kv=True)) == b""
    write_txn.end()


def test_deletes(store: Store) -> None:
    write_txn = store.write()
    assert execute_delete(write_txn, pb.DeleteRangeRequest(key=b"nothing", prev_kv=True)) == b""
    assert execute_delete(write_txn, pb.DeleteRangeRequest(key=b"v")) == b"\x10\x01"
    body = execute_delete(
        write_txn, pb.DeleteRangeRequest(key=b"\0", range_end=b"\0", prev_kv=True)
    )
    write_txn.end()
    response = pb.DeleteRangeResponse.FromString(body)
    assert (response.deleted, [kv.key for kv in response.prev_kvs]) == (1, [b"w"])


def test_a_key_that_goes_and_comes_in_one_revision(state: State) -> None:
    """An open delete is not seen by the check for keys written twice, in etcd neither."""
    request = txn(delete(b"v", b"\0"), put(b"v", b"again"), put(b"w", ignore_value=True))
    response = write(state, request)
    assert response.responses[0].response_delete_range.deleted == 2
    v, w = (mvccpb.KeyValue.FromString(state.store.get(key) or b"") for key in (b"v", b"w"))
    assert (v.version, v.create_revision, v.value) == (1, 5, b"again")
    assert (w.version, w.create_revision, w.value) == (1, 5, b"")  # etcd would end here


# Against the model


class Maker:
    """Transactions by chance, of few keys, so that they meet."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    def txn(self, depth: int = 0) -> pb.TxnRequest:
        """One that passes the check of its form."""
        while True:
            request = self._any(depth)
            try:
                check_txn(request, 128)
            except errors.EtcdError:
                continue
            return request

    def _any(self, depth: int) -> pb.TxnRequest:
        chance = self._chance
        return pb.TxnRequest(
            compare=[self._compare() for _ in range(chance.choice([0, 0, 1, 1, 2]))],
            success=[self._op(depth) for _ in range(chance.randrange(4))],
            failure=[self._op(depth) for _ in range(chance.randrange(4))],
        )

    def _op(self, depth: int) -> pb.RequestOp:
        chance = self._chance
        kind = chance.choice("rppddt" if depth < 3 else "rpd")
        if kind == "t":
            return pb.RequestOp(request_txn=self._any(depth + 1))
        if kind == "r":
            return pb.RequestOp(request_range=any_request(chance))
        if kind == "d":
            return delete(chance.choice(KEYS), self._end(), chance.random() < 0.5)
        return self._put()

    def _put(self) -> pb.RequestOp:
        chance = self._chance
        keeps = chance.choice([{}, {}, {"ignore_value": True}, {"ignore_lease": True}])
        fields: dict[str, object] = {"prev_kv": chance.random() < 0.4, **keeps}
        if "ignore_lease" not in keeps:
            fields["lease"] = chance.choice([0, 0, 0, 0, 7, -3, 8])
        value = b"" if "ignore_value" in keeps else bytes([chance.randrange(3)])
        return put(chance.choice(KEYS), value, **fields)

    def _compare(self) -> pb.Compare:
        chance = self._chance
        target = chance.choice(TARGETS)
        value: object = bytes([chance.randrange(3)])
        if target != "VALUE":
            value = chance.choice([0, 0, 1, 2, 7, chance.randrange(1000)])
        result = chance.choice(pb.Compare.CompareResult.keys())
        return compare_of(target, result, value, chance.choice(KEYS), self._end())

    def _end(self) -> bytes:
        return self._chance.choice([b"", b"", b"", b"\0", *KEYS])


def test_against_the_model(tmp_path: Path) -> None:
    maker, model = Maker(11), Model()
    refused = 0
    with open_state(tmp_path) as state:
        for lease in (7, -3):
            state.lessor.grant(LeaseID(lease), 100, 0.0)
        for _ in range(1500):
            request = maker.txn()
            refused += compare_once(state, model, request)
            assert state.store.rev == model.rev
        found = state.store.range_kvs(b"\0", b"\0").kvs
        live = model.at[model.rev]
        assert [mvccpb.KeyValue.FromString(kv) for kv in found] == [live[k] for k in sorted(live)]
        attached = {k for i in (7, -3) for k in state.lessor.keys(LeaseID(i))}
        assert attached == {key for key, kv in live.items() if kv.lease}
        assert model.rev > 200
        assert 100 < refused < 1000


def compare_once(state: State, model: Model, request: pb.TxnRequest) -> bool:
    """Whether the transaction was refused, here as there."""
    lease = state.lessor.has
    before = state.store.rev
    try:
        expected = run_txn(model, request, lambda i: lease(LeaseID(i)))
    except Refused as refusal:
        with pytest.raises(refusal.args[0]):
            execute_write_txn(state.store, request, lease)
        assert state.store.rev == before
        return True
    assert pb.TxnResponse.FromString(execute_write_txn(state.store, request, lease)) == expected
    if is_read_only(request):
        assert pb.TxnResponse.FromString(execute_read_txn(state.store, request)) == expected
    return False


def test_a_lease_that_is_gone_cannot_stop_a_transaction_half_way(tmp_path: Path) -> None:
    """etcd loads a pair whose lease is unknown, and so do we; a put may then keep that lease."""
    with open_state(tmp_path) as state:
        state.lessor.grant(LEASE, 100, 0.0)
        state.store.put(b"k", b"v", LEASE)
        state.backend.delete("lease", LEASE.to_bytes(8, "big"))
    with open_state(tmp_path) as state:
        assert not state.lessor.has(LEASE)
        try:
            execute_write_txn(
                state.store, txn(put(b"a"), put(b"k", ignore_lease=True)), state.lessor.has
            )
        except errors.EtcdError:
            assert state.store.get(b"a") is None, "refused, and yet half of it was done"
        assert not state.store.writing
