"""Raft snapshots, with the real files, the real log and the log's real thread."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from kvorum import wal as wal_package
from kvorum.membership import Cluster, Member
from kvorum.raft.storage import MemoryStorage
from kvorum.raft.types import ConfState, Entry, EntryType, HardState
from kvorum.server.diskthread import DiskThread
from kvorum.server.snapshotter import SnapshotTaker
from kvorum.snap import Membership, SnapError, Snapshotter, StoredMember, read_store
from kvorum.types import Index, MemberID, Term
from kvorum.wal import WAL, WALError

ME = MemberID(5)
STATE = ConfState((ME,))


class Buckets:
    def put(self, bucket: str, key: bytes, value: bytes) -> None: ...
    def delete(self, bucket: str, key: bytes) -> None: ...
    def get(self, bucket: str, key: bytes) -> bytes | None: ...
    def range(self, bucket: str, lo: bytes, hi: bytes | None) -> list[tuple[bytes, bytes]]:
        return []


class Bench:
    """A log of entries in term 2, and the driver's one method that matters here."""

    def __init__(self, folder: Path, *, count: int = 10, keep: int = 4, last: int = 0) -> None:
        self.folder = folder
        (folder / "snap").mkdir()
        self.wal = WAL.create(folder / "wal", b"metadata", segment_size=4096)
        self.files = Snapshotter(folder / "snap")
        self.disk = DiskThread("test-wal", asyncio.get_running_loop())
        self.storage = MemoryStorage()
        self.failures: list[BaseException] = []
        self.holding = False
        self.cluster = Cluster(7, ME, Buckets())
        self.cluster.add(Member(ME, ("http://p:1",), "me", ("http://c:1",)))
        self.taker = SnapshotTaker(
            files=self.files,
            wal=self.wal,
            disk=self.disk,
            raft=self,  # type: ignore[arg-type]
            storage=self.storage,
            cluster=self.cluster,
            count=count,
            keep=keep,
            last=Index(last),
            failed=self.failures.append,
            holding=lambda: self.holding,
        )

    def log_state(self) -> None:
        """The driver logs the commit index that waits."""
        state = HardState(Term(2), ME, self.storage.last_index())
        batch = self.wal.encode(state, [])
        self.disk.submit(lambda: self.wal.write(batch), lambda result: None)

    def append(self, count: int, size: int = 1) -> None:
        first = self.storage.last_index() + 1
        entries = [
            Entry(Term(2), Index(first + i), EntryType.NORMAL, b"x" * size) for i in range(count)
        ]
        self.storage.append(entries)
        batch = self.wal.encode(HardState(Term(2), ME, Index(1)), entries)
        self.disk.submit(lambda: self.wal.write(batch), lambda result: None)

    def committed(self, index: int) -> None:
        self.taker.committed(Index(index), Term(2), STATE)

    async def idle(self) -> None:
        """Until the thread and all that follows from it has come to rest."""
        async with asyncio.timeout(10):
            for _ in range(4):
                rest: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                self.disk.submit(lambda: None, rest.set_result)
                await rest

    def names(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "snap").iterdir())


def run(folder: Path, story: Callable[[Bench], Awaitable[None]], **settings: int) -> None:
    async def whole() -> None:
        bench = Bench(folder, **settings)
        try:
            await story(bench)
        finally:
            bench.disk.close()
            bench.wal.close()

    asyncio.run(whole())


def test_not_before_so_many_entries(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.append(30)
        for index in range(1, 10):
            bench.committed(index)
        await bench.idle()
        assert bench.names() == []
        bench.committed(10)
        await bench.idle()
        assert bench.taker.last == 10
        assert bench.names() == ["0000000000000002-000000000000000a.snap"]
        bench.committed(19)
        await bench.idle()
        assert len(bench.names()) == 1
        bench.committed(25)
        await bench.idle()
        assert bench.taker.last == 25
        assert bench.failures == []

    run(tmp_path, story)


def test_counting_goes_on_where_the_last_run_ended(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.append(30)
        bench.committed(22)
        await bench.idle()
        assert bench.names() == []
        bench.committed(23)
        await bench.idle()
        assert len(bench.names()) == 1

    run(tmp_path, story, last=13)


def test_the_file_holds_the_members_and_the_log_vouches_for_it(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        cluster = bench.cluster
        cluster.add(Member(MemberID(9), ("http://q:1",), is_learner=True))
        cluster.add(Member(MemberID(11), ("http://r:1",)))
        cluster.remove(MemberID(11))
        cluster.set_version("3.7.0")
        bench.append(12)
        bench.committed(12)
        await bench.idle()

    run(tmp_path, story)
    (recorded,) = [r for r in wal_package.valid_snapshots(tmp_path / "wal") if r.index]
    assert (recorded.index, recorded.term, recorded.conf_state) == (12, 2, STATE)
    snapshot = Snapshotter(tmp_path / "snap").load_newest([recorded])
    assert snapshot.metadata.conf_state == STATE
    assert read_store(snapshot.data) == Membership(
        (
            StoredMember(ME, ("http://p:1",), False, "me", ("http://c:1",)),
            StoredMember(9, ("http://q:1",), True),
        ),
        (11,),
        "3.7.0",
    )


def test_entries_stay_for_slow_followers(tmp_path: Path) -> None:
    """In memory, and whatever is on disk; now and then the older ones are let go of."""

    async def story(bench: Bench) -> None:
        bench.append(300)
        bench.committed(99)
        assert bench.storage.first_index() == 1
        bench.committed(100)
        assert bench.storage.first_index() == 97
        assert bench.storage.snapshot().metadata.index == 100
        assert bench.storage.snapshot().metadata.conf_state == STATE
        bench.committed(199)
        assert bench.storage.first_index() == 97
        bench.committed(250)
        assert bench.storage.first_index() == 247
        await bench.idle()
        assert bench.names() == []

    run(tmp_path, story, count=1000)


def test_no_entry_goes_while_a_follower_gets_a_snapshot(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.append(300)
        bench.holding = True
        bench.committed(100)
        assert bench.storage.first_index() == 1
        assert bench.storage.snapshot().metadata.index == 100
        bench.holding = False
        bench.committed(200)
        assert bench.storage.first_index() == 197

    run(tmp_path, story, count=1000)


def test_a_snapshot_of_the_leader_is_newer(tmp_path: Path) -> None:
    """One of our own that was on its way is no use any more, and the log must not name it last."""

    async def story(bench: Bench) -> None:
        bench.append(30)
        bench.committed(12)
        bench.taker.received(Index(20))
        await bench.idle()
        assert bench.taker.last == 20
        bench.committed(29)
        await bench.idle()
        assert bench.taker.last == 20
        bench.committed(30)
        await bench.idle()
        assert bench.taker.last == 30
        assert bench.failures == []

    run(tmp_path, story)
    recorded = [r.index for r in wal_package.valid_snapshots(tmp_path / "wal")]
    assert recorded == [0, 30]


def test_only_one_at_a_time(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.append(30)
        bench.committed(10)
        bench.committed(30)
        await bench.idle()
        assert (bench.taker.last, len(bench.names())) == (10, 1)
        bench.committed(30)
        await bench.idle()
        assert (bench.taker.last, len(bench.names())) == (30, 2)

    run(tmp_path, story)


def test_old_files_are_purged_and_needed_ones_are_not(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        for number in range(1, 6):
            bench.append(10, size=1000)  # ten of them overflow a segment
            bench.committed(10 * number)
            await bench.idle()
        segments = sorted(path.name for path in (tmp_path / "wal").glob("*.wal"))
        assert len(segments) > 5
        bench.taker.purge(0, 0)
        await bench.idle()
        assert len(bench.names()) == 5
        bench.taker.purge(2, 2)
        await bench.idle()
        assert [name[-7:-5] for name in bench.names()] == ["28", "32"]
        left = sorted(path.name for path in (tmp_path / "wal").glob("*.wal"))
        assert left == segments[-len(left) :]
        assert len(left) < len(segments)

    run(tmp_path, story)
    record = wal_package.latest_snapshot(tmp_path / "wal")
    assert record.index == 50
    log, result = wal_package.open_log(tmp_path / "wal", record, segment_size=4096)
    log.close()
    assert result.hard_state.commit == 50


def test_a_file_that_cannot_be_purged_is_no_end(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.files.purge = refuse  # type: ignore[assignment, method-assign]
        bench.taker.purge(1, 0)
        await bench.idle()
        assert bench.failures == []

    def refuse(*_: object) -> list[Path]:
        raise PermissionError("no")

    run(tmp_path, story)


def test_whatever_else_goes_wrong_with_purging_is(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.files.purge = refuse  # type: ignore[assignment, method-assign]
        bench.taker.purge(1, 0)
        await bench.idle()
        assert [str(error) for error in bench.failures] == ["a bug"]

    def refuse(*_: object) -> list[Path]:
        raise RuntimeError("a bug")

    run(tmp_path, story)


@pytest.mark.parametrize("step", ["save", "record"])
@pytest.mark.plain
def test_a_disk_that_refuses_ends_the_member(tmp_path: Path, step: str) -> None:
    """Nothing is let go of before both are safely there."""

    def refuse(*_: object) -> None:
        raise SnapError(tmp_path, "disk full") if step == "save" else WALError(tmp_path, "io")

    async def story(bench: Bench) -> None:
        bench.append(10)
        await bench.idle()
        if step == "save":
            bench.files.save = refuse  # type: ignore[assignment, method-assign]
        else:
            bench.log_state = lambda: None  # type: ignore[method-assign]
            bench.wal.write = refuse  # type: ignore[assignment, method-assign]
        bench.committed(10)
        await bench.idle()
        assert len(bench.failures) == 1
        assert bench.storage.first_index() == 1
        assert bench.taker.last == 0
        bench.committed(10)  # and it is not tried again
        await bench.idle()
        assert len(bench.failures) == 1

    run(tmp_path, story)
