"""Where the pieces of a database's file come from: a thread of this process, or another process.

A thread is there at once and shares the interpreter with the event loop; another process takes a
moment to start. So small databases are read here, large ones aside.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from threading import Lock
from typing import Final, Protocol

from kvorum.backend import Backend, BackendError, ReadView, ViewLostError
from kvorum.backend.image import AVAILABLE, Image
from kvorum.log import get_logger
from kvorum.snap import BoltExport, aside
from kvorum.snap.aside import Small, decode_head, small_buckets

ASIDE: Final = 64 << 20
"""Bytes of a database from which on a process of its own is worth its start."""
PIECE: Final = 256 << 10
IMAGE_PIECE: Final = 1 << 20
"""The file as it is costs little but the steps in which it goes."""
SPARSE: Final = 2
"""How many times as long as its content a file may be that is sent as it is."""
PIPE: Final = 1 << 20
"""Bytes that the other process may be ahead: what Linux lets a pipe hold."""

lg = get_logger()


class Source(Protocol):
    """A file in pieces. ``small`` has the buckets that say what it is."""

    size: int
    small: Small

    async def next(self) -> bytes:
        """The next piece, b"" after the last. Not to be asked twice at a time.

        Raises:
            BackendError: it cannot be read any more.
        """

    async def close(self) -> None:
        """Let the database go; a piece on its way may be lost."""


async def open_source(backend: Backend) -> Source:
    """Everything that was written so far. Raises BackendError."""
    await backend.commit()
    if backend.size_in_use() >= ASIDE and sys.executable and not getattr(sys, "frozen", False):
        try:
            return await AsideSource.open(backend)
        except (OSError, ValueError) as error:
            lg.warn("a database is read in this process, for want of another", error=error)
    return await ThreadSource.open(backend)


async def open_image(backend: Backend) -> Source | None:
    """The database file as it is; None if it is better converted. Raises BackendError."""
    if not AVAILABLE or backend.size() > SPARSE * max(backend.size_in_use(), ASIDE):
        return None
    image = await backend.image()
    try:
        small = await backend.in_thread(lambda: small_buckets(image.view))
    except BaseException:
        image.close()
        raise
    return ImageSource(backend, image, small)


class ImageSource:
    """The database file itself, for a member that can use it."""

    def __init__(self, backend: Backend, image: Image, small: Small) -> None:
        self.size = image.size
        self.small = small
        self._backend = backend
        self._image = image
        self._reading = Lock()

    async def next(self) -> bytes:
        return await self._backend.in_thread(self._read)

    def _read(self) -> bytes:
        with self._reading:
            return self._image.read(IMAGE_PIECE)

    async def close(self) -> None:
        self._image.view.close()  # a thread that is at work finds it gone
        await asyncio.get_running_loop().run_in_executor(None, self._close)

    def _close(self) -> None:
        with self._reading:
            self._image.close()


class ThreadSource:
    """Made by a thread of the backend's."""

    def __init__(self, backend: Backend, view: ReadView, export: BoltExport) -> None:
        self.size = export.size
        self.small = small_buckets(view)
        self._backend = backend
        self._view = view
        self._pieces = export.pieces()

    @classmethod
    async def open(cls, backend: Backend) -> ThreadSource:
        """Raises BackendError."""
        while True:
            view = backend.read_view()
            try:
                return await backend.in_thread(
                    lambda view=view: cls(backend, view, BoltExport(view))  # type: ignore[misc]
                )
            except ViewLostError:
                view.close()  # the file had to grow, which it does by doubling
                await backend.commit()
            except BaseException:
                view.close()
                raise

    async def next(self) -> bytes:
        return await self._backend.in_thread(lambda: next(self._pieces, b""))

    async def close(self) -> None:
        """A thread that is at work finds the view gone, and ends."""
        self._view.close()


class AsideSource:
    """Made by another process, which the pipe holds back when it is not read."""

    def __init__(self, backend: Backend, process: subprocess.Popen[bytes]) -> None:
        self.size = 0
        self.small: Small = {}
        self._backend = backend
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._reading = Lock()
        self._left = 0

    @classmethod
    async def open(cls, backend: Backend) -> AsideSource:
        """Raises BackendError, OSError; ValueError if the other process gives up."""
        async with backend.staying():
            source = cls(backend, await _started(backend))
            try:
                await backend.in_thread(source._line)
            except BaseException:
                await source.close()
                raise
        try:
            source.size, source.small = decode_head(await backend.in_thread(source._line))
        except BaseException:
            await source.close()
            raise
        source._left = source.size
        return source

    def _line(self) -> bytes:
        with self._reading:
            assert self._process.stdout is not None
            return b"" if self._process.stdout.closed else self._process.stdout.readline()

    async def next(self) -> bytes:
        piece = await self._backend.in_thread(self._read)
        self._left -= len(piece)
        if not piece and self._left:
            raise BackendError(f"the process that reads {self._backend.path} has ended too early")
        return piece

    def _read(self) -> bytes:
        with self._reading:
            out = self._process.stdout
            assert out is not None
            return b"" if out.closed else out.read(PIECE)

    async def close(self) -> None:
        self._process.kill()
        await self._loop.run_in_executor(None, self._reap)
        self._backend.forget_dead_readers()

    def _reap(self) -> None:
        self._process.wait()
        with self._reading:  # who reads has come to the end by now
            assert self._process.stdout is not None
            self._process.stdout.close()


async def _started(backend: Backend) -> subprocess.Popen[bytes]:
    """The other process; if the caller is cancelled meanwhile, it is ended. Raises OSError."""
    starting = asyncio.ensure_future(backend.in_thread(lambda: _start(backend)))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        starting.add_done_callback(_end)
        raise


def _start(backend: Backend) -> subprocess.Popen[bytes]:
    arguments = (str(backend.path), str(backend.database.map_size))
    return subprocess.Popen(
        [sys.executable, "-m", aside.__name__, *arguments],
        bufsize=PIECE,
        pipesize=PIPE,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # what is typed at the terminal is meant for the member
    )


def _end(starting: asyncio.Future[subprocess.Popen[bytes]]) -> None:
    if not starting.cancelled() and starting.exception() is None:
        starting.result().kill()
        starting.result().communicate()
