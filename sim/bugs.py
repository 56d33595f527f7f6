"""Bugs, planted one at a time into the code under test, to see that they would be found.

Each is a small change that somebody could have made, or has made in some implementation of Raft or
of a key-value store. ``within`` is the number of seeds in which it must be found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any, Final

from kvorum.backend import Backend
from kvorum.lease.lessor import Lessor
from kvorum.mvcc.watch import WatchHub
from kvorum.mvcc.watch_stream import WatchStream
from kvorum.pb import etcdserverpb as pb
from kvorum.raft import confchange, core, election, following, quorum, reads, step, tracker
from kvorum.raft.log import RaftLog
from kvorum.raft.storage import MemoryStorage
from kvorum.raft.types import NO_LIMIT, ConfState, EntryID, HardState, MsgType, StateType
from kvorum.raft.unstable import Unstable
from kvorum.server import meta, server
from kvorum.server import txn as txns
from kvorum.server.applier import Applier
from kvorum.server.bootstrap import restart
from kvorum.server.cluster import sending
from kvorum.server.cluster.together import Together
from kvorum.server.logwriter import LogWriter
from kvorum.server.reads import ReadGate
from kvorum.types import Index, LeaseID
from kvorum.wal.encoder import Encoder
from kvorum.wal.reading import Collector
from sim.network import SimTransport
from sim.system import Os

Plant = Callable[["Patches"], None]


class Patches:
    """What was changed, and how to change it back."""

    def __init__(self) -> None:
        self._undo: list[tuple[Any, str, Any]] = []

    def set(self, owner: Any, name: str, value: object) -> None:
        self._undo.append((owner, name, vars(owner)[name]))
        setattr(owner, name, value)

    def wrap(self, owner: Any, name: str, made: Callable[[Any], object]) -> None:
        """Replace something by what is made of it."""
        self.set(owner, name, made(vars(owner)[name]))

    def undo(self) -> None:
        for owner, name, value in reversed(self._undo):
            setattr(owner, name, value)


@dataclass(frozen=True, slots=True)
class Bug:
    name: str
    what: str
    within: int
    plant: Plant

    @contextmanager
    def planted(self) -> Iterator[None]:
        patches = Patches()
        try:
            self.plant(patches)
            yield
        finally:
            patches.undo()


BUGS: Final[dict[str, Bug]] = {}


def bug(name: str, within: int) -> Callable[[Plant], Plant]:
    """Register a bug; its docstring says what it is."""

    def register(plant: Plant) -> Plant:
        what = " ".join((plant.__doc__ or "").split())
        BUGS[name] = Bug(name, what, within, plant)
        return plant

    return register


# The log


@bug("fsync-skipped", within=20)
def _fsync_skipped(p: Patches) -> None:
    """The log is written and not synced before it is answered."""
    p.set(Os, "fdatasync", lambda self, fd: None)


@bug("written-not-told", within=20)
def _written_not_told(p: Patches) -> None:
    """Nobody is told of a write behind which another one waits."""

    def made(synced: Any) -> Any:
        def forgetful(self: LogWriter, error: OSError | None) -> None:
            if self._waiting:
                self._syncing = lambda result: None
            synced(self, error)

        return forgetful

    p.wrap(LogWriter, "_synced", made)


@bug("written-two-ways-at-once", within=20)
def _written_two_ways_at_once(p: Patches) -> None:
    """A batch is written on the loop while the log's thread has another one to write."""

    def write(self: LogWriter, batch: Any, done: Any) -> None:
        if self._kernel is not None and self._syncing is None and self._suits_loop(batch):
            self._begin(batch, done, self._kernel)
        else:
            original(self, batch, done)

    original = LogWriter.write
    p.set(LogWriter, "write", write)


@bug("vote-not-logged", within=20)
def _vote_not_logged(p: Patches) -> None:
    """The term is logged, who got the vote is not."""
    encode = Encoder.encode

    def forgetful(self: Encoder, state: HardState | None, entries: Sequence[Any]) -> Any:
        return encode(self, state and state._replace(vote=0), entries)  # type: ignore[arg-type]

    p.set(Encoder, "encode", forgetful)


@bug("append-answered-early", within=20)
def _append_answered_early(p: Patches) -> None:
    """A follower acknowledges entries that are on their way to its disk."""
    _early(p, MsgType.APP_RESP)


@bug("vote-answered-early", within=50)
def _vote_answered_early(p: Patches) -> None:
    """A vote is given before it is on disk."""
    _early(p, MsgType.VOTE_RESP)


def _early(p: Patches, kind: MsgType) -> None:
    send = core.Raft.send

    def hasty(self: core.Raft, m: Any) -> None:
        send(self, m)
        held = self.msgs_after_append
        if m.type is kind and m.to != self.id and held and held[-1] is m:
            self.msgs.append(held.pop())

    p.set(core.Raft, "send", hasty)


@bug("tail-not-cut-in-memory", within=200)
def _tail_not_cut_in_memory(p: Patches) -> None:
    """Entries that replace others leave what comes after them in place."""

    def append(self: MemoryStorage, entries: Sequence[Any]) -> None:
        if entries:
            offset = max(0, entries[0].index - self._first)
            entries = entries[max(0, self._first - entries[0].index) :]
            self._entries[offset : offset + len(entries)] = entries

    p.set(MemoryStorage, "append", append)


@bug("tail-not-cut-at-start", within=50)
def _tail_not_cut_at_start(p: Patches) -> None:
    """When the log is read again, an entry replaces another one, and those after it stay."""

    def add_entry(self: Collector, entry: Any) -> None:
        position = entry.index - self._start.index - 1
        if position >= 0:
            self._entries[position : position + 1] = [entry]
        self.last_index = entry.index

    p.set(Collector, "_add_entry", add_entry)


@bug("unstable-taken-for-stable", within=200)
def _unstable_taken_for_stable(p: Patches) -> None:
    """The word that a write is done counts for entries that have replaced the written ones."""
    stable_to = Unstable.stable_to

    def gullible(self: Unstable, last: EntryID) -> None:
        term = self.term(last.index)
        stable_to(self, last if term is None else EntryID(term, last.index))

    p.set(Unstable, "stable_to", gullible)
    p.set(step, "_on_older_append", step._on_storage_append_response)


# Elections and commits


@bug("vote-counted-twice", within=50)
def _vote_counted_twice(p: Patches) -> None:
    """Somebody's vote counts for two."""

    def majority_vote(voters: quorum.Voters, votes: Any) -> quorum.VoteResult:
        granted = sum(votes.get(voter, False) for voter in voters)
        if granted and len(voters) > 1:
            votes = {**votes, next(v for v in sorted(voters, reverse=True)): True}
        return count(voters, votes)

    count = quorum.majority_vote
    p.set(quorum, "majority_vote", majority_vote)


@bug("votes-for-anybody", within=20)
def _votes_for_anybody(p: Patches) -> None:
    """Votes are given without a look at how much the candidate has."""
    p.set(RaftLog, "is_up_to_date", lambda self, other: True)


@bug("two-votes-a-term", within=100)
def _two_votes_a_term(p: Patches) -> None:
    """Whoever asks gets the vote, even if somebody else has got it."""

    def on_vote_request(original: Any) -> Any:
        def generous(r: Any, m: Any) -> None:
            if m.type is MsgType.VOTE:
                r.vote = m.from_
            original(r, m)

        return generous

    generous = on_vote_request(election.on_vote_request)
    for kind in (MsgType.VOTE, MsgType.PRE_VOTE):
        _set_item(p, step._ANY_ROLE, kind, generous)


def _set_item(p: Patches, table: dict[Any, Any], key: object, value: object) -> None:
    class Cell:
        """A place in a table, as something that has attributes."""

    class Table:
        def __setattr__(self, name: str, new: object) -> None:
            table[key] = new

        def __init__(self) -> None:
            self.__dict__["value"] = table[key]

    p.set(Table(), "value", value)


@bug("old-term-committed", within=200)
def _old_term_committed(p: Patches) -> None:
    """An entry of an older term is committed by counting who has it (figure 8 of the paper)."""

    def maybe_commit(self: RaftLog, at: EntryID) -> bool:
        if at.index > self.committed:
            self.commit_to(at.index)
            return True
        return False

    p.set(RaftLog, "maybe_commit", maybe_commit)


@bug("learner-counted", within=100)
def _learner_counted(p: Patches) -> None:
    """What a learner has counts for the majority."""

    def committed(self: tracker.ProgressTracker) -> Index:
        matches = sorted((one.match for one in self.progress.values()), reverse=True)
        return Index(matches[len(self.config.voters) // 2])

    p.set(tracker.ProgressTracker, "committed", committed)


@bug("half-is-a-majority", within=20)
def _half_is_a_majority(p: Patches) -> None:
    """Of four voters two are enough to commit."""

    def majority_index(voters: quorum.Voters, acked: Any) -> int:
        ordered = sorted([acked.get(voter, 0) for voter in voters])
        return ordered[len(ordered) // 2] if ordered else NO_LIMIT

    p.set(quorum, "majority_index", majority_index)


@bug("old-leader-obeyed", within=100)
def _old_leader_obeyed(p: Patches) -> None:
    """Entries of a leader of an older term are taken."""

    def made(on_older_term: Any) -> Any:
        def obedient(r: Any, m: Any) -> None:
            if m.type is MsgType.APP and r.state is StateType.FOLLOWER:
                following.on_append(r, m)
            else:
                on_older_term(r, m)

        return obedient

    p.wrap(step, "_on_older_term", made)


# Members


@bug("learners-restart-as-voters", within=200)
def _learners_restart_as_voters(p: Patches) -> None:
    """After a restart a member takes learners for voters."""
    p.set(
        restart,
        "ConfState",
        lambda voters=(), learners=(): ConfState(tuple(sorted({*voters, *learners}))),
    )


@bug("removal-not-counted", within=100)
def _removal_not_counted(p: Patches) -> None:
    """A member that is removed leaves the list, and stays among those who decide."""
    p.set(confchange._Draft, "_remove", lambda self, member: None)


# Reads


@bug("read-without-quorum", within=200)
def _read_without_quorum(p: Patches) -> None:
    """A leader answers a read index without asking whether it still leads."""
    p.set(reads, "_confirm", lambda r, m: reads._answer(r, m, r.log.committed))


@bug("read-before-first-commit", within=200)
def _read_before_first_commit(p: Patches) -> None:
    """A new leader answers with a commit index that it has from before."""
    _set_item(p, step._BY_ROLE[StateType.LEADER], MsgType.READ_INDEX, reads._confirm)


@bug("read-before-applied", within=100)
def _read_before_applied(p: Patches) -> None:
    """A read is answered when its index is known, applied or not."""
    release = ReadGate.release
    p.set(ReadGate, "release", lambda self, applied: release(self, Index(1 << 62)))


@bug("serializable-for-all", within=20)
def _serializable_for_all(p: Patches) -> None:
    """All reads are answered from what is here."""
    p.set(ReadGate, "read", lambda self, run, request, caller: run(request, caller))


# Applying, snapshots, restarts


@bug("applied-twice", within=20)
def _applied_twice(p: Patches) -> None:
    """After a restart the last few entries are applied again."""
    read = meta.read_applied

    def behind(backend: Any) -> Any:
        index, term = read(backend)
        return Index(max(0, index - 3)), term

    p.set(restart, "read_applied", behind)


@bug("index-commits-apart", within=20)
def _index_commits_apart(p: Patches) -> None:
    """How far the backend reaches is written with the commit after the one it belongs to."""

    def take(original: Any) -> Any:
        def late(self: Backend) -> Any:
            hook, self.pre_commit = self.pre_commit, lambda: None
            try:
                batches = original(self)
            finally:
                self.pre_commit = hook
            hook()
            return batches

        return late

    p.wrap(Backend, "take", take)


@bug("snapshot-of-another-index", within=50)
def _snapshot_of_another_index(p: Patches) -> None:
    """A snapshot is sent under the index that was asked for, and not that of the database."""
    p.set(sending, "_complete", lambda message, *rest: message)


@bug("snapshot-without-leases", within=50)
def _snapshot_without_leases(p: Patches) -> None:
    """Whoever takes over a snapshot keeps the leases that it had."""

    def made(take_over: Any) -> Any:
        def forgetful(self: Any, snapshot: Any) -> None:
            restore, self.lessor.restore = self.lessor.restore, lambda records: None
            try:
                take_over(self, snapshot)
            finally:
                self.lessor.restore = restore

        return forgetful

    p.wrap(server.Server, "_take_over", made)


@bug("proposal-sent-twice", within=20)
def _proposal_sent_twice(p: Patches) -> None:
    """The transport sends a message again of which it does not know whether it arrived."""

    def made(send: Any) -> Any:
        def insistent(self: Any, messages: Sequence[Any]) -> None:
            send(self, messages)
            send(self, [m for m in messages if m.type is MsgType.PROP])

        return insistent

    p.wrap(SimTransport, "send", made)


@bug("compare-on-own-clock", within=20)
def _compare_on_own_clock(p: Patches) -> None:
    """A member lets something of its own decide how a transaction ends."""

    def made(choose: Any) -> Any:
        def moody(store: Any, txn: Any) -> Any:
            branch = choose(store, txn)
            if store.backend.commits % 40 == 39 and txn.failure:
                txn = pb.TxnRequest(failure=txn.failure, compare=txn.compare)
                txn.success.extend(txn.failure)
                return choose(store, txn)
            return branch

        return moody

    p.wrap(txns, "choose_branch", made)


# Watches and leases


@bug("watch-skips-one", within=20)
def _watch_skips_one(p: Patches) -> None:
    """A watch that goes on in the past leaves out the first revision."""

    def made(admit: Any) -> Any:
        def hasty(self: Any, watcher: Any, start: int, *, notices: bool) -> None:
            late = start + 1 if 0 < start <= self.rev else start
            admit(self, watcher, late, notices=notices)

        return hasty

    p.wrap(WatchHub, "admit", made)


@bug("watch-repeats-one", within=20)
def _watch_repeats_one(p: Patches) -> None:
    """A watch that has caught up is sent the last revision once more."""

    def made(ride: Any) -> Any:
        def repeating(self: Any, watcher: Any, batch: Any) -> None:
            if watcher.was_sent:
                watcher.next_rev -= 1
            ride(self, watcher, batch)

        return repeating

    p.wrap(WatchHub, "_ride", made)


@bug("watch-forgets-a-snapshot", within=200)
def _watch_forgets_a_snapshot(p: Patches) -> None:
    """Watches go on after a snapshot as if nothing had happened before it."""

    def restore(self: Any) -> None:
        self.rev = self._store.rev

    p.set(WatchHub, "restore", restore)


@bug("progress-for-all", within=20)
def _progress_for_all(p: Patches) -> None:
    """A progress notice is sent although a watch is still catching up."""

    def progress(self: WatchStream) -> None:
        if self.watchers:
            self.send(self._hub.present_header() + b"\x10" + b"\xff" * 9 + b"\x01")

    p.set(WatchStream, "progress", progress)


@bug("lease-ends-key-by-key", within=20)
def _lease_ends_key_by_key(p: Patches) -> None:
    """The keys of a lease go one after the other, each in a revision of its own."""

    def revoke(self: Any, request: Any) -> bytes:
        for key in self._lessor.revoke(LeaseID(request.ID)):
            write = self._store.write()
            write.delete_range(key, b"")
            write.end()
        return b""

    p.wrap(Applier, "__init__", lambda init: _with_handler(init, "lease_revoke", revoke))


def _with_handler(init: Any, kind: str, handler: Any) -> Any:
    def wrapped(self: Any, **parts: Any) -> None:
        init(self, **parts)
        self._handlers[kind] = MethodType(handler, self)

    return wrapped


@bug("lease-not-extended", within=20)
def _lease_not_extended(p: Patches) -> None:
    """A new leader counts a lease's time from when it was granted, not from when it leads."""

    def made(promote: Any) -> Any:
        def strict(self: Any, now: float, extend: float) -> None:
            promote(self, now, extend)
            for lease in self._leases.values():
                lease.expiry = lease.queued = now + lease.ttl / 4
            self._expiries.reset({each.id: each.expiry for each in self._leases.values()})

        return strict

    p.wrap(Lessor, "promote", made)


@bug("lease-ended-by-a-follower", within=50)
def _lease_ended_by_a_follower(p: Patches) -> None:
    """Who led before goes on counting the time of leases, and has them revoked."""

    def demoted(self: Any) -> None:
        for wait in self._waiting.values():
            wait.clear()

    def expire(self: Any) -> None:
        self._parts.expiry.check(self._parts.now())

    p.set(Lessor, "demote", demoted)
    p.set(Together, "expire_leases", expire)
