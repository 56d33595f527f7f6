"""When commits happen, and that there is one at a time.

A commit begins `interval` seconds after the first write since the last one, earlier when `limit`
operations are pending or when somebody asks. It runs in a thread; what is written meanwhile is for
the next one.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Final, Protocol

import lmdb

from kvorum import failpoint
from kvorum.backend.bucket import Bucket
from kvorum.backend.database import Changes, Database, Sizes
from kvorum.backend.errors import BackendError, CommitError
from kvorum.backend.worker import Worker

Batches = list[tuple[Bucket, Changes]]
"""What one commit writes."""

FULL: Final = 1 << 20
"""Bytes: a disk with less than this left is full. A commit needs some pages at a time."""


class Source(Protocol):
    """Whose writes are committed."""

    @property
    def database(self) -> Database:
        """Where to."""

    def take(self) -> Batches:
        """Everything pending; it stays readable until `landed`."""

    def landed(self, batches: Batches, seconds: float) -> None:
        """A commit is on disk."""

    def grow(self) -> None:
        """The map of the database is full: double it."""

    def failed(self, error: CommitError) -> None:
        """A commit was not possible. It is the last one that was tried."""


class Committer:
    """Runs the commits of `source`. Without a loop only `commit_now` works."""

    def __init__(
        self,
        source: Source,
        loop: asyncio.AbstractEventLoop | None,
        *,
        interval: float,
        limit: int,
    ) -> None:
        self.limit = limit
        self.failure: CommitError | None = None
        self._source = source
        self._loop = loop
        self._interval = interval
        self._worker: Worker[Sizes] | None = None
        if loop is not None:
            self._worker = Worker("kvorum-commit", loop, self._done)
        self._timer: asyncio.TimerHandle | None = None
        self._soon = False
        self._busy = False
        self._held = False
        self._wanted = False
        self._idle: asyncio.Future[None] | None = None
        self._batches: Batches = []
        self._started = 0.0
        self._waiting: list[asyncio.Future[None]] = []
        self._next_waiting: list[asyncio.Future[None]] = []

    def arm(self, pending: int) -> None:
        """See to it that `pending` operations get committed."""
        if pending >= self.limit:
            self.soon()
        elif self._timer is None and self._loop is not None:
            self._timer = self._loop.call_later(self._interval, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._start()

    def soon(self) -> None:
        """Commit when the loop has done what is at hand."""
        if not self._soon and self._loop is not None:
            self._soon = True
            self._loop.call_soon(self._on_soon)

    def _on_soon(self) -> None:
        self._soon = False
        self._start()

    async def commit(self) -> None:
        """Return when everything written before the call is on disk.

        Raises:
            CommitError: this or an earlier commit failed.
            BackendError: there are no commits in the background, or not any more.
        """
        self._raise_failure()
        if self._loop is None or self._worker is None:
            raise BackendError(f"nothing commits {self._source.database.path} in the background")
        future: asyncio.Future[None] = self._loop.create_future()
        self._next_waiting.append(future)
        self._start()
        await future

    def commit_now(self) -> None:
        """The same, waiting right here. Raises CommitError."""
        assert not self._busy, "a commit is under way in the thread"
        self._raise_failure()
        self._take()
        self._waiting += self._next_waiting
        self._next_waiting = []
        if self._batches:
            self._busy = True
            while self._busy:
                self._done(self._try())
        self._answer(None)
        if self.failure is not None:
            raise self.failure

    def _raise_failure(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _try(self) -> Sizes | BaseException:
        try:
            return _write(self._source.database, self._batches)
        except Exception as error:
            return error

    async def hold(self) -> None:
        """Begin no commit until `release`, and return when none is under way.

        Raises:
            CommitError: one failed; then nothing is held.
        """
        assert self._loop is not None
        assert not self._held, "commits are held already"
        self._held = True
        try:
            if self._busy:
                self._idle = self._loop.create_future()
                await self._idle
            self._raise_failure()
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Go on after `hold`."""
        self._held = False
        if self._wanted and not self._busy:
            self._start()

    def _start(self) -> None:
        """Begin a commit, or have one begin as soon as that is possible."""
        self._wanted = self._busy or self._held
        if self._wanted or self.failure is not None or self._worker is None:
            return
        self._take()
        self._waiting, self._next_waiting = self._next_waiting, []
        if self._batches:
            self._busy = True
            self._submit(self._worker)
        else:
            self._answer(None)

    def _take(self) -> None:
        self._batches = self._source.take()
        # Only now: what the pre-commit hook put has set it again.
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._started = time.perf_counter()

    def _submit(self, worker: Worker[Sizes]) -> None:
        database, batches = self._source.database, self._batches
        worker.submit(lambda: _write(database, batches))

    def _done(self, result: Sizes | BaseException) -> None:
        """A commit has ended, in this way or that."""
        if isinstance(result, lmdb.MapFullError):
            self._source.grow()
            if self._worker is not None:
                self._submit(self._worker)
            return
        self._busy = False
        if isinstance(result, BaseException):
            self.fail(result)
        else:
            batches, self._batches = self._batches, []
            self._source.landed(batches, time.perf_counter() - self._started)
            self._answer(None)
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
        if self._wanted:
            self._start()

    def fail(self, cause: BaseException) -> None:
        """Commit nothing any more, and tell everybody."""
        path = self._source.database.path
        error = CommitError(f"cannot commit to the database {path}: {cause}{_if_full(path)}")
        error.__cause__ = cause
        self.failure = error
        self._waiting += self._next_waiting
        self._next_waiting = []
        self._answer(error)
        self._source.failed(error)

    def _answer(self, error: CommitError | None) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if future.done():  # whoever waited was cancelled
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

    def stop(self) -> None:
        """Let the commit under way end, and begin no other but by `commit_now`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()
        while self._busy:  # its map was full
            self._done(self._try())


def _write(database: Database, batches: Batches) -> Sizes:
    """One commit. In etcd a transaction begins as soon as the last has ended; here all three points
    lie before the commit."""
    if failpoint.active:
        failpoint.hit("beforeStartDBTxn")
        failpoint.hit("afterStartDBTxn")
        failpoint.hit("beforeCommit")
    sizes = database.write(batches)
    if failpoint.active:
        failpoint.hit("afterCommit")
    return sizes


def _if_full(path: Path) -> str:
    """LMDB reports a short write as an I/O error, so whether the disk is full has to be asked."""
    try:
        disk = os.statvfs(path.parent)
    except OSError:
        return ""
    full = disk.f_bavail * disk.f_frsize < FULL
    return " (no space left on device)" if full else ""
