"""The store against a naive one, over random histories with compactions and restarts.

The naive store keeps generations and records in lists, compacts by etcd's description (keep set
over the index, then every record up to the revision is looked at), and does all of it at once.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c
import pytest

from kvorum import errors
from kvorum.backend import Backend
from kvorum.mvcc.compaction import Compaction
from kvorum.mvcc.store import Store
from kvorum.pb import mvccpb
from kvorum.types import LeaseID, Revision

Rev = tuple[int, int]
STEPS = 70
KEYS = [b"a", b"b", b"ba", b"c", b"d\x00", b"e" * 40]
RANGES = [
    (b"a", b""),
    (b"zz", b""),
    (b"a", b"c"),
    (b"b", b"\x00"),
    (b"\x00", b"\x00"),
    (b"c", b"b"),
    (b"ba", b"ba"),
]


@dataclass
class Pair:
    """What a record says; a tombstone has the key alone."""

    key: bytes
    create: int = 0
    mod: int = 0
    version: int = 0
    value: bytes = b""
    lease: int = 0

    def record(self) -> bytes:
        return mvccpb.KeyValue(
            key=self.key,
            create_revision=self.create,
            mod_revision=self.mod,
            version=self.version,
            value=self.value,
            lease=self.lease,
        ).SerializeToString()


@dataclass
class NaiveStore:
    rev: int = 1
    compact_rev: int = -1
    records: dict[Rev, Pair] = field(default_factory=dict)
    index: dict[bytes, list[list[Rev]]] = field(default_factory=dict)
    leased: dict[bytes, int] = field(default_factory=dict)

    def is_tombstone(self, rev: Rev) -> bool:
        return self.records[rev].mod == 0

    def live(self, key: bytes, at: int) -> Pair | None:
        revs = sorted(rev for lists in self.index.get(key, []) for rev in lists if rev[0] <= at)
        if not revs or self.is_tombstone(revs[-1]):
            return None
        return self.records[revs[-1]]

    def keys(self, key: bytes, end: bytes) -> list[bytes]:
        if not end:
            return [key] if key in self.index else []
        return sorted(k for k in self.index if k >= key and (end == b"\x00" or k < end))

    def range(self, key: bytes, end: bytes, at: int) -> list[Pair]:
        found = [self.live(user_key, at) for user_key in self.keys(key, end)]
        return [pair for pair in found if pair is not None]

    def put(self, rev: Rev, key: bytes, value: bytes, lease: int) -> None:
        before = self.live(key, rev[0])
        create, version = (before.create, before.version + 1) if before else (rev[0], 1)
        self.records[rev] = Pair(key, create, rev[0], version, value, lease)
        self.index.setdefault(key, [[]])[-1].append(rev)
        self.leased.pop(key, None)
        if lease:
            self.leased[key] = lease

    def delete(self, rev: Rev, key: bytes) -> None:
        self.records[rev] = Pair(key)
        self.index[key][-1].append(rev)
        self.index[key].append([])
        self.leased.pop(key, None)

    def chosen(self, key: bytes, at: int) -> tuple[int, int]:
        """The generation that a compaction looks at, and the place of the revision that stays."""
        lists = self.index[key]
        number = 0
        while number < len(lists) - 1 and lists[number][-1][0] < at:
            number += 1
        return number, sum(1 for rev in lists[number] if rev[0] <= at) - 1

    def keep(self, at: int) -> set[Rev]:
        kept = set()
        for key, lists in self.index.items():
            number, place = self.chosen(key, at)
            if place >= 0 and not self.is_tombstone(lists[number][place]):
                kept.add(lists[number][place])
        return kept

    def compact(self, at: int) -> tuple[int, int, int]:
        """Do it, and return the hash that is remembered."""
        available = set()
        for key in list(self.index):
            number, place = self.chosen(key, at)
            lists = self.index[key] = self.index[key][number:]
            if place >= 0:
                available.add(lists[0][place])
                lists[0] = lists[0][place:]
            if lists == [[]]:
                del self.index[key]
        value = self.hash(self.compact_rev, at, available)
        for rev in [rev for rev in self.records if rev[0] <= at and rev not in available]:
            del self.records[rev]
        previous, self.compact_rev = self.compact_rev, at
        return value, previous, at

    def hash(self, compact_rev: int, rev: int, keep: set[Rev]) -> int:
        crc = google_crc32c.value(b"key")
        for r in sorted(self.records):
            old = r[0] <= compact_rev
            if r[0] > rev or (old and keep and r not in keep):
                continue
            if r[0] == compact_rev and self.is_tombstone(r):
                continue
            key = b"%b_%b" % (r[0].to_bytes(8, "big"), r[1].to_bytes(8, "big"))
            key += b"t" if self.is_tombstone(r) else b""
            crc = google_crc32c.extend(crc, key + self.records[r].record())
        return int(crc)


class Leases:
    """The lessor's part that the store uses."""

    def __init__(self) -> None:
        self.of: dict[bytes, int] = {}

    def attach(self, lease: LeaseID, key: bytes) -> None:
        self.of[key] = lease

    def detach(self, key: bytes) -> None:
        self.of.pop(key, None)


class Pairing:
    """Both stores, kept in step and compared."""

    def __init__(self, path: Path, rng: random.Random) -> None:
        self.path = path / "kvorum.mdb"
        self.rng = rng
        self.naive = NaiveStore()
        self.waiting: list[tuple[Compaction, tuple[int, int, int]]] = []
        self.expected_hashes: list[tuple[int, int, int]] = []
        self.open()

    def open(self) -> None:
        self.leases = Leases()
        backend = Backend(self.path, loop=asyncio.get_running_loop())
        self.store = Store(backend, self.leases)
        self.store.restore()

    # Steps

    def transaction(self) -> None:
        """Up to three changes of different keys, each seen by the next."""
        naive, rng = self.naive, self.rng
        txn = self.store.write()
        changed: set[bytes] = set()
        sub = 0
        for _ in range(rng.randint(1, 3)):
            self.compare_ranges(txn, naive.rev + bool(sub), naive.rev + bool(sub))
            key, end = rng.choice([*((key, b"") for key in KEYS), *RANGES])
            targets = set(naive.keys(key, end) if end else [key])
            if targets & changed:
                continue
            changed |= targets
            main = naive.rev + 1
            if rng.random() < 0.6 and not end:
                value = rng.choice([b"", b"v", b"x" * rng.randint(1, 3000)])
                lease = rng.choice([0, 0, 7, -1, 2**62])
                naive.put((main, sub), key, value, lease)
                assert txn.put(key, value, LeaseID(lease)) == main
                sub += 1
            else:
                doomed = [pair.key for pair in naive.range(key, end, main)]
                for user_key in doomed:
                    naive.delete((main, sub), user_key)
                    sub += 1
                assert txn.delete_range(key, end) == len(doomed)
            assert txn.rev == naive.rev + bool(sub)
            assert len(txn.changes) == sub
        naive.rev += bool(sub)
        assert txn.end() == naive.rev

    def put(self) -> None:
        key, lease = self.rng.choice(KEYS), self.rng.choice([0, 0, 5])
        self.naive.rev += 1
        self.naive.put((self.naive.rev, 0), key, b"put", lease)
        assert self.store.put(key, b"put", LeaseID(lease)) == self.naive.rev

    def compact(self) -> None:
        naive = self.naive
        rev = self.rng.randint(max(naive.compact_rev, 1), naive.rev + 1)
        if rev <= naive.compact_rev:
            with pytest.raises(errors.Compacted):
                self.store.compact(rev)
        elif rev > naive.rev:
            with pytest.raises(errors.FutureRev):
                self.store.compact(rev)
        else:
            finished = not self.waiting
            job = self.store.compact(rev)
            result = naive.compact(rev)
            self.waiting.append((job, result if finished else (0, 0, 0)))

    async def finish_compactions(self, *, stop_early: bool = False) -> None:
        """Run what is scheduled, possibly not to the end."""
        while self.waiting:
            job, result = self.waiting[0]
            limit = self.rng.choice([1, 3, 1000])
            if stop_early:
                await self.interrupt(job, limit)
                return
            await job.run(batch_limit=limit, sleep=0)
            assert job.done
            del self.waiting[0]
            self.store.compactions.popleft()
            if result[2]:
                self.expected_hashes = [*self.expected_hashes, result][-10:]
                assert [(h.hash, h.compact_rev, h.rev) for h in self.store.hashes] == (
                    self.expected_hashes
                )

    async def interrupt(self, job: Compaction, limit: int) -> None:
        """As a crash would, somewhere in between."""
        steps = self.rng.randint(0, 4)
        while not job.index_step():
            pass
        await self.store.backend.commit()
        while steps and not job.delete_step(limit):
            steps -= 1

    async def restart(self) -> None:
        if self.rng.random() < 0.5:
            await self.finish_compactions(stop_early=True)
        hashes = self.store.hashes
        done = {job.rev for job, _ in self.waiting if job.done}
        self.store.backend.close()
        self.open()
        self.store.hashes = hashes  # in memory only: a restart forgets them
        last = self.waiting[-1][0].rev if self.waiting else 0
        self.waiting = [(job, (0, 0, 0)) for job in self.store.compactions]
        assert [job.rev for job, _ in self.waiting] == [last] * (bool(last) and last not in done)

    # Comparing

    def compare_ranges(self, view: object, at: int, current: int) -> None:
        """Every range at one revision: in full, limited, keys alone, counted."""
        rev = at if at < current else self.rng.choice([0, -1, at])
        for key, end in RANGES:
            expected = self.naive.range(key, end, at)
            limit = self.rng.randint(0, 3)
            found = view.range_kvs(key, end, limit=limit, rev=rev)  # type: ignore[attr-defined]
            wanted = expected[:limit] if limit else expected
            assert found.kvs == [pair.record() for pair in wanted], (key, end, at)
            assert (found.count, found.rev) == (len(expected), current)
            keys = view.range_keys(key, end, rev=rev)  # type: ignore[attr-defined]
            assert keys.kvs == [Pair(p.key, p.create, p.mod, p.version).record() for p in expected]
            counted = view.count(key, end, rev)  # type: ignore[attr-defined]
            assert (counted.count, counted.kvs, counted.rev) == (len(expected), [], current)

    async def compare(self) -> None:
        naive, store = self.naive, self.store
        assert (store.rev, store.compact_rev) == (naive.rev, naive.compact_rev)
        assert len(store.index) == len(naive.range(b"\x00", b"\x00", naive.rev))
        assert self.leases.of == naive.leased
        oldest = max(naive.compact_rev, 1)
        for at in {oldest, naive.rev, self.rng.randint(oldest, naive.rev)}:
            self.compare_ranges(store, at, naive.rev)
        if naive.compact_rev > 1:
            with pytest.raises(errors.Compacted):
                store.range_kvs(b"a", b"", rev=naive.compact_rev - 1)
        with pytest.raises(errors.FutureRev):
            store.count(b"a", b"", naive.rev + 1)

    async def compare_hashes(self) -> None:
        naive, remembered = self.naive, self.store.hashes
        self.store.hashes = []
        for rev in {max(naive.compact_rev, 1), naive.rev, 0}:
            at = rev or naive.rev
            keep = naive.keep(at)
            if not keep and self.waiting:
                continue  # then it does depend on what is deleted already, in etcd too
            value, current = await self.store.hash_kv(rev)
            expected = naive.hash(naive.compact_rev, at, keep)
            assert value == (expected, naive.compact_rev, at)
            assert current == naive.rev
        self.store.hashes = remembered

    def compare_physically(self) -> None:
        """After all compactions exactly the naive store's records are left."""
        if not self.waiting:
            stored = list(self.store.backend.scan("key"))
            assert [v for _, v in stored] == [
                self.naive.records[rev].record() for rev in sorted(self.naive.records)
            ]


def check_changes(pairing: Pairing, before: dict[bytes, Pair]) -> None:
    """What the watchers are told adds up to what changed."""
    naive = pairing.naive
    for rev_key, key, record, previous in pairing.store.changes:
        rev = (int.from_bytes(rev_key[:8], "big"), int.from_bytes(rev_key[9:17], "big"))
        assert record == naive.records[rev].record()
        assert naive.records[rev].key == key
        old = before.get(key)
        assert (previous is None) == (old is None)
        if previous is not None and old is not None:
            assert int.from_bytes(previous[:8], "big") == old.mod
            assert pairing.store.kv_by_rev(previous) == old.record()
        before.pop(key, None)
        if not naive.is_tombstone(rev):
            before[key] = naive.records[rev]
    pairing.store.changes.clear()


@pytest.mark.parametrize("seed", range(24))
def test_random_histories(tmp_path: Path, seed: int) -> None:
    async def scenario() -> None:
        rng = random.Random(seed)
        pairing = Pairing(tmp_path, rng)
        for _ in range(STEPS):
            live = {p.key: p for p in pairing.naive.range(b"\x00", b"\x00", pairing.naive.rev)}
            dice = rng.random()
            if dice < 0.45:
                pairing.transaction()
            elif dice < 0.8:
                pairing.put()
            elif dice < 0.9:
                pairing.compact()
            elif dice < 0.95:
                await pairing.finish_compactions()
                pairing.compare_physically()
            else:
                await pairing.restart()
            check_changes(pairing, live)
            if rng.random() < 0.2:
                await pairing.store.backend.commit()
            await pairing.compare()
            if rng.random() < 0.2:
                await pairing.compare_hashes()
        await pairing.finish_compactions()
        pairing.compare_physically()
        await pairing.compare_hashes()
        pairing.store.backend.close()

    asyncio.run(scenario())


def test_revisions_are_not_used_by_what_changes_nothing(tmp_path: Path) -> None:
    store = Store(Backend(tmp_path / "kvorum.mdb"))
    txn = store.write()
    assert txn.delete_range(b"a", b"\x00") == 0
    assert txn.range_kvs(b"a", b"").rev == 1
    assert txn.end() == Revision(1)
    assert (store.rev, store.changes) == (1, [])
    store.backend.close()
