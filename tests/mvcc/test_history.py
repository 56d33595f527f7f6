"""A key's history, against lists of generations and etcd's own rules for them."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.mvcc import history as h
from kvorum.mvcc.revision import before, is_tombstone, main_of, rev_key, sub_of, tombstone_key
from kvorum.types import RevKey


@dataclass
class Generations:
    """etcd's picture of a key: lists of revisions, of which all but the last end in a tombstone."""

    lists: list[list[RevKey]] = field(default_factory=lambda: [[]])

    def add(self, rev: RevKey) -> None:
        self.lists[-1].append(rev)
        if is_tombstone(rev):
            self.lists.append([])

    def live_at(self, at: int) -> RevKey | None:
        for place in reversed(range(len(self.lists))):
            revs = self.lists[place]
            if not revs:
                continue
            if place < len(self.lists) - 1 and main_of(revs[-1]) <= at:
                return None
            older = [rev for rev in revs if main_of(rev) <= at]
            if older:
                return older[-1]
        return None

    def chosen(self, at: int) -> tuple[int, int]:
        place = 0
        while place < len(self.lists) - 1 and main_of(self.lists[place][-1]) < at:
            place += 1
        return place, sum(1 for rev in self.lists[place] if main_of(rev) <= at) - 1

    def compact(self, at: int) -> bool:
        place, number = self.chosen(at)
        if number > 0:
            self.lists[place] = self.lists[place][number:]
        self.lists = self.lists[place:]
        return number >= 0

    def kept_at(self, at: int) -> RevKey | None:
        place, number = self.chosen(at)
        if number < 0 or is_tombstone(self.lists[place][number]):
            return None
        return self.lists[place][number]

    def all(self) -> list[RevKey]:
        return [rev for revs in self.lists for rev in revs]


@dataclass
class Both:
    """The same history twice."""

    model: Generations
    real: h.History


@st.composite
def histories(draw: st.DrawFn) -> Both:
    """Revisions with gaps, some in one transaction, never two deletes in a row nor at first. No
    transaction deletes a key and then puts it: etcd refuses those."""
    model, real, main, sub, live = Generations(), None, 1, 0, False
    for _ in range(draw(st.integers(1, 12))):
        step = draw(st.integers(0 if live else 1, 3))
        main, sub = (main, sub + 1) if step == 0 else (main + step, draw(st.integers(0, 2)))
        delete = live and step != 0 and draw(st.booleans())
        rev = tombstone_key(main, sub) if delete else rev_key(main, sub)
        model.add(rev)
        if real is None:
            real = h.new_history(rev, main, 1)
        elif delete:
            h.append_tombstone(real, rev)
        else:
            h.append_put(real, rev, main)
        live = not delete
    assert real is not None
    return Both(model, real)


def everything(history: h.History) -> list[RevKey]:
    return h.revisions(history, h.HEAD, len(history))


@given(histories())
def test_reads_at_every_revision(both: Both) -> None:
    assert everything(both.real) == both.model.all()
    for at in range(50):
        assert h.live_at(both.real, before(at + 1)) == both.model.live_at(at), at
        assert h.kept_at(both.real, at) == both.model.kept_at(at), at
    assert h.is_dead(both.real) is (both.model.live_at(99) is None)
    if not h.is_dead(both.real):
        assert h.newest(both.real) == both.model.live_at(99)


@given(histories(), st.lists(st.integers(0, 45), min_size=1, max_size=4))
def test_compactions_one_after_the_other(both: Both, revisions: list[int]) -> None:
    for at in sorted(revisions):
        expected_kept = both.model.compact(at)
        cut, kept = h.cut_at(both.real, at)
        assert kept is expected_kept
        if cut == len(both.real):
            assert both.model.lists == [[]]
            return
        both.real = h.keep_from(both.real, cut)
        assert everything(both.real) == both.model.all()


@given(histories(), st.integers(0, 45), st.integers(0, 45))
def test_what_is_kept_does_not_depend_on_earlier_compactions(
    both: Both, first: int, second: int
) -> None:
    first, second = sorted((first, second))
    expected = h.kept_at(both.real, second)
    cut, _ = h.cut_at(both.real, first)
    if cut == len(both.real):
        assert expected is None
    else:
        assert h.kept_at(h.keep_from(both.real, cut), second) == expected


def test_create_revision_and_version_are_those_of_the_life() -> None:
    history = h.new_history(rev_key(5), 3, 7)
    assert h.append_put(history, rev_key(6, 1), 6) == (3, 8, rev_key(5))
    h.append_tombstone(history, tombstone_key(8))
    assert h.append_put(history, rev_key(9), 9) == (9, 1, None)
    assert h.append_put(history, rev_key(11), 11) == (9, 2, rev_key(9))


def test_the_table_of_the_module() -> None:
    def left(at: int) -> list[RevKey]:
        history = h.new_history(rev_key(2), 2, 1)
        h.append_put(history, rev_key(3), 3)
        h.append_tombstone(history, tombstone_key(5))
        h.append_put(history, rev_key(7), 7)
        return everything(h.keep_from(history, h.cut_at(history, at)[0]))

    two, three, five, seven = rev_key(2), rev_key(3), tombstone_key(5), rev_key(7)
    assert left(2) == [two, three, five, seven]
    assert left(3) == left(4) == [three, five, seven]
    assert left(5) == [five, seven]
    assert left(6) == left(7) == [seven]


def test_revisions_go_up() -> None:
    history = h.new_history(rev_key(5), 5, 1)
    for late in (rev_key(5), rev_key(4, 9)):
        with pytest.raises(AssertionError, match="is not after"):
            h.append_put(history, late, 5)
        with pytest.raises(AssertionError, match="is not after"):
            h.append_tombstone(history, tombstone_key(4))


def test_a_deleted_key_is_not_deleted_again() -> None:
    history = h.new_history(rev_key(5), 5, 1)
    with pytest.raises(AssertionError):
        h.append_tombstone(history, rev_key(6))
    h.append_tombstone(history, tombstone_key(6))
    with pytest.raises(AssertionError, match="deletes a key that is deleted"):
        h.append_tombstone(history, tombstone_key(7))


def test_revision_parts() -> None:
    rev = tombstone_key(0x0102, 3)
    assert (main_of(rev), sub_of(rev), is_tombstone(rev)) == (0x0102, 3, True)
    assert rev.hex() == "00000000000001025f000000000000000374"
    assert rev_key(2) < rev_key(2, 1) < tombstone_key(2, 1) < before(3) < rev_key(3)
    assert not is_tombstone(rev_key(2))
