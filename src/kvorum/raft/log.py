"""The raft log as the state machine sees it: the stored part, and the unstable tail on top.

Invariant: ``applied <= applying <= committed <= last_index()``.

    applied     the state machine has executed up to here
    applying    the application was told to execute up to here
    committed   a quorum has stored up to here (section 5.3)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from kvorum.raft.errors import InvariantViolation, LogCompacted, LogUnavailable
from kvorum.raft.logger import Logger
from kvorum.raft.sizes import entries_size
from kvorum.raft.storage import Storage
from kvorum.raft.types import NO_INDEX, NO_LIMIT, NO_TERM, Entry, EntryID, Snapshot
from kvorum.raft.unstable import Unstable
from kvorum.types import Index, Term


class LogSlice(NamedTuple):
    """Consecutive entries of the log of ``term``'s leader, and the id of the entry before them.

    Guarantees, checked by ``flaw`` where a slice comes in from outside:
    1. ``entries[i].index == prev.index + 1 + i``
    2. ``prev.term <= entries[0].term <= ... <= entries[-1].term <= term``
    """

    term: Term
    prev: EntryID
    entries: Sequence[Entry]

    def last_index(self) -> Index:
        return Index(self.prev.index + len(self.entries))

    def flaw(self) -> str | None:
        """What breaks the guarantees, None if nothing does."""
        entries = self.entries
        if not entries:
            return None
        first = self.prev.index + 1
        if [entry.index for entry in entries] != list(range(first, first + len(entries))):
            return f"entries after index {self.prev.index} are not consecutive"
        terms = [entry.term for entry in entries]
        if terms[0] < self.prev.term or terms[-1] > self.term:
            return f"entry terms {terms[0]}..{terms[-1]} not in {self.prev.term}..{self.term}"
        if terms[0] != terms[-1] and terms != sorted(terms):
            return "entry terms decrease"
        return None


class RaftLog:
    """Reads over storage and unstable tail; the three marks; the bound on unapplied entries."""

    __slots__ = (
        "_applying_size",
        "_logger",
        "_max_applying_size",
        "_outstanding",
        "_storage",
        "applied",
        "applying",
        "applying_paused",
        "committed",
        "unstable",
    )

    def __init__(self, storage: Storage, logger: Logger, max_applying_size: int = NO_LIMIT) -> None:
        before_first = Index(storage.first_index() - 1)
        self._storage = storage
        self._logger = logger
        self.unstable = Unstable(Index(storage.last_index() + 1), logger)
        self.committed = before_first
        self.applying = before_first
        self.applied = before_first
        self.applying_paused = False
        self._max_applying_size: Final = max_applying_size
        self._applying_size = 0
        # Batches handed out to be applied and not yet acknowledged: (last index, bytes).
        self._outstanding: deque[tuple[Index, int]] = deque()

    def __str__(self) -> str:
        unstable = self.unstable
        return (
            f"committed={self.committed}, applied={self.applied}, applying={self.applying}, "
            f"unstable.offset={unstable.offset}, "
            f"unstable.offsetInProgress={unstable.in_progress_end}, "
            f"len(unstable.Entries)={len(unstable.entries)}"
        )

    # --- bounds, terms, ids

    def first_index(self) -> Index:
        snapshot = self.unstable.snapshot
        if snapshot is not None:
            return Index(snapshot.metadata.index + 1)
        return self._storage.first_index()

    def last_index(self) -> Index:
        index = self.unstable.last_index()
        return self._storage.last_index() if index is None else index

    def term(self, index: Index) -> Term | None:
        """The term at ``index``; None if it is compacted away or not there yet.

        Known from ``first_index() - 1`` on: the last compacted entry still anchors an append.
        """
        term = self.unstable.term(index)
        if term is not None:
            return term
        if index + 1 < self.first_index() or index > self.last_index():
            return None
        try:
            return self._storage.term(index)
        except (LogCompacted, LogUnavailable):
            return None

    def last_id(self) -> EntryID:
        index = self.last_index()
        term = self.term(index)
        if term is None:
            raise InvariantViolation(f"the last entry, at {index}, has no term")
        return EntryID(term, index)

    def matches(self, entry: EntryID) -> bool:
        """Whether this log has that entry; if so it agrees with it on all before (section 5.3)."""
        return self.term(entry.index) == entry.term

    def is_up_to_date(self, other: EntryID) -> bool:
        """Whether a log that ends in ``other`` has at least all this one has (section 5.4.1)."""
        return other >= self.last_id()

    def find_conflict_by_term(self, index: Index, term: Term) -> EntryID:
        """The last place at or below ``index`` where a log with ``term`` at ``index`` can agree.

        Terms never decrease along a log, so every entry of ours with a larger term is passed
        over. An index whose term is not known might agree; it is returned with term 0.
        """
        while index > 0:
            ours = self.term(index)
            if ours is None:
                return EntryID(NO_TERM, index)
            if ours <= term:
                return EntryID(ours, index)
            index = Index(index - 1)
        return EntryID(NO_TERM, NO_INDEX)

    # --- growing

    def append(self, entries: Sequence[Entry]) -> Index:
        """Put ``entries`` at the end, or over uncommitted ones; returns the new last index."""
        if entries:
            if entries[0].index <= self.committed:
                raise InvariantViolation(
                    f"after({entries[0].index - 1}) is out of range [committed({self.committed})]"
                )
            self.unstable.truncate_and_append(entries)
        return self.last_index()

    def maybe_append(self, piece: LogSlice, committed: Index) -> Index | None:
        """Take over a leader's entries; None if this log lacks the entry before them.

        Returns the last index known to agree with the leader. Entries that are here already stay
        untouched, so that a late message cannot cut the log (section 5.3, receiver step 3).
        """
        if not self.matches(piece.prev):
            return None
        last = piece.last_index()
        fresh = self._first_new(piece)
        if fresh is not None:
            if fresh <= self.committed:
                raise InvariantViolation(
                    f"entry {fresh} conflict with committed entry [committed({self.committed})]"
                )
            skip = fresh - piece.prev.index - 1
            self.append(piece.entries[skip:] if skip else piece.entries)
        self.commit_to(min(committed, last))
        return last

    def _first_new(self, piece: LogSlice) -> Index | None:
        """The first entry of ``piece`` that is not in this log, None if all are."""
        if not piece.entries:
            return None
        if piece.prev.index == self.last_index():
            return piece.entries[0].index
        for entry in piece.entries:
            ours = self.term(entry.index)
            if ours == entry.term:
                continue
            if entry.index <= self.last_index():
                self._logger.info(
                    f"found conflict at index {entry.index} "
                    f"[existing term: {ours or 0}, conflicting term: {entry.term}]"
                )
            return entry.index
        return None

    def restore(self, snapshot: Snapshot) -> None:
        """Replace the whole log by ``snapshot``, which is committed by definition."""
        meta = snapshot.metadata
        self._logger.info(
            f"log [{self}] starts to restore snapshot [index: {meta.index}, term: {meta.term}]"
        )
        self.committed = meta.index
        self.unstable.restore(snapshot)

    # --- committing

    def commit_to(self, index: Index) -> None:
        """Raise the commit index; it never decreases."""
        if self.committed < index:
            if self.last_index() < index:
                raise InvariantViolation(
                    f"tocommit({index}) is out of range [lastIndex({self.last_index()})]. "
                    "Was the raft log corrupted, truncated, or lost?"
                )
            self.committed = index

    def maybe_commit(self, at: EntryID) -> bool:
        """Commit up to ``at`` if it is new and ours; true if the index moved.

        ``at.term`` is the leader's own term: older entries commit only along with one of it
        (section 5.4.2).
        """
        if at.index > self.committed and at.term and self.matches(at):
            self.commit_to(at.index)
            return True
        return False

    # --- applying

    def max_appliable(self, allow_unstable: bool) -> Index:
        """The last index that may be applied now."""
        if allow_unstable:
            return self.committed
        return min(self.committed, Index(self.unstable.offset - 1))

    def has_next_committed(self, allow_unstable: bool) -> bool:
        """Whether ``next_committed`` returns anything; cheap."""
        # A snapshot goes first: what to apply after it is not known before it is in place.
        if self.applying_paused or self.unstable.snapshot is not None:
            return False
        return self.applying < self.max_appliable(allow_unstable)

    def next_committed(self, allow_unstable: bool) -> list[Entry]:
        """The committed entries to apply next, within the bound on unacknowledged bytes."""
        if not self.has_next_committed(allow_unstable):
            return []
        room = self._max_applying_size
        if room < NO_LIMIT:
            room -= self._applying_size
            if room <= 0:
                raise InvariantViolation(
                    f"applying entry size ({self._max_applying_size}-{self._applying_size})={room}"
                    " not positive"
                )
        lo, hi = Index(self.applying + 1), Index(self.max_appliable(allow_unstable) + 1)
        return self.slice(lo, hi, room)

    def accept_applying(self, entries: Sequence[Entry], allow_unstable: bool) -> None:
        """``entries``, just got from ``next_committed``, are handed out to be applied.

        Pauses when the bound is reached: the outstanding bytes are at it, or it has cut the batch.
        """
        last = entries[-1].index
        if self.committed < last:
            raise InvariantViolation(
                f"applying({last}) is out of range "
                f"[prevApplying({self.applying}), committed({self.committed})]"
            )
        self.applying = last
        if self._max_applying_size >= NO_LIMIT:
            return
        size = entries_size(entries)
        self._outstanding.append((last, size))
        self._applying_size += size
        self.applying_paused = (
            self._applying_size >= self._max_applying_size
            or last < self.max_appliable(allow_unstable)
        )

    def release_applying(self, last: Index) -> None:
        """The batch that ended at ``last`` was applied: its bytes are free again."""
        outstanding = self._outstanding
        while outstanding and outstanding[0][0] <= last:
            self._applying_size -= outstanding.popleft()[1]

    def applied_to(self, index: Index) -> None:
        """The state machine has executed everything up to ``index``."""
        if not self.applied <= index <= self.committed:
            raise InvariantViolation(
                f"applied({index}) is out of range "
                f"[prevApplied({self.applied}), committed({self.committed})]"
            )
        self.applied = index
        if self.applying < index:
            self.applying = index
        self.applying_paused = self._applying_size >= self._max_applying_size

    # --- reading

    def snapshot(self) -> Snapshot:
        """The newest snapshot; raises SnapshotTemporarilyUnavailable."""
        if self.unstable.snapshot is not None:
            return self.unstable.snapshot
        return self._storage.snapshot()

    def entries_from(self, lo: Index, max_size: int) -> list[Entry]:
        """The entries from ``lo`` on, cut to ``max_size`` bytes but at least one if there is any.

        Raises LogCompacted if ``lo`` is gone.
        """
        last = self.last_index()
        return [] if lo > last else self.slice(lo, Index(last + 1), max_size)

    def slice(self, lo: Index, hi: Index, max_size: int) -> list[Entry]:
        """The entries in ``[lo, hi)``, cut as above; raises LogCompacted if ``lo`` is gone."""
        unstable = self.unstable
        if lo >= unstable.offset:
            return unstable.slice(lo, hi, max_size)
        self._check_bounds(lo, hi)
        if lo == hi:
            return []
        cut = min(hi, unstable.offset)
        try:
            stored = self._storage.entries(lo, cut, max_size)
        except LogUnavailable as error:
            raise InvariantViolation(f"entries[{lo}:{cut}) is unavailable from storage") from error
        if hi == cut or len(stored) < cut - lo:
            return stored
        return self._extend(stored, hi, max_size)

    def _extend(self, stored: list[Entry], hi: Index, max_size: int) -> list[Entry]:
        """``stored`` and the unstable entries below ``hi``, as far as ``max_size`` allows."""
        room = max_size
        if max_size < NO_LIMIT:
            room -= entries_size(stored)
            if room <= 0:
                return stored
        more = self.unstable.slice(self.unstable.offset, hi, room)
        # The slice holds at least one entry; here that one must fit too.
        if len(more) == 1 and max_size < NO_LIMIT and entries_size(more) > room:
            return stored
        return stored + more

    def _check_bounds(self, lo: Index, hi: Index) -> None:
        if lo > hi:
            raise InvariantViolation(f"invalid slice {lo} > {hi}")
        first = self.first_index()
        if lo < first:
            raise LogCompacted
        last = self.last_index()
        if hi > last + 1:
            raise InvariantViolation(f"slice[{lo},{hi}) out of bound [{first},{last}]")

    def scan(self, lo: Index, hi: Index, page_size: int) -> Iterator[Entry]:
        """All entries in ``[lo, hi)``, read in pages of about ``page_size`` bytes."""
        while lo < hi:
            page = self.slice(lo, hi, page_size)
            if not page:
                raise InvariantViolation(f"got 0 entries in [{lo}, {hi})")
            yield from page
            lo = Index(lo + len(page))

    @property
    def page_size(self) -> int:
        """A sensible page for ``scan``: what may be applied at once."""
        return self._max_applying_size
