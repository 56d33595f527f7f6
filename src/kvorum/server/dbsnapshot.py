"""The database as a file of etcd's, given out while the member goes on.

The file is made from a view of what is committed at one moment, piece by piece as the pieces are
asked for; there is no copy on disk. As long as the view is open LMDB uses no page again that it
sees: each commit then lengthens the file by what it frees, some 100 KB, so about a megabyte for
each second under load. That is nothing for the seconds which a reader that keeps up needs. For one
that does not, the rest is written to a nameless file, and the view is let go.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO, Any, Final, TypeVar

from kvorum.backend import Backend
from kvorum.log import get_logger
from kvorum.server.dbsources import PIECE, Source, open_image, open_source
from kvorum.server.meta import read_applied
from kvorum.snap.aside import Small
from kvorum.types import Index, Term

PATIENCE: Final = 30.0
"""Seconds that a reader is given,"""
EXPECTED_SPEED: Final = 32 << 20
"""and the bytes a second at which it has to read, for the view to stay open."""

T = TypeVar("T")

lg = get_logger()


class SmallBuckets:
    """What the database says about itself and its members; read as from a backend."""

    def __init__(self, content: Small) -> None:
        self._content = content

    def get(self, bucket: str, key: bytes) -> bytes | None:
        return self._content[bucket].get(key)

    def range(self, bucket: str, lo: bytes, hi: bytes | None) -> Iterable[tuple[bytes, bytes]]:
        """Pairs with lo <= key < hi (None: to the end), in order."""
        items = sorted(self._content[bucket].items())
        return [item for item in items if item[0] >= lo and (hi is None or item[0] < hi)]


@dataclass(frozen=True, slots=True)
class OpenDatabase:
    """What was committed at one moment as a bolt file or, if ``image``, as a file of ours.

    ``size`` in bytes; ``index`` and ``term`` of the last entry whose result it holds; ``small`` is
    the content of its small buckets; ``chunks`` is the file, once.
    """

    size: int
    index: Index
    term: Term
    small: SmallBuckets
    chunks: AsyncIterator[bytes]
    image: bool = False


@asynccontextmanager
async def open_database(
    backend: Backend, *, patience: float = PATIENCE, image: bool = False
) -> AsyncIterator[OpenDatabase]:
    """Everything that is applied by now, as a file that bbolt opens; with ``image`` our own file,
    if that is no waste.

    Leaving the block ends it, read to the end or not. Memory: a few pieces of 256 KiB, or of the
    length of the longest value.

    Raises:
        BackendError: it cannot be read; out of ``chunks`` also ViewLostError, if the backend had to
            let go of the view, and OSError, if there is no room for what a slow reader leaves.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    as_it_is = await open_image(backend) if image else None
    source = as_it_is or await open_source(backend)
    stream = _Stream(backend, source)
    allowed = patience + source.size / EXPECTED_SPEED
    timer = loop.call_later(allowed, stream.detach)
    try:
        small = SmallBuckets(source.small)
        index, term = read_applied(small)
        whole = as_it_is is not None
        yield OpenDatabase(source.size, index, term, small, stream.chunks(), whole)
    finally:
        timer.cancel()
        await stream.close()
        backend.observe("snapshot", loop.time() - started)


class _Stream:
    """The pieces of a source or, once it is detached, of a file. One is made while the one before
    is on its way."""

    def __init__(self, backend: Backend, source: Source) -> None:
        self._backend = backend
        self._source = source
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
            rest = self._rest
            if rest is not None:
                return await self._backend.in_thread(lambda: rest.read(PIECE))
            return await self._source.next()

    def detach(self) -> None:
        """Let the database go, however much of it is still to be read."""
        self._task(self._detach())

    async def _detach(self) -> None:
        async with self._busy:
            lg.warn(
                "a database snapshot is taken slowly: the rest of it goes to a temporary file, so"
                " that the database need not keep old pages for it",
                total_bytes=self._source.size,
            )
            try:
                self._rest = await self._write_rest()
            except Exception as error:
                self._failure = error
            await self._source.close()

    async def _write_rest(self) -> IO[bytes]:
        rest = TemporaryFile(dir=self._backend.path.parent, prefix="tmp-")  # noqa: SIM115
        try:
            while piece := await self._source.next():
                await self._backend.in_thread(lambda piece=piece: rest.write(piece))  # type: ignore[misc]
            rest.seek(0)
        except BaseException:
            rest.close()
            raise
        return rest

    def _task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # nobody waits for what was made ahead of a reader who has left

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._rest is not None:
            self._rest.close()
        await self._source.close()
