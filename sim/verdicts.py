"""What is looked at when everything has healed and all is quiet."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from kvorum.pb import mvccpb
from kvorum.testing.history import Event, KeyValue
from kvorum.testing.linearizability import Undecided, check
from kvorum.testing.watch_guarantees import Watch, Writes, check_watches
from sim import words

if TYPE_CHECKING:
    from kvorum.testing.history import Operation
    from sim.member import Member

BUCKETS: Final = ("key", "lease", "alarm", "members", "members_removed", "cluster")
SHOWN: Final = 5


def equal_states(members: list[Member]) -> list[str]:
    """All members hold the same: in the backend, bucket by bucket, and in memory."""
    wrong: list[str] = []
    first, *others = members
    for other in others:
        for bucket in BUCKETS:
            mine, theirs = _bucket(first, bucket), _bucket(other, bucket)
            if mine != theirs:
                keys = sorted(
                    k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k)
                )
                place, count = keys[0].hex(), len(keys)
                wrong.append(
                    f"{first} and {other} differ in {count} keys of {bucket}, first {place}:"
                    f" {mine.get(keys[0])!r} and {theirs.get(keys[0])!r}"
                )
        if _memory(first) != _memory(other):
            wrong.append(f"{first} has {_memory(first)}, {other} has {_memory(other)}")
    return wrong


def _bucket(member: Member, bucket: str) -> dict[bytes, bytes]:
    assert member.server is not None
    return dict(member.server.backend.range(bucket, b"", None))


def _memory(member: Member) -> dict[str, object]:
    """What is kept beside the backend, where it must not differ."""
    server = member.server
    assert server is not None
    live = server.store.range_kvs(b"", b"\0").kvs
    return {
        "revision": server.store.rev,
        "compacted": server.store.compact_rev,
        "live": hash(tuple(live)),
        "leases": sorted(server.lessor._leases),
        "voters": sorted(server.applier.conf_state.voters),
        "learners": sorted(server.applier.conf_state.learners),
        "members": [m.to_json() for m in server.cluster.sorted()],
    }


def has_all(members: Iterable[Member], acknowledged: int) -> list[str]:
    """Durability: nobody ends below what a client was told."""
    return [
        f"{member} ends at revision {member.server.store.rev}, {acknowledged} was acknowledged"
        for member in members
        if member.server is not None and member.server.store.rev < acknowledged
    ]


def what_happened(records: dict[bytes, bytes]) -> dict[int, tuple[Event, ...]]:
    """The events of each revision, with the pairs before, from the records of all members."""
    events: dict[int, list[Event]] = {}
    pairs: dict[bytes, KeyValue] = {}
    before: dict[bytes, KeyValue | None] = {}
    current = 0
    for key in sorted(records):
        revision = int.from_bytes(key[:8], "big")
        if revision != current:
            current, before = revision, {}
        kv = words.pair(mvccpb.KeyValue.FromString(records[key]))
        # Of two changes of a key in one revision, both have the pair before the revision.
        prev = before.setdefault(kv.key, pairs.get(kv.key))
        if len(key) > 17:
            pairs.pop(kv.key, None)
            event = Event("delete", KeyValue(kv.key, b"", mod=revision), prev)
        else:
            pairs[kv.key] = kv
            event = Event("put", kv, prev)
        events.setdefault(revision, []).append(event)
    return {revision: tuple(each) for revision, each in events.items()}


def watch_violations(watches: list[Watch], happened: Writes, members: list[Member]) -> list[str]:
    """The pair before may be missing where the history was compacted before it was read. Whether it
    was is known by the members: who asked for it may not have been answered."""
    compacted = any(m.server is not None and m.server.store.compact_rev > 0 for m in members)
    violations = check_watches(watches, happened)
    kept = [v for v in violations if not (v.promise == "faithful" and "pair before" in v.what)]
    excused = [v for v in violations if v not in kept]
    if not compacted:
        kept += excused
    return [str(each) for each in kept[:SHOWN]]


def linearizability(history: list[Operation], watches: list[Watch], happened: Writes) -> list[str]:
    """Judge the history, with what watches saw and what members did as evidence: it tells what
    became of requests of which no client knows, which may be too many to try all there is."""
    events = [event for watch in watches for event in watch.events()]
    try:
        verdict = check(history, events=events, applied=happened)
    except Undecided as error:
        return [f"the history could not be judged: {error}"]
    return [] if verdict.ok else [verdict.explanation]
