"""Does the store's log agree with what the clients did? One function for each promise.

All of this is pure: histories in, violations out as text. ``test_checks.py`` plants a fault of
each sort into a made-up history, to show that it is found.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from crash.history import Event, Grant, Op, Outcome, Pair, Read, Watched

_GRACE = 2  # a new leader adds an election timeout to every lease


@dataclass(slots=True)
class Model:
    """The store as its log describes it, replayed from the start.

    Keeps every version of every key: ``versions[key]`` is in revision order, with None where the
    key was deleted.
    """

    revision: int = 1
    versions: dict[bytes, list[tuple[int, Pair | None]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    leases: dict[int, int] = field(default_factory=dict)

    def at(self, key: bytes, revision: int) -> Pair | None:
        history = self.versions.get(key, [])
        place = bisect_right(history, revision, key=lambda version: version[0])
        return history[place - 1][1] if place else None

    def live(self) -> dict[bytes, Pair]:
        newest = ((key, history[-1][1]) for key, history in self.versions.items() if history)
        return {key: pair for key, pair in newest if pair is not None}

    def attached(self, lease: int, revision: int) -> set[bytes]:
        """Keys that hang on ``lease`` at ``revision``."""
        found = set()
        for key in self.versions:
            pair = self.at(key, revision)
            if pair is not None and pair.lease == lease:
                found.add(key)
        return found


def replay(model: Model, events: Sequence[Event]) -> list[str]:
    """Apply the events that follow the model's revision: no hole, right counters in each pair."""
    wrong = []
    for event in events:
        if event.revision not in (model.revision, model.revision + 1):
            wrong.append(f"hole: revision {event.revision} follows {model.revision}")
        model.revision = max(model.revision, event.revision)
        wrong += _replay_one(model, event)
    return wrong


def _replay_one(model: Model, event: Event) -> list[str]:
    history = model.versions[event.key]
    before = history[-1][1] if history else None
    if history and history[-1][0] == event.revision:
        return [f"{event.key!r} changes twice in revision {event.revision}"]
    if event.value is None:
        history.append((event.revision, None))
        return [] if before is not None else [f"{event} deletes what is not there"]
    created, version = (event.revision, 1)
    if before is not None:
        created, version = before.create_revision, before.version + 1
    pair = Pair(event.value, event.create_revision, event.revision, event.version, event.lease)
    history.append((event.revision, pair))
    if (event.create_revision, event.version) == (created, version):
        return []
    return [f"{event}: created {created}, version {version} expected"]


def check_ops(model: Model, ops: Sequence[Op], events: Sequence[Event]) -> list[str]:
    """Every acknowledged write is there whole, every other one whole or not at all, no stranger.

    ``model`` has replayed ``events``. Sets ``revision`` of unanswered operations that happened.
    """
    by_revision: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        by_revision[event.revision].append(event)
    owners: dict[int, Op] = {}
    wrong = []
    for op in sorted(ops, key=lambda op: op.outcome is not Outcome.ACKED):
        wrong += _place(model, op, by_revision, owners)
    strangers = sorted(by_revision.keys() - owners.keys())
    return wrong + [f"nobody wrote {by_revision[revision]}" for revision in strangers]


def _place(
    model: Model, op: Op, by_revision: dict[int, list[Event]], owners: dict[int, Op]
) -> list[str]:
    """Find the revision that ``op`` made, and compare all of it."""
    revision = op.revision
    if op.outcome is not Outcome.ACKED or op.revokes:
        revision = _find(model, op, by_revision, owners)
    if op.outcome is Outcome.ACKED and op.revokes and model.attached(op.revokes, op.revision):
        return [f"lost: {op}"]  # its answer names the store's revision, be it its own or not
    if revision == 0:
        op.revision = 0
        return []
    if op.outcome is Outcome.REFUSED:
        return [f"{op} was refused, and yet is revision {revision}"]
    if revision in owners:
        return [f"{op} and {owners[revision]} are both revision {revision}"]
    if revision not in by_revision:
        return [f"lost: {op}"]
    owners[revision] = op
    op.revision = revision
    return _compare(model, op, by_revision[revision])


def _find(model: Model, op: Op, by_revision: dict[int, list[Event]], owners: dict[int, Op]) -> int:
    """The revision of an operation that nobody confirmed: by its values, which are unique."""
    values = set(op.puts.values())
    for revision, events in by_revision.items():
        if values and any(event.value in values for event in events):
            return revision
    if values:
        return 0
    for revision, events in by_revision.items():
        keys = {event.key for event in events if event.value is None}
        if revision not in owners and keys and keys == _deletions(model, op, revision):
            return revision
    return 0


def _deletions(model: Model, op: Op, revision: int) -> set[bytes]:
    """The keys that ``op`` deletes if it is ``revision``: those that are there just before."""
    if op.revokes:
        return model.attached(op.revokes, revision - 1)
    return {key for key in op.deletes if model.at(key, revision - 1) is not None}


def _compare(model: Model, op: Op, events: Sequence[Event]) -> list[str]:
    found = {event.key: event.value for event in events}
    due: dict[bytes, bytes | None] = dict(op.puts)
    due.update(dict.fromkeys(_deletions(model, op, events[0].revision)))
    leases = {event.lease for event in events if event.value is not None}
    if found != due:
        return [f"half: {op} became {found} instead of {due}"]
    if leases - {op.lease}:
        return [f"{op} hangs on leases {leases}"]
    return []


def check_order(ops: Iterable[Op]) -> list[str]:
    """What ended before another began has the lower revision."""
    placed = [op for op in ops if op.revision]
    ended = sorted(placed, key=lambda op: op.returned)
    wrong = []
    highest: Op | None = None
    place = 0
    for op in sorted(placed, key=lambda op: op.invoked):
        while place < len(ended) and ended[place].returned < op.invoked:
            if highest is None or ended[place].revision > highest.revision:
                highest = ended[place]
            place += 1
        if highest is not None and highest.revision >= op.revision:
            wrong.append(f"order: {op} began after {highest} had ended")
    return wrong


def check_reads(model: Model, reads: Iterable[Read], ops: Iterable[Op]) -> list[str]:
    """A read shows the store at its revision, which holds all that had been acknowledged."""
    acked = sorted(
        (op for op in ops if op.revision and op.outcome is Outcome.ACKED),
        key=lambda op: op.returned,
    )
    wrong = []
    newest = 0
    place = 0
    for read in sorted(reads, key=lambda read: read.invoked):
        while place < len(acked) and acked[place].returned < read.invoked:
            newest = max(newest, acked[place].revision)
            place += 1
        if read.revision < newest:
            wrong.append(f"stale: {read} after revision {newest} was acknowledged")
        if model.at(read.key, read.revision) != read.pair:
            there = model.at(read.key, read.revision)
            wrong.append(f"dirty: {read}, but the log says {there}")
    return wrong


def check_watch(watch: Watched, events: Sequence[Event]) -> list[str]:
    """A resumed watch has seen every event of its range once, in order."""
    due = [event for event in events if watch.covers(event.key)]
    if watch.events == due:
        return []
    for number, (seen, wanted) in enumerate(zip(watch.events, due, strict=False)):
        if seen != wanted:
            return [f"watch {watch.name}, event {number}: {seen} instead of {wanted}"]
    return [f"watch {watch.name} has {len(watch.events)} events instead of {len(due)}"]


def check_state(model: Model, live: dict[bytes, Pair], revision: int) -> list[str]:
    """What can be read now is what the log leads to."""
    wrong = []
    if revision != model.revision:
        wrong.append(f"the store is at {revision}, its log ends at {model.revision}")
    expected = model.live()
    for key in sorted(expected.keys() | live.keys()):
        if expected.get(key) != live.get(key):
            wrong.append(f"{key!r} is {live.get(key)} instead of {expected.get(key)}")
    return wrong


@dataclass(slots=True)
class LeaseView:
    """What the server says of one lease: its granted time, the time left, its keys."""

    granted: int
    left: int
    keys: set[bytes]


def check_leases(
    model: Model, grants: Iterable[Grant], revokes: Iterable[Op], leases: dict[int, LeaseView]
) -> list[str]:
    """Granted leases live, with their keys and their time; revoked ones are gone.

    ``grants`` and ``revokes`` are those of this epoch; older leases are in the model. What was
    left open is taken from the server from now on.
    """
    wrong = []
    settled = dict(model.leases)
    for grant in grants:
        if grant.outcome is Outcome.ACKED or grant.lease in leases:
            settled[grant.lease] = grant.ttl
    for op in revokes:
        if op.outcome is Outcome.ACKED or op.revokes not in leases:
            settled.pop(op.revokes, None)
    if settled.keys() != leases.keys():
        lost, strange = settled.keys() - leases.keys(), leases.keys() - settled.keys()
        wrong.append(f"leases lost: {sorted(lost)}, unexpected: {sorted(strange)}")
    for lease in settled.keys() & leases.keys():
        wrong += _check_lease(model, lease, settled[lease], leases[lease])
    model.leases = {lease: settled[lease] for lease in settled.keys() & leases.keys()}
    return wrong


def _check_lease(model: Model, lease: int, ttl: int, view: LeaseView) -> list[str]:
    keys = model.attached(lease, model.revision)
    wrong = []
    if view.granted != ttl or not 0 < view.left <= ttl + _GRACE:
        wrong.append(f"lease {lease}: {view.left} s of {view.granted} left, granted were {ttl}")
    if view.keys != keys:
        wrong.append(f"lease {lease} has keys {sorted(view.keys)} instead of {sorted(keys)}")
    return wrong


def check_unchanged(
    known: dict[int, list[Event]], events: Iterable[Event], compacted: int
) -> list[str]:
    """History that was read before is the same now, as far as it is not compacted."""
    now: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        now[event.revision].append(event)
    wrong = []
    for revision, before in known.items():
        if revision > compacted and now.get(revision) != before:
            wrong.append(f"revision {revision} was {before}, is now {now.get(revision)}")
    return wrong
