"""How a batch gets to disk: in order, one sync at a time, by the cheapest way that is open.

- On the loop, which does nothing else meanwhile (`LogWriter.write_here`): what a client that waits
  for each answer gets the soonest.
- Written on the loop and synced by the kernel beside it: what most batches take.
- In the log's thread: what may block for long (the end of a segment, a file of a snapshot, a large
  batch), and everything where the kernel cannot do it.

Never two syncs of one file at a time: of a page that could not be written only one of them is told.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from math import inf
from time import perf_counter
from typing import Final, Protocol

from kvorum.server.diskthread import Disk, Done, Work
from kvorum.server.kernelsync import told_unavailable
from kvorum.wal import WAL, WALError, WriteBatch, WriteTimes
from kvorum.wal.files import sync_data

QUICK: Final = 0.001
"""Seconds that a write, or a sync, may take for the next one to be done on the loop."""
LOOP_BYTES: Final = 256 * 1024
"""The largest batch that is written on the loop: 60 us of copying."""


class FileSync(Protocol):
    """See `kernelsync.KernelSync`."""

    def start(self, fd: int, done: Callable[[OSError | None], None]) -> None: ...
    def wait(self) -> None: ...
    def close(self) -> None: ...


class LogWriter:
    """Brings batches to disk, and runs what else is to be done to the log's files, each after the
    one before. It is the `Disk` of all who do such things. All methods run on the loop.
    """

    def __init__(
        self,
        wal: WAL,
        disk: Disk,
        *,
        kernel: FileSync | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Without ``kernel`` the thread, ``disk``, does all. Both belong to the writer."""
        self._wal = wal
        self._disk = disk
        self._kernel = kernel
        self._loop = loop
        self._times = WriteTimes(0.0, inf)  # of the last write
        self._syncing: Done | None = None  # who waits for the kernel
        self._began = 0.0
        self._waiting: deque[Callable[[], None]] = deque()

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return self._syncing is None and self._disk.idle

    @property
    def quick(self) -> bool:
        """Whether a write on the loop can be expected to take no time worth mentioning."""
        return self._times.sync < QUICK and self.idle

    def write_here(self, batch: WriteBatch) -> WriteTimes:
        """Write and sync at once. To be asked only while `quick`. Raises WALError."""
        self._times = self._wal.write(batch)
        return self._times

    def write(self, batch: WriteBatch, done: Done) -> None:
        """Write, and sync if it must be. ``done`` gets the times (`WriteTimes`), or the exception,
        in a later turn of the loop."""
        if self._syncing is not None:
            self._waiting.append(lambda: self.write(batch, done))
        elif self._kernel is not None and self._suits_loop(batch) and self._disk.idle:
            self._begin(batch, done, self._kernel)
        else:
            self._in_thread(lambda: self._wal.write(batch), done)

    def submit(self, work: Work, done: Done) -> None:
        """Run ``work`` in the log's thread; ``done`` gets its result, or the exception."""
        if self._syncing is not None:
            self._waiting.append(lambda: self._disk.submit(work, done))
        else:
            self._disk.submit(work, done)

    def close(self) -> None:
        """Finish what was asked for, and end the thread. Not all that finishes is reported."""
        kernel, self._kernel = self._kernel, None  # what waits goes to the thread
        if kernel is not None:
            if self._syncing is not None:
                kernel.wait()
            kernel.close()
        self._disk.close()

    def _suits_loop(self, batch: WriteBatch) -> bool:
        """A write is a copy into the system's memory, unless that is full of what waits for the
        disk: then it takes as long as the disk."""
        return (
            batch.sync
            and batch.cut is None
            and batch.size <= LOOP_BYTES
            and self._times.write < QUICK
        )

    def _begin(self, batch: WriteBatch, done: Done, kernel: FileSync) -> None:
        try:
            fd = self._wal.begin(batch)
        except WALError as error:
            failure = error
            self._loop.call_soon(lambda: done(failure))
            return
        self._began = perf_counter()
        try:
            kernel.start(fd, self._synced)
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                self._give_up(kernel, error)
            self._in_thread(lambda: self._sync(fd), done)
        else:
            self._syncing = done

    def _give_up(self, kernel: FileSync, error: OSError) -> None:
        told_unavailable(error)
        self._kernel = None
        kernel.close()

    def _synced(self, error: OSError | None) -> None:
        """The kernel is done. What waits is begun before the answer to this is worked on."""
        done = self._take_done()
        result: WriteTimes | Exception
        try:
            result = self._wal.finish(perf_counter() - self._began, error)
        except WALError as failure:
            result = failure
        try:
            while self._waiting and self._syncing is None:
                self._waiting.popleft()()
        except Exception as failure:  # the loop would log it, and go on without the write
            result = failure
        self._written(result, done)

    def _take_done(self) -> Done:
        """In a method of its own, or the type checker, and so the compiler, would take it that
        nothing is being synced as long as `_synced` goes on."""
        done, self._syncing = self._syncing, None
        assert done is not None
        return done

    def _in_thread(self, work: Callable[[], WriteTimes], done: Done) -> None:
        self._disk.submit(work, lambda result: self._written(result, done))

    def _sync(self, fd: int) -> WriteTimes:
        """In the thread: what the kernel would have done."""
        started = perf_counter()
        error: OSError | None = None
        try:
            sync_data(fd)
        except OSError as failure:
            error = failure
        return self._wal.finish(perf_counter() - started, error)

    def _written(self, result: WriteTimes | BaseException, done: Done) -> None:
        if isinstance(result, WriteTimes):
            self._times = result
        done(result)
