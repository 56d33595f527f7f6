"""The interval map against a list that is searched from end to end."""

from __future__ import annotations

import random

import pytest

from kvorum.mvcc.watch_intervals import IntervalMap

Range = tuple[bytes, bytes]


def holds(span: Range, key: bytes) -> bool:
    return span[0] <= key and (not span[1] or key < span[1])


def filled(*spans: Range) -> IntervalMap[Range]:
    intervals: IntervalMap[Range] = IntervalMap()
    for span in spans:
        intervals.add(*span, span)
    return intervals


def test_ends_are_not_part_of_a_range() -> None:
    intervals = filled((b"b", b"d"))
    assert intervals.stab(b"azzz") == []
    assert intervals.stab(b"b") == [(b"b", b"d")]
    assert intervals.stab(b"czzz") == [(b"b", b"d")]
    assert intervals.stab(b"d") == []


def test_a_range_without_an_end_holds_everything_above() -> None:
    intervals = filled((b"m", b""), (b"m", b"n"), (b"\0", b""))
    assert sorted(intervals.stab(b"m")) == [(b"\0", b""), (b"m", b""), (b"m", b"n")]
    assert sorted(intervals.stab(b"\xff" * 50)) == [(b"\0", b""), (b"m", b"")]
    assert intervals.stab(b"") == []


def test_an_empty_map_holds_nothing() -> None:
    assert filled().stab(b"a") == []
    assert len(filled()) == 0


def test_adding_twice_and_removing_what_is_not_there_are_errors() -> None:
    intervals = filled((b"a", b"b"))
    for _ in range(20):  # either way through the tree, whatever the priorities
        with pytest.raises(AssertionError, match="added twice"):
            intervals.add(b"a", b"b", (b"a", b"b"))
    with pytest.raises(KeyError):
        intervals.remove(b"a", b"c")


@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_a_plain_list(seed: int) -> None:
    rng = random.Random(seed)
    intervals: IntervalMap[Range] = IntervalMap()
    known: set[Range] = set()
    letters = b"abcdefgh"[: rng.randrange(2, 9)]

    def key() -> bytes:
        return bytes(rng.choices(letters, k=rng.randrange(1, 4)))

    for _ in range(600):
        if known and rng.random() < 0.45:
            span = rng.choice(sorted(known))
            known.remove(span)
            intervals.remove(*span)
        else:
            start, end = key(), rng.choice([key(), b""])
            if (end and start >= end) or (start, end) in known:
                continue
            known.add((start, end))
            intervals.add(start, end, (start, end))
        assert len(intervals) == len(known)
        probe = key()
        assert sorted(intervals.stab(probe)) == sorted(s for s in known if holds(s, probe))


def test_a_look_up_visits_few_of_many_disjoint_ranges() -> None:
    count = 4096
    spans = [(b"%05d/" % i, b"%05d0" % i) for i in range(count)]
    intervals = filled(*spans)  # in order: the worst case of a tree without balance

    compared = 0

    class Probe(bytes):
        """A key that counts what it is compared with."""

        def __lt__(self, other: bytes) -> bool:
            nonlocal compared
            compared += 1
            return bytes(self) < other

        def __ge__(self, other: bytes) -> bool:
            nonlocal compared
            compared += 1
            return bytes(self) >= other

    assert intervals.stab(Probe(b"02048/x")) == [spans[2048]]
    assert 0 < compared < 200
