"""Where etcd 3.7, and so Kvorum, answers another way than the etcd 3.5 it is compared with.

Each entry says what differs and why. Nothing here loosens a comparison by more than it names:
most entries turn the old reply into the one that the new release must give, byte for byte.

keys-only lease
    3.5 shows a pair's lease in a keys_only range. 3.7 leaves it out, unless the range is sorted by
    value: it answers from the key index, which knows no lease.
hash revision
    HashKV has the new field hash_revision since 3.6.
hash at compaction
    HashKV at the compact revision fails as compacted in 3.5, and is answered since 3.5.10. Since
    3.5.5 the hashes of recent compactions are remembered and answer for their revision, with the
    compact revision before them.
hash of nothing
    Where no key lives at a revision, no release can tell which of the compacted history is to go,
    and HashKV takes in what has not been deleted yet. How far that has come is not to be known.
sort option
    3.5 ignores an unknown sort order and crashes on an unknown target; checked since 3.6.
faults in a txn
    3.5 looks at all puts first, then at all ranges, and at a put's missing key before its lease;
    3.7 goes operation by operation, lease first. Only which of several errors differs.
wrong wire type
    A known field with the wrong wire type is an error for 3.5's protobuf library, and an unknown
    field, so skipped, for 3.7's.
negative watch start
    3.5 takes it as a revision and may crash; since then it is created and cancelled at once.
tombstone at the compact revision
    3.5 deletes it with the compaction, 3.5.16 and later with the next one. Only a watch that
    starts exactly at the compact revision sees it.
progress request
    3.5 answers at once, even while events are due. Fixed in 3.5.8: answered only when every watch
    of the stream has begun and has all events.
negative lease
    3.5 does not find leases with negative ids again after a restart; 3.7 does. So they are revoked
    before each restart here.
parse error
    Not sent: a varint of more than 64 bits, which 3.5 takes and 3.7 refuses.
    The text after the fixed beginning is the protobuf library's own.

Sorting by equal elements is unstable in both; see ``compare.py``.

Not sent to either, because both crash: a transaction that deletes a key by an open or inverted
range and puts the same key with ignore_value or ignore_lease; an alarm request with an unknown
action.
"""

from __future__ import annotations

from typing import Any

from support.rpc import Reply

from kvorum.pb import etcdserverpb as pb

INVALID_SORT = Reply(b"", "INVALID_ARGUMENT", "etcdserver: invalid sort option")
COMPACTED = Reply(b"", "OUT_OF_RANGE", "etcdserver: mvcc: required revision has been compacted")
EMPTY_KEY = Reply(b"", "INVALID_ARGUMENT", "etcdserver: key is not provided")
# Unary methods and streams. (The second goes on with a colon since 3.6.)
PARSE_ERRORS = (
    "grpc: error unmarshalling request: ",
    "grpc: failed to unmarshal the received message",
)

# The errors that a transaction's operations can give when it is applied.
_TXN_FAULTS = {
    "etcdserver: key not found",
    "etcdserver: requested lease not found",
    "etcdserver: mvcc: required revision has been compacted",
    "etcdserver: mvcc: required revision is a future revision",
}


def drop_keys_only_leases(request: Any, response: Any) -> None:
    """keys-only lease: make a 3.5 range response what 3.7 answers."""
    if request.keys_only and request.sort_target != pb.RangeRequest.VALUE:
        for kv in response.kvs:
            kv.lease = 0


def add_hash_revision(request: Any, response: Any) -> None:
    """hash revision: as above, for HashKV."""
    response.hash_revision = request.revision or response.header.revision


def unknown_order(request: Any) -> bool:
    """sort option: would 3.7 refuse this range?"""
    return request.sort_order not in pb.RangeRequest.SortOrder.values()


def txn_fault_order(request: Any, old: Reply, new: Reply) -> bool:
    """faults in a txn: do both refuse, each with a fault that the request really has?

    Only excused when the request has two operations that can fail.
    """
    both = {old.details, new.details} <= _TXN_FAULTS
    return both and not old.ok and not new.ok and _fallible_operations(request) > 1


def _fallible_operations(txn: Any) -> int:
    count = 0
    for op in [*txn.success, *txn.failure]:
        match op.WhichOneof("request"):
            case "request_txn":
                count += _fallible_operations(op.request_txn)
            case "request_range":
                count += op.request_range.revision != 0
            case "request_put":
                put = op.request_put
                count += (put.lease != 0) + (put.ignore_value or put.ignore_lease)
    return count


class RememberedHashes:
    """hash at compaction: what 3.7 may answer for revisions up to the compact revision.

    A newer server remembers the hash at each of its last compactions, until it restarts, from
    the moment the compaction is really done, which nobody is told of.

    One exception was found by this test: where no key lived, nothing is kept, and then HashKV
    takes in old history that the compaction's own hash leaves out.
    """

    def __init__(self) -> None:
        self._empty: set[int] = set()
        self._hashes: dict[int, tuple[int, int]] = {}

    def note(self, request: Any, response: Any) -> None:
        """Keep an answer given while ``revision`` was not compacted yet; and of one that nobody
        can know leave out the hash: "hash of nothing", above."""
        revision = request.revision or response.header.revision
        if revision == response.compact_revision and revision in self._empty:
            response.hash = 0
        elif revision > response.compact_revision:
            self._hashes[revision] = (response.hash, response.compact_revision)

    def note_count(self, request: Any, response: Any) -> None:
        """Keep in mind at which revisions there was no key at all."""
        if request.count_only and request.key == request.range_end == b"\0" and not response.count:
            self._empty.add(request.revision)

    def accepts(self, request: Any, reply: Reply) -> bool:
        """Is this a right answer for a revision at or below the compact revision?"""
        if not reply.ok:
            return reply == COMPACTED
        response = pb.HashKVResponse.FromString(reply.body)
        if response.hash_revision != request.revision:
            return False
        if response.compact_revision == request.revision:
            return True  # freshly computed; 3.5 gives nothing to compare it with
        known = self._hashes.get(request.revision)
        return (
            known is None
            or request.revision in self._empty
            or known == (response.hash, response.compact_revision)
        )
