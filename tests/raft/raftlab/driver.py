"""One member with its storage and applied entries, and a network of such members."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any

from kvorum.raft import (
    Config,
    ConfState,
    Entry,
    EntryType,
    HardState,
    MemoryStorage,
    Message,
    MsgType,
    RawNode,
    ReadState,
    Ready,
    Snapshot,
    SnapshotMetadata,
    StateType,
)
from kvorum.raft.codec import decode_entry_conf_change
from kvorum.types import Index, MemberID, Term

BASE = Index(1)
"""Members begin with a snapshot at this index and term 1, which holds the configuration."""


def ids(*numbers: int) -> tuple[MemberID, ...]:
    return tuple(MemberID(number) for number in numbers)


def log_of(*terms: int, after: int = BASE) -> list[Entry]:
    """Entries of these terms, after index ``after``."""
    return [
        Entry(Term(term), Index(index), data=b"%d.%d" % (term, index))
        for index, term in enumerate(terms, after + 1)
    ]


def storage_with(conf_state: ConfState, *terms: int, base: int = BASE) -> MemoryStorage:
    storage = MemoryStorage()
    meta = SnapshotMetadata(conf_state, Index(base), Term(1 if base else 0))
    storage.apply_snapshot(Snapshot(b"", meta))
    storage.append(log_of(*terms, after=base))
    return storage


class Driver:
    """Carries out every Ready at once, and keeps what the member wants sent."""

    def __init__(
        self, number: int, storage: MemoryStorage, applied: int = BASE, **config: Any
    ) -> None:
        config.setdefault("rng", Random(number))
        self.id = MemberID(number)
        self.storage = storage
        self.config = Config(id=self.id, storage=storage, applied=Index(applied), **config)
        self.node = RawNode(self.config)
        self.raft = self.node.raft
        self.sent: list[Message] = []
        self.applied: list[Entry] = []
        self.reads: list[ReadState] = []
        self.readies: list[Ready] = []

    def settle(self) -> Driver:
        """Carry out Readies until there are no more."""
        while self.node.has_ready():
            self._carry_out(self.node.ready())
        return self

    def _carry_out(self, rd: Ready) -> None:
        self.readies.append(rd)
        self.reads += rd.read_states
        if not self.config.async_storage_writes:
            self._persist(rd.hard_state, rd.entries, rd.snapshot)
            self.sent += rd.messages
            self._apply(rd.committed_entries)
            self.node.advance()
            return
        for m in rd.messages:
            if m.type is MsgType.STORAGE_APPEND:
                self._persist(m.hard_state, m.entries, m.snapshot)
            elif m.type is MsgType.STORAGE_APPLY:
                self._apply(m.entries)
            else:
                self.sent.append(m)
                continue
            for response in m.responses:
                if response.to == self.id:
                    self.node.step(response)
                else:
                    self.sent.append(response)

    def _persist(
        self, state: HardState, entries: Sequence[Entry], snapshot: Snapshot | None
    ) -> None:
        if snapshot is not None:
            self.storage.apply_snapshot(snapshot)
        self.storage.append(entries)
        if not state.is_empty():
            self.storage.set_hard_state(state)

    def _apply(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self.applied.append(entry)
            if entry.type is not EntryType.NORMAL:
                self.node.apply_conf_change(decode_entry_conf_change(entry))

    # --- what tests say and ask

    def take(self, *kinds: MsgType) -> list[Message]:
        """Settle and take the messages sent since, of these types or all."""
        self.settle()
        sent, self.sent = self.sent, []
        return [m for m in sent if not kinds or m.type in kinds]

    def receive(self, kind: MsgType, from_: int, term: int = 0, **fields: Any) -> Driver:
        m = Message(kind, to=self.id, from_=MemberID(from_), term=Term(term), **fields)
        self.node.step(m)
        return self

    def propose(self, *data: bytes) -> Driver:
        self.node.propose([Entry(data=one) for one in data])
        return self

    def tick(self, times: int = 1) -> Driver:
        for _ in range(times):
            self.node.tick()
        return self

    def win(self) -> Driver:
        """Campaign and get everybody's vote."""
        self.node.campaign()
        self.settle()
        voters = self.raft.tracker.config.all_voters()
        for kind in (MsgType.PRE_VOTE_RESP, MsgType.VOTE_RESP):
            if self.state is StateType.LEADER:
                break
            term = self.term + (kind is MsgType.PRE_VOTE_RESP)
            for voter in voters:
                if voter != self.id:
                    self.receive(kind, voter, term)
            self.settle()
        assert self.state is StateType.LEADER
        return self

    def acknowledge(self, *members: int, index: int | None = None) -> Driver:
        """These members report that they have everything up to ``index``, or all."""
        last = self.last if index is None else Index(index)
        for member in members:
            self.receive(MsgType.APP_RESP, member, self.term, index=last)
        return self.settle()

    @property
    def state(self) -> StateType:
        return self.raft.state

    @property
    def term(self) -> int:
        return self.raft.term

    @property
    def lead(self) -> int:
        return self.raft.lead

    @property
    def committed(self) -> int:
        return self.raft.log.committed

    @property
    def last(self) -> Index:
        return self.raft.log.last_index()

    def terms(self) -> list[int]:
        """The terms of the log after its snapshot."""
        log = self.raft.log
        return [log.term(Index(i)) or 0 for i in range(log.first_index(), log.last_index() + 1)]

    def data(self) -> list[bytes]:
        """What the state machine was given, without empty entries and changes."""
        return [e.data for e in self.applied if e.data and e.type is EntryType.NORMAL]


def lone(number: int = 1, voters: Sequence[int] = (1, 2, 3), *terms: int, **config: Any) -> Driver:
    """A member among ``voters`` whose log has ``terms`` after its snapshot."""
    learners = config.pop("learners", ())
    state = ConfState(voters=ids(*voters), learners=ids(*learners))
    storage = storage_with(state, *terms)
    term, vote, commit = (config.pop(name, 0) for name in ("term", "vote", "commit"))
    hard_state = HardState(Term(term), MemberID(vote), Index(commit or BASE))
    if term or vote or commit:
        storage.set_hard_state(hard_state)
    return Driver(number, storage, **config)


class Network:
    """Members whose messages arrive at once and in order, unless a filter says otherwise."""

    def __init__(self, members: Iterable[Driver]) -> None:
        self.members = {member.id: member for member in members}
        self.keeps: Callable[[Message], bool] = lambda m: True

    def __getitem__(self, number: int) -> Driver:
        return self.members[MemberID(number)]

    def run(self) -> Network:
        """Deliver messages until there are no more."""
        while messages := [m for member in self.members.values() for m in member.take()]:
            for m in messages:
                if m.to in self.members and self.keeps(m):
                    self.members[m.to].node.step(m)
        return self

    def cut_off(self, *numbers: int) -> None:
        """Nothing gets through from or to these members."""
        self.keeps = lambda m: m.to not in numbers and m.from_ not in numbers

    def lose(self, *kinds: MsgType) -> None:
        self.keeps = lambda m: m.type not in kinds

    def heal(self) -> None:
        self.keeps = lambda m: True

    def elect(self, number: int) -> Network:
        self[number].node.campaign()
        self.run()
        assert self[number].state is StateType.LEADER
        return self

    def beat(self, number: int) -> Network:
        """One heartbeat of this leader, and all that follows from it."""
        self[number].tick(self[number].config.heartbeat_tick)
        return self.run()


def network(size: int = 3, **config: Any) -> Network:
    voters = range(1, size + 1)
    return Network(lone(number, tuple(voters), **config) for number in voters)
