"""Are two servers' replies to one step the same? Normalised as little as possible.

Left out of every comparison: cluster id, member id and raft term in headers. Of unordered answers
(all leases, a lease's keys) the order. Of remaining lease times a few seconds.

Sorting: both releases sort with Go's unstable sort. Equal elements keep key order in up to 6
elements in 3.5 (Go 1.16), and in up to 12 in newer ones. So for an answer out of more pairs,
sorted by something else than the key, runs of equal elements are put into key order first; and of
the last run of an answer that the limit cut off, only the compared field counts.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any, NamedTuple

from differential import differences
from differential.differences import RememberedHashes
from differential.steps import Kind, Step
from differential.watches import WatchRecord, WatchSession
from support.rpc import (
    BY_PATH,
    HASH_KV,
    KEEP_ALIVE_PATH,
    LEASE_GRANT,
    LEASE_LEASES,
    LEASE_TTL,
    RANGE,
    TXN,
    WATCH_PATH,
    Reply,
)

from kvorum.pb import etcdserverpb as pb
from kvorum.pb import mvccpb

_STABLE_OLD = 6
_STABLE_NEW = 12
_TTL_SLACK = 5
_SORT_FIELDS = {
    pb.RangeRequest.VERSION: "version",
    pb.RangeRequest.CREATE: "create_revision",
    pb.RangeRequest.MOD: "mod_revision",
    pb.RangeRequest.VALUE: "value",
}


class _Rules(NamedTuple):
    """``upgrade``: turn an old reply into the new release's; ``stable``: see above."""

    upgrade: bool
    stable: int


class Comparer:
    """Compares replies of an old (reference) and a new server.

    ``newer``: the new server follows 3.7, so the differences of that release apply.
    """

    def __init__(self, *, newer: bool) -> None:
        self.newer = newer
        self.hashes = RememberedHashes()

    def same(self, step: Step, old: Reply, new: Reply) -> bool:
        if step.new_only:
            return not self.newer or _matches(new, step.expected)
        if old.code != "FAULT" and self._excused(step, old, new):
            return True
        return self.normal(step, old, old_side=True) == self.normal(step, new)

    def _excused(self, step: Step, old: Reply, new: Reply) -> bool:
        if not self.newer or step.kind is not Kind.CALL:
            return False
        request = step.parsed()
        if step.path == HASH_KV.path and request is not None:
            return old == differences.COMPACTED and self.hashes.accepts(request, new)
        if step.path == RANGE.path and request is not None and request.key:
            return differences.unknown_order(request) and new == differences.INVALID_SORT
        return step.path == TXN.path and differences.txn_fault_order(request, old, new)

    def normal(self, step: Step, reply: Reply, *, old_side: bool = False) -> Any:
        """A form that is equal for equal answers."""
        if not reply.ok:
            begins = (text for text in differences.PARSE_ERRORS if reply.details.startswith(text))
            return reply.code, next(begins, reply.details)
        message = response_type(step)
        if message is None or not reply.body:
            return reply.body
        response = message.FromString(reply.body)
        _blind_header(response)
        stable = _STABLE_OLD if old_side or not self.newer else _STABLE_NEW
        self._normalise(step, response, _Rules(old_side and self.newer, stable))
        return response.SerializeToString(deterministic=True)

    def _normalise(self, step: Step, response: Any, rules: _Rules) -> None:
        if step.path == RANGE.path:
            _normalise_range(step.parsed(), response, rules)
            self.hashes.note_count(step.parsed(), response)
        elif step.path == TXN.path:
            _normalise_txn(step.parsed(), response, rules)
        elif step.path == LEASE_LEASES.path:
            ids = sorted(lease.ID for lease in response.leases)
            del response.leases[:]
            response.leases.extend(pb.LeaseStatus(ID=number) for number in ids)
        elif step.path == LEASE_TTL.path:
            _normalise_ttl(response)
        elif step.path == HASH_KV.path:
            if rules.upgrade:
                differences.add_hash_revision(step.parsed(), response)
            self.hashes.note(step.parsed(), response)


def _matches(reply: Reply, expected: Reply | None) -> bool:
    """A reply against the literal one the step carries, which has no header."""
    assert expected is not None
    if reply.ok and expected.ok:
        response = pb.WatchResponse.FromString(reply.body)
        response.ClearField("header")
        return response == pb.WatchResponse.FromString(expected.body)
    return reply.code == expected.code and reply.details.startswith(expected.details)


def response_type(step: Step) -> Any:
    if step.kind is Kind.GRANT_REVOKE:
        return LEASE_GRANT.response
    if step.path == WATCH_PATH:
        return pb.WatchResponse
    if step.path == KEEP_ALIVE_PATH:
        return pb.LeaseKeepAliveResponse
    rpc = BY_PATH.get(step.path)
    return None if rpc is None else rpc.response


def _blind_header(response: Any) -> None:
    if response.HasField("header"):
        response.header.cluster_id = 0
        response.header.member_id = 0
        response.header.raft_term = 0


def _normalise_ttl(response: Any) -> None:
    keys = sorted(response.keys)
    del response.keys[:]
    response.keys.extend(keys)
    if 0 <= response.grantedTTL - response.TTL <= _TTL_SLACK * 100:
        response.TTL = response.grantedTTL  # both ran for about as long


def _normalise_range(request: Any, response: Any, rules: _Rules) -> None:
    if rules.upgrade:
        differences.drop_keys_only_leases(request, response)
    name = _SORT_FIELDS.get(request.sort_target)
    hidden = name == "value" and request.keys_only
    # What a limit cut off, or a sort by unseen values, can only be put right on both sides.
    stable = _STABLE_OLD if response.more or hidden else rules.stable
    if name is None or response.count <= stable or not response.kvs:
        return
    if hidden:
        _normalise_hidden_values(response)
        return
    ordered: list[Any] = []
    for _, run in groupby(response.kvs, key=lambda kv: getattr(kv, name)):
        ordered.extend(sorted(run, key=lambda kv: kv.key))
    if response.more:
        last = getattr(ordered[-1], name)
        ordered = [kv if getattr(kv, name) != last else _only(name, last) for kv in ordered]
    _replace(response, ordered)


def _normalise_hidden_values(response: Any) -> None:
    """Sorted by values that are not shown: ties cannot be told, so compare as a set."""
    ordered = [] if response.more else sorted(response.kvs, key=lambda kv: kv.key)
    _replace(response, ordered)


def _only(name: str, value: Any) -> Any:
    return mvccpb.KeyValue(**{name: value})


def _replace(response: Any, kvs: list[Any]) -> None:
    copies = [type(kv).FromString(kv.SerializeToString()) for kv in kvs]
    del response.kvs[:]
    response.kvs.extend(copies)


def _normalise_txn(request: Any, response: Any, rules: _Rules) -> None:
    ops = request.success if response.succeeded else request.failure
    for op, answer in zip(ops, response.responses, strict=True):
        match op.WhichOneof("request"):
            case "request_range":
                _normalise_range(op.request_range, answer.response_range, rules)
            case "request_txn":
                _normalise_txn(op.request_txn, answer.response_txn, rules)


def session_differences(old: WatchSession, new: WatchSession) -> list[str]:
    """What differs between the same watch stream on both servers; clears what was compared."""
    found = []
    both = [_comparable(session.records) for session in (old, new)]
    if len(both[0]) != len(both[1]):
        found.append(f"{len(both[0])} watches against {len(both[1])}")
    for number, (left, right) in enumerate(zip(*both, strict=False)):
        if left.events != right.events:
            found.append(f"watch {number} {left.request}: {_first_gap(left.events, right.events)}")
        if left.closed != right.closed:
            found.append(f"watch {number} {left.request}: {left.closed} against {right.closed}")
        left.events.clear()
        right.events.clear()
    faults = [f"{name}: {session.fault}" for name, session in (("old", old), ("new", new))]
    return found + [fault for fault in faults if not fault.endswith(": ")]


def _comparable(records: list[WatchRecord]) -> list[WatchRecord]:
    """Without negative starts, which only the newer server was asked for."""
    return [record for record in records if record.request.start_revision >= 0]


def _first_gap(left: list[bytes], right: list[bytes]) -> str:
    for number, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return f"event {number}: {one!r} against {other!r}"
    return f"{len(left)} events against {len(right)}"
