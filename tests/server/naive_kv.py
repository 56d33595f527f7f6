"""A model of the store and of requests to it, so plain that it can be seen to be right.

It keeps what was live at every revision as a dict, and reads each rule off by itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from kvorum import errors
from kvorum.pb import etcdserverpb as pb
from kvorum.pb import mvccpb

KEYS = [b"a", b"a\0", b"ab", b"b", b"ba", b"c", b"c\xff", b"\0", b"\xff\xff"]
Pairs = dict[bytes, mvccpb.KeyValue]


@dataclass
class Model:
    """``at[rev]`` is what was live at a revision."""

    at: dict[int, Pairs] = field(default_factory=lambda: {1: {}})
    compacted: int = 0

    @property
    def rev(self) -> int:
        return max(self.at)

    def put(self, rev: int, key: bytes, value: bytes, lease: int) -> None:
        pairs = self.at.setdefault(rev, dict(self.at[rev - 1]))
        old = pairs.get(key)
        pairs[key] = mvccpb.KeyValue(
            key=key,
            value=value,
            lease=lease,
            mod_revision=rev,
            create_revision=old.create_revision if old else rev,
            version=old.version + 1 if old else 1,
        )

    def delete(self, rev: int, key: bytes) -> None:
        self.at.setdefault(rev, dict(self.at[rev - 1])).pop(key)


def answer(model: Model, request: pb.RangeRequest) -> pb.RangeResponse | type[errors.EtcdError]:
    """What the request gives, read off from the rules one by one."""
    if request.revision > model.rev:
        return errors.FutureRev
    if 0 < request.revision < model.compacted:
        return errors.Compacted
    live = model.at[request.revision if request.revision > 0 else model.rev]
    found = [live[key] for key in sorted(live) if within(key, request)]
    count = len(found)
    if request.count_only:
        return pb.RangeResponse(count=count)
    ordered = request.sort_order != pb.RangeRequest.NONE
    if ordered and (request.sort_target, request.sort_order) == (
        pb.RangeRequest.KEY,
        pb.RangeRequest.ASCEND,
    ):
        ordered = False
    filters = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ]
    if request.limit > 0 and not ordered and not any(filters):
        found = found[: request.limit + 1]  # the limit goes before an order that was not asked for
    found = sort([kv for kv in found if passes(kv, request)], request)
    more = 0 < request.limit < len(found)
    if more:
        found = found[: request.limit]
    return pb.RangeResponse(kvs=[shown(kv, request) for kv in found], more=more, count=count)


def within(key: bytes, request: pb.RangeRequest) -> bool:
    if not request.range_end:
        return key == request.key
    return key >= request.key and (request.range_end == b"\0" or key < request.range_end)


def passes(kv: mvccpb.KeyValue, request: pb.RangeRequest) -> bool:
    if request.min_mod_revision and kv.mod_revision < request.min_mod_revision:
        return False
    if request.max_mod_revision and kv.mod_revision > request.max_mod_revision:
        return False
    if request.min_create_revision and kv.create_revision < request.min_create_revision:
        return False
    return not (request.max_create_revision and kv.create_revision > request.max_create_revision)


def sort(kvs: list[mvccpb.KeyValue], request: pb.RangeRequest) -> list[mvccpb.KeyValue]:
    """By insertion, each behind what is not beyond it."""
    name = ("key", "version", "create_revision", "mod_revision", "value")[request.sort_target]
    out: list[mvccpb.KeyValue] = []
    for kv in kvs:
        place = len(out)
        while place and beyond(getattr(out[place - 1], name), getattr(kv, name), request):
            place -= 1
        out.insert(place, kv)
    return out


def beyond(left: object, right: object, request: pb.RangeRequest) -> bool:
    if request.sort_order == pb.RangeRequest.DESCEND:
        return left < right  # type: ignore[operator]
    return left > right  # type: ignore[operator]


def shown(kv: mvccpb.KeyValue, request: pb.RangeRequest) -> mvccpb.KeyValue:
    """Keys alone come from the index, which has no leases; unless values are to be sorted by."""
    copy = mvccpb.KeyValue()
    copy.CopyFrom(kv)
    if request.keys_only:
        copy.ClearField("value")
        if request.sort_target != pb.RangeRequest.VALUE:
            copy.ClearField("lease")
    return copy


ENDS = [b"", b"\0", *KEYS, b"a\xff", b"d"]
ORDERS = [0, 0, 0, *pb.RangeRequest.SortOrder.values()]
TARGETS = [0, 0, 0, *pb.RangeRequest.SortTarget.values()]
LIMITS = [0, 0, 0, -1, 1, 2, 3, 4, 100, 2**63 - 1]


def any_request(chance: random.Random) -> pb.RangeRequest:
    """Each setting is mostly left alone, so that every one is also met by itself."""

    def number() -> int:
        return chance.choice([0, 0, 0, 0, 0, chance.randrange(-2, 260)])

    return pb.RangeRequest(
        key=chance.choice([*KEYS, b"aa", b"\xff"]),
        range_end=chance.choice(ENDS),
        limit=chance.choice(LIMITS),
        revision=number(),
        sort_order=chance.choice(ORDERS),
        sort_target=chance.choice(TARGETS),
        keys_only=chance.random() < 0.3,
        count_only=chance.random() < 0.1,
        min_mod_revision=number(),
        max_mod_revision=number(),
        min_create_revision=number(),
        max_create_revision=number(),
    )


# Transactions


class Refused(Exception):
    """The transaction as a whole is refused with the error of the first argument."""


HasLease = Callable[[int], bool]


def run_txn(model: Model, request: pb.TxnRequest, has_lease: HasLease) -> pb.TxnResponse:
    """Carry a transaction out on the model; raises Refused, and then nothing has changed."""
    plan = choose(model, request)
    check(model, plan, has_lease)
    return _Run(model).run(plan)


@dataclass
class Plan:
    """The branch taken: its operations, and for those that are transactions their own plans."""

    succeeded: bool
    steps: list[pb.RequestOp | Plan]


def choose(model: Model, request: pb.TxnRequest) -> Plan:
    succeeded = all(holds(model, compare) for compare in request.compare)
    return Plan(
        succeeded,
        [
            choose(model, op.request_txn) if op.HasField("request_txn") else op
            for op in (request.success if succeeded else request.failure)
        ],
    )


def holds(model: Model, compare: pb.Compare) -> bool:
    live = model.at[model.rev]
    area = pb.RangeRequest(key=compare.key, range_end=compare.range_end)
    pairs = [kv for key, kv in live.items() if within(key, area)]
    if not pairs:
        if compare.target == pb.Compare.VALUE:
            return False
        pairs = [mvccpb.KeyValue()]
    return all(compares(kv, compare) for kv in pairs)


def compares(kv: mvccpb.KeyValue, compare: pb.Compare) -> bool:
    names = ("version", "create_revision", "mod_revision", "value", "lease")
    left = right = 0
    if compare.target in range(5):
        left = getattr(kv, names[compare.target])
        right = getattr(compare, names[compare.target])
    return {0: left == right, 1: left > right, 2: left < right, 3: left != right}.get(
        compare.result, True
    )


def check(model: Model, plan: Plan, has_lease: HasLease) -> None:
    for step in plan.steps:
        if isinstance(step, Plan):
            check(model, step, has_lease)
        elif step.HasField("request_range"):
            revision = step.request_range.revision
            if revision > model.rev:
                raise Refused(errors.FutureRev)
            if revision != 0 and revision < (model.compacted or -1):
                raise Refused(errors.Compacted)
        elif step.HasField("request_put"):
            put = step.request_put
            if put.lease and not has_lease(put.lease):
                raise Refused(errors.LeaseNotFound)
            if (put.ignore_value or put.ignore_lease) and put.key not in model.at[model.rev]:
                raise Refused(errors.KeyNotFound)


class _Run:
    def __init__(self, model: Model) -> None:
        self._model = model
        self._next = model.rev + 1

    def run(self, plan: Plan) -> pb.TxnResponse:
        response = pb.TxnResponse(succeeded=plan.succeeded)
        for step in plan.steps:
            answer_ = response.responses.add()
            if isinstance(step, Plan):
                answer_.response_txn.CopyFrom(self.run(step))
                answer_.response_txn.header.SetInParent()
            elif step.HasField("request_range"):
                found = answer(self._model, step.request_range)
                assert isinstance(found, pb.RangeResponse), found
                answer_.response_range.CopyFrom(found)
                answer_.response_range.header.revision = self._model.rev
            elif step.HasField("request_put"):
                self._put(step.request_put, answer_.response_put)
            else:
                self._delete(step.request_delete_range, answer_.response_delete_range)
        return response

    def _put(self, put: pb.PutRequest, response: pb.PutResponse) -> None:
        before = self._model.at[self._model.rev].get(put.key)
        value, lease = put.value, put.lease
        if before is not None:
            value = before.value if put.ignore_value else value
            lease = before.lease if put.ignore_lease else lease
            if put.prev_kv:
                response.prev_kv.CopyFrom(before)
        self._model.put(self._next, put.key, value, lease)
        response.header.revision = self._next

    def _delete(self, delete: pb.DeleteRangeRequest, response: pb.DeleteRangeResponse) -> None:
        area = pb.RangeRequest(key=delete.key, range_end=delete.range_end)
        live = self._model.at[self._model.rev]
        gone = [live[key] for key in sorted(live) if within(key, area)]
        for kv in gone:
            self._model.delete(self._next, kv.key)
        response.deleted = len(gone)
        if delete.prev_kv:
            response.prev_kvs.extend(gone)
        response.header.revision = self._model.rev
