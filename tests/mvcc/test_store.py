"""What the store does in the cases that random histories do not reach, or do not show."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvorum import errors, failpoint
from kvorum.backend import Backend, BackendError, ReadView
from kvorum.mvcc import hash
from kvorum.mvcc.compaction import Compaction
from kvorum.mvcc.hash import KeyValueHash
from kvorum.mvcc.kv import encode, encode_tombstone
from kvorum.mvcc.revision import rev_key, tombstone_key
from kvorum.mvcc.store import MAX_HASHES, Store
from kvorum.types import LeaseID, RevKey

NO_LEASE = LeaseID(0)
SCHEDULED = b"scheduledCompactRev"
FINISHED = b"finishedCompactRev"


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Backend]:
    backend = Backend(tmp_path / "kvorum.mdb")
    yield backend
    backend.close()


@pytest.fixture
def store(backend: Backend) -> Store:
    return Store(backend)


def delete(store: Store, key: bytes) -> None:
    txn = store.write()
    txn.delete_range(key, b"")
    txn.end()


def carry_out(job: Compaction) -> None:
    while not job.index_step():
        pass
    while not job.delete_step():
        pass


def stored(store: Store) -> list[bytes]:
    return [rev for rev, _ in store.backend.scan("key")]


class Attached:
    """A lessor that knows some leases."""

    def __init__(self, *known: int) -> None:
        self.known = known
        self.of: dict[bytes, int] = {}

    def attach(self, lease: LeaseID, key: bytes) -> None:
        if lease not in self.known:
            raise errors.LeaseNotFound
        self.of[key] = lease

    def detach(self, key: bytes) -> None:
        self.of.pop(key, None)


def test_a_new_store_is_at_revision_1(store: Store) -> None:
    store.restore()
    assert (store.rev, store.compact_rev) == (1, -1)
    assert store.put(b"a", b"", NO_LEASE) == 2


def test_one_transaction_at_a_time(store: Store) -> None:
    txn = store.write()
    with pytest.raises(AssertionError, match="inside a transaction"):
        store.write()
    txn.end()
    with pytest.raises(AssertionError, match="has ended"):
        txn.end()


def test_a_put_around_an_open_transaction_is_noticed(store: Store) -> None:
    txn = store.write()
    store.put(b"a", b"", NO_LEASE)
    with pytest.raises(AssertionError):
        txn.end()


def test_history_gives_the_changes_of_a_span_in_order(store: Store) -> None:
    store.put(b"a", b"1", NO_LEASE)
    txn = store.write()
    txn.put(b"b", b"2", NO_LEASE)
    txn.delete_range(b"a", b"")
    txn.end()
    store.put(b"c", b"3", NO_LEASE)
    store.backend.commit_now()
    store.put(b"d", b"4", NO_LEASE)
    changes = [change[:3] for change in store.changes]
    assert [(rev, key, kv) for rev, key, kv, _ in store.history(2, 5)] == changes
    assert [key for _, key, _, _ in store.history(3, 4)] == [b"b", b"a", b"c"]
    assert list(store.history(6, 9)) == []


def test_a_pair_as_of_a_revision(store: Store) -> None:
    store.put(b"a", b"1", NO_LEASE)
    store.put(b"a", b"2", NO_LEASE)
    delete(store, b"a")
    assert store.kv_at(b"a", 1) is None
    assert store.kv_at(b"a", 2) == encode(b"a", 2, 2, 1, b"1", 0)
    assert store.kv_at(b"a", 3) == encode(b"a", 2, 3, 2, b"2", 0)
    assert store.kv_at(b"a", 4) is None
    assert store.kv_at(b"b", 4) is None
    store.compact(3)
    assert store.kv_at(b"a", 2) is None
    assert store.kv_by_rev(rev_key(2)) is not None
    carry_out(store.compactions[0])
    assert store.kv_by_rev(rev_key(2)) is None


def test_leases_follow_the_pairs(backend: Backend) -> None:
    leases = Attached(7, 8)
    store = Store(backend, leases)
    store.put(b"a", b"", LeaseID(7))
    store.put(b"b", b"", LeaseID(7))
    assert leases.of == {b"a": 7, b"b": 7}
    store.put(b"a", b"", LeaseID(8))
    store.put(b"b", b"", NO_LEASE)
    assert leases.of == {b"a": 8}
    delete(store, b"a")
    assert leases.of == {}


def test_restore_attaches_the_last_lease_of_a_live_key(backend: Backend) -> None:
    store = Store(backend)
    store.put(b"kept", b"0" * 9, LeaseID(7))
    store.put(b"moved", b"", LeaseID(7))
    store.put(b"moved", b"", LeaseID(-8))
    store.put(b"dropped", b"", LeaseID(7))
    store.put(b"dropped", b"", NO_LEASE)
    store.put(b"deleted", b"", LeaseID(7))
    delete(store, b"deleted")
    store.put(b"lease unknown", b"", LeaseID(9))
    leases = Attached(7, -8)
    Store(backend, leases).restore()
    assert leases.of == {b"kept": 7, b"moved": -8}


def test_a_transaction_reads_at_old_revisions_too(store: Store) -> None:
    store.put(b"a", b"1", NO_LEASE)
    txn = store.write()
    txn.put(b"a", b"2", NO_LEASE)
    assert txn.range_kvs(b"a", b"", rev=2).kvs == [encode(b"a", 2, 2, 1, b"1", 0)]
    assert txn.range_kvs(b"a", b"", rev=3).kvs == [encode(b"a", 2, 3, 2, b"2", 0)]
    with pytest.raises(errors.FutureRev):
        txn.range_kvs(b"a", b"", rev=4)
    assert txn.end() == 3


def test_a_revision_that_is_missing_from_the_backend_is_an_error(store: Store) -> None:
    store.put(b"a", b"", NO_LEASE)
    store.put(b"b", b"", NO_LEASE)
    store.backend.delete_revisions([rev_key(2)])
    with pytest.raises(AssertionError, match="is in the index and not in the backend"):
        store.range_kvs(b"a", b"")
    with pytest.raises(BackendError, match="has no revision 00000000000000025f"):
        store.range_kvs(b"a", b"z")


class TestRestore:
    """Marks and records as crashes and tools leave them."""

    def restored(self, backend: Backend) -> Store:
        store = Store(backend)
        store.restore()
        return store

    def test_the_newest_revision_may_be_a_mark(self, backend: Backend) -> None:
        backend.put("key", rev_key(5), encode(b"a", 5, 5, 1, b"", 0))
        backend.put("meta", FINISHED, rev_key(9))
        backend.put("meta", SCHEDULED, rev_key(9))
        store = self.restored(backend)
        assert (store.rev, store.compact_rev, list(store.compactions)) == (9, 9, [])
        backend.put("meta", SCHEDULED, rev_key(12))
        store = self.restored(backend)
        assert (store.rev, store.compact_rev) == (12, 12)
        assert [job.rev for job in store.compactions] == [12]

    def test_a_compaction_at_0_is_not_resumed(self, backend: Backend) -> None:
        store = self.restored(backend)
        job = store.compact(0)
        assert store.compact_rev == 0
        with pytest.raises(errors.Compacted):
            store.compact(0)
        store = self.restored(backend)
        assert (store.compact_rev, list(store.compactions)) == (-1, [])
        job = store.compact(0)
        carry_out(job)
        store = self.restored(backend)
        assert (store.compact_rev, list(store.compactions)) == (0, [])

    def test_a_bumped_snapshot_has_a_record_of_no_bytes(self, backend: Backend) -> None:
        backend.put("key", rev_key(5), encode(b"a", 5, 5, 1, b"v", 0))
        backend.put("key", rev_key(1000), b"")
        backend.put("meta", SCHEDULED, rev_key(1000))
        store = self.restored(backend)
        assert (store.rev, store.compact_rev) == (1000, 1000)
        carry_out(store.compactions[0])
        assert store.range_kvs(b"a", b"").kvs == [encode(b"a", 5, 5, 1, b"v", 0)]
        assert store.put(b"a", b"", NO_LEASE) == 1001

    def test_a_key_first_seen_deleted_begins_anew(self, backend: Backend) -> None:
        backend.put("key", tombstone_key(5), encode_tombstone(b"a"))
        backend.put("key", rev_key(7), encode(b"a", 7, 7, 1, b"", 0))
        backend.put("key", rev_key(8), encode(b"a", 7, 8, 2, b"", 0))
        store = self.restored(backend)
        assert store.range_kvs(b"a", b"", rev=6).kvs == []
        assert store.count(b"a", b"").count == 1
        store.put(b"a", b"", NO_LEASE)
        assert store.get(b"a") == encode(b"a", 7, 9, 3, b"", 0)

    def test_a_second_tombstone_in_a_row_is_ignored_and_compacted(self, backend: Backend) -> None:
        backend.put("key", rev_key(2), encode(b"a", 2, 2, 1, b"", 0))
        backend.put("key", tombstone_key(3), encode_tombstone(b"a"))
        backend.put("key", tombstone_key(4), encode_tombstone(b"a"))
        backend.put("key", rev_key(5), encode(b"b", 5, 5, 1, b"", 0))
        backend.put("key", tombstone_key(6), encode_tombstone(b"b"))
        backend.put("key", tombstone_key(7), encode_tombstone(b"b"))
        store = self.restored(backend)
        assert store.put(b"a", b"", NO_LEASE) == 8
        carry_out(store.compact(6))
        assert stored(store) == [tombstone_key(6), tombstone_key(7), rev_key(8)]
        carry_out(store.compact(8))
        assert stored(store) == [rev_key(8)]

    def test_versions_go_on_where_they_were(self, backend: Backend) -> None:
        store = Store(backend)
        for _ in range(3):
            store.put(b"a", b"", NO_LEASE)
        store.put(b"b", b"", NO_LEASE)
        carry_out(store.compact(5))
        store = self.restored(backend)
        store.put(b"a", b"", NO_LEASE)
        store.put(b"a", b"", NO_LEASE)
        assert store.get(b"a") == encode(b"a", 2, 7, 5, b"", 0)
        store = self.restored(backend)
        store.put(b"a", b"", NO_LEASE)
        assert store.get(b"a") == encode(b"a", 2, 8, 6, b"", 0)

    def test_the_work_of_before_is_dropped(self, backend: Backend) -> None:
        store = self.restored(backend)
        store.put(b"a", b"", NO_LEASE)
        store.put(b"a", b"", NO_LEASE)
        job, queue = store.compact(3), store.compactions
        store.restore()
        assert job.abandoned
        assert list(queue) == [job]
        assert [again.rev for again in store.compactions] == [3]
        carry_out(job)
        assert not job.done
        assert stored(store) == [rev_key(2), rev_key(3)]

    def test_the_collector_is_off_only_while_restoring(self, backend: Backend) -> None:
        import gc

        store = Store(backend)
        store.put(b"a", b"", NO_LEASE)
        assert gc.isenabled()
        store.restore()
        assert gc.isenabled()
        gc.disable()
        try:
            store.restore()
            assert not gc.isenabled()
        finally:
            gc.enable()


class TestHashes:
    """Which hashes are remembered, and what is refused."""

    def test_the_newest_ten_are_remembered(self, store: Store) -> None:
        for rev in (3, 1, 2, *range(4, 15)):
            store.keep_hash(KeyValueHash(rev, -1, rev))
        assert len(store.hashes) == MAX_HASHES
        assert [value.rev for value in store.hashes] == list(range(5, 15))

    def test_what_is_refused(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            store = Store(Backend(tmp_path / "kvorum.mdb", loop=asyncio.get_running_loop()))
            for _ in range(5):
                store.put(b"a", b"", NO_LEASE)
            with pytest.raises(errors.FutureRev):
                await store.hash_kv(7)
            store.compact(4)
            with pytest.raises(errors.Compacted):
                await store.hash_kv(3)
            value, current = await store.hash_kv(4)
            assert (value.rev, value.compact_rev, current) == (4, 4, 6)
            assert not store.scans
            store.backend.close()

        asyncio.run(scenario())

    def test_a_compaction_after_an_unfinished_one_is_not_remembered(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            store = Store(Backend(tmp_path / "kvorum.mdb", loop=asyncio.get_running_loop()))
            for _ in range(9):
                store.put(b"a", b"", NO_LEASE)
            for job in (store.compact(4), store.compact(6)):
                await job.run(sleep=0)
            assert [value.rev for value in store.hashes] == [4]
            await store.compact(8).run(sleep=0)
            assert [value.rev for value in store.hashes] == [4, 8]
            store.backend.close()

        asyncio.run(scenario())

    def test_a_view_that_is_lost_is_replaced(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The file has to grow while a hash is computed."""
        lost: list[ReadView] = []
        real = hash.hash_records

        def losing(view: ReadView, spec: hash.HashSpec) -> KeyValueHash:
            if len(lost) < 3:
                lost.append(view)
                view.lose()
            return real(view, spec)

        async def scenario() -> None:
            store = Store(Backend(tmp_path / "kvorum.mdb", loop=asyncio.get_running_loop()))
            for _ in range(9):
                store.put(b"a", b"", NO_LEASE)
            await store.compact(3).run(sleep=0)
            expected, _ = await store.hash_kv(0)
            store.hashes.clear()
            for module in ("store", "compaction"):
                monkeypatch.setattr(f"kvorum.mvcc.{module}.hash_records", losing)
            value, _ = await store.hash_kv(0)
            assert (value, len(lost)) == (expected, 3)
            lost.clear()
            await store.compact(8).run(sleep=0)
            assert [(h.compact_rev, h.rev) for h in store.hashes] == [(3, 8)]
            assert len(lost) == 3
            store.backend.close()

        asyncio.run(scenario())

    def test_a_compaction_abandoned_meanwhile_is_not_remembered(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            store = Store(Backend(tmp_path / "kvorum.mdb", loop=asyncio.get_running_loop()))
            for _ in range(9):
                store.put(b"a", b"", NO_LEASE)
            running = asyncio.create_task(store.compact(4).run(sleep=0))
            await asyncio.sleep(0)
            store.restore()
            await running
            assert store.hashes == []
            assert len(stored(store)) == 9
            store.backend.close()

        asyncio.run(scenario())


FAILPOINTS = [
    "compactBeforeCommitScheduledCompact",
    "compactAfterCommitScheduledCompact",
    "compactAfterAcquiredBatchTxLock",
    "compactBeforeCommitBatch",
    "compactAfterCommitBatch",
    "compactBeforeSetFinishedCompact",
    "compactAfterSetFinishedCompact",
]


def test_every_failpoint_of_a_compaction_is_passed(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Store(Backend(tmp_path / "kvorum.mdb", loop=asyncio.get_running_loop()))
        for _ in range(3):
            store.put(b"a", b"", NO_LEASE)
        await store.compact(4).run(sleep=0)
        store.backend.close()

    try:
        for name in FAILPOINTS:
            failpoint.enable(name, "return")
        asyncio.run(scenario())
        counts = {name: failpoint.status(name)[1] for name in FAILPOINTS}
    finally:
        failpoint.disable_all()
    assert all(counts.values()), counts


def test_the_key_of_a_record_longer_than_a_byte_says(store: Store) -> None:
    key = b"k" * 300
    store.put(key, b"1", NO_LEASE)
    store.put(key, b"2", NO_LEASE)
    again = Store(store.backend)
    again.restore()
    assert again.get(key) == encode(key, 2, 3, 2, b"2", 0)
    assert again.range_keys(key, b"").kvs == [encode(key, 2, 3, 2, b"", 0)]
    assert next(again.history(2, 2))[:2] == (RevKey(rev_key(2)), key)
