"""Groups of watchers, and watchers in the order of their revisions."""

from __future__ import annotations

import pytest
from mvcc.watch_kit import FakeStore, Kit

from kvorum.mvcc.watch_group import WatcherGroup
from kvorum.mvcc.watch_sync import Positions
from kvorum.mvcc.watch_types import Watcher, WatchID

STREAM = Kit(FakeStore()).client().stream


def watcher(key: bytes = b"a", end: bytes | None = None, *, kind: int = 0, at: int = 0) -> Watcher:
    made = Watcher(STREAM, WatchID(0), key, end, kind=kind)
    made.next_rev = at
    return made


def test_nothing_is_left_of_watchers_that_went() -> None:
    group = WatcherGroup()
    places = [(b"a", None), (b"a", b"b"), (b"a", b""), (b"b", None)]
    watchers = [watcher(*place, kind=kind) for place in places for kind in (0, 1, 0)]
    for each in watchers:
        group.add(each)
    assert sorted(map(id, group.watchers())) == sorted(map(id, watchers))
    for each in watchers:
        group.remove(each)
    assert group.size == 0
    assert not group._keys
    assert not group._ranges
    assert len(group._tree) == 0


def test_matching_touches_every_spot_once_and_names_all_places() -> None:
    group = WatcherGroup()
    for place in ((b"a", None), (b"a", b"c"), (b"c", None)):
        group.add(watcher(*place))
    store = FakeStore()
    changes = store.write((b"a", b"1"), (b"b", b"1"), (b"x", b"1"), (b"a", None))
    touched = group.match(changes)
    assert [(s.key, s.end, s.pending) for s in touched] == [
        (b"a", None, [0, 3]),
        (b"a", b"c", [0, 1, 3]),
    ]


def test_a_watcher_is_in_one_group_at_a_time() -> None:
    group, other = WatcherGroup(), WatcherGroup()
    one = watcher()
    group.add(one)
    with pytest.raises(AssertionError, match="in a group already"):
        other.add(one)
    group.remove(one)
    with pytest.raises(AssertionError, match="in no group"):
        group.remove(one)


def test_positions_are_in_order_and_bounded() -> None:
    positions = Positions()
    at = {n: [watcher(at=n) for _ in range(3)] for n in (7, 2, (1 << 63) - 1, 5)}
    for watchers in at.values():
        for each in watchers:
            positions.add(each)
    assert (positions.lowest(), positions.highest(), positions.size) == (2, (1 << 63) - 1, 12)
    assert positions.between(0, 6, most=100) == at[2] + at[5]
    assert positions.between(2, 7, most=4) == [*at[2], at[5][0]]
    assert positions.between(2, 7, most=6) == at[2] + at[5]
    assert positions.between(3, 4, most=9) == []
    for each in at[2]:
        positions.remove(each)
    assert (positions.lowest(), positions.size) == (5, 9)
