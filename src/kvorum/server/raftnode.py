"""Drives consensus: takes batches in, has them logged, hands out what was committed.

One turn of the write path: `Proposer` wakes this driver; the batch goes into the raft state
machine; the entries leave for the other members, and go to the log; when a majority has them on
disk they are committed; committed entries are applied and answered. While one fsync runs, the next
batch gathers, and it is on its way to the disk before the first is applied.

What the other members send gathers in the same way: all that came in one turn of the loop goes
into the state machine before anything is asked of it, so that it is answered as one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from time import perf_counter
from typing import Protocol

from kvorum import failpoint
from kvorum.log import get_logger
from kvorum.peer.interface import Transport
from kvorum.raft.errors import StepPeerNotFound
from kvorum.raft.rawnode import RawNode
from kvorum.raft.ready import Ready
from kvorum.raft.status import Status
from kvorum.raft.storage import MemoryStorage
from kvorum.raft.types import (
    EMPTY_HARD_STATE,
    LOCAL_APPEND_THREAD,
    LOCAL_APPLY_THREAD,
    NONE,
    ConfChange,
    Entry,
    HardState,
    Message,
    Snapshot,
    StateType,
)
from kvorum.server.applier import Applier
from kvorum.server.intake import Intake
from kvorum.server.logwriter import LogWriter
from kvorum.server.outbox import condense
from kvorum.server.proposer import Caller, Proposer
from kvorum.server.reads import ReadGate
from kvorum.types import Index, MemberID, Term
from kvorum.wal import WAL, SnapshotRecord, WriteBatch, WriteTimes

lg = get_logger()


class Observer(Protocol):
    """Who wants to know what consensus does."""

    def leader_changed(self, leader: MemberID, *, is_leader: bool, term: Term) -> None: ...
    def applied(self, counts: dict[str, int], seconds: float) -> None: ...
    def logged(self, times: WriteTimes, size: int) -> None: ...
    def sending(self, messages: Sequence[Message]) -> None: ...
    def receiving_snapshot(self, snapshot: Snapshot) -> None:
        """A snapshot of the leader is about to be logged."""

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """In the log's thread: put the ``.snap`` file on disk."""

    def install_snapshot(self, snapshot: Snapshot) -> None:
        """A snapshot of the leader is in the log: replace the state by it, and call `installed`."""

    def failed(self, error: BaseException) -> None: ...


class RaftNode:
    """The driver of one member's state machine. All methods run on the loop."""

    def __init__(
        self,
        *,
        member: MemberID,
        node: RawNode,
        storage: MemoryStorage,
        wal: WAL,
        writer: LogWriter,
        applier: Applier,
        proposer: Proposer,
        reads: ReadGate,
        observer: Observer,
        transport: Transport,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._id = member
        self.leader = NONE
        self.is_leader = False
        self.term = Term(0)
        self._handing_over: Term | None = None  # the last term in which it was begun
        self.committed = Index(0)
        self.transport = transport
        self._node = node
        self._storage = storage
        self._wal = wal
        self._writer = writer
        self._applier = applier
        self._observer = observer
        self._loop = loop
        self._proposer = proposer
        self._reads = reads
        self._woken = False
        self._writing = 0
        self._last_write: Message | None = None  # of those under way
        self._unlogged: HardState | None = None  # a commit index that waits for the next write
        self._logged_vote = node.basic_status().hard_state[:2]
        self._stopped = False
        self._intake = Intake(node, proposer, wake=self.wake, reaches=self._reaches)
        self._installing: Index | None = None
        self._held: deque[Message] = deque()  # entries to be applied after that

    # Calls from outside

    def start(self) -> None:
        """Apply what is committed and not in the backend yet; the only voter then campaigns at
        once, since nobody else could lead.
        """
        state = self._node.basic_status().hard_state
        self.committed = state.commit
        self._take_term(state.term)
        self._process()
        if self._applier.conf_state.voters == (self._id,):
            self._node.campaign()
            self._process()

    def wake(self) -> None:
        """Have what was gathered taken up at the end of this turn of the loop."""
        if not self._woken:
            self._woken = True
            self._loop.call_soon(self._turn)

    def tick(self) -> None:
        """One unit of time has passed."""
        self.advance_ticks(1)

    def advance_ticks(self, ticks: int) -> None:
        """Several have, or nobody need wait for them."""
        if self._stopped:
            return
        for _ in range(ticks):
            self._node.tick()
        self._intake.tick()
        self._advance()

    def ask_read_index(self, context: bytes) -> None:
        self._node.read_index(context)

    def propose_conf_change(self, change: ConfChange, caller: Caller) -> None:
        """Propose a change of the members. The caller gets an empty reply once it is applied here,
        or the error with which it was refused."""
        self._proposer.propose_conf_change(change, caller)

    def transfer_leader(self, target: MemberID) -> None:
        """Try to have another member lead. Whether it does is to be watched; after an election
        time-out the leader goes on as before."""
        if not self._stopped:
            self._handing_over = self.term
            self._node.transfer_leader(target)
            self._advance()

    @property
    def handing_over(self) -> bool:
        """Whether another member was asked to lead in this member's term. It need not wait for an
        election time-out, and so may lead already while this one, not hearing of it, goes on."""
        return self._handing_over == self.term

    def status(self) -> Status:
        return self._node.status()

    def receive(self, message: Message) -> None:
        """Take a message of another member, for the next turn."""
        self._intake.receive(message)

    def report_unreachable(self, member: MemberID) -> None:
        if not self._stopped:
            self._node.report_unreachable(member)
            self.wake()

    def report_snapshot(self, member: MemberID, ok: bool) -> None:
        if not self._stopped:
            self._node.report_snapshot(member, ok)
            self.wake()

    def stop(self) -> None:
        """Take nothing more in, and report nothing more."""
        self._stopped = True

    def _reaches(self, member: MemberID) -> bool:
        return self.transport.active_since(member) is not None

    # One turn

    def _turn(self) -> None:
        self._woken = False
        if not self._stopped:
            self._advance()

    def _advance(self) -> None:
        """The last step of a callback of the loop: what goes wrong in there leaves the state in
        doubt, so the member must not go on."""
        try:
            self._intake.step_messages()
            if not self._reads.unanswered:
                self._reads.send()
            self._intake.propose(writing=self._writing > 0)
            self._process()
        except Exception as error:
            self._observer.failed(error)

    def _process(self) -> None:
        """Carry out what the state machine asks for, until it asks for nothing."""
        node = self._node
        while node.has_ready():
            ready = node.ready()
            if ready.soft_state is not None:
                self._take_soft_state(ready)
            if ready.hard_state is not EMPTY_HARD_STATE:
                self.committed = ready.hard_state.commit
                self._take_term(ready.hard_state.term)
            if ready.read_states:
                self._confirm_reads(ready)
            self._dispatch(ready.messages)
        self._reads.release(self._applier.index)

    def _confirm_reads(self, ready: Ready) -> None:
        reads = self._reads
        for state in ready.read_states:
            reads.confirm(state.context, state.index)
        if reads.gathered and not reads.unanswered:
            reads.send()

    def _take_soft_state(self, ready: Ready) -> None:
        assert ready.soft_state is not None
        before = self.leader
        self.leader = ready.soft_state.lead
        self.is_leader = ready.soft_state.state is StateType.LEADER
        self.term = self._node.basic_status().hard_state.term
        self._observer.leader_changed(self.leader, is_leader=self.is_leader, term=self.term)
        if self.leader != NONE:
            self.wake()
            if self.leader != before:
                self._reads.ask_again()

    def _take_term(self, term: Term) -> None:
        if term != self.term:
            self.term = term
            self._observer.leader_changed(self.leader, is_leader=self.is_leader, term=term)

    def _dispatch(self, messages: Sequence[Message]) -> None:
        """Other members first, so that their disks work beside this one's (thesis, 10.2.1: what
        must not leave before it is on disk here is among the responses of the append); then the
        disk, which gets the next batch before this thread applies the last one."""
        if failpoint.active:
            failpoint.hit("raftBeforeLeaderSend" if self.is_leader else "raftBeforeFollowerSend")
        append = apply = None
        peers: list[Message] = []
        for message in messages:
            if message.to == LOCAL_APPEND_THREAD:
                append = message
            elif message.to == LOCAL_APPLY_THREAD:
                apply = message
            else:
                peers.append(message)
        if peers:
            self._send(peers)
        if append is not None:
            self._append(append)
        if apply is not None:
            self._apply(apply)

    def _send(self, messages: list[Message]) -> None:
        messages = condense(messages)
        self._observer.sending(messages)
        self.transport.send(messages)

    # The log

    def _append(self, message: Message) -> None:
        if message.hard_state != EMPTY_HARD_STATE:
            self._unlogged = message.hard_state
        if message.snapshot is not None:
            self._append_snapshot(message, message.snapshot)
            return
        if not message.entries and not self._voted():
            # At most the commit index moved: it need not be safe, so it goes with the next write.
            self._answer_after_writes(message.responses)
            return
        if failpoint.active:
            failpoint.hit("raftBeforeSave")
        batch = self._encode(message.entries)
        if len(message.entries) == 1 and self._writer.quick and self._is_alone():
            self._finish_write(message, batch, self._writer.write_here(batch))
            return
        self._writing += 1
        self._last_write = message
        self._writer.write(batch, lambda result: self._logged(message, batch, result))

    def _answer_after_writes(self, responses: Sequence[Message]) -> None:
        """What needs no write of its own, such as the word to a leader that tells a new commit
        index, waits at most for the writes before it; it goes with the answers to the last."""
        if not self._writing:
            self._answer(responses)
        elif responses:
            assert self._last_write is not None
            self._last_write.responses = [*self._last_write.responses, *responses]

    def _voted(self) -> bool:
        """Whether the state that waits to be logged has another term or vote."""
        return self._unlogged is not None and self._unlogged[:2] != self._logged_vote

    def _encode(self, entries: Sequence[Entry]) -> WriteBatch:
        state, self._unlogged = self._unlogged, None
        if state is not None:
            self._logged_vote = state[:2]
        return self._wal.encode(state, entries)

    def _append_snapshot(self, message: Message, snapshot: Snapshot) -> None:
        """The file first, then the record that vouches for it, then the state that counts on both:
        wherever this is cut off, the next start finds either state of things complete."""
        self._observer.receiving_snapshot(snapshot)
        record = self._wal.encode_snapshot(SnapshotRecord.of(snapshot.metadata))
        batch = self._encode(message.entries)

        def write() -> WriteTimes:
            if failpoint.active:
                failpoint.hit("raftBeforeSaveSnap")
            self._observer.save_snapshot(snapshot)
            if failpoint.active:
                failpoint.hit("raftAfterSaveSnap")
                failpoint.hit("raftBeforeSave")
            return self._wal.write_all((record, batch))

        self._writing += 1
        self._last_write = message
        self._writer.submit(write, lambda result: self._logged(message, batch, result))

    def _is_alone(self) -> bool:
        """Whether nobody depends on this member's heartbeats.

        Then a single entry may be written and synced right here, which answers a client that
        waits for each answer the soonest. While it runs nothing else is served, so it is done only
        as long as syncs are quick, and what arrives meanwhile makes a larger batch.
        """
        state = self._applier.conf_state
        return state.voters == (self._id,) and not state.learners

    def log_state(self) -> None:
        """Have the commit index logged that waits for a next write, without an fsync."""
        if self._unlogged is not None:
            batch = self._encode([])
            self._writer.write(batch, self._state_logged)

    def _state_logged(self, result: object) -> None:
        if isinstance(result, BaseException):
            self._observer.failed(result)

    def _logged(
        self, message: Message, batch: WriteBatch, result: WriteTimes | BaseException
    ) -> None:
        """What ``message`` asked for is written and synced, or could not be."""
        if self._stopped:
            return
        if isinstance(result, BaseException):
            self._observer.failed(result)
            return
        self._writing -= 1
        try:
            self._finish_write(message, batch, result)
        except Exception as error:  # as in `_advance`
            self._observer.failed(error)
            return
        self._advance()

    def _finish_write(self, message: Message, batch: WriteBatch, times: WriteTimes) -> None:
        """Tell the state machine, and those who wait, that what it asked for is on disk."""
        if failpoint.active:
            failpoint.hit("raftAfterSave")
        self._observer.logged(times, batch.size)
        if message.snapshot is not None:
            self._begin_install(message.snapshot)
        self._storage.append(message.entries)
        self._answer(message.responses)

    def _answer(self, responses: Sequence[Message]) -> None:
        """Responses that counted on what is now on disk: to the others, and to this member."""
        own = self._id
        peers = [response for response in responses if response.to != own]
        if peers:
            self._send(peers)
        for response in responses:
            if response.to == own:
                self._respond(response)

    def _respond(self, response: Message) -> None:
        """A member that was just removed does not know itself any more; that is no error."""
        try:
            self._node.step(response)
        except StepPeerNotFound:
            lg.debug("ignored a message to a removed member", message_type=response.type.label)

    # Applying

    def _apply(self, message: Message) -> None:
        if self._installing is not None:
            self._held.append(message)
            return
        started = perf_counter()
        entries = message.entries
        done = self._applier.index - entries[0].index + 1
        if done > 0:
            entries = entries[done:]  # the database of a snapshot reached further than was said
        counts = self._applier.apply(entries, self._node.apply_conf_change)
        self._observer.applied(counts, perf_counter() - started)
        if failpoint.active:
            failpoint.hit("raftBeforeAdvance")
        for response in message.responses:
            self._respond(response)

    def _begin_install(self, snapshot: Snapshot) -> None:
        """The leader's snapshot is safe on disk. From here on the log goes on after it, and what is
        committed waits until the state has caught up; what came before it need not be applied."""
        index = snapshot.metadata.index
        if failpoint.active:
            failpoint.hit("raftBeforeApplySnap")
        self._storage.apply_snapshot(snapshot)
        if failpoint.active:
            failpoint.hit("raftAfterApplySnap")
        lg.info("applied incoming Raft snapshot", snapshot_index=index)
        self._wal.release_to(index)
        if failpoint.active:
            failpoint.hit("raftAfterWALRelease")
        self._installing = index
        held, self._held = self._held, deque()
        for message in held:
            assert message.entries[-1].index <= index, (message.entries[-1].index, index)
            for response in message.responses:
                self._respond(response)
        self._observer.install_snapshot(snapshot)

    def installed(self, index: Index) -> None:
        """The state is that of the snapshot at ``index``: go on with what was committed since."""
        if self._stopped or index != self._installing:
            return  # or another snapshot came meanwhile, and is installed next
        self._installing = None
        held, self._held = self._held, deque()
        try:
            for message in held:
                self._apply(message)
        except Exception as error:  # as in `_advance`
            self._observer.failed(error)
            return
        self._advance()
