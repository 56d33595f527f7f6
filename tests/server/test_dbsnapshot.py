"""The database as a file, given out while it is written to."""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ParamSpec

import pytest

from kvorum.backend import Backend, BackendError, ReadView, ViewLostError
from kvorum.server import dbsnapshot, dbsources
from kvorum.server.dbsnapshot import OpenDatabase, open_database
from kvorum.server.meta import write_applied
from kvorum.snap import BoltExport, BoltFile
from kvorum.types import Index, Term

P = ParamSpec("P")

RECORDS = {i.to_bytes(8, "big") + b"_" + bytes(8): b"%d" % i * 40 for i in range(20_000)}


def story(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(30):
                await test(*args, **kwargs)

        asyncio.run(bounded())

    return run


@pytest.fixture(params=["thread", "aside"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who makes the file."""
    if request.param == "aside":
        monkeypatch.setattr(dbsources, "ASIDE", 0)
    return str(request.param)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dbsnapshot, "EXPECTED_SPEED", 1 << 40)


def readers(backend: Backend) -> int:
    """Views of other processes and our own, without the backend's own."""
    lines = backend.database.env.readers().splitlines()[1:]
    return len(lines) - 1


@asynccontextmanager
async def filled(folder: Path) -> AsyncIterator[Backend]:
    backend = Backend(folder / "kvorum.mdb", loop=asyncio.get_running_loop())
    try:
        for rev, record in RECORDS.items():
            backend.put_revision(rev, record)
        write_applied(backend, Index(77), Term(5))
        yield backend
    finally:
        backend.close()


def records_in(folder: Path, data: bytes) -> dict[bytes, bytes]:
    path = folder / "db"
    path.write_bytes(data)
    with BoltFile(path) as file:
        return dict(file.items(b"key"))


async def rest_of(database: OpenDatabase) -> bytes:
    return b"".join([piece async for piece in database.chunks])


@story
@pytest.mark.usefixtures("engine")
async def test_all_that_was_written_before_and_nothing_after(tmp_path: Path) -> None:
    """Committed or not; index, term and what else is told are those of the file."""
    async with filled(tmp_path) as backend:
        backend.put("members", b"abc", b"{}")
        async with open_database(backend) as database:
            write_applied(backend, Index(78), Term(6))
            for rev in list(RECORDS)[::2]:
                backend.delete("key", rev)
            await backend.commit()
            assert (database.index, database.term) == (77, 5)
            assert database.small.get("members", b"abc") == b"{}"
            assert list(database.small.range("members", b"", None)) == [(b"abc", b"{}")]
            assert list(database.small.range("members", b"abd", None)) == []
            data = await rest_of(database)
            assert len(data) == database.size
            assert records_in(tmp_path, data) == RECORDS


@story
async def test_one_piece_is_made_ahead_and_not_on_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[threading.Thread] = []

    class Watched(BoltExport):
        def pieces(self):  # type: ignore[no-untyped-def]
            for piece in super().pieces():
                made.append(threading.current_thread())
                yield piece

    monkeypatch.setattr(dbsources, "BoltExport", Watched)
    async with filled(tmp_path) as backend, open_database(backend) as database:
        taken = 0
        async for _ in database.chunks:
            taken += 1
            await asyncio.sleep(0.002)
            assert len(made) <= taken + 1
        assert len(made) == taken > 5
    assert threading.main_thread() not in made


async def to_the_end(chunks: AsyncIterator[bytes]) -> None:
    async for _ in chunks:
        pass


@story
@pytest.mark.usefixtures("engine")
async def test_leaving_early_lets_the_view_go(tmp_path: Path) -> None:
    async with filled(tmp_path) as backend:
        async with open_database(backend) as database:
            async for _ in database.chunks:
                break
            assert readers(backend) == 1
        assert readers(backend) == 0


async def until_detached(backend: Backend) -> None:
    while readers(backend):  # noqa: ASYNC110 - nothing tells when a view ends
        await asyncio.sleep(0.001)


@story
@pytest.mark.usefixtures("engine", "impatient")
async def test_a_slow_reader_gets_the_rest_out_of_a_file(tmp_path: Path) -> None:
    """The view is let go though nobody reads, and the file has no name."""
    async with filled(tmp_path) as backend, open_database(backend, patience=0.1) as database:
        chunks = aiter(database.chunks)
        data = [await anext(chunks) for _ in range(3)]
        await until_detached(backend)
        assert set(os.listdir(tmp_path)) == {"kvorum.mdb", "kvorum.mdb-lock"}
        for rev in RECORDS:
            backend.delete("key", rev)
        await backend.commit()
        data += [piece async for piece in chunks]
    assert records_in(tmp_path, b"".join(data)) == RECORDS


@story
@pytest.mark.usefixtures("engine", "impatient")
async def test_a_slow_reader_and_no_room_for_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dbsnapshot, "TemporaryFile", full)
    async with filled(tmp_path) as backend, open_database(backend, patience=0.1) as database:
        await until_detached(backend)
        with pytest.raises(OSError, match="No space left"):
            await rest_of(database)


@story
@pytest.mark.usefixtures("impatient")
async def test_leaving_while_the_rest_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, go_on = threading.Event(), threading.Event()

    class Slow(BoltExport):
        def pieces(self):  # type: ignore[no-untyped-def]
            for piece in super().pieces():
                writing.set()
                assert go_on.wait(20)
                yield piece

    monkeypatch.setattr(dbsources, "BoltExport", Slow)
    async with filled(tmp_path) as backend:
        async with open_database(backend, patience=0.0):
            await asyncio.to_thread(writing.wait, 20)
        assert readers(backend) == 0
        go_on.set()


@story
async def test_a_view_that_is_lost_while_it_is_counted_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[ReadView] = []

    class Unlucky(BoltExport):
        def __init__(self, view: ReadView) -> None:
            if not lost:
                lost.append(view)
                raise ViewLostError("the map has grown")
            super().__init__(view)

    monkeypatch.setattr(dbsources, "BoltExport", Unlucky)
    async with filled(tmp_path) as backend, open_database(backend) as database:
        assert readers(backend) == 1
        assert records_in(tmp_path, await rest_of(database)) == RECORDS
    assert len(lost) == 1


@story
async def test_a_backend_that_is_closed(tmp_path: Path, engine: str) -> None:
    """Nothing is given out that could be taken for the end."""
    async with filled(tmp_path) as backend:
        async with open_database(backend) as database:
            chunks = aiter(database.chunks)
            await anext(chunks)
            backend.close()
            with pytest.raises(BackendError):
                await to_the_end(chunks)
        with pytest.raises(BackendError):
            async with open_database(backend):
                pass


@story
async def test_how_long_it_took_is_observed(tmp_path: Path) -> None:
    seen: list[str] = []
    async with filled(tmp_path) as backend:
        backend.observe = lambda what, seconds: seen.append(what)
        async with open_database(backend):
            pass
    assert seen.count("snapshot") == 1


# Another process


class Spawned:
    """Remembers the processes that were started, and may start others instead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, program: str = "") -> None:
        self.made: list[subprocess.Popen[bytes]] = []
        self._program = program
        self._real = dbsources._start
        monkeypatch.setattr(dbsources, "ASIDE", 0)
        monkeypatch.setattr(dbsources, "_start", self._start)

    def _start(self, backend: Backend) -> subprocess.Popen[bytes]:
        if not self._program:
            self.made.append(self._real(backend))
        else:
            command = [sys.executable, "-c", self._program]
            self.made.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        return self.made[-1]


@story
async def test_a_process_that_is_killed_is_no_end_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its view is gone with it."""
    spawned = Spawned(monkeypatch)
    async with filled(tmp_path) as backend:
        async with open_database(backend) as database:
            chunks = aiter(database.chunks)
            await anext(chunks)
            spawned.made[0].kill()
            with pytest.raises(BackendError, match="has ended too early"):
                await to_the_end(chunks)
        assert readers(backend) == 0


@pytest.mark.parametrize("program", ["raise SystemExit(1)", "print(); print('{}')", "print('x')"])
@story
async def test_without_a_process_a_thread_does_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    spawned = Spawned(monkeypatch, program)
    async with filled(tmp_path) as backend, open_database(backend) as database:
        assert spawned.made[0].poll() is not None
        assert records_in(tmp_path, await rest_of(database)) == RECORDS


@story
async def test_a_process_that_cannot_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dbsources, "ASIDE", 0)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    async with filled(tmp_path) as backend, open_database(backend) as database:
        assert records_in(tmp_path, await rest_of(database)) == RECORDS


@story
async def test_who_is_cancelled_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it has been started by then or not."""

    async def opened(backend: Backend) -> None:
        async with open_database(backend):
            await asyncio.sleep(60)

    async with filled(tmp_path) as backend:
        await backend.commit()
        spawned = Spawned(monkeypatch)
        for delay in (0.0, 0.001, 0.02, 0.05, 0.1, 0.3, 0.5):
            task = asyncio.create_task(opened(backend))
            await asyncio.sleep(delay)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        while any(process.returncode is None for process in spawned.made):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert spawned.made
        backend.forget_dead_readers()
        assert readers(backend) == 0


@story
async def test_a_defragmentation_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process reads on in the file that it has opened."""
    Spawned(monkeypatch)
    async with filled(tmp_path) as backend, open_database(backend) as database:
        chunks = aiter(database.chunks)
        data = [await anext(chunks)]
        for rev in RECORDS:
            backend.delete("key", rev)
        await backend.commit()
        await backend.defrag()
        data += [piece async for piece in chunks]
        assert records_in(tmp_path, b"".join(data)) == RECORDS
