"""The database as a file, given out while it is written to."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kvorum.backend import Backend, BackendError, ReadView, ViewLostError
from kvorum.server import dbsnapshot
from kvorum.server.dbsnapshot import OpenDatabase, open_database
from kvorum.server.meta import write_applied
from kvorum.snap import BoltExport, BoltFile
from kvorum.types import Index, Term

RECORDS = {i.to_bytes(8, "big") + b"_" + bytes(8): b"%d" % i * 40 for i in range(20_000)}


def story(test: Callable[[Path], Awaitable[None]]) -> Callable[[Path], None]:
    @functools.wraps(test)
    def run(tmp_path: Path) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(30):
                await test(tmp_path)

        asyncio.run(bounded())

    return run


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
async def test_all_that_was_written_before_and_nothing_after(tmp_path: Path) -> None:
    """Committed or not; index and term are those of the file."""
    async with filled(tmp_path) as backend, open_database(backend) as database:
        write_applied(backend, Index(78), Term(6))
        for rev in list(RECORDS)[::2]:
            backend.delete("key", rev)
        await backend.commit()
        assert (database.index, database.term) == (77, 5)
        data = await rest_of(database)
        assert len(data) == database.size
        assert records_in(tmp_path, data) == RECORDS


@story
async def test_one_piece_is_made_ahead_and_not_on_the_loop(tmp_path: Path) -> None:
    made: list[threading.Thread] = []

    class Watched(BoltExport):
        def pieces(self):  # type: ignore[no-untyped-def]
            for piece in super().pieces():
                made.append(threading.current_thread())
                yield piece

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dbsnapshot, "BoltExport", Watched)
        async with filled(tmp_path) as backend, open_database(backend) as database:
            assert made == []
            taken = 0
            async for _ in database.chunks:
                taken += 1
                await asyncio.sleep(0.002)
                assert len(made) <= taken + 1
            assert len(made) == taken > 5
    assert threading.main_thread() not in made


@story
async def test_leaving_early_lets_the_view_go(tmp_path: Path) -> None:
    async with filled(tmp_path) as backend:
        async with open_database(backend) as database:
            async for _ in database.chunks:
                break
            assert backend.database.views == 1
        assert backend.database.views == 0


async def until_detached(backend: Backend) -> None:
    while backend.database.views:  # noqa: ASYNC110 - nothing tells when a view ends
        await asyncio.sleep(0.001)


@story
async def test_a_slow_reader_gets_the_rest_out_of_a_file(tmp_path: Path) -> None:
    """The view is let go though nobody reads, and the file has no name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dbsnapshot, "EXPECTED_SPEED", 1 << 40)
        async with filled(tmp_path) as backend, open_database(backend, patience=0.1) as database:
            chunks = aiter(database.chunks)
            data = [await anext(chunks) for _ in range(3)]
            await until_detached(backend)
            files = set(os.listdir(tmp_path))
            assert files == {"kvorum.mdb", "kvorum.mdb-lock"}
            for rev in RECORDS:
                backend.delete("key", rev)
            await backend.commit()
            data += [piece async for piece in chunks]
        assert records_in(tmp_path, b"".join(data)) == RECORDS


@story
async def test_a_slow_reader_and_no_room_for_the_rest(tmp_path: Path) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dbsnapshot, "EXPECTED_SPEED", 1 << 40)
        patch.setattr(dbsnapshot, "TemporaryFile", full)
        async with filled(tmp_path) as backend, open_database(backend, patience=0.1) as database:
            await until_detached(backend)
            with pytest.raises(OSError, match="No space left"):
                await rest_of(database)


@story
async def test_leaving_while_the_rest_is_written(tmp_path: Path) -> None:
    """The thread that writes it ends, so that closing does not wait for all of it."""
    writing, go_on = threading.Event(), threading.Event()

    class Slow(BoltExport):
        def pieces(self):  # type: ignore[no-untyped-def]
            for piece in super().pieces():
                writing.set()
                assert go_on.wait(20)
                yield piece

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dbsnapshot, "EXPECTED_SPEED", 1 << 40)
        patch.setattr(dbsnapshot, "BoltExport", Slow)
        async with filled(tmp_path) as backend:
            async with open_database(backend, patience=0.0):
                await asyncio.to_thread(writing.wait, 20)
            assert backend.database.views == 0
            go_on.set()


@story
async def test_a_view_that_is_lost_while_it_is_counted_is_replaced(tmp_path: Path) -> None:
    lost: list[ReadView] = []

    class Unlucky(BoltExport):
        def __init__(self, view: ReadView) -> None:
            if not lost:
                lost.append(view)
                raise ViewLostError("the map has grown")
            super().__init__(view)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dbsnapshot, "BoltExport", Unlucky)
        async with filled(tmp_path) as backend, open_database(backend) as database:
            assert backend.database.views == 1
            assert records_in(tmp_path, await rest_of(database)) == RECORDS
    assert len(lost) == 1


@story
async def test_a_backend_that_is_closed(tmp_path: Path) -> None:
    async with filled(tmp_path) as backend:
        async with open_database(backend) as database:
            chunks = aiter(database.chunks)
            await anext(chunks)
            backend.close()
            with pytest.raises(BackendError):
                await anext(chunks)
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
