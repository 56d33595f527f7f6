"""Defragmentation while everything goes on, and everything that can stop it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import lmdb
import pytest

from kvorum import failpoint
from kvorum.backend import Backend, BackendError, Bucket, CommitError, DefragError, defrag
from kvorum.backend.bulk import write_database
from kvorum.backend.committer import Batches
from kvorum.backend.database import Database, Sizes
from kvorum.backend.defrag import Defrag, copy_path

VALUE = bytes(3000)


def run(
    path: Path, scenario: Callable[[Backend], Coroutine[Any, Any, None]], **options: Any
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        backend = Backend(path / "kvorum.mdb", loop=loop, **options)
        try:
            await scenario(backend)
        finally:
            backend.close()

    asyncio.run(main())


def content_on_disk(path: Path) -> dict[bytes, bytes]:
    backend = Backend(path / "kvorum.mdb")
    content = dict(backend.range("meta", b"", None))
    backend.close()
    return content


async def fill(backend: Backend, count: int = 300) -> dict[bytes, bytes]:
    """Leave every tenth key of `count`, so that most of the file is free."""
    for i in range(count):
        backend.put("meta", b"%d" % i, VALUE)
    await backend.commit()
    for i in range(count):
        if i % 10:
            backend.delete("meta", b"%d" % i)
    await backend.commit()
    return dict(backend.range("meta", b"", None))


class Stage:
    """Stops a thread at a method of `Defrag` until released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()
        method = getattr(Defrag, name)

        def staged(job: Defrag, *args: Any) -> Any:
            self.reached.set()
            assert self.go_on.wait(20)
            return method(job, *args)

        monkeypatch.setattr(Defrag, name, staged)


def files_in(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


def test_the_file_gets_small_and_nothing_is_lost(tmp_path: Path) -> None:
    async def scenario(backend: Backend) -> None:
        expected = await fill(backend)
        before = backend.size()
        told: list[int] = []
        backend.on_commit = lambda: told.append(backend.size())
        await backend.defrag()
        assert backend.size() == backend.size_in_use() < before / 5
        assert told[-1] == backend.size()
        assert (tmp_path / "kvorum.mdb").stat().st_size == backend.size()
        assert dict(backend.range("meta", b"", None)) == expected
        backend.put("meta", b"after", b"1")
        await backend.commit()
        await backend.defrag()
        assert backend.get("meta", b"after") == b"1"

    run(tmp_path, scenario)
    assert content_on_disk(tmp_path)[b"after"] == b"1"
    assert files_in(tmp_path) == ["kvorum.mdb", "kvorum.mdb-lock"]


@pytest.mark.parametrize("stage", ["make_copy", "catch_up", "install"])
def test_reads_and_writes_go_on_at_every_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    async def scenario(backend: Backend) -> None:
        expected = await fill(backend)
        held = Stage(monkeypatch, stage)
        defragging = asyncio.create_task(backend.defrag())
        backend.put("meta", b"0", b"during")
        backend.delete("meta", b"10")
        await asyncio.to_thread(held.reached.wait, 20)
        backend.put("meta", b"new", b"during")
        backend.delete("meta", b"20")
        expected |= {b"0": b"during", b"new": b"during"}
        del expected[b"10"], expected[b"20"]
        assert dict(backend.range("meta", b"", None)) == expected
        commit = asyncio.create_task(backend.commit())
        if stage == "make_copy":
            await commit
        held.go_on.set()
        await asyncio.gather(commit, defragging)
        assert dict(backend.range("meta", b"", None)) == expected
        with backend.read_view() as view:
            assert dict(view.items("meta")) == expected

    run(tmp_path, scenario)
    monkeypatch.undo()
    assert content_on_disk(tmp_path)[b"new"] == b"during"


def test_a_view_outlives_the_file_it_reads(tmp_path: Path) -> None:
    async def scenario(backend: Backend) -> None:
        expected = await fill(backend)
        old = backend.database
        with backend.read_view() as view:
            items = view.items("meta")
            first = next(items)
            await backend.defrag()
            backend.put("meta", b"0", b"later")
            await backend.commit()
            assert dict([first, *items]) == expected
            assert old.views == 1
            assert not old.closed.is_set()
        assert old.views == 0
        assert old.closed.wait(20), "closed with its last view"

    run(tmp_path, scenario)


def test_two_at_a_time_run_one_after_the_other(tmp_path: Path) -> None:
    async def scenario(backend: Backend) -> None:
        expected = await fill(backend)
        await asyncio.gather(backend.defrag(), backend.defrag())
        assert dict(backend.range("meta", b"", None)) == expected

    run(tmp_path, scenario)


def test_too_much_written_meanwhile_gives_up_cleanly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(backend: Backend) -> None:
        expected = await fill(backend)
        before = backend.size()
        monkeypatch.setattr(defrag, "BACKLOG_LIMIT", 10_000)
        held = Stage(monkeypatch, "make_copy")
        defragging = asyncio.create_task(backend.defrag())
        await asyncio.to_thread(held.reached.wait, 20)
        for i in range(4):
            backend.put("meta", b"big%d" % i, VALUE)
            await backend.commit()
            expected[b"big%d" % i] = VALUE
        held.go_on.set()
        with pytest.raises(DefragError, match="too much was written"):
            await defragging
        assert backend.size() >= before
        assert files_in(tmp_path) == ["kvorum.mdb", "kvorum.mdb-lock"]
        monkeypatch.undo()
        await backend.defrag()
        assert dict(backend.range("meta", b"", None)) == expected

    run(tmp_path, scenario)


@pytest.mark.plain
def test_writes_that_never_end_are_caught_up_with_in_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as more comes than may be written with commits held back, there is another round."""

    async def scenario(backend: Backend) -> None:
        await fill(backend)
        rounds = []
        catch_up = Defrag.catch_up
        loop = asyncio.get_running_loop()

        def busy(job: Defrag, backlog: Any) -> None:
            rounds.append(len(backlog))
            if len(rounds) < limit:
                backend_write = asyncio.run_coroutine_threadsafe(write(len(rounds)), loop)
                backend_write.result(20)
            catch_up(job, backlog)

        async def write(number: int) -> None:
            backend.put("meta", b"round", b"%d" % number)
            await backend.commit()

        monkeypatch.setattr(defrag, "SHORT_BACKLOG", 1)
        monkeypatch.setattr("kvorum.backend.backend.SHORT_BACKLOG", 1)
        monkeypatch.setattr(Defrag, "catch_up", busy)
        held = Stage(monkeypatch, "make_copy")

        async def defrag_with_one_commit() -> None:
            held.go_on.clear()
            defragging = asyncio.create_task(backend.defrag())
            await asyncio.to_thread(held.reached.wait, 20)
            await write(0)
            held.go_on.set()
            await defragging

        limit = 4
        await defrag_with_one_commit()
        assert rounds == [1, 1, 1, 1, 0]
        assert backend.get("meta", b"round") == b"3"
        rounds.clear()
        limit = 1000
        with pytest.raises(DefragError, match="writes came faster"):
            await defrag_with_one_commit()

    run(tmp_path, scenario)


@pytest.mark.parametrize("name", ["defragOpenFileError", "defragdbFail"])
def test_told_to_fail_it_fails_and_changes_nothing(tmp_path: Path, name: str) -> None:
    async def scenario(backend: Backend) -> None:
        expected = await fill(backend)
        failpoint.enable(name, 'return("some random error")')
        try:
            with pytest.raises(DefragError, match=r"^some random error$"):
                await backend.defrag()
        finally:
            failpoint.disable_all()
        assert dict(backend.range("meta", b"", None)) == expected
        assert files_in(tmp_path) == ["kvorum.mdb", "kvorum.mdb-lock"]
        await backend.defrag()

    run(tmp_path, scenario)


def test_every_failpoint_is_passed(tmp_path: Path) -> None:
    async def scenario(backend: Backend) -> None:
        await backend.defrag()
        assert failpoint.status("defragBeforeCopy")[1] == 1
        assert failpoint.status("defragBeforeRename")[1] == 1

    try:
        failpoint.enable("defragBeforeCopy", "return")
        failpoint.enable("defragBeforeRename", "return")
        run(tmp_path, scenario)
    finally:
        failpoint.disable_all()


@pytest.mark.parametrize("stage", ["make_copy", "catch_up", "install"])
def test_closing_in_the_middle_gives_up_and_keeps_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    async def scenario(backend: Backend) -> None:
        await fill(backend)
        held = Stage(monkeypatch, stage)
        defragging = asyncio.create_task(backend.defrag())
        await asyncio.to_thread(held.reached.wait, 20)
        backend.put("meta", b"last", b"1")
        threading.Timer(0.05, held.go_on.set).start()
        backend.close()
        with pytest.raises(DefragError, match="the backend was closed"):
            await defragging

    run(tmp_path, scenario)
    monkeypatch.undo()
    assert content_on_disk(tmp_path)[b"last"] == b"1"
    assert files_in(tmp_path) == ["kvorum.mdb", "kvorum.mdb-lock"]


def test_closing_right_after_the_rename_goes_on_with_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop has not heard yet that the copy is in place, and must not write to the old file."""

    async def scenario(backend: Backend) -> None:
        await fill(backend)
        renamed, go_on = threading.Event(), threading.Event()
        install = Defrag.install

        def staged(job: Defrag) -> None:
            install(job)
            renamed.set()
            assert go_on.wait(20)

        monkeypatch.setattr(Defrag, "install", staged)
        defragging = asyncio.create_task(backend.defrag())
        await asyncio.to_thread(renamed.wait, 20)
        backend.put("meta", b"last", b"1")
        go_on.set()
        backend.close()
        await defragging

    run(tmp_path, scenario)
    monkeypatch.undo()
    assert content_on_disk(tmp_path)[b"last"] == b"1"
    assert (tmp_path / "kvorum.mdb").stat().st_size < 300_000


def test_a_rename_that_may_not_last_is_fatal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(backend: Backend) -> None:
        expected = await fill(backend)
        fatal: list[CommitError] = []
        backend.on_fatal = fatal.append

        def broken(_: Path) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(defrag, "sync_directory", broken)
        await backend.defrag()
        assert "Input/output error" in str(fatal[0])
        assert dict(backend.range("meta", b"", None)) == expected
        with pytest.raises(CommitError):
            await backend.commit()
        with pytest.raises(CommitError):
            backend.close()

    run(tmp_path, scenario)


def test_a_rename_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(backend: Backend) -> None:
        expected = await fill(backend)

        def broken(self: Path, target: Path) -> Path:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "rename", broken)
        with pytest.raises(DefragError, match="No space left"):
            await backend.defrag()
        monkeypatch.undo()
        backend.put("meta", b"after", b"1")
        await backend.commit()
        assert dict(backend.range("meta", b"", None)) == expected | {b"after": b"1"}

    run(tmp_path, scenario)


def test_no_room_for_the_copy_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(backend: Backend) -> None:
        expected = await fill(backend)
        monkeypatch.setattr(os, "fsync", _no_space)
        with pytest.raises(DefragError, match="No space left"):
            await backend.defrag()
        monkeypatch.undo()
        assert dict(backend.range("meta", b"", None)) == expected
        assert not copy_path(tmp_path / "kvorum.mdb").exists()

    run(tmp_path, scenario)


def _no_space(_: int) -> None:
    raise OSError(28, "No space left on device")


def test_leftovers_are_removed_at_the_start(tmp_path: Path) -> None:
    for name in ("kvorum.mdb.defrag", "kvorum.mdb.defrag-lock"):
        (tmp_path / name).write_bytes(b"half a copy")
    Backend(tmp_path / "kvorum.mdb").close()
    assert files_in(tmp_path) == ["kvorum.mdb", "kvorum.mdb-lock"]


def test_cancelling_the_caller_does_not_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(backend: Backend) -> None:
        expected = await fill(backend)
        before = backend.size()
        held = Stage(monkeypatch, "install")
        caller = asyncio.create_task(backend.defrag())
        await asyncio.to_thread(held.reached.wait, 20)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        held.go_on.set()
        await backend.commit()
        await asyncio.gather(*backend._tasks)
        assert backend.size() < before / 5
        assert dict(backend.range("meta", b"", None)) == expected

    run(tmp_path, scenario)


def test_a_failed_commit_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(backend: Backend) -> None:
        await fill(backend)
        held = Stage(monkeypatch, "make_copy")
        defragging = asyncio.create_task(backend.defrag())
        await asyncio.to_thread(held.reached.wait, 20)
        write = Database.write

        def fail(database: Database, batches: Batches) -> Sizes:
            if database is backend.database:
                raise lmdb.DiskError("mdb_txn_commit: Input/output error", 5)
            return write(database, batches)

        monkeypatch.setattr(Database, "write", fail)
        backend.put("meta", b"a", b"1")
        with pytest.raises(CommitError):
            await backend.commit()
        held.go_on.set()
        with pytest.raises(CommitError):
            await defragging
        with pytest.raises(CommitError):
            backend.close()

    run(tmp_path, scenario)
    assert files_in(tmp_path) == ["kvorum.mdb", "kvorum.mdb-lock"]


def test_the_copy_grows_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(backend: Backend) -> None:
        await fill(backend, 30)
        held = Stage(monkeypatch, "make_copy")
        defragging = asyncio.create_task(backend.defrag())
        await asyncio.to_thread(held.reached.wait, 20)
        backend.put("meta", b"big", bytes(1 << 20))
        commit = asyncio.create_task(backend.commit())
        held.go_on.set()
        await asyncio.gather(commit, defragging)
        assert backend.get("meta", b"big") == bytes(1 << 20)

    run(tmp_path, scenario, map_size=512 << 10)


def test_a_copy_that_cannot_be_written_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(backend: Backend) -> None:
        await fill(backend)
        held = Stage(monkeypatch, "make_copy")
        defragging = asyncio.create_task(backend.defrag())
        await asyncio.to_thread(held.reached.wait, 20)
        backend.put("meta", b"a", b"1")
        await backend.commit()
        write = Database.write

        def fail(database: Database, batches: Batches) -> Sizes:
            if database is not backend.database:
                raise lmdb.DiskError("mdb_txn_commit: No space left on device", 28)
            return write(database, batches)

        monkeypatch.setattr(Database, "write", fail)
        held.go_on.set()
        with pytest.raises(DefragError, match="No space left on device"):
            await defragging
        backend.put("meta", b"a", b"2")
        await backend.commit()

    run(tmp_path, scenario)
    assert content_on_disk(tmp_path)[b"a"] == b"2"
    assert files_in(tmp_path) == ["kvorum.mdb", "kvorum.mdb-lock"]


class TestReplace:
    """A received snapshot in the place of the database."""

    def test_everything_is_replaced(self, tmp_path: Path) -> None:
        batches = [
            (Bucket.KEY, [(b"%017d" % i, b"v" * 100) for i in range(3000)]),
            (Bucket.AUTH_USERS, [(b"u" * 600, b"user")]),
            (Bucket.META, [(b"a", b"new")]),
        ]
        received = tmp_path / "received"

        async def scenario(backend: Backend) -> None:
            old = await fill(backend)
            backend.put("meta", b"uncommitted", b"1")
            write_database(received, batches)
            with backend.read_view() as view:
                await backend.replace(received)
                assert dict(view.items("meta")) == old
            assert backend.range("meta", b"", None) == [(b"a", b"new")]
            assert backend.get("authUsers", b"u" * 600) == b"user"
            assert len(backend.range("key", b"", None)) == 3000
            backend.put("meta", b"b", b"newer")
            await backend.commit()

        run(tmp_path, scenario)
        assert content_on_disk(tmp_path) == {b"a": b"new", b"b": b"newer"}
        assert files_in(tmp_path) == ["kvorum.mdb", "kvorum.mdb-lock"]

    def test_closing_in_the_middle(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async def scenario(backend: Backend) -> None:
            await fill(backend)
            write_database(tmp_path / "received", [(Bucket.META, [(b"a", b"new")])])
            moving, go_on = threading.Event(), threading.Event()
            rename = Path.rename

            def slow(self: Path, target: Path) -> Path:
                moving.set()
                assert go_on.wait(20)
                return rename(self, target)

            monkeypatch.setattr(Path, "rename", slow)
            replacing = asyncio.create_task(backend.replace(tmp_path / "received"))
            await asyncio.to_thread(moving.wait, 20)
            threading.Timer(0.05, go_on.set).start()
            backend.close()
            with pytest.raises(BackendError, match="was closed while it was replaced"):
                await replacing

        run(tmp_path, scenario)
        monkeypatch.undo()
        assert content_on_disk(tmp_path) == {b"a": b"new"}

    def test_a_rename_that_fails_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(self: Path, target: Path) -> Path:
            raise OSError(5, "Input/output error")

        async def scenario(backend: Backend) -> None:
            old = await fill(backend)
            write_database(tmp_path / "received", [(Bucket.META, [(b"a", b"new")])])
            monkeypatch.setattr(Path, "rename", broken)
            with pytest.raises(OSError, match="Input/output error"):
                await backend.replace(tmp_path / "received")
            assert dict(backend.range("meta", b"", None)) == old

        run(tmp_path, scenario)

    def test_what_is_no_database_is_refused(self, tmp_path: Path) -> None:
        async def scenario(backend: Backend) -> None:
            old = await fill(backend)
            (tmp_path / "received").write_bytes(b"no database" * 1000)
            with pytest.raises(Exception, match="damaged or not of this kind"):
                await backend.replace(tmp_path / "received")
            assert dict(backend.range("meta", b"", None)) == old
            backend.put("meta", b"b", b"newer")
            await backend.commit()

        run(tmp_path, scenario)
        assert content_on_disk(tmp_path)[b"b"] == b"newer"
