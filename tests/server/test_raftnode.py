"""The driver of consensus, with a disk that writes when the test says so.

What is checked is the order of things: nothing is applied before it is on disk, nothing is answered
before it is applied, and what comes during a write goes into the next one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from server_kit import Caller

from kvorum.membership import Member
from kvorum.pb import etcdserverpb as pb
from kvorum.raft.codec import encode_conf_change
from kvorum.raft.config import Config
from kvorum.raft.errors import ProposalDropped
from kvorum.raft.rawnode import RawNode
from kvorum.raft.storage import MemoryStorage
from kvorum.raft.types import (
    ConfChange,
    ConfState,
    Entry,
    EntryType,
    HardState,
    Message,
    MsgType,
    Snapshot,
    SnapshotMetadata,
)
from kvorum.server.alone import Alone
from kvorum.server.logwriter import LogWriter
from kvorum.server.proposer import Proposer
from kvorum.server.raftnode import RaftNode
from kvorum.server.reads import ReadGate
from kvorum.server.request import RequestIds
from kvorum.types import Index, MemberID, Term
from kvorum.wal import WriteBatch, WriteFailed, WriteTimes

pytestmark = pytest.mark.plain  # its log is a double

ME = MemberID(5)


class Loop:
    """Callbacks of one turn run in the next."""

    def __init__(self) -> None:
        self._soon: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)

    def turn(self) -> None:
        ready, self._soon = self._soon, []
        for callback in ready:
            callback()

    def settle(self) -> None:
        while self._soon:
            self.turn()


class Batch(WriteBatch):
    """Keeps what was encoded as it was."""

    def __init__(self, state: HardState | None, entries: Sequence[Entry]) -> None:
        super().__init__(0, 0)
        self.size = 10
        self.state = state
        self.entries = list(entries)


class Log:
    """``written`` is what has reached the disk."""

    def __init__(self) -> None:
        self.written: list[tuple[HardState | None, list[Entry]]] = []
        self.broken: WriteFailed | None = None

    def encode(self, state: HardState | None, entries: Sequence[Entry]) -> Batch:
        if self.broken is not None:
            raise self.broken
        return Batch(state, entries)

    def write(self, batch: Batch) -> WriteTimes:
        self.written.append((batch.state, batch.entries))
        return WriteTimes(0.25, 0.5)


class Disk:
    """Holds the writes until the test lets them happen."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[Callable[[], Any], Callable[[Any], None]]] = deque()

    def submit(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        self.waiting.append((work, done))

    def write(self) -> Callable[[Any], None]:
        """The next write happens, but the loop has not heard of it."""
        work, done = self.waiting.popleft()
        result = work()
        return lambda _: done(result)

    def finish(self) -> None:
        self.write()(None)

    def fail(self, error: BaseException) -> None:
        _, done = self.waiting.popleft()
        done(error)


class Applier:
    """Writes down what is applied, and answers."""

    def __init__(self, bench: Bench) -> None:
        self.index = Index(0)
        self.conf_state = ConfState()
        self._bench = bench

    def apply(
        self, entries: Sequence[Entry], change_conf: Callable[[ConfChange], ConfState]
    ) -> dict[str, int]:
        bench = self._bench
        on_disk = {entry.index for _, written in bench.log.written for entry in written}
        for entry in entries:
            assert entry.index == self.index + 1
            assert entry.index in on_disk or entry.index <= bench.on_disk_before
            self.index = entry.index
            if entry.type is EntryType.CONF_CHANGE:
                self.conf_state = change_conf(ConfChange(node_id=ME))
            elif entry.local is not None:
                if bench.apply_fails is not None:
                    raise bench.apply_fails
                proposal: Any = entry.local
                bench.events.append(f"apply {proposal.request.key.decode()}")
                assert bench.proposer.done(proposal.id) is proposal
                proposal.caller.reply(proposal.request.key)
        return {"put": len(entries)}


class Bench:
    """A member alone in its cluster, started on a log of ``entries`` of which the first are
    committed and applied."""

    def __init__(self, *, before: int = 1, applied: int = 0) -> None:
        self.loop, self.log, self.disk = Loop(), Log(), Disk()
        self.events: list[str] = []
        self.failures: list[BaseException] = []
        self.sent: list[Message] = []
        self.batches: list[dict[str, int]] = []
        self.apply_fails: Exception | None = None
        self.on_disk_before = before
        self.now = 0.0
        self.proposer = Proposer(
            RequestIds(ME, 0),
            max_request_bytes=1 << 20,
            wake=lambda: self.raft.wake(),
            clock=lambda: self.now,
        )
        self.reads = ReadGate(
            next_id=self.proposer.ids.next,
            ask=lambda context: self.raft.ask_read_index(context),
            wake=lambda: self.raft.wake(),
            clock=lambda: self.now,
        )
        self.storage = storage_of(before, applied)
        self.applier = Applier(self)
        self.applier.index = Index(applied)
        if applied:
            self.applier.conf_state = ConfState((ME,))
        self.node = RawNode(
            Config(id=ME, storage=self.storage, applied=Index(applied), async_storage_writes=True)
        )
        self.raft = RaftNode(
            member=ME,
            node=self.node,
            storage=self.storage,
            wal=self.log,  # type: ignore[arg-type]
            writer=LogWriter(
                self.log,  # type: ignore[arg-type]
                self.disk,
                kernel=None,
                loop=self.loop,  # type: ignore[arg-type]
            ),
            applier=self.applier,  # type: ignore[arg-type]
            proposer=self.proposer,
            reads=self.reads,
            observer=self,
            transport=Alone(),
            loop=self.loop,  # type: ignore[arg-type]
        )

    # What the driver reports

    def leader_changed(self, leader: MemberID, *, is_leader: bool, term: Term) -> None:
        role = "leader" if is_leader else "follower"
        self.events.append(f"{role} in term {term}, led by {leader}")

    def applied(self, counts: dict[str, int], seconds: float) -> None:
        assert seconds >= 0
        self.batches.append(counts)

    def logged(self, times: WriteTimes, size: int) -> None:
        assert (times, size) == (WriteTimes(0.25, 0.5), 10)

    def sending(self, messages: Sequence[Message]) -> None:
        self.sent.extend(messages)

    def receiving_snapshot(self, snapshot: Snapshot) -> None:
        self.events.append(f"receiving snapshot {snapshot.metadata.index}")

    def save_snapshot(self, snapshot: Snapshot) -> None:
        self.events.append(f"saving snapshot {snapshot.metadata.index}")

    def install_snapshot(self, snapshot: Snapshot) -> None:
        self.events.append(f"installing snapshot {snapshot.metadata.index}")

    def failed(self, error: BaseException) -> None:
        self.failures.append(error)
        self.raft.stop()

    # What the test does

    def lead(self) -> Bench:
        """Start, and become leader with all that follows."""
        self.raft.start()
        self.run()
        assert self.raft.is_leader
        self.events.clear()
        self.batches.clear()
        self.log.written.clear()
        self.on_disk_before = self.storage.last_index()
        return self

    def run(self) -> None:
        """Until there is nothing to do, with a disk that works."""
        self.loop.settle()
        while self.disk.waiting:
            self.disk.finish()
            self.loop.settle()

    def put(self, name: str) -> Caller:
        caller = Caller()
        request = pb.PutRequest(key=name.encode())
        self.proposer.propose("put", request.SerializeToString(), request, caller)
        return caller

    def read(self, name: str) -> None:
        self.reads.read(lambda request, _: self.events.append(f"read {request}"), name, Caller())

    def names(self, batch: int) -> list[str]:
        """The keys in a write that has happened."""
        _, entries = self.log.written[batch]
        return [entry.local.request.key.decode() for entry in entries]  # type: ignore[attr-defined]


def storage_of(before: int, applied: int) -> MemoryStorage:
    storage = MemoryStorage()
    change = ConfChange(node_id=ME, context=Member(ME, ("http://p",)).to_json())
    first = Entry(Term(1), Index(1), *encode_conf_change(change))
    rest = [Entry(Term(1), Index(i), EntryType.NORMAL, b"") for i in range(2, before + 1)]
    if applied:
        meta = SnapshotMetadata(ConfState((ME,)), Index(0), Term(0))
        storage.apply_snapshot(Snapshot(metadata=meta))
    storage.append([first, *rest])
    storage.set_hard_state(HardState(Term(1), ME, Index(before)))
    return storage


@pytest.fixture
def bench() -> Bench:
    return Bench().lead()


# Starting


def test_a_new_member_applies_its_first_entry_and_leads() -> None:
    bench = Bench()
    bench.raft.start()
    assert bench.applier.index == 1
    assert bench.applier.conf_state == ConfState((ME,))
    assert not bench.raft.is_leader  # its own vote has to be on disk first
    (state, entries) = bench_write(bench)
    assert (state, entries) == (HardState(Term(2), ME, Index(1)), [])
    bench.run()
    assert bench.events == [
        "follower in term 1, led by 0",
        "follower in term 2, led by 0",
        f"leader in term 2, led by {ME}",
    ]
    assert (bench.raft.term, bench.raft.leader, bench.raft.committed) == (2, ME, 2)


def bench_write(bench: Bench) -> tuple[HardState | None, list[Entry]]:
    bench.disk.finish()
    return bench.log.written[-1]


def test_a_restart_applies_what_is_committed_first() -> None:
    bench = Bench(before=9, applied=4)
    bench.raft.start()
    assert bench.applier.index == 9
    bench.run()
    assert bench.raft.is_leader
    assert bench.applier.index == 10


def test_one_who_is_not_the_only_voter_waits_for_others() -> None:
    bench = Bench(before=3, applied=1)
    bench.applier.conf_state = ConfState((ME, MemberID(6)))
    bench.raft.start()
    assert not bench.disk.waiting
    assert bench.raft.leader == 0


# The order of things


def test_a_write_is_logged_then_applied_then_answered(bench: Bench) -> None:
    caller = bench.put("a")
    assert not bench.disk.waiting  # a turn's requests are gathered first
    bench.loop.turn()
    assert (caller.answers, bench.events) == ([], [])
    heard = bench.disk.write()
    assert bench.names(0) == ["a"]
    assert (caller.answers, bench.events) == ([], [])  # on disk, but the loop does not know it
    heard(None)
    assert bench.events == ["apply a"]
    assert caller.message == b"a"


def test_one_turn_is_one_batch(bench: Bench) -> None:
    callers = [bench.put(name) for name in "abc"]
    bench.loop.turn()
    assert len(bench.disk.waiting) == 1
    bench.run()
    assert bench.names(0) == ["a", "b", "c"]
    assert bench.batches == [{"put": 3}]
    assert [caller.message for caller in callers] == [b"a", b"b", b"c"]


def test_what_comes_during_a_write_goes_into_the_next(bench: Bench) -> None:
    bench.put("a")
    bench.loop.turn()
    for name in "bcd":
        bench.put(name)
        bench.loop.turn()
        assert len(bench.disk.waiting) == 1
    bench.disk.finish()
    assert bench.names(0) == ["a"]
    assert bench.events == ["apply a"]
    assert len(bench.disk.waiting) == 1
    bench.disk.finish()
    assert bench.names(1) == ["b", "c", "d"]
    assert bench.events == [f"apply {name}" for name in "abcd"]


def test_the_next_write_begins_before_the_last_is_applied(bench: Bench) -> None:
    bench.put("a")
    bench.loop.turn()
    bench.put("b")
    apply = bench.applier.apply
    under_way = []

    def watching(*args: Any) -> dict[str, int]:
        under_way.append(len(bench.disk.waiting))
        return apply(*args)

    bench.applier.apply = watching  # type: ignore[method-assign]
    bench.disk.finish()
    assert under_way == [1]
    bench.disk.finish()
    assert under_way == [1, 0]


def test_the_commit_index_goes_with_the_next_write(bench: Bench) -> None:
    bench.put("a")
    bench.loop.turn()
    bench.disk.finish()
    assert not bench.disk.waiting  # that "a" is committed costs no write of its own
    bench.put("b")
    bench.run()
    states = [state for state, _ in bench.log.written]
    last = bench.storage.last_index()
    assert states[1] == HardState(Term(2), ME, Index(last - 1))


def test_a_follower_answers_a_commit_index_without_a_write() -> None:
    bench = Bench(before=3, applied=1)
    bench.applier.conf_state = ConfState((ME, MemberID(6)))
    bench.raft.start()
    tell(bench, 3, [Entry(Term(2), Index(4))], 3)
    assert not bench.sent
    bench.run()
    writes = len(bench.log.written)
    assert acknowledged(bench) == [4]
    tell(bench, 4, [], 4)
    assert not bench.disk.waiting
    assert acknowledged(bench) == [4, 4]
    assert bench.applier.index == 4
    assert len(bench.log.written) == writes


def test_a_follower_answers_after_the_writes_before() -> None:
    """The answer to an empty append vouches for what came before it."""
    bench = Bench(before=3, applied=1)
    bench.applier.conf_state = ConfState((ME, MemberID(6)))
    bench.raft.start()
    tell(bench, 3, [Entry(Term(2), Index(4))], 3)
    tell(bench, 4, [Entry(Term(2), Index(5))], 3)
    tell(bench, 5, [], 4)
    assert len(bench.disk.waiting) == 2
    assert not bench.sent
    bench.disk.finish()
    assert acknowledged(bench) == [4]
    bench.disk.finish()
    assert acknowledged(bench) == [4, 5]
    assert not bench.disk.waiting


def tell(bench: Bench, index: int, entries: list[Entry], commit: int) -> None:
    """An append of member 6, which leads in term 2, goes into the state machine."""
    bench.raft.receive(
        Message(
            MsgType.APP,
            ME,
            MemberID(6),
            Term(2),
            log_term=Term(1 if index < 4 else 2),
            index=Index(index),
            entries=entries,
            commit=Index(commit),
        )
    )
    bench.loop.settle()


def acknowledged(bench: Bench) -> list[int]:
    """The indexes that were acknowledged to that leader."""
    return [m.index for m in bench.sent if m.type is MsgType.APP_RESP]


def test_the_commit_index_can_be_asked_for(bench: Bench) -> None:
    """A snapshot needs it, and so does a stop."""
    bench.put("a")
    bench.run()
    bench.raft.log_state()
    bench.disk.finish()
    state, entries = bench.log.written[-1]
    assert (state, entries) == (HardState(Term(2), ME, bench.storage.last_index()), [])
    bench.raft.log_state()
    assert not bench.disk.waiting  # there is nothing new
    bench.put("b")
    bench.run()
    assert bench.events == ["apply a", "apply b"]


# Reads


def test_a_read_needs_no_disk(bench: Bench) -> None:
    bench.read("x")
    assert bench.events == []
    bench.loop.turn()
    assert bench.events == ["read x"]
    assert not bench.disk.waiting


def test_a_read_does_not_wait_for_a_write_under_way(bench: Bench) -> None:
    """It began before the write was answered, so it may see the state without it."""
    bench.put("a")
    bench.loop.turn()
    bench.read("x")
    bench.loop.turn()
    assert bench.events == ["read x"]
    bench.run()
    assert bench.events == ["read x", "apply a"]


def test_a_read_after_an_answer_sees_what_was_answered(bench: Bench) -> None:
    bench.put("a")
    bench.run()
    bench.read("x")
    bench.run()
    assert bench.events == ["apply a", "read x"]


def test_a_read_right_after_the_start_waits_for_the_terms_first_entry() -> None:
    """A leader does not know what is committed before it has committed something (Raft, section
    8)."""
    bench = Bench(before=3, applied=1)
    bench.raft.start()
    bench.read("x")
    bench.loop.settle()
    bench.disk.finish()  # the vote
    bench.loop.settle()
    assert bench.raft.is_leader
    assert [event for event in bench.events if event.startswith("read")] == []
    bench.run()
    bench.now = 0.6
    bench.reads.expire(bench.now, 7.0)
    bench.raft.tick()
    bench.run()
    assert [event for event in bench.events if event.startswith("read")] == ["read x"]


# Without a leader


def test_without_a_leader_requests_wait() -> None:
    bench = Bench()
    bench.raft.start()
    caller = bench.put("a")
    bench.loop.settle()
    assert caller.answers == []
    assert len(bench.proposer.waiting) == 1
    bench.run()
    assert caller.message == b"a"


def test_what_consensus_drops_waits(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may take it later, as when the office is handed over; else its time runs out."""

    def drop(self: RawNode, entries: Sequence[Entry]) -> None:
        raise ProposalDropped

    with monkeypatch.context() as patch:
        patch.setattr(RawNode, "propose", drop)
        first = bench.put("a")
        bench.run()
    assert first.answers == []
    second = bench.put("b")
    bench.raft.tick()
    bench.run()
    assert bench.names(0) == ["a", "b"]
    assert (first.message, second.message) == (b"a", b"b")


def test_a_leader_that_hears_of_no_quorum_is_none(bench: Bench) -> None:
    """Nothing of the kind happens to one alone, however long it ticks."""
    for _ in range(100):
        bench.raft.tick()
    bench.loop.settle()
    assert bench.raft.is_leader
    assert bench.events == []


def test_a_handover_begun_is_remembered_for_the_term(bench: Bench) -> None:
    """Whatever came of it, and however long ago: the other may lead without this one hearing."""
    assert not bench.raft.handing_over
    bench.raft.transfer_leader(MemberID(6))
    for _ in range(100):
        bench.raft.tick()
    bench.loop.settle()
    assert bench.raft.is_leader
    assert bench.raft.handing_over
    term = Term(bench.raft.term + 1)
    bench.raft.receive(Message(MsgType.HEARTBEAT, ME, MemberID(6), term))
    bench.run()
    assert bench.raft.leader == 6
    assert bench.raft.term == term
    assert not bench.raft.handing_over


# Failures

BROKEN = WriteFailed(Path("wal"), "io error")


def test_a_failed_write_acknowledges_nothing(bench: Bench) -> None:
    first = bench.put("a")
    bench.loop.turn()
    second = bench.put("b")
    bench.disk.fail(BROKEN)
    bench.loop.settle()
    assert bench.failures == [BROKEN]
    assert (first.answers, second.answers, bench.events) == ([], [], [])
    assert not bench.disk.waiting  # nor is anything more written
    assert bench.storage.last_index() == bench.on_disk_before


def test_a_log_that_failed_takes_nothing_more(bench: Bench) -> None:
    """The thread has failed, the loop has not heard of it yet, and meets the broken log itself."""
    bench.log.broken = BROKEN
    caller = bench.put("a")
    bench.loop.settle()
    assert bench.failures[0] is BROKEN
    assert caller.answers == []


def test_a_failed_state_record_ends_the_member_too(bench: Bench) -> None:
    bench.put("a")
    bench.run()
    bench.raft.log_state()
    bench.disk.fail(BROKEN)
    assert bench.failures == [BROKEN]


def test_a_bug_in_the_apply_ends_the_member(bench: Bench) -> None:
    bench.apply_fails = RuntimeError("a bug")
    caller = bench.put("a")
    bench.run()
    assert bench.failures == [bench.apply_fails]
    assert caller.answers == []


def test_after_a_stop_nothing_is_taken_in_or_reported(bench: Bench) -> None:
    caller = bench.put("a")
    bench.loop.turn()
    bench.put("b")
    bench.raft.stop()
    bench.run()
    assert len(bench.log.written) == 1  # what was under way has got there
    assert (caller.answers, bench.events) == ([], [])
