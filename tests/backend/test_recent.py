from __future__ import annotations

from collections.abc import Sequence

import pytest

from kvorum.backend import recent
from kvorum.backend.recent import RecentRecords


class Store:
    """Records by revision, and what was asked for."""

    def __init__(self) -> None:
        self.asked: list[list[bytes]] = []

    def load(self, revs: Sequence[bytes]) -> list[bytes]:
        self.asked.append(list(revs))
        return [b"record of " + rev for rev in revs]


def revs(*numbers: int) -> list[bytes]:
    return [b"%04d" % number for number in numbers]


def test_only_what_is_missing_is_loaded_and_the_order_is_kept() -> None:
    store, records = Store(), RecentRecords()
    assert records.get_many(revs(1, 3), store.load) == [b"record of 0001", b"record of 0003"]
    expected = [b"record of %04d" % n for n in (3, 2, 1, 4)]
    assert records.get_many(revs(3, 2, 1, 4), store.load) == expected
    assert records.get_many(revs(4, 3, 2, 1), store.load) == [expected[i] for i in (3, 0, 1, 2)]
    assert store.asked == [revs(1, 3), revs(2, 4)]


def test_nothing_asked_is_nothing() -> None:
    store = Store()
    assert RecentRecords().get_many([], store.load) == []
    assert store.asked == []


@pytest.mark.plain
def test_all_is_forgotten_at_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    store, records = Store(), RecentRecords()
    size = len(b"record of 0001") + recent.OVERHEAD
    monkeypatch.setattr(recent, "MAX_BYTES", 2 * size)
    records.get_many(revs(1, 2), store.load)
    records.get_many(revs(3), store.load)  # one too many
    store.asked.clear()
    records.get_many(revs(1, 2), store.load)
    records.get_many(revs(1, 2), store.load)
    assert store.asked == [revs(1, 2)]


@pytest.mark.plain
def test_a_large_range_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    store, records = Store(), RecentRecords()
    monkeypatch.setattr(recent, "MAX_RANGE", 1)
    records.get_many(revs(1, 2), store.load)
    records.get_many(revs(1, 2), store.load)
    assert store.asked == [revs(1, 2)] * 2


def test_a_replaced_database_is_read_anew() -> None:
    store, records = Store(), RecentRecords()
    records.get_many(revs(1), store.load)
    records.clear()
    records.get_many(revs(1), store.load)
    assert store.asked == [revs(1)] * 2
