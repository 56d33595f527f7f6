"""Where raft finds the entries that are already on disk, and an in-memory store of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from kvorum.raft.errors import (
    InvariantViolation,
    LogCompacted,
    LogUnavailable,
    SnapshotOutOfDate,
)
from kvorum.raft.sizes import take
from kvorum.raft.types import (
    EMPTY_HARD_STATE,
    NO_INDEX,
    NO_TERM,
    ConfState,
    Entry,
    HardState,
    Snapshot,
    SnapshotMetadata,
)
from kvorum.types import Index, Term


class Storage(Protocol):
    """The stable part of the log, as raft reads it. It is never written through this interface."""

    def initial_state(self) -> tuple[HardState, ConfState]:
        """What was saved before the restart; empty values for a new member."""
        ...

    def entries(self, lo: Index, hi: Index, max_size: int) -> list[Entry]:
        """The entries in ``[lo, hi)``, cut to ``max_size`` bytes but at least one.

        The list belongs to the caller, the entries to nobody. Raises LogCompacted if ``lo`` is
        gone, LogUnavailable if some entry is not there.
        """
        ...

    def term(self, index: Index) -> Term:
        """The term at ``index``, which may be as low as ``first_index() - 1``.

        Raises LogCompacted or LogUnavailable outside ``[first_index() - 1, last_index()]``.
        """
        ...

    def first_index(self) -> Index:
        """The first entry still to be had; ``last_index() + 1`` if there is none."""
        ...

    def last_index(self) -> Index:
        """The last entry, or that of the snapshot if none follows it."""
        ...

    def snapshot(self) -> Snapshot:
        """The newest snapshot; raises SnapshotTemporarilyUnavailable while one is in the making.

        Not older than ``first_index() - 1``. A member that was added since it was made cannot use
        it and will ask again, so that it had better be of the present state.
        """
        ...


class MemoryStorage:
    """The log since the last compaction, in a list.

    ``_entries[i]`` is at index ``_first + i``. The entry before the first is compacted away, but
    its term stays known, for the check that precedes an append.
    """

    __slots__ = ("_base_term", "_entries", "_first", "_hard_state", "_snapshot")

    def __init__(self) -> None:
        self._hard_state = EMPTY_HARD_STATE
        self._snapshot = Snapshot()
        self._entries: list[Entry] = []
        self._first = Index(1)
        self._base_term = NO_TERM

    def initial_state(self) -> tuple[HardState, ConfState]:
        return self._hard_state, self._snapshot.metadata.conf_state

    def entries(self, lo: Index, hi: Index, max_size: int) -> list[Entry]:
        first = self._first
        if lo < first:
            raise LogCompacted
        if hi > first + len(self._entries):
            raise InvariantViolation(
                f"entries' hi({hi}) is out of bound lastindex({self.last_index()})"
            )
        if not self._entries:
            raise LogUnavailable
        return take(self._entries, lo - first, hi - first, max_size)

    def term(self, index: Index) -> Term:
        offset = index - self._first
        if offset < 0:
            if offset == -1:
                return self._base_term
            raise LogCompacted
        if offset >= len(self._entries):
            raise LogUnavailable
        return self._entries[offset].term

    def first_index(self) -> Index:
        return self._first

    def last_index(self) -> Index:
        return Index(self._first + len(self._entries) - 1)

    def snapshot(self) -> Snapshot:
        return self._snapshot

    def set_hard_state(self, state: HardState) -> None:
        self._hard_state = state

    def apply_snapshot(self, snapshot: Snapshot) -> None:
        """Replace everything by ``snapshot``; raises SnapshotOutOfDate if it is not newer."""
        meta = snapshot.metadata
        held = self._snapshot.metadata.index
        # A new member may be given a snapshot that holds nothing but its first configuration.
        if held != NO_INDEX and held >= meta.index:
            raise SnapshotOutOfDate
        self._snapshot = snapshot
        self._entries = []
        self._first = Index(meta.index + 1)
        self._base_term = meta.term

    def create_snapshot(
        self, index: Index, conf_state: ConfState | None = None, data: bytes = b""
    ) -> Snapshot:
        """Make, keep and return the snapshot as of ``index``, which must be applied.

        ``conf_state`` None keeps that of the snapshot before. Raises SnapshotOutOfDate if the one
        at hand is as new.
        """
        held = self._snapshot.metadata
        if index <= held.index:
            raise SnapshotOutOfDate
        if index > self.last_index():
            raise InvariantViolation(
                f"snapshot {index} is out of bound lastindex({self.last_index()})"
            )
        conf_state = held.conf_state if conf_state is None else conf_state
        meta = SnapshotMetadata(conf_state, index, self.term(index))
        self._snapshot = replace(self._snapshot, data=data, metadata=meta)
        return self._snapshot

    def compact(self, index: Index) -> None:
        """Drop the entries up to and including ``index``, which must be applied.

        Raises LogCompacted if they are gone already. Costs as many pointer moves as stay.
        """
        if index < self._first:
            raise LogCompacted
        if index > self.last_index():
            raise InvariantViolation(
                f"compact {index} is out of bound lastindex({self.last_index()})"
            )
        self._base_term = self.term(index)
        del self._entries[: index - self._first + 1]
        self._first = Index(index + 1)

    def append(self, entries: Sequence[Entry]) -> None:
        """Add ``entries``, which are consecutive; what they overlap is replaced.

        Entries that were compacted away already are passed over; a gap is a bug of the caller.
        """
        if not entries:
            return
        offset = entries[0].index - self._first
        held = self._entries
        if offset == len(held):
            held.extend(entries)
            return
        if offset > len(held):
            raise InvariantViolation(
                f"missing log entry [last: {self.last_index()}, append at: {entries[0].index}]"
            )
        if offset < 0:
            entries = entries[-offset:]
            offset = 0
        if entries:
            held[offset:] = entries
