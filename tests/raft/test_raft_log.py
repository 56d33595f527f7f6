"""The stored log, the unstable tail, and the view over both."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raftlab.driver import log_of

from kvorum.raft import (
    NO_LIMIT,
    ConfState,
    Entry,
    EntryID,
    HardState,
    InvariantViolation,
    LogCompacted,
    LogUnavailable,
    MemoryStorage,
    Snapshot,
    SnapshotMetadata,
    SnapshotOutOfDate,
)
from kvorum.raft.log import LogSlice, RaftLog
from kvorum.raft.logger import NullLogger
from kvorum.raft.sizes import entries_size
from kvorum.raft.unstable import Unstable
from kvorum.types import Index, Term


def snapshot_at(index: int, term: int = 1) -> Snapshot:
    return Snapshot(b"s", SnapshotMetadata(ConfState(), Index(index), Term(term)))


def stored(*terms: int, base: int = 0) -> MemoryStorage:
    storage = MemoryStorage()
    if base:
        storage.apply_snapshot(snapshot_at(base))
    storage.append(log_of(*terms, after=base))
    return storage


def terms_of(entries: list[Entry]) -> list[int]:
    return [entry.term for entry in entries]


# --- MemoryStorage


class TestMemoryStorage:
    def test_a_new_one_is_empty(self):
        storage = MemoryStorage()
        assert storage.initial_state() == (HardState(), ConfState())
        assert (storage.first_index(), storage.last_index(), storage.term(Index(0))) == (1, 0, 0)
        assert storage.snapshot().is_empty()
        with pytest.raises(LogUnavailable):
            storage.entries(Index(1), Index(1), NO_LIMIT)

    def test_terms_are_known_from_the_last_compacted_entry_on(self):
        storage = stored(4, 5, base=3)
        assert [storage.term(Index(i)) for i in (3, 4, 5)] == [1, 4, 5]
        with pytest.raises(LogCompacted):
            storage.term(Index(2))
        with pytest.raises(LogUnavailable):
            storage.term(Index(6))

    def test_entries_outside_the_log_are_refused(self):
        storage = stored(4, 5, base=3)
        assert terms_of(storage.entries(Index(4), Index(6), NO_LIMIT)) == [4, 5]
        assert terms_of(storage.entries(Index(4), Index(6), 0)) == [4]
        with pytest.raises(LogCompacted):
            storage.entries(Index(3), Index(6), NO_LIMIT)
        with pytest.raises(InvariantViolation, match=r"entries' hi\(7\) is out of bound"):
            storage.entries(Index(4), Index(7), NO_LIMIT)

    @pytest.mark.parametrize(
        ("terms", "after", "result"),
        [
            ((), 3, [3, 4, 5]),
            ((1, 2), 1, [3, 4, 5]),
            ((3, 4, 5), 3, [3, 4, 5]),
            ((3, 6, 6), 3, [3, 6, 6]),
            ((3, 4, 5, 5), 3, [3, 4, 5, 5]),
            ((2, 3, 6), 2, [3, 6]),
            ((6,), 4, [3, 6]),
            ((5,), 6, [3, 4, 5, 5]),
        ],
    )
    def test_append_replaces_what_it_overlaps(self, terms, after, result):
        storage = stored(3, 4, 5, base=3)
        storage.append(log_of(*terms, after=after))
        assert terms_of(storage.entries(Index(4), Index(4 + len(result)), NO_LIMIT)) == result
        assert storage.last_index() == 3 + len(result)

    def test_append_refuses_a_gap(self):
        with pytest.raises(InvariantViolation, match="missing log entry"):
            stored(1, base=3).append(log_of(1, after=5))

    def test_compact(self):
        storage = stored(3, 4, 5, base=3)
        storage.compact(Index(5))
        assert (storage.first_index(), storage.last_index(), storage.term(Index(5))) == (6, 6, 4)
        with pytest.raises(LogCompacted):
            storage.compact(Index(5))
        with pytest.raises(InvariantViolation, match="compact 7 is out of bound"):
            storage.compact(Index(7))

    def test_create_snapshot_keeps_or_replaces_the_configuration(self):
        storage = stored(3, 4, 5, base=3)
        members = ConfState(voters=(1,))
        assert storage.create_snapshot(Index(4), members, b"x").metadata.term == 3
        again = storage.create_snapshot(Index(5), data=b"y")
        assert again == Snapshot(b"y", SnapshotMetadata(members, Index(5), Term(4)))
        assert storage.snapshot() is again
        assert storage.initial_state()[1] == members
        with pytest.raises(SnapshotOutOfDate):
            storage.create_snapshot(Index(5))
        with pytest.raises(InvariantViolation, match="snapshot 7 is out of bound"):
            storage.create_snapshot(Index(7))

    def test_apply_snapshot_takes_newer_ones_only(self):
        storage = stored(3, 4)
        storage.apply_snapshot(snapshot_at(4, 4))
        assert (storage.first_index(), storage.last_index(), storage.term(Index(4))) == (5, 4, 4)
        for index in (3, 4):
            with pytest.raises(SnapshotOutOfDate):
                storage.apply_snapshot(snapshot_at(index, 4))

    def test_a_snapshot_of_nothing_but_the_first_configuration(self):
        storage = MemoryStorage()
        members = ConfState(voters=(1, 2))
        storage.apply_snapshot(Snapshot(metadata=SnapshotMetadata(members)))
        assert storage.initial_state() == (HardState(), members)
        assert storage.first_index() == 1


# --- Unstable


class TestUnstable:
    def tail(self, *terms: int, snapshot: int = 0) -> Unstable:
        unstable = Unstable(Index(5), NullLogger())
        if snapshot:
            unstable.restore(snapshot_at(snapshot))
        if terms:
            unstable.truncate_and_append(log_of(*terms, after=4))
        return unstable

    def test_what_is_held(self):
        assert self.tail().last_index() is None
        assert self.tail(1, 1).last_index() == 6
        assert self.tail(snapshot=4).last_index() == 4
        unstable = self.tail(2, snapshot=4)
        assert [unstable.term(Index(i)) for i in (3, 4, 5, 6)] == [None, 1, 2, None]

    def test_entries_are_handed_out_once(self):
        unstable = self.tail(1, 1)
        assert len(unstable.next_entries()) == 2
        unstable.accept_in_progress()
        assert not unstable.has_next_entries()
        assert unstable.next_entries() == []
        unstable.truncate_and_append(log_of(1, after=6))
        assert [e.index for e in unstable.next_entries()] == [7]

    def test_a_snapshot_is_handed_out_once(self):
        unstable = self.tail(snapshot=4)
        assert unstable.next_snapshot() is not None
        unstable.accept_in_progress()
        assert unstable.next_snapshot() is None
        unstable.snapshot_stable_to(Index(3))
        assert unstable.snapshot is not None
        unstable.snapshot_stable_to(Index(4))
        assert unstable.snapshot is None

    @pytest.mark.parametrize(
        ("index", "term", "offset", "left"),
        [
            (5, 1, 6, [1, 2]),  # all up to it
            (6, 1, 7, [2]),
            (7, 2, 8, []),
            (6, 2, 5, [1, 1, 2]),  # replaced since by another term
            (8, 2, 5, [1, 1, 2]),  # not here
            (4, 1, 5, [1, 1, 2]),  # the snapshot's
            (3, 1, 5, [1, 1, 2]),  # before it
        ],
    )
    def test_stable_to(self, index, term, offset, left):
        unstable = self.tail(1, 1, 2, snapshot=4)
        unstable.accept_in_progress()
        unstable.truncate_and_append(log_of(3, after=7))
        unstable.stable_to(EntryID(Term(term), Index(index)))
        assert unstable.offset == offset
        assert terms_of(unstable.entries) == [*left, 3]
        assert [e.term for e in unstable.next_entries()] == [3]

    def test_stable_to_what_was_never_handed_out(self):
        unstable = self.tail(1, 1)
        unstable.stable_to(EntryID(Term(1), Index(6)))
        assert (unstable.offset, unstable.in_progress_end) == (7, 7)

    @pytest.mark.parametrize(
        ("after", "terms", "offset", "result", "fresh"),
        [
            (7, (2,), 5, [1, 1, 1, 2], [8]),  # at the end
            (4, (2, 2), 5, [2, 2], [5, 6]),  # over everything
            (3, (2, 2), 4, [2, 2], [4, 5]),  # over stored entries too
            (5, (2,), 5, [1, 2], [6]),  # in the middle
        ],
    )
    def test_truncate_and_append(self, after, terms, offset, result, fresh):
        unstable = self.tail(1, 1, 1)
        unstable.accept_in_progress()
        unstable.truncate_and_append(log_of(*terms, after=after))
        assert unstable.offset == offset
        assert terms_of(unstable.entries) == result
        assert [e.index for e in unstable.next_entries()] == fresh

    def test_what_was_handed_out_does_not_change(self):
        unstable = self.tail(1, 1, 1)
        handed_out = unstable.next_entries()
        unstable.accept_in_progress()
        unstable.truncate_and_append(log_of(2, after=5))
        unstable.stable_to(EntryID(Term(2), Index(6)))
        assert terms_of(handed_out) == [1, 1, 1]

    @pytest.mark.parametrize(("lo", "hi"), [(4, 6), (5, 8), (7, 6)])
    def test_a_slice_outside_is_refused(self, lo, hi):
        with pytest.raises(InvariantViolation, match="out of bound"):
            self.tail(1, 1).slice(Index(lo), Index(hi), NO_LIMIT)


# --- RaftLog


class Forgetful(MemoryStorage):
    """Says that it has two entries, and has none of them."""

    def last_index(self) -> Index:
        return Index(2)

    def term(self, index: Index) -> Term:
        raise LogUnavailable

    def entries(self, lo: Index, hi: Index, max_size: int) -> list[Entry]:
        if lo == 1:
            raise LogUnavailable
        return []


def raft_log(*stable: int, unstable: tuple[int, ...] = (), base: int = 0, **limits: int) -> RaftLog:
    log = RaftLog(stored(*stable, base=base), NullLogger(), **limits)
    log.append(log_of(*unstable, after=base + len(stable)))
    return log


class TestRaftLog:
    def test_terms_over_storage_and_tail(self):
        log = raft_log(1, 2, unstable=(3, 3), base=4)
        assert [log.term(Index(i)) for i in range(3, 10)] == [None, 1, 1, 2, 3, 3, None]
        assert log.last_id() == (3, 8)

    def test_a_storage_that_does_not_keep_its_word(self):
        log = RaftLog(Forgetful(), NullLogger())
        assert log.term(Index(1)) is None
        with pytest.raises(InvariantViolation, match="has no term"):
            log.last_id()
        with pytest.raises(InvariantViolation, match="is unavailable from storage"):
            log.slice(Index(1), Index(3), NO_LIMIT)
        with pytest.raises(InvariantViolation, match="got 0 entries"):
            list(log.scan(Index(2), Index(3), 10))

    @pytest.mark.parametrize(
        ("term", "index", "answer"),
        [(4, 1, True), (2, 9, False), (3, 2, False), (3, 3, True), (3, 4, True)],
    )
    def test_is_up_to_date(self, term, index, answer):
        assert raft_log(1, 2, 3).is_up_to_date(EntryID(Term(term), Index(index))) is answer

    @pytest.mark.parametrize(
        ("index", "term", "found"),
        [
            (7, 9, (5, 7)),
            (7, 5, (5, 7)),
            (7, 4, (4, 6)),
            (7, 3, (2, 5)),
            (4, 1, (1, 4)),
            (9, 5, (0, 9)),  # not there: may agree
            (5, 0, (0, 2)),  # compacted: may agree
        ],
    )
    def test_find_conflict_by_term(self, index, term, found):
        log = raft_log(1, 2, unstable=(4, 5), base=3)
        assert log.find_conflict_by_term(Index(index), Term(term)) == found

    def test_find_conflict_by_term_in_an_empty_log(self):
        assert raft_log(5).find_conflict_by_term(Index(1), Term(4)) == (0, 0)
        assert raft_log().find_conflict_by_term(Index(0), Term(4)) == (0, 0)

    @pytest.mark.parametrize(
        ("prev", "terms", "committed", "last", "now_committed", "result"),
        [
            ((3, 2), (3,), 3, None, 1, [1, 2, 3]),  # another term there
            ((3, 4), (4,), 4, None, 1, [1, 2, 3]),  # nothing there
            ((3, 3), (), 3, 3, 3, [1, 2, 3]),
            ((3, 3), (), 9, 3, 3, [1, 2, 3]),  # commits no more than it vouches for
            ((3, 3), (), 0, 3, 1, [1, 2, 3]),  # commit does not decrease
            ((3, 3), (4, 4), 4, 5, 4, [1, 2, 3, 4, 4]),
            ((1, 1), (2,), 9, 2, 2, [1, 2, 3]),  # a late message does not cut the log
            ((1, 1), (2, 4), 2, 3, 2, [1, 2, 4]),
            ((1, 1), (4,), 2, 2, 2, [1, 4]),
        ],
    )
    def test_maybe_append(self, prev, terms, committed, last, now_committed, result):
        log = raft_log(1, 2, 3)
        log.commit_to(Index(1))
        entries = log_of(*terms, after=prev[1])
        piece = LogSlice(Term(9), EntryID(*prev), entries)
        assert log.maybe_append(piece, Index(committed)) == last
        assert log.committed == now_committed
        assert terms_of(log.entries_from(Index(1), NO_LIMIT)) == result

    def test_committed_entries_are_never_replaced(self):
        log = raft_log(1, 2, 3)
        log.commit_to(Index(2))
        piece = LogSlice(Term(9), EntryID(Term(1), Index(1)), log_of(4, after=1))
        with pytest.raises(InvariantViolation, match="conflict with committed entry"):
            log.maybe_append(piece, Index(2))
        with pytest.raises(InvariantViolation, match=r"after\(1\) is out of range"):
            log.append(log_of(4, after=1))

    @pytest.mark.parametrize(
        ("prev", "ids", "flaw"),
        [
            ((1, 1), [], None),
            ((1, 1), [(1, 2), (2, 3), (5, 4)], None),
            ((1, 1), [(1, 3)], "not consecutive"),
            ((1, 1), [(1, 2), (1, 2)], "not consecutive"),
            ((2, 1), [(1, 2)], "not in 2..5"),
            ((1, 1), [(6, 2)], "not in 1..5"),
            ((1, 1), [(1, 2), (4, 3), (3, 4)], "terms decrease"),
        ],
    )
    def test_a_slice_from_outside_is_checked(self, prev, ids, flaw):
        entries = [Entry(Term(term), Index(index)) for term, index in ids]
        found = LogSlice(Term(5), EntryID(*prev), entries).flaw()
        assert found is None if flaw is None else flaw in found

    def test_commit_beyond_the_end_is_a_corrupted_log(self):
        with pytest.raises(InvariantViolation, match="corrupted, truncated, or lost"):
            raft_log(1).commit_to(Index(2))

    def test_maybe_commit_wants_an_entry_of_that_term(self):
        log = raft_log(1, 2)
        assert not log.maybe_commit(EntryID(Term(2), Index(1)))
        assert not log.maybe_commit(EntryID(Term(0), Index(3)))
        assert log.maybe_commit(EntryID(Term(2), Index(2)))
        assert not log.maybe_commit(EntryID(Term(2), Index(2)))

    def test_restore_begins_anew(self):
        log = raft_log(1, 2, unstable=(3,))
        log.restore(snapshot_at(9, 4))
        assert (log.committed, log.first_index(), log.last_index()) == (9, 10, 9)
        assert log.term(Index(9)) == 4
        assert not log.has_next_committed(allow_unstable=True)
        assert log.snapshot().metadata.index == 9

    def test_what_may_be_applied(self):
        log = raft_log(1, 1, unstable=(1, 1))
        log.commit_to(Index(3))
        assert [e.index for e in log.next_committed(allow_unstable=False)] == [1, 2]
        assert [e.index for e in log.next_committed(allow_unstable=True)] == [1, 2, 3]
        log.accept_applying(log.next_committed(True), True)
        assert log.next_committed(True) == []
        log.applied_to(Index(3))
        assert (log.applied, log.applying) == (3, 3)

    @pytest.mark.parametrize("index", [1, 4])
    def test_applied_goes_forward_within_what_is_committed(self, index):
        log = raft_log(1, 1, 1, 1)
        log.commit_to(Index(3))
        log.applied_to(Index(2))
        with pytest.raises(InvariantViolation, match=r"applied\(\d\) is out of range"):
            log.applied_to(Index(index))

    def test_only_committed_entries_are_handed_out(self):
        log = raft_log(1, 1)
        with pytest.raises(InvariantViolation, match=r"applying\(2\) is out of range"):
            log.accept_applying(log_of(1, 1, after=0), True)

    def test_unapplied_bytes_are_bounded(self):
        entries = log_of(1, 1, 1, 1, after=0)
        size = entries_size(entries[:1])
        log = raft_log(1, 1, 1, 1, max_applying_size=2 * size)
        log.commit_to(Index(4))
        first = log.next_committed(False)
        assert [e.index for e in first] == [1, 2]
        log.accept_applying(first, False)
        assert log.applying_paused
        assert log.next_committed(False) == []
        log.release_applying(Index(2))
        log.applied_to(Index(2))
        second = log.next_committed(False)
        assert [e.index for e in second] == [3, 4]
        log.accept_applying(second, False)
        assert log.applying_paused

    def test_a_batch_that_was_cut_pauses_too(self):
        entries = log_of(1, 1, 1, after=0)
        log = raft_log(1, 1, 1, max_applying_size=entries_size(entries[:2]) + 1)
        log.commit_to(Index(3))
        log.accept_applying(log.next_committed(False), False)
        assert log.applying_paused
        log.applying_paused = False
        assert [e.index for e in log.next_committed(False)] == [3]

    def test_a_full_budget_must_have_paused(self):
        log = raft_log(1, 1, max_applying_size=1)
        log.commit_to(Index(2))
        log.accept_applying(log.next_committed(False), False)
        log.applying_paused = False
        with pytest.raises(InvariantViolation, match="not positive"):
            log.next_committed(False)

    @given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 80), st.data())
    def test_slices_over_storage_and_tail(self, stable, unstable, limit, data):
        log = raft_log(*[1] * stable, unstable=(1,) * unstable)
        total = stable + unstable
        lo = data.draw(st.integers(1, total + 1))
        hi = data.draw(st.integers(lo, total + 1))
        everything = log_of(*[1] * total, after=0)
        taken = log.slice(Index(lo), Index(hi), limit)
        assert taken == everything[lo - 1 : lo - 1 + len(taken)]
        assert bool(taken) == (lo < hi)
        assert len(taken) <= max(1, hi - lo)
        if len(taken) > 1:
            assert entries_size(taken) <= limit
        assert [e.index for e in log.scan(Index(lo), Index(hi), limit)] == list(range(lo, hi))

    def test_a_large_unstable_entry_does_not_follow_small_stored_ones(self):
        log = raft_log(1)
        log.append([Entry(Term(1), Index(2), data=b"x" * 100)])
        assert len(log.slice(Index(1), Index(3), 50)) == 1
        assert len(log.slice(Index(1), Index(3), NO_LIMIT)) == 2

    def test_slices_outside_the_log(self):
        log = raft_log(1, 1, base=3)
        with pytest.raises(LogCompacted):
            log.slice(Index(3), Index(5), NO_LIMIT)
        with pytest.raises(InvariantViolation, match="invalid slice 5 > 4"):
            log.slice(Index(5), Index(4), NO_LIMIT)
        with pytest.raises(InvariantViolation, match="out of bound"):
            log.slice(Index(4), Index(7), NO_LIMIT)
        assert log.entries_from(Index(6), NO_LIMIT) == []


def test_a_reader_cannot_change_the_log():
    log = raft_log(1, unstable=(1,))
    for read in (log.unstable.next_entries, lambda: log.entries_from(Index(1), NO_LIMIT)):
        read().clear()
    assert log.last_index() == 2
