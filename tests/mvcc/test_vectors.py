"""The reference history, whose hashes were taken from etcd 3.5.1 and 3.7.1."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvorum.backend import Backend
from kvorum.mvcc.store import Store
from kvorum.types import LeaseID

LEASE = LeaseID(0x5A4AA206751F080E)
NO_LEASE = LeaseID(0)
SEVEN = LeaseID(7)

AT_REVISIONS = (5, 9, 12, 13, 16, 17, 18)
HASHES = {
    -1: (1354615498, 862784615, 1002648115, 1064010738, 3450274260, 2805456232, 4034095105),
    8: (None, None, None, 2513170792, 108333567, 1355101737, 1869997517),
    12: (None, None, None, 3303712598, 2443537888, 2409683811, 242056946),
    14: (None, None, None, None, 290043756, 1859289455, 1737836500),
    17: (None, None, None, None, None, None, 65771693),
    18: (None, None, None, None, None, None, 65771693),
}
ENTRIES = {8: 18, 12: 15, 14: 13, 17: 11, 18: 10}
COMPACTION_HASHES = {
    8: (1462949628, -1),
    12: (4139372481, 8),
    14: (18060300, 12),
    17: (1859289455, 14),
    18: (65771693, 17),
}


def write_history(store: Store) -> None:
    for i in range(5):
        store.put(b"a%d" % i, b"v%d" % i, NO_LEASE)
    store.put(b"a0", b"v0b", NO_LEASE)
    delete(store, b"a1")
    delete(store, b"a1")
    store.put(b"a1", b"again", NO_LEASE)
    store.put(b"l1", b"x", LEASE)
    store.put(b"l0", b"y", LEASE)
    txn = store.write()
    txn.put(b"t1", b"1", NO_LEASE)
    txn.put(b"t2", b"2", NO_LEASE)
    assert txn.delete_range(b"a2", b"a4") == 2
    assert txn.end() == 12
    store.put(b"t3", b"", NO_LEASE)
    store.put(b"z", b"1", SEVEN)
    store.put(b"y", b"1", SEVEN)
    store.put(b"z", b"2", NO_LEASE)
    delete(store, b"y")
    store.put(b"empty", b"", NO_LEASE)
    assert store.rev == 18


def delete(store: Store, key: bytes) -> None:
    txn = store.write()
    txn.delete_range(key, b"")
    txn.end()


async def opened(path: Path) -> Store:
    store = Store(Backend(path / "kvorum.mdb", loop=asyncio.get_running_loop()))
    store.restore()
    return store


async def check_hashes(store: Store, compacted: int) -> None:
    for rev, expected in zip(AT_REVISIONS, HASHES[compacted], strict=True):
        if expected is not None:
            value, current = await store.hash_kv(rev)
            assert (value.hash, value.compact_rev, current) == (expected, compacted, 18), rev
    value, _ = await store.hash_kv(0)
    assert value.hash == HASHES[compacted][-1]


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("physical", [False, True])
def test_hash_kv_of_the_reference_history(tmp_path: Path, restart: bool, physical: bool) -> None:
    async def scenario() -> None:
        store = await opened(tmp_path)
        write_history(store)
        await check_hashes(store, -1)
        for rev in (8, 12, 14, 17, 18):
            job = store.compact(rev)
            store.hashes.clear()
            if physical:
                await job.run(batch_limit=1, sleep=0)
                store.hashes.clear()
            if restart:
                store.backend.close()
                store = await opened(tmp_path)
            await check_hashes(store, rev)
            entries = sum(1 for _ in store.backend.scan("key"))
            assert entries == (ENTRIES[rev] if physical else 20)
        store.backend.close()

    asyncio.run(scenario())


def test_hash_kv_at_a_compaction_is_that_of_the_compaction(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = await opened(tmp_path)
        write_history(store)
        for rev in COMPACTION_HASHES:
            await store.compact(rev).run(sleep=0)
        for rev, (expected, previous) in COMPACTION_HASHES.items():
            value, current = await store.hash_kv(rev)
            assert (value, current) == ((expected, previous, rev), 18)
        store.backend.close()

    asyncio.run(scenario())


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Store]:
    store = Store(Backend(tmp_path / "kvorum.mdb"))
    write_history(store)
    yield store
    store.backend.close()


def test_records_are_the_reference_bytes(written: Store) -> None:
    tombstone = bytes.fromhex("00000000000000085f000000000000000074")
    assert written.backend.get("key", tombstone) == bytes.fromhex("0a026131")
    with_lease = bytes.fromhex("0a026c31100a180a20012a0178308e90fca8e7c0a8a55a")
    assert written.range_kvs(b"l1", b"").kvs == [with_lease]
    overwritten = bytes.fromhex("0a02613010021807" + "20022a03763062")
    assert written.get(b"a0") == overwritten


def test_the_mark_of_a_finished_compaction(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = await opened(tmp_path)
        write_history(store)
        await store.compact(18).run(sleep=0)
        mark = store.backend.get("meta", b"finishedCompactRev")
        assert mark == bytes.fromhex("00000000000000125f0000000000000000")
        store.backend.close()

    asyncio.run(scenario())
