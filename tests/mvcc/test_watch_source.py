"""History as the real store gives it to watches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mvcc.watch_kit import RealStore, header

from kvorum.mvcc.revision import is_tombstone, main_of
from kvorum.mvcc.watch import WatchHub
from kvorum.mvcc.watch_source import StoreHistory
from kvorum.types import Revision


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RealStore]:
    store = RealStore(tmp_path)
    yield store
    store.close()


def revs(store: RealStore, first: int, last: int) -> list[int]:
    return [main_of(c[0]) for c in store.source.history(Revision(first), Revision(last))]


@pytest.mark.parametrize("count", [0, 1, 20])
@pytest.mark.parametrize("committed", [0, 10, 20])
def test_history_is_complete_wherever_it_is(store: RealStore, count: int, committed: int) -> None:
    for i in range(count):
        store.write((b"a", b"v"))
        if i + 1 == committed:
            store.backend.commit_now()
    last = count + 1
    assert revs(store, 1, last) == list(range(2, last + 1))
    assert revs(store, last, last) == ([last] if count else [])
    assert revs(store, 3, last - 1) == list(range(3, last))
    assert revs(store, last + 1, last + 9) == []


def test_history_names_key_record_and_deletion(store: RealStore) -> None:
    written = store.write((b"k" * 200, b"v"), (b"b", b"v"))
    written += store.write((b"b", None))
    changes = list(store.source.history(Revision(2), Revision(3)))
    assert [c[:3] for c in changes] == [c[:3] for c in written]
    assert [is_tombstone(c[0]) for c in changes] == [False, False, True]


def test_pairs_of_the_past(store: RealStore) -> None:
    source = store.source
    first = store.write((b"a", b"1"))[0]
    store.write((b"a", b"2"))
    store.write((b"a", None))
    assert [source.kv_at(b"a", Revision(r)) for r in (1, 4)] == [None, None]
    assert source.kv_at(b"a", Revision(2)) == first[2]
    assert source.kv_by_rev(first[0]) == first[2]
    store.compact(4)
    assert source.kv_at(b"a", Revision(2)) is None
    assert source.kv_by_rev(first[0]) is None


def test_a_hub_without_a_waker_is_polled(store: RealStore) -> None:
    store.write((b"a", b"1"))
    hub = WatchHub(StoreHistory(store.store), header)
    assert not hub.sync_step()
    assert hub.rev == 2
