"""A member of a simulated cluster: a node, a disk that survives crashes, and pending work."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from kvorum.raft import (
    Config,
    ConfState,
    Entry,
    HardState,
    MemoryStorage,
    Message,
    RawNode,
    Snapshot,
    SnapshotMetadata,
)
from kvorum.types import Index, MemberID, Term

BASE = Snapshot(
    b"base",
    SnapshotMetadata(ConfState(voters=(MemberID(1), MemberID(2), MemberID(3))), Index(5), Term(1)),
)
MEMBERS = [MemberID(number) for number in range(1, 7)]


@dataclass
class Disk:
    """What a crash leaves behind."""

    hard_state: HardState
    snapshot: Snapshot
    entries: list[Entry]


@dataclass
class Options:
    """What stays the same throughout a run."""

    async_writes: bool
    trouble: float
    config: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def draw(cls, rng: Random) -> Options:
        def maybe(*values: int) -> int:
            return rng.choice(values)

        config = {
            "pre_vote": rng.random() < 0.5,
            "check_quorum": rng.random() < 0.5,
            "step_down_on_removal": rng.random() < 0.5,
            "max_size_per_msg": maybe(0, 40, 200, 1 << 20),
            "max_committed_size_per_ready": maybe(1, 60, 1 << 20),
            "max_inflight_msgs": maybe(1, 2, 16),
            "max_inflight_bytes": maybe(0, 1 << 20),
            "max_uncommitted_size": maybe(0, 300),
        }
        return cls(rng.random() < 0.7, rng.choice((0.3, 1, 4)), config)


class SimStorage(MemoryStorage):
    """Sends snapshots of the state as it is now: an older one may not know its receiver yet."""

    def __init__(self, fresh: Callable[[], Snapshot]) -> None:
        super().__init__()
        self._fresh = fresh

    def snapshot(self) -> Snapshot:
        return self._fresh()

    def kept(self) -> Snapshot:
        return super().snapshot()


class SimMember:
    """A member with a disk; its state machine is a hash over everything it was given."""

    def __init__(self, number: MemberID, options: Options, seed: int) -> None:
        self.id = number
        self.options = options
        self.rng = Random(seed)
        first = number in BASE.metadata.conf_state.voters
        self.disk = Disk(HardState(), BASE if first else Snapshot(), [])
        self.up = False
        self.start()

    def start(self) -> None:
        disk = self.disk
        self.storage = SimStorage(self.snapshot)
        meta = disk.snapshot.metadata
        if meta.index:
            self.storage.apply_snapshot(disk.snapshot)
        self.storage.append(disk.entries)
        if not disk.hard_state.is_empty():
            # A snapshot of applied entries proves that they were committed.
            state = disk.hard_state
            commit = max(state.commit, meta.index)
            self.storage.set_hard_state(state._replace(commit=commit))
        self.applied = meta.index
        self.digest = disk.snapshot.data
        self.conf_state = meta.conf_state
        self.append_work: deque[Message] = deque()
        self.apply_work: deque[Message] = deque()
        self.node = RawNode(
            Config(
                id=self.id,
                storage=self.storage,
                applied=self.applied,
                election_tick=4,
                async_storage_writes=self.options.async_writes,
                rng=self.rng,
                **self.options.config,
            )
        )
        self.up = True

    def flush(self) -> None:
        storage = self.storage
        first, last = storage.first_index(), storage.last_index()
        entries = storage.entries(first, Index(last + 1), 1 << 62) if first <= last else []
        self.disk = Disk(storage.initial_state()[0], storage.kept(), entries)

    def persist(
        self, state: HardState, entries: Sequence[Entry], snapshot: Snapshot | None
    ) -> None:
        if snapshot is not None:
            self.storage.apply_snapshot(snapshot)
            self.applied = snapshot.metadata.index
            self.digest = snapshot.data
            self.conf_state = snapshot.metadata.conf_state
        self.storage.append(entries)
        if not state.is_empty():
            self.storage.set_hard_state(state)

    def snapshot(self) -> Snapshot:
        """The state machine as it is."""
        index = self.applied
        term = self.storage.term(index)
        return Snapshot(self.digest, SnapshotMetadata(self.conf_state, index, term))

    def compact(self) -> None:
        """Make a snapshot of what is applied, and keep a random part of the log before it."""
        if self.applied <= self.storage.kept().metadata.index:
            return
        self.storage.create_snapshot(self.applied, self.conf_state, self.digest)
        keep = self.rng.randrange(5)
        if self.applied - keep >= self.storage.first_index():
            self.storage.compact(Index(self.applied - keep))
        self.flush()
