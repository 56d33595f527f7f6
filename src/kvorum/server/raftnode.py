"""Drives consensus: takes batches in, has them logged, hands out what was committed.

One turn of the write path: `Proposer` wakes this driver; the batch goes into the raft state
machine; what it wants stored goes to the log's thread; when that is done the answers go back into
the state machine, which then commits; committed entries are applied and answered. While one fsync
runs, the next batch gathers, and it is on its way to the disk before the first is applied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import perf_counter
from typing import Final, Protocol

from kvorum import errors, failpoint
from kvorum.raft.errors import ProposalDropped
from kvorum.raft.rawnode import RawNode
from kvorum.raft.ready import Ready
from kvorum.raft.storage import MemoryStorage
from kvorum.raft.types import (
    EMPTY_HARD_STATE,
    LOCAL_APPEND_THREAD,
    LOCAL_APPLY_THREAD,
    NONE,
    HardState,
    Message,
    StateType,
)
from kvorum.server.applier import Applier
from kvorum.server.diskthread import DiskThread
from kvorum.server.proposer import Proposer
from kvorum.server.reads import ReadGate
from kvorum.types import Index, MemberID, Term
from kvorum.wal import WAL, WriteBatch, WriteTimes

QUICK_SYNC: Final = 0.001
"""Seconds that a sync may take for the next one to be done on the loop."""


class Observer(Protocol):
    """Who wants to know what consensus does."""

    def leader_changed(self, leader: MemberID, *, is_leader: bool, term: Term) -> None: ...
    def applied(self, counts: dict[str, int], seconds: float) -> None: ...
    def logged(self, times: WriteTimes, size: int) -> None: ...
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
        disk: DiskThread,
        applier: Applier,
        proposer: Proposer,
        reads: ReadGate,
        observer: Observer,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._id = member
        self.leader = NONE
        self.is_leader = False
        self.term = Term(0)
        self.committed = Index(0)
        self._node = node
        self._storage = storage
        self._wal = wal
        self._disk = disk
        self._applier = applier
        self._observer = observer
        self._loop = loop
        self._proposer = proposer
        self._reads = reads
        self._woken = False
        self._writing = 0
        self._quick = False
        self._unlogged: HardState | None = None  # a commit index that waits for the next write
        self._stopped = False

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
        if not self._stopped:
            self._node.tick()
            self._advance()

    def ask_read_index(self, context: bytes) -> None:
        self._node.read_index(context)

    def stop(self) -> None:
        """Take nothing more in, and report nothing more."""
        self._stopped = True

    def _turn(self) -> None:
        self._woken = False
        if self._stopped:
            return
        self._reads.send()
        if not self._writing:
            self._propose()
        self._advance()

    def _advance(self) -> None:
        """`_process`, as the last step of a callback of the loop: what goes wrong in there leaves
        the state in doubt, so the member must not go on."""
        try:
            self._process()
        except Exception as error:
            self._observer.failed(error)

    def _propose(self) -> None:
        if self.leader == NONE:
            return  # they wait for a leader, or until their time is up
        entries = self._proposer.take_batch()
        if not entries:
            return
        try:
            self._node.propose(entries)
        except ProposalDropped:
            self._proposer.drop(entries, errors.RequestTooManyRequests)

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
            for state in ready.read_states:
                self._reads.confirm(state.context, state.index)
            self._dispatch(ready.messages)
        self._reads.release(self._applier.index)

    def _take_soft_state(self, ready: Ready) -> None:
        assert ready.soft_state is not None
        self.leader = ready.soft_state.lead
        self.is_leader = ready.soft_state.state is StateType.LEADER
        self.term = self._node.basic_status().hard_state.term
        self._observer.leader_changed(self.leader, is_leader=self.is_leader, term=self.term)
        if self.leader != NONE:
            self.wake()

    def _take_term(self, term: Term) -> None:
        if term != self.term:
            self.term = term
            self._observer.leader_changed(self.leader, is_leader=self.is_leader, term=term)

    def _dispatch(self, messages: Sequence[Message]) -> None:
        """Appends first: the disk gets the next batch before this thread applies the last one."""
        if failpoint.active:
            failpoint.hit("raftBeforeLeaderSend" if self.is_leader else "raftBeforeFollowerSend")
        apply = None
        for message in messages:
            if message.to == LOCAL_APPEND_THREAD:
                self._append(message)
            elif message.to == LOCAL_APPLY_THREAD:
                apply = message
            else:
                raise NotImplementedError(f"a message to member {message.to:x}")
        if apply is not None:
            self._apply(apply)

    def _append(self, message: Message) -> None:
        if message.hard_state != EMPTY_HARD_STATE:
            self._unlogged = message.hard_state
        if not message.entries and not message.responses:
            return  # only the commit index moved: it need not be safe, so it goes with the next
        if failpoint.active:
            failpoint.hit("raftBeforeSave")
        batch = self._wal.encode(self._unlogged, message.entries)
        self._unlogged = None
        if len(message.entries) == 1 and self._quick and self._disk.idle and self._is_alone():
            self._finish_write(message, batch, self._wal.write(batch))
            return
        self._writing += 1
        self._disk.submit(
            lambda: self._wal.write(batch), lambda result: self._logged(message, batch, result)
        )

    def _is_alone(self) -> bool:
        """Whether nobody depends on this member's heartbeats.

        Then a single entry may be written right here: to one client that waits for each answer,
        two changes of thread cost as much as the sync itself. While it runs nothing else is
        served, so it is done only as long as syncs are quick, and what arrives meanwhile makes a
        larger batch, which goes to the thread.
        """
        return self._applier.conf_state.voters == (self._id,)

    def log_state(self) -> None:
        """Have the commit index logged that waits for a next write, without an fsync."""
        if self._unlogged is not None:
            batch = self._wal.encode(self._unlogged, [])
            self._unlogged = None
            self._disk.submit(lambda: self._wal.write(batch), self._state_logged)

    def _state_logged(self, result: object) -> None:
        if isinstance(result, BaseException):
            self._observer.failed(result)

    def _logged(
        self, message: Message, batch: WriteBatch, result: WriteTimes | BaseException
    ) -> None:
        """The log's thread has written and synced what ``message`` asked for."""
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
        if not self._writing:
            self._propose()
        self._advance()

    def _finish_write(self, message: Message, batch: WriteBatch, times: WriteTimes) -> None:
        """Tell the state machine that what it asked for is on disk."""
        if failpoint.active:
            failpoint.hit("raftAfterSave")
        self._quick = times.sync < QUICK_SYNC
        self._observer.logged(times, batch.size)
        self._storage.append(message.entries)
        for response in message.responses:
            self._node.step(response)

    def _apply(self, message: Message) -> None:
        started = perf_counter()
        counts = self._applier.apply(message.entries, self._node.apply_conf_change)
        self._observer.applied(counts, perf_counter() - started)
        if failpoint.active:
            failpoint.hit("raftBeforeAdvance")
        for response in message.responses:
            self._node.step(response)
