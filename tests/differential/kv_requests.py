"""Random Range, Put, DeleteRange and Txn requests with every option."""

from __future__ import annotations

from typing import Any

from differential.picture import Picture

from kvorum.pb import etcdserverpb as pb

MAX_TXN_OPS = 128


def range_request(at: Picture, *, in_txn: bool = False) -> Any:
    key = b"" if at.chance(1) else at.key()
    request = pb.RangeRequest(key=key, range_end=at.range_end(key))
    if at.chance(20):
        request.key, request.range_end = b"\0", b"\0"
    if at.chance(35):
        request.limit = at.rng.choice([1, 1, 2, 3, 5, 8, 13, 30, 1000, -1, (1 << 63) - 1])
    if at.chance(6 if in_txn else 40):
        request.revision = at.any_revision()
    if at.chance(45):
        request.sort_order = at.rng.choice([0, 1, 2])
        request.sort_target = at.rng.choice([0, 1, 2, 3, 4])
    request.serializable = at.chance(30)
    request.keys_only = at.chance(12)
    request.count_only = at.chance(10)
    if at.chance(15):
        _add_filters(at, request)
    return request


def _add_filters(at: Picture, request: Any) -> None:
    for name in ("min_mod", "max_mod", "min_create", "max_create"):
        if at.chance(40):
            value = at.rng.choice([at.past(), at.past(), at.revision + 9, -3])
            setattr(request, f"{name}_revision", value)


def put_request(at: Picture, key: bytes | None = None, *, in_txn: bool = False) -> Any:
    request = pb.PutRequest(key=at.key() if key is None else key, value=at.value())
    request.lease = at.lease()
    request.prev_kv = at.chance(25)
    if at.chance(4 if in_txn else 10):
        request.ignore_value = at.chance(50)
        request.ignore_lease = at.chance(50)
        if at.chance(85):
            _make_consistent(request)
    if in_txn and at.chance(70):
        request.lease = 0
    return request


def _make_consistent(request: Any) -> None:
    if request.ignore_value:
        request.value = b""
    if request.ignore_lease:
        request.lease = 0


def delete_request(at: Picture, key: bytes | None = None) -> Any:
    key = at.key() if key is None else key
    end = at.range_end(key) if at.chance(30) else b""
    return pb.DeleteRangeRequest(key=key, range_end=end, prev_kv=at.chance(40))


def txn_request(at: Picture) -> Any:
    """A transaction, nested up to two levels below the top, that no etcd crashes on."""
    if at.chance(1.5):
        return _crowded_txn(at)
    txn = _txn(at, depth=0, taken=None if at.chance(12) else set())
    _defuse(txn)
    return txn


def _txn(at: Picture, depth: int, taken: set[bytes] | None) -> Any:
    """``taken``: keys written already, to keep writes apart; None lets them clash."""
    txn = pb.TxnRequest(compare=[compare(at) for _ in range(at.rng.choice([0, 1, 1, 2, 3]))])
    for branch in (txn.success, txn.failure):
        for _ in range(at.rng.choice([0, 1, 1, 2, 3, 4])):
            branch.append(_operation(at, depth, taken))
    return txn


def _operation(at: Picture, depth: int, taken: set[bytes] | None) -> Any:
    roll = at.rng.random()
    if roll < 0.01:
        return pb.RequestOp()
    if roll < 0.30:
        return pb.RequestOp(request_range=range_request(at, in_txn=True))
    if roll < 0.42 and depth < 2:
        return pb.RequestOp(request_txn=_txn(at, depth + 1, taken))
    key = _free_key(at, taken)
    if roll < 0.85:
        return pb.RequestOp(request_put=put_request(at, key, in_txn=True))
    delete = delete_request(at, key)
    if taken is not None:
        delete.range_end = b""
    return pb.RequestOp(request_delete_range=delete)


def _free_key(at: Picture, taken: set[bytes] | None) -> bytes:
    key = at.key()
    if taken is None:
        return b"" if at.chance(3) else key
    for _ in range(20):
        if key not in taken:
            break
        key = at.key()
    taken.add(key)
    return key


def _crowded_txn(at: Picture) -> Any:
    """More operations than allowed, or just as many, on one level or over two."""
    count = at.rng.choice([MAX_TXN_OPS, MAX_TXN_OPS + 1])
    ops = [pb.RequestOp(request_put=pb.PutRequest(key=b"crowd%03d" % n)) for n in range(count)]
    match at.rng.randrange(3):
        case 0:
            return pb.TxnRequest(success=ops)
        case 1:
            return pb.TxnRequest(compare=[compare(at)] * count, failure=ops[:1])
        case _:
            inner = pb.RequestOp(request_txn=pb.TxnRequest(success=ops[:40]))
            return pb.TxnRequest(success=[*ops[40:], inner])


_COMPARE_FIELDS = ["version", "create_revision", "mod_revision", "value", "lease"]


def compare(at: Picture) -> Any:
    key = b"" if at.chance(0.5) else at.key()
    made = pb.Compare(key=key, result=at.rng.choice([0, 0, 1, 2, 3]))
    made.target = at.rng.randrange(5)
    if at.chance(2):
        made.target = at.rng.choice([17, -2])
    if at.chance(2):
        made.result = at.rng.choice([9, -1])
    if at.chance(20):
        made.range_end = at.range_end(key)
    if at.chance(94):
        _fill_union(at, made, key)
    return made


def _fill_union(at: Picture, made: Any, key: bytes) -> None:
    """Mostly the field that fits the target, and a value near the real one."""
    fits = made.target in range(5) and at.chance(95)
    name = _COMPARE_FIELDS[made.target if fits else at.rng.randrange(5)]
    known = at.live.get(key)
    if name == "value":
        made.value = known.value if known is not None and at.chance(60) else at.value()
        return
    near = getattr(known, name) if known is not None else 0
    setattr(made, name, near + at.rng.choice([0, 0, 0, 0, 1, -1, 7, -near]))


def _defuse(txn: Any) -> None:
    """Real servers crash when a put needs a previous pair that the transaction has deleted.

    The duplicate check misses that only for open and inverted ranges, so ignore_value and
    ignore_lease go wherever such a delete is about.
    """
    puts, deletes = _collect(txn)
    if not any(len(d.range_end) > 0 and d.range_end <= d.key for d in deletes):
        return
    for put in puts:
        put.ignore_value = put.ignore_lease = False


def _collect(txn: Any) -> tuple[list[Any], list[Any]]:
    puts: list[Any] = []
    deletes: list[Any] = []
    for op in [*txn.success, *txn.failure]:
        match op.WhichOneof("request"):
            case "request_put":
                puts.append(op.request_put)
            case "request_delete_range":
                deletes.append(op.request_delete_range)
            case "request_txn":
                inner_puts, inner_deletes = _collect(op.request_txn)
                puts += inner_puts
                deletes += inner_deletes
    return puts, deletes
