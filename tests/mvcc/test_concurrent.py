"""Compactions, hashes and writes at the same time, in slices of a few keys."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import pytest

from kvorum import errors
from kvorum.backend import Backend
from kvorum.backend.backend import READ_THREADS
from kvorum.mvcc import compaction, hash
from kvorum.mvcc.revision import before, is_tombstone, main_of
from kvorum.mvcc.store import Store
from kvorum.types import LeaseID

NO_LEASE = LeaseID(0)


@pytest.fixture(params=[1, 3])
def small_slices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "INDEX_SLICE", request.param)
    monkeypatch.setattr(hash, "KEEP_SLICE", request.param)


class Log:
    """Every record ever written, from which any hash follows."""

    def __init__(self) -> None:
        self.records: list[tuple[bytes, bytes, bytes]] = []

    def take(self, store: Store) -> None:
        self.records += [(rev, key, record) for rev, key, record, _ in store.changes]
        store.changes.clear()

    def newest(self, at: int) -> dict[bytes, bytes]:
        """Each key's last revision at or before `at`."""
        return {key: rev for rev, key, _ in self.records if rev < before(at + 1)}

    def hash(self, compact_rev: int, rev: int) -> int:
        kept = {r for r in self.newest(rev).values() if not is_tombstone(r)}
        assert kept, "an empty keep set has rules of its own"
        crc = google_crc32c.value(b"key")
        for r, _, record in self.records:
            old = main_of(r) <= compact_rev
            if r < before(rev + 1) and (r in kept or not old):
                crc = google_crc32c.extend(crc, r + record)
        return int(crc)


class Member:
    """A store with a writer, a compactor and several who ask for hashes."""

    def __init__(self, path: Path, rng: random.Random) -> None:
        self.rng = rng
        self.log = Log()
        backend = Backend(path / "kvorum.mdb", loop=asyncio.get_running_loop(), batch_interval=0)
        self.store = Store(backend)
        self.store.put(b"stays", b"", NO_LEASE)
        self.keys = [b"%02d" % i for i in range(30)]
        self.writing = True
        self.checked = 0
        self.progress = asyncio.Event()

    def some_writes(self) -> None:
        store, rng = self.store, self.rng
        for _ in range(rng.randint(1, 8)):
            key = rng.choice(self.keys)
            if rng.random() < 0.7:
                store.put(key, b"%d" % rng.randint(0, 99), NO_LEASE)
            else:
                txn = store.write()
                txn.delete_range(key, rng.choice([b"", key + b"\x00", b"3"]))
                txn.end()
        self.log.take(store)

    async def write(self) -> None:
        """In the middle of whatever the others do, which they do forty times and more."""
        for _ in range(40):
            for _ in range(5):
                self.some_writes()
                await asyncio.sleep(0)
            self.progress.clear()
            await self.progress.wait()
        self.writing = False

    async def compact(self) -> None:
        """Schedule up to three at a time, and run them in order."""
        store, rng = self.store, self.rng
        while self.writing:
            jobs = []
            for _ in range(rng.randint(1, 3)):
                low = max(store.compact_rev + 1, 2)
                if low <= store.rev:
                    jobs.append((store.compact_rev, store.compact(rng.randint(low, store.rev))))
            for previous, job in jobs:
                await job.run(batch_limit=rng.choice([1, 10, 1000]), sleep=0)
                store.compactions.popleft()
                self.check_compaction(previous, job.rev)
                self.progress.set()
            await asyncio.sleep(0)

    def check_compaction(self, previous: int, rev: int) -> None:
        for value in self.store.hashes:
            if value.rev == rev:
                assert value == (self.log.hash(previous, rev), previous, rev)
                self.checked += 1

    async def ask_for_hashes(self) -> None:
        store, rng = self.store, self.rng
        while self.writing:
            rev = rng.choice([0, store.rev, rng.randint(max(store.compact_rev, 2), store.rev)])
            try:
                value, current = await store.hash_kv(rev)
            except errors.Compacted:
                assert 0 < rev < store.compact_rev
                continue
            assert value.hash == self.log.hash(value.compact_rev, value.rev)
            assert current >= value.rev >= value.compact_rev
            self.checked += 1
            self.progress.set()


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize("seed", range(4))
def test_hashes_are_right_while_writes_and_compactions_go_on(tmp_path: Path, seed: int) -> None:
    async def scenario() -> None:
        member = Member(tmp_path, random.Random(seed))
        tasks = [member.write(), member.compact(), *(member.ask_for_hashes() for _ in range(3))]
        await asyncio.gather(*tasks)
        assert member.checked > 10
        check_what_is_left(member)
        member.store.backend.close()

    asyncio.run(scenario())


def check_what_is_left(member: Member) -> None:
    """The file has what must be kept and what is newer, and nothing else; the index likewise."""
    store, log = member.store, member.log
    at = store.compact_rev
    newest = set(log.newest(at).values())
    expected = [
        (rev, record)
        for rev, _, record in log.records
        if rev >= before(at + 1)
        or (rev in newest and (not is_tombstone(rev) or main_of(rev) == at))
    ]
    assert list(store.backend.scan("key")) == expected
    live = {key: rev for key, rev in log.newest(store.rev).items() if not is_tombstone(rev)}
    assert store.index.live_items(b"\x00", b"\x00") == sorted(live.items())


@pytest.fixture
def many_revisions(tmp_path: Path) -> Iterator[Store]:
    store = Store(Backend(tmp_path / "kvorum.mdb"))
    for i in range(50):
        store.put(b"hot", b"%d" % i, NO_LEASE)
    yield store
    store.backend.close()


def test_a_key_with_many_revisions_is_compacted_in_slices(
    many_revisions: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "INDEX_SLICE", 10)
    store = many_revisions
    job = store.compact(41)
    steps = 1
    while not job.index_step():
        steps += 1
    assert steps == 1 + 4
    while not job.delete_step():
        pass
    assert job.deleted == 39
    assert store.range_kvs(b"hot", b"", rev=41).kvs == [store.kv_at(b"hot", 41)]
    assert len(store.backend.range("key", b"", None)) == 11


@pytest.mark.plain
def test_a_hash_of_before_a_compaction_sees_each_slice_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scan has looked at one key when the compaction takes the old revisions away."""
    monkeypatch.setattr(compaction, "INDEX_SLICE", 2)
    monkeypatch.setattr(hash, "KEEP_SLICE", 1)

    async def scenario() -> None:
        store = Store(Backend(tmp_path / "kvorum.mdb", loop=asyncio.get_running_loop()))
        log = Log()
        for value in (b"old", b"new", b"newer"):
            for i in range(7):
                store.put(b"%d" % i, value, NO_LEASE)
        log.take(store)
        await store.compact(9).run(sleep=0)
        store.hashes.clear()
        expected = log.hash(9, 12)
        begun = asyncio.Event()

        async def compact_first(_: float) -> None:
            """Takes the place of the first pause of the scan."""
            if not begun.is_set():
                begun.set()
                job = store.compact(22)
                while not job.index_step():
                    pass

        monkeypatch.setattr(store.backend, "pause", compact_first)
        found, _ = await store.hash_kv(12)
        assert begun.is_set()
        assert found == (expected, 9, 12)
        store.backend.close()

    asyncio.run(scenario())


def test_whoever_stops_waiting_for_a_hash_leaves_nothing_behind(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Store(Backend(tmp_path / "kvorum.mdb", loop=asyncio.get_running_loop()))
        for i in range(5000):
            store.put(b"%d" % i, b"v" * 100, NO_LEASE)
        await store.compact(100).run(sleep=0)
        expected, _ = await store.hash_kv(0)
        for turns in range(30):
            asked = asyncio.create_task(store.hash_kv(0))
            whole = asyncio.create_task(store.backend.hash())
            for _ in range(turns):
                await asyncio.sleep(0)
            asked.cancel()
            whole.cancel()
            await asyncio.gather(asked, whole, return_exceptions=True)
        assert not store.scans
        idle = threading.Barrier(READ_THREADS)  # none of the threads is at work any more
        await asyncio.gather(*(store.backend.in_thread(idle.wait) for _ in range(READ_THREADS)))
        assert store.backend.database.views == 0
        assert await store.hash_kv(0) == (expected, store.rev)
        store.backend.close()

    asyncio.run(scenario())
