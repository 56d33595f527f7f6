"""The tail of the log that is not yet known to be on disk.

Entries and at most one incoming snapshot wait here until a Ready hands them out to be written, and
stay here while that is under way, so that the log always reads as if the write were done. Only the
answer that the write is durable takes them out.

    index       5   6   7   8   9
    entries     a   b   c   d   e
                ^offset     ^in_progress_end
    ab and c are being written, d and e come with the next Ready.

``offset`` may be below the end of what is stored: then the next write truncates the stored log.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvorum.raft.errors import InvariantViolation
from kvorum.raft.logger import Logger
from kvorum.raft.sizes import take
from kvorum.raft.types import Entry, EntryID, Snapshot
from kvorum.types import Index, Term


class Unstable:
    """``entries[i]`` is at index ``offset + i``. Invariant: ``offset <= in_progress_end``."""

    __slots__ = (
        "_logger",
        "entries",
        "in_progress_end",
        "offset",
        "snapshot",
        "snapshot_in_progress",
    )

    def __init__(self, offset: Index, logger: Logger) -> None:
        self.snapshot: Snapshot | None = None
        self.snapshot_in_progress = False
        self.entries: list[Entry] = []
        self.offset = offset
        self.in_progress_end = offset
        self._logger = logger

    def last_index(self) -> Index | None:
        """The last index held here, None if nothing is."""
        if self.entries:
            return Index(self.offset + len(self.entries) - 1)
        return self.snapshot.metadata.index if self.snapshot is not None else None

    def term(self, index: Index) -> Term | None:
        """The term at ``index`` if it is known here."""
        position = index - self.offset
        if 0 <= position < len(self.entries):
            return self.entries[position].term
        snapshot = self.snapshot
        if snapshot is not None and snapshot.metadata.index == index:
            return snapshot.metadata.term
        return None

    def next_entries(self) -> list[Entry]:
        """A copy of the entries that no write has been asked for."""
        return self.entries[self.in_progress_end - self.offset :]

    def has_next_entries(self) -> bool:
        return len(self.entries) > self.in_progress_end - self.offset

    def next_snapshot(self) -> Snapshot | None:
        """The snapshot if no write of it has been asked for."""
        return None if self.snapshot_in_progress else self.snapshot

    def accept_in_progress(self) -> None:
        """Everything held here has now been handed out to be written."""
        if self.entries:
            self.in_progress_end = Index(self.offset + len(self.entries))
        if self.snapshot is not None:
            self.snapshot_in_progress = True

    def stable_to(self, last: EntryID) -> None:
        """All entries up to ``last`` are durable, and no write under way will replace them."""
        index = last.index
        term = self.term(index)
        if term is None:
            self._logger.info(f"entry at index {index} missing from unstable log; ignoring")
        elif index < self.offset:
            self._logger.info(f"entry at index {index} matched unstable snapshot; ignoring")
        elif term != last.term:
            # The tail was replaced since the write began.
            self._logger.info(
                f"entry at (index,term)=({index},{last.term}) mismatched with "
                f"entry at ({index},{term}) in unstable log; ignoring"
            )
        else:
            # The lists handed out are copies, so that this one can be cut in place.
            del self.entries[: index + 1 - self.offset]
            self.offset = Index(index + 1)
            if self.in_progress_end < self.offset:
                self.in_progress_end = self.offset

    def snapshot_stable_to(self, index: Index) -> None:
        """The snapshot as of ``index`` is in the storage."""
        if self.snapshot is not None and self.snapshot.metadata.index == index:
            self.snapshot = None
            self.snapshot_in_progress = False

    def restore(self, snapshot: Snapshot) -> None:
        """Begin anew from ``snapshot``."""
        self.offset = self.in_progress_end = Index(snapshot.metadata.index + 1)
        self.entries = []
        self.snapshot = snapshot
        self.snapshot_in_progress = False

    def truncate_and_append(self, entries: Sequence[Entry]) -> None:
        """Put ``entries`` at their indexes; what was at or after the first of them is dropped."""
        first = entries[0].index
        position = first - self.offset
        if position == len(self.entries):
            self.entries.extend(entries)
        elif position <= 0:
            self._logger.info(f"replace the unstable entries from index {first}")
            self.entries = list(entries)
            self.offset = self.in_progress_end = first
        else:
            self._logger.info(f"truncate the unstable entries before index {first}")
            self._check_bounds(self.offset, first)
            self.entries[position:] = entries
            self.in_progress_end = min(self.in_progress_end, first)

    def slice(self, lo: Index, hi: Index, max_size: int) -> list[Entry]:
        """A copy of the entries in ``[lo, hi)``, cut to ``max_size`` bytes but at least one."""
        self._check_bounds(lo, hi)
        return take(self.entries, lo - self.offset, hi - self.offset, max_size)

    def _check_bounds(self, lo: Index, hi: Index) -> None:
        upper = self.offset + len(self.entries)
        if not self.offset <= lo <= hi <= upper:
            raise InvariantViolation(
                f"unstable.slice[{lo},{hi}) out of bound [{self.offset},{upper}]"
            )
