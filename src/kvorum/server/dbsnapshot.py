"""The database as a file of etcd's, given out while the member goes on.

The file is made from a view of what is committed at one moment, in a thread and piece by piece as
the pieces are asked for; there is no copy on disk. As long as the view is open LMDB uses no page
again that it sees: each commit then lengthens the file by what it frees, some 100 KB, so about a
megabyte for each second under load. That is nothing for the seconds which a reader that keeps up
needs. For one that does not, the rest is written to a nameless file, and the view is let go.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO, Any, Final, TypeVar

from kvorum.backend import Backend, ReadView, ViewLostError
from kvorum.log import get_logger
from kvorum.server.meta import read_applied
from kvorum.snap import BoltExport
from kvorum.types import Index, Term

PATIENCE: Final = 30.0
"""Seconds that a reader is given,"""
EXPECTED_SPEED: Final = 32 << 20
"""and the bytes a second at which it has to read, for the view to stay open."""
PIECE: Final = 256 << 10

T = TypeVar("T")
See = Callable[[bytes], object]

lg = get_logger()


def _nothing(_: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class OpenDatabase:
    """The bolt file of what was committed at one moment.

    ``size`` in bytes; ``index`` and ``term`` of the last entry whose result it holds; ``view`` is
    what it is made from, to be asked at once and not later; ``chunks`` is the file, once.
    """

    size: int
    index: Index
    term: Term
    view: ReadView
    chunks: AsyncIterator[bytes]


@asynccontextmanager
async def open_database(
    backend: Backend, *, patience: float = PATIENCE, see: See = _nothing
) -> AsyncIterator[OpenDatabase]:
    """Everything that is applied by now, as a file that bbolt opens. ``see`` is called with each
    piece in the thread that makes it.

    Leaving the block ends it, read to the end or not. Memory: a few pieces of 256 KiB, or of the
    length of the longest value.

    Raises:
        BackendError: it cannot be read; out of ``chunks`` also ViewLostError, if the backend had to
            let go of the view, and OSError, if there is no room for what a slow reader leaves.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    view, export = await _planned(backend)
    source = _Source(backend, view, export, see)
    allowed = patience + export.size / EXPECTED_SPEED
    timer = loop.call_later(allowed, source.detach)
    try:
        index, term = read_applied(view)
        yield OpenDatabase(export.size, index, term, view, source.chunks())
    finally:
        timer.cancel()
        source.close()
        backend.observe("snapshot", loop.time() - started)


async def _planned(backend: Backend) -> tuple[ReadView, BoltExport]:
    """A view of all that was written, and its layout as a file."""
    while True:
        await backend.commit()
        view = backend.read_view()
        try:
            return view, await backend.in_thread(lambda view=view: BoltExport(view))  # type: ignore[misc]
        except ViewLostError:
            view.close()  # the file had to grow, which it does by doubling
        except BaseException:
            view.close()
            raise


class _Source:
    """Gives the file's pieces one by one: made from the view or, once detached, out of a file. One
    is made while the one before is on its way."""

    def __init__(self, backend: Backend, view: ReadView, export: BoltExport, see: See) -> None:
        self._backend = backend
        self._view = view
        self._pieces = export.pieces()
        self._size = export.size
        self._see = see
        self._loop = asyncio.get_running_loop()
        self._busy = asyncio.Lock()
        self._rest: IO[bytes] | None = None
        self._failure: BaseException | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def chunks(self) -> AsyncIterator[bytes]:
        piece = await self._task(self._next())
        while piece:
            ahead = self._task(self._next())
            yield piece
            piece = await ahead

    async def _next(self) -> bytes:
        async with self._busy:
            if self._failure is not None:
                raise self._failure
            return await self._backend.in_thread(self._take)

    def _take(self) -> bytes:
        piece = next(self._pieces, b"") if self._rest is None else self._rest.read(PIECE)
        self._see(piece)
        return piece

    def detach(self) -> None:
        """Let the view go, however much of it is still to be read."""
        self._task(self._detach())

    def _task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # nobody waits for what was made ahead of a reader who has left

    async def _detach(self) -> None:
        async with self._busy:
            lg.warn(
                "a database snapshot is taken slowly: the rest of it goes to a temporary file, so"
                " that the database need not keep old pages for it",
                total_bytes=self._size,
            )
            try:
                await self._backend.in_thread(self._write_rest)
            except Exception as error:
                self._failure = error
            self._view.close()

    def _write_rest(self) -> None:
        rest = TemporaryFile(dir=self._backend.path.parent, prefix="tmp-")  # noqa: SIM115
        try:
            for piece in self._pieces:
                rest.write(piece)
            rest.seek(0)
        except BaseException:
            rest.close()
            raise
        self._rest = rest

    def close(self) -> None:
        """A thread that is at work finds the view gone, and ends."""
        for task in self._tasks:
            task.cancel()
        self._view.close()
        if self._rest is not None:
            self._rest.close()
