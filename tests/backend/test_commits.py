"""Layers, commits, and what happens when a commit is impossible."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import lmdb
import pytest

from kvorum import failpoint
from kvorum.backend import (
    Backend,
    BackendError,
    Bucket,
    CommitError,
    OpenError,
    ViewLostError,
)
from kvorum.backend.committer import Batches
from kvorum.backend.database import Database, Sizes
from kvorum.backend.foreign import foreign_view

Scenario = Callable[[Backend], Coroutine[Any, Any, None]]


def run(path: Path, scenario: Scenario, **options: Any) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        backend = Backend(path / "kvorum.mdb", loop=loop, **options)
        try:
            await scenario(backend)
        finally:
            backend.close()

    asyncio.run(main())


def reopened(path: Path) -> dict[bytes, bytes]:
    """What is in bucket meta on disk."""
    backend = Backend(path / "kvorum.mdb")
    content = dict(backend.range("meta", b"", None))
    backend.close()
    return content


class Gate:
    """Holds the commit thread until opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Semaphore(0)
        write = Database.write

        def gated(database: Database, batches: Batches) -> Sizes:
            self.entered.release()
            assert self.open.acquire(timeout=20)
            return write(database, batches)

        monkeypatch.setattr(Database, "write", gated)


def test_reads_see_all_three_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(backend: Backend) -> None:
        gate = Gate(monkeypatch)
        gate.open.release()
        for key in (b"disk", b"frozen", b"overlay", b"gone1", b"gone2"):
            backend.put("key", key, b"disk")
        await backend.commit()
        assert gate.entered.acquire(timeout=0)
        backend.put("key", b"frozen", b"frozen")
        backend.put("key", b"overlay", b"frozen")
        backend.delete("key", b"gone1")
        commit = asyncio.create_task(backend.commit())
        await asyncio.to_thread(gate.entered.acquire)
        backend.put("key", b"overlay", b"overlay")
        backend.delete("key", b"gone2")
        expected = {b"disk": b"disk", b"frozen": b"frozen", b"overlay": b"overlay"}
        check_reads(backend, expected)
        gate.open.release(2)
        await commit
        check_reads(backend, expected)
        await backend.commit()
        check_reads(backend, expected)

    run(tmp_path, scenario)


def check_reads(backend: Backend, expected: dict[bytes, bytes]) -> None:
    keys = [b"disk", b"frozen", b"overlay", b"gone1", b"gone2", b"never"]
    values = [expected.get(key) for key in keys]
    assert [backend.get("key", key) for key in keys] == values
    assert [backend.get_revision(key) for key in keys] == values
    assert backend.get_many("key", keys) == values
    assert backend.get_revisions(keys[:3]) == values[:3]
    assert backend.range("key", b"", None) == sorted(expected.items())
    assert backend.range("key", b"e", b"p", 1) == [(b"frozen", b"frozen")]


def test_a_commit_waits_for_what_was_written_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is asked for during another is answered by the next, not by that one."""

    async def scenario(backend: Backend) -> None:
        gate = Gate(monkeypatch)
        backend.put("meta", b"a", b"1")
        first = asyncio.create_task(backend.commit())
        await asyncio.to_thread(gate.entered.acquire)
        backend.put("meta", b"b", b"1")
        second = asyncio.create_task(backend.commit())
        gate.open.release()
        await first
        with backend.read_view() as view:
            assert list(view.items("meta")) == [(b"a", b"1")]
        assert not second.done()
        gate.open.release()
        await second
        with backend.read_view() as view:
            assert list(view.items("meta")) == [(b"a", b"1"), (b"b", b"1")]
        assert backend.commits == 2
        await backend.commit()
        assert backend.commits == 2, "there was nothing to commit"

    run(tmp_path, scenario)


def test_a_commit_happens_by_itself_after_the_interval(tmp_path: Path) -> None:
    async def scenario(backend: Backend) -> None:
        done = asyncio.Event()
        backend.on_commit = done.set
        backend.put("meta", b"a", b"1")
        await done.wait()
        assert (backend.commits, backend.pending_ops) == (1, 0)

    run(tmp_path, scenario, batch_interval=0.01)


def test_a_commit_of_the_hook_alone_happens_after_the_interval_when_asked(tmp_path: Path) -> None:
    async def scenario(backend: Backend) -> None:
        done = asyncio.Event()
        backend.on_commit = done.set
        backend.pre_commit = lambda: backend.put("meta", b"index", b"1")
        backend.commit_later()
        backend.commit_later()
        assert backend.commits == 0
        await done.wait()
        assert (backend.commits, backend.get("meta", b"index")) == (1, b"1")

    run(tmp_path, scenario, batch_interval=0.01)


@pytest.mark.parametrize("how", ["put", "put_revision", "delete_revisions", "commit_soon"])
def test_a_commit_happens_early_at_the_limit_or_when_asked(tmp_path: Path, how: str) -> None:
    async def scenario(backend: Backend) -> None:
        done = asyncio.Event()
        backend.on_commit = done.set
        for i in range(9):
            backend.put_revision(b"%017d" % i, b"")
        assert backend.pending_ops == 9
        if how == "put":
            backend.put("meta", b"a", b"")
        elif how == "put_revision":
            backend.put_revision(b"9" * 17, b"")
        elif how == "delete_revisions":
            backend.delete_revisions([b"1", b"2", b"3"])
        else:
            backend.commit_soon()
            backend.commit_soon()
        await done.wait()
        assert backend.commits == 1

    run(tmp_path, scenario, batch_interval=3600, batch_limit=10)


def test_what_the_hook_puts_is_in_the_same_commit(tmp_path: Path) -> None:
    async def scenario(backend: Backend) -> None:
        index = 0

        def hook() -> None:
            backend.put("meta", b"index", b"%d" % index)

        backend.pre_commit = hook
        for index in range(1, 4):
            backend.put("meta", b"data", b"%d" % index)
            await backend.commit()
            with backend.read_view() as view:
                assert view.get("meta", b"index") == view.get("meta", b"data")
        assert backend.pending_ops == 0

    run(tmp_path, scenario)


def test_the_hook_alone_keeps_no_timer_running(tmp_path: Path) -> None:
    """Else an idle member would write to disk for ever."""

    async def scenario(backend: Backend) -> None:
        backend.pre_commit = lambda: backend.put("meta", b"index", b"1")
        await backend.commit()
        assert backend.commits == 1
        assert backend._committer._timer is None

    run(tmp_path, scenario, batch_interval=0)


def test_closing_commits_and_opening_finds_it(tmp_path: Path) -> None:
    async def scenario(backend: Backend) -> None:
        backend.put("meta", b"a", b"1")
        await backend.commit()
        backend.put("meta", b"b", b"2")
        backend.commit_soon()

    run(tmp_path, scenario)
    assert reopened(tmp_path) == {b"a": b"1", b"b": b"2"}


def test_closing_waits_for_the_commit_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(backend: Backend) -> None:
        gate = Gate(monkeypatch)
        backend.put("meta", b"a", b"1")
        waiting = asyncio.create_task(backend.commit())
        await asyncio.to_thread(gate.entered.acquire)
        backend.put("meta", b"b", b"2")
        waiting_longer = asyncio.create_task(backend.commit())
        await asyncio.sleep(0)
        gate.open.release(2)
        backend.close()
        await asyncio.gather(waiting, waiting_longer)
        with pytest.raises(BackendError, match="nothing commits"):
            await backend.commit()
        with pytest.raises(BackendError, match="is closed"):
            await backend.in_thread(lambda: None)

    run(tmp_path, scenario)
    monkeypatch.undo()
    assert reopened(tmp_path) == {b"a": b"1", b"b": b"2"}


class BrokenDisk:
    """Makes commits fail as a full disk would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(database: Database, batches: Batches) -> Sizes:
            raise lmdb.DiskError("mdb_txn_commit: No space left on device", 28)

        monkeypatch.setattr(Database, "write", fail)


def test_a_failed_commit_is_told_to_everybody_and_is_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(backend: Backend) -> None:
        fatal: list[CommitError] = []
        backend.on_fatal = fatal.append
        backend.put("meta", b"a", b"1")
        await backend.commit()
        BrokenDisk(monkeypatch)
        backend.put("meta", b"a", b"2")
        waiting = [asyncio.create_task(backend.commit()) for _ in range(3)]
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(result, CommitError) for result in results)
        assert len(fatal) == 1
        assert "No space left on device" in str(fatal[0])
        assert str(tmp_path) in str(fatal[0])
        assert backend.get("meta", b"a") == b"2"
        monkeypatch.undo()
        backend.put("meta", b"a", b"3")
        with pytest.raises(CommitError):
            await backend.commit()
        with pytest.raises(CommitError):
            backend.close()
        assert len(fatal) == 1

    run(tmp_path, scenario)
    assert reopened(tmp_path) == {b"a": b"1"}


def test_a_failed_commit_without_a_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend(tmp_path / "kvorum.mdb")
    BrokenDisk(monkeypatch)
    backend.put("meta", b"a", b"1")
    for _ in range(2):
        with pytest.raises(CommitError):
            backend.commit_now()
    with pytest.raises(CommitError):
        backend.close()
    monkeypatch.undo()
    assert reopened(tmp_path) == {}


def test_a_cancelled_waiter_hurts_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(backend: Backend) -> None:
        gate = Gate(monkeypatch)
        backend.put("meta", b"a", b"1")
        first, second = (asyncio.create_task(backend.commit()) for _ in range(2))
        await asyncio.to_thread(gate.entered.acquire)
        first.cancel()
        gate.open.release()
        await second
        assert first.cancelled()

    run(tmp_path, scenario)


SMALL_MAP = 256 << 10


def test_the_map_grows_by_itself(tmp_path: Path) -> None:
    async def scenario(backend: Backend) -> None:
        for i in range(40):
            backend.put("meta", b"%d" % i, bytes(40_000))
            await backend.commit()
            assert backend.get("meta", b"0") == bytes(40_000)
        assert backend.database.map_size >= 40 * 40_000
        assert backend.size() > 40 * 40_000

    run(tmp_path, scenario, map_size=SMALL_MAP)
    assert len(reopened(tmp_path)) == 40


def test_the_map_grows_without_a_loop_and_at_the_end(tmp_path: Path) -> None:
    backend = Backend(tmp_path / "kvorum.mdb", map_size=SMALL_MAP)
    for i in range(40):
        backend.put("meta", b"%d" % i, bytes(40_000))
    backend.close()
    assert len(reopened(tmp_path)) == 40


def test_the_map_grows_while_closing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(backend: Backend) -> None:
        gate = Gate(monkeypatch)
        backend.put("meta", b"a", bytes(4 * SMALL_MAP))
        commit = asyncio.create_task(backend.commit())
        await asyncio.to_thread(gate.entered.acquire)
        gate.open.release(20)
        backend.close()
        await commit

    run(tmp_path, scenario, map_size=SMALL_MAP)
    monkeypatch.undo()
    assert reopened(tmp_path) == {b"a": bytes(4 * SMALL_MAP)}


def test_a_view_is_lost_when_the_map_grows(tmp_path: Path) -> None:
    async def scenario(backend: Backend) -> None:
        for i in range(3):
            backend.put("meta", b"%d" % i, b"v")
        await backend.commit()
        view = backend.read_view()
        chunks = view.chunks("meta", 1)
        assert next(chunks) == [(b"0", b"v")]
        backend.put("meta", b"big", bytes(4 * SMALL_MAP))
        await backend.commit()
        with pytest.raises(ViewLostError):
            next(chunks)
        with pytest.raises(ViewLostError):
            view.get("meta", b"0")
        with pytest.raises(ViewLostError):
            view.count("meta")
        view.close()

    run(tmp_path, scenario, map_size=SMALL_MAP)


def test_reading_on_after_a_commit_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    async def scenario(backend: Backend) -> None:
        for i in range(3):
            backend.put("key", b"%d" % i, b"v")
        await backend.commit()
        items = backend.scan("key")
        assert next(items) == (b"0", b"v")
        backend.put("key", b"3", b"v")
        await backend.commit()
        with pytest.raises(BackendError, match="cannot read the database"):
            next(items)

    run(tmp_path, scenario)


def test_closing_loses_the_views(tmp_path: Path) -> None:
    async def scenario(backend: Backend) -> None:
        for i in range(3):
            backend.put("meta", b"%d" % i, b"v")
        await backend.commit()
        chunks = backend.read_view().chunks("meta", 1)
        next(chunks)
        backend.close()
        assert backend.database.closed.is_set()
        with pytest.raises(ViewLostError):
            next(chunks)

    run(tmp_path, scenario)


def test_a_view_that_is_closed_during_a_read_is_closed_by_its_reader(tmp_path: Path) -> None:
    async def scenario(backend: Backend) -> None:
        backend.put("meta", b"a", b"1")
        await backend.commit()
        view = backend.read_view()
        with view._reading() as txn:
            view.close()
            assert txn.get(b"a", db=backend.database.dbs[Bucket.META]) == b"1"
            assert backend.database.views == 1
        assert backend.database.views == 0
        view.close()
        view.lose()

    run(tmp_path, scenario)


def test_sizes_are_those_of_the_last_commit(tmp_path: Path) -> None:
    async def scenario(backend: Backend) -> None:
        empty = backend.size()
        assert backend.size_in_use() <= empty
        for i in range(1000):
            backend.put("meta", b"%d" % i, bytes(1000))
        assert backend.size() == empty
        await backend.commit()
        assert backend.size() == (tmp_path / "kvorum.mdb").stat().st_size
        full = backend.size_in_use()
        assert 1_000_000 < full <= backend.size() < 2_000_000
        for i in range(1000):
            backend.delete("meta", b"%d" % i)
        await backend.commit()
        assert backend.size() >= full
        assert backend.size_in_use() < 100_000
        sizes = backend.size(), backend.size_in_use()
        backend.close()
        again = Backend(tmp_path / "kvorum.mdb")
        assert (again.size(), again.size_in_use()) == sizes
        again.close()

    run(tmp_path, scenario)


def test_revisions_out_of_order_are_stored_all_the_same(tmp_path: Path) -> None:
    async def scenario(backend: Backend) -> None:
        backend.put("key", b"5", b"a")
        await backend.commit()
        for key in (b"7", b"3", b"6", b"5"):
            backend.put("key", key, b"b")
        await backend.commit()
        expected = [(key, b"b") for key in (b"3", b"5", b"6", b"7")]
        assert backend.range("key", b"", None) == expected

    run(tmp_path, scenario)


def test_durations_are_observed(tmp_path: Path) -> None:
    async def scenario(backend: Backend) -> None:
        seen: list[tuple[str, float]] = []
        backend.observe = lambda name, seconds: seen.append((name, seconds))
        backend.put("meta", b"a", b"1")
        await backend.hash()
        await backend.defrag()
        assert [name for name, _ in seen] == ["commit", "hash", "defrag"]
        assert all(0 < seconds < 20 for _, seconds in seen)

    run(tmp_path, scenario)


COMMIT_FAILPOINTS = [
    "commitBeforePreCommitHook",
    "commitAfterPreCommitHook",
    "beforeWritebackBuf",
    "afterWritebackBuf",
    "beforeStartDBTxn",
    "afterStartDBTxn",
    "beforeCommit",
    "afterCommit",
]


def test_every_failpoint_of_a_commit_is_passed(tmp_path: Path) -> None:
    async def scenario(backend: Backend) -> None:
        backend.put("meta", b"a", b"1")
        await backend.commit()
        for name in COMMIT_FAILPOINTS:
            assert failpoint.status(name)[1] == 1, name

    try:
        for name in COMMIT_FAILPOINTS:
            failpoint.enable(name, "return")
        run(tmp_path, scenario)
    finally:
        failpoint.disable_all()


def test_a_chunk_of_long_values_is_a_short_one(tmp_path: Path) -> None:
    """Readers hold a chunk at a time, whatever the size of the values."""

    async def scenario(backend: Backend) -> None:
        expected = [(b"%03d" % i, bytes(300_000 if i % 100 > 90 else 9)) for i in range(300)]
        for key, value in expected:
            backend.put("key", key, value)
        await backend.commit()
        with backend.read_view() as view:
            chunks = list(view.chunks("key", 100))
        assert [item for chunk in chunks for item in chunk] == expected
        assert max(sum(len(value) for _, value in chunk) for chunk in chunks) < (1 << 20) + 300_000
        assert max(map(len, chunks)) > 90

    run(tmp_path, scenario)


_READER = """
import sys
from pathlib import Path
from kvorum.backend.foreign import foreign_view
with foreign_view(Path(sys.argv[1]), int(sys.argv[2])) as view:
    for _ in range(2):
        print(len(list(view.items("meta"))), flush=True)
        sys.stdin.readline()
"""


@pytest.mark.parametrize("end", ["asked", "killed"])
def test_another_process_reads_beside(tmp_path: Path, end: str) -> None:
    """It sees one moment; when it is gone, however it went, its pages are free."""

    async def scenario(backend: Backend) -> None:
        for i in range(3):
            backend.put("meta", b"%d" % i, b"v")
        await backend.commit()
        arguments = (str(backend.path), str(backend.database.map_size))
        reader = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _READER, *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert reader.stdout is not None
        assert reader.stdin is not None
        assert await reader.stdout.readline() == b"3\n"
        own = backend.database.env.readers().count("\n") - 1
        backend.put("meta", b"4", b"v")
        await backend.commit()
        reader.stdin.write(b"\n")
        assert await reader.stdout.readline() == b"3\n"
        if end == "killed":
            reader.kill()
        else:
            reader.stdin.write(b"\n")
        await reader.wait()
        backend.forget_dead_readers()
        assert backend.database.env.readers().count("\n") - 1 == own - 1

    run(tmp_path, scenario)


def test_what_is_no_database_is_not_read_beside(tmp_path: Path) -> None:
    path = tmp_path / "kvorum.mdb"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(OpenError, match="cannot read the database"), foreign_view(path, 1 << 20):
        pass
