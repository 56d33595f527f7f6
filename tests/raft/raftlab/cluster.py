"""A cluster in one process: members with storage, their pending work, and the network between."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from raftlab import describe
from raftlab.output import Output

from kvorum.raft import (
    Config,
    ConfState,
    Entry,
    EntryType,
    HardState,
    MemoryStorage,
    Message,
    MsgType,
    RaftError,
    RawNode,
    Ready,
    Snapshot,
    SnapshotMetadata,
    is_local_target,
)
from kvorum.raft.codec import decode_entry_conf_change
from kvorum.types import MemberID


class HistoryStorage(MemoryStorage):
    """Gives out the snapshot of the newest state, whatever the log was last compacted to."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[Snapshot] = []

    def snapshot(self) -> Snapshot:
        return self.history[-1]


class Member:
    """A member whose state machine appends all it is given to one string of bytes."""

    def __init__(self, config: Config, storage: HistoryStorage) -> None:
        self.config = config
        self.storage = storage
        self.node = RawNode(config)
        self.append_work: deque[Message] = deque()
        self.apply_work: deque[Message] = deque()

    @property
    def id(self) -> MemberID:
        return self.config.id

    def persist(
        self, state: HardState, entries: Sequence[Entry], snapshot: Snapshot | None
    ) -> None:
        if not state.is_empty():
            self.storage.set_hard_state(state)
        if snapshot is not None and not snapshot.is_empty():
            assert not entries, "can't apply snapshot and entries at the same time"
            self.storage.apply_snapshot(snapshot)
        else:
            self.storage.append(entries)

    def apply(self, entries: Iterable[Entry]) -> None:
        history = self.storage.history
        for entry in entries:
            before = history[-1]
            conf_state: ConfState = before.metadata.conf_state
            update = entry.data
            if entry.type is not EntryType.NORMAL:
                change = decode_entry_conf_change(entry)
                conf_state = self.node.apply_conf_change(change)
                update = change.context
            meta = SnapshotMetadata(conf_state, entry.index, entry.term)
            history.append(Snapshot(before.data + update, meta))


class Cluster:
    """Members 1 to n, and the messages under way between them."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self.members: list[Member] = []
        self.network: list[Message] = []

    def member(self, number: int) -> Member:
        return self.members[number - 1]

    def chosen(self, numbers: Iterable[int]) -> list[Member]:
        """The members with these numbers, all if there are none."""
        return [self.member(number) for number in numbers] or self.members

    # --- one piece of work

    def process_ready(self, member: Member) -> None:
        rd = member.node.ready()
        self.output.write(describe.ready(rd))
        if not member.config.async_storage_writes:
            member.persist(rd.hard_state, rd.entries, rd.snapshot)
            member.apply(rd.committed_entries)
        self._dispatch(member, rd)
        if not member.config.async_storage_writes:
            member.node.advance()

    def _dispatch(self, member: Member, rd: Ready) -> None:
        for m in rd.messages:
            if m.type is MsgType.STORAGE_APPEND:
                member.append_work.append(m)
            elif m.type is MsgType.STORAGE_APPLY:
                member.apply_work.append(m)
            else:
                self.network.append(m)

    def process_append(self, member: Member) -> None:
        if not member.append_work:
            self.output.write("no append work to perform")
            return
        m = member.append_work.popleft()
        self._show_work(m)
        member.persist(m.hard_state, m.entries, m.snapshot)
        self._respond(m)

    def process_apply(self, member: Member) -> None:
        if not member.apply_work:
            self.output.write("no apply work to perform")
            return
        m = member.apply_work.popleft()
        self._show_work(m)
        member.apply(m.entries)
        self._respond(m)

    def _show_work(self, m: Message) -> None:
        self.output.write(f"Processing:\n{describe.message(m, responses=False)}\n")

    def _respond(self, m: Message) -> None:
        self.output.write("Responses:\n")
        for response in m.responses:
            self.output.write(describe.message(response) + "\n")
        self.network += m.responses

    # --- the network

    def pending(self, to: int, kind: MsgType | None = None, *, drop: bool = False) -> list[Message]:
        """The messages under way to ``to``; local ones cannot be dropped."""
        return [
            m
            for m in self.network
            if m.to == to and (kind is None or m.type is kind) and not (drop and _is_local(m))
        ]

    def deliver(self, to: int, kind: MsgType | None = None, *, drop: bool = False) -> int:
        """Deliver or drop the messages under way to ``to``; returns how many there were."""
        messages = self.pending(to, kind, drop=drop)
        taken = {id(m) for m in messages}
        self.network = [m for m in self.network if id(m) not in taken]
        for m in messages:
            prefix = "dropped: " if drop else ""
            self.output.write(f"{prefix}{describe.message(m)}\n")
            if not drop:
                self._step(m)
        return len(messages)

    def _step(self, m: Message) -> None:
        try:
            self.member(m.to).node.step(m)
        except RaftError as error:
            self.output.write(f"{error}\n")

    # --- until nothing is left to do

    def stabilize(self, members: list[Member]) -> None:
        while self._round(members):
            pass

    def _round(self, members: list[Member]) -> bool:
        busy = False
        for member in members:
            if member.node.has_ready():
                busy = True
                self.output.write(f"> {member.id} handling Ready\n")
                with self.output.indented():
                    self.process_ready(member)
        for member in members:
            if self.pending(member.id):
                busy = True
                self.output.write(f"> {member.id} receiving messages\n")
                with self.output.indented():
                    self.deliver(member.id)
        for member in members:
            if member.append_work:
                busy = True
                self.output.write(f"> {member.id} processing append thread\n")
                while member.append_work:
                    with self.output.indented():
                        self.process_append(member)
        for member in members:
            if member.apply_work:
                busy = True
                self.output.write(f"> {member.id} processing apply thread\n")
                while member.apply_work:
                    with self.output.indented():
                        self.process_apply(member)
        return busy


def _is_local(m: Message) -> bool:
    return m.from_ == m.to or is_local_target(m.from_) or is_local_target(m.to)
