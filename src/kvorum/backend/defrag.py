"""Defragmentation: putting a compact copy in the place of the database, while it is used.

1. A thread makes a compacting copy of what is committed. Commits go on as usual; each is also
   remembered.
2. The copy is opened and what was remembered is written to it, again and again, until little is
   left.
3. Commits are held back; writes gather in memory. The rest is written to the copy, then it is
   renamed over the database and the directory synced.
4. Reads and commits go on with the copy. The old file lives on as long as a view reads it.

The file at the database's path is whole at every moment: first the old one, and after the rename
the copy, which has everything that was ever called committed. What a crash leaves behind is removed
at the next start.
"""

from __future__ import annotations

import os
from pathlib import Path
from threading import Lock
from typing import Final

import lmdb

from kvorum import failpoint
from kvorum.backend.committer import Batches
from kvorum.backend.database import FILE_MODE, LOCK_SUFFIX, Database, sync_directory
from kvorum.backend.errors import BackendError, DefragError

COPY_SUFFIX: Final = ".defrag"
BACKLOG_LIMIT: Final = 256 << 20
"""Bytes of keys and values committed while the copy is made, above which it is given up."""
SHORT_BACKLOG: Final = 4 << 20
"""What is written with commits held back: some 50 ms."""
MAX_ROUNDS: Final = 20
_OP_COST: Final = 64


def copy_path(path: Path) -> Path:
    """Where the copy of the database at `path` is made."""
    return path.with_name(path.name + COPY_SUFFIX)


def lock_path(path: Path) -> Path:
    """LMDB's lock file."""
    return path.with_name(path.name + LOCK_SUFFIX)


def remove_leftovers(path: Path) -> None:
    """Remove what an interrupted defragmentation left. Whoever calls it has the database open, so
    that nobody else is defragmenting it."""
    for leftover in (copy_path(path), lock_path(copy_path(path))):
        leftover.unlink(missing_ok=True)


class Defrag:
    """One defragmentation of `database`.

    ``add`` and ``take`` are for the loop, all other methods for a thread.
    """

    def __init__(self, database: Database) -> None:
        self.copy: Database | None = None
        self.installed = False
        self.backlog_bytes = 0
        self._database = database
        self._path = copy_path(database.path)
        self._backlog: list[Batches] = []
        self._cancelled = ""
        self._install_lock = Lock()

    def add(self, batches: Batches) -> None:
        """Remember a commit that the copy may not have."""
        self._backlog.append(batches)
        for _, changes in batches:
            self.backlog_bytes += _OP_COST * len(changes)
            self.backlog_bytes += sum(len(value) for value in changes.values() if value)
        if self.backlog_bytes > BACKLOG_LIMIT:
            self.cancel("too much was written meanwhile")
            self._backlog.clear()

    def take(self) -> list[Batches]:
        """What was remembered since the last call.

        Raises:
            DefragError: it was too much, or the defragmentation was cancelled.
        """
        self.check()
        backlog, self._backlog, self.backlog_bytes = self._backlog, [], 0
        return backlog

    def cancel(self, reason: str) -> bool:
        """Have it end with an error; False if it is too late for that."""
        with self._install_lock:
            if not self.installed:
                self._cancelled = self._cancelled or reason
            return not self.installed

    def check(self) -> None:
        """Raise DefragError if it was cancelled."""
        if self._cancelled:
            raise DefragError(f"defragmentation was given up: {self._cancelled}")

    def make_copy(self) -> None:
        """Write the compact copy and open it. Raises DefragError."""
        try:
            fd = self._create()
            try:
                if failpoint.active:
                    failpoint.hit("defragBeforeCopy")
                    _fail_if_told("defragdbFail")
                self._database.env.copyfd(fd, compact=True)
                os.fsync(fd)
            finally:
                os.close(fd)
            self.copy = Database(self._path, map_size=self._database.map_size)
        except DefragError:
            raise
        except (lmdb.Error, OSError, BackendError) as error:
            raise DefragError(f"cannot copy the database to {self._path}: {error}") from error

    def _create(self) -> int:
        if failpoint.active:
            _fail_if_told("defragOpenFileError")
        remove_leftovers(self._database.path)
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)

    def catch_up(self, backlog: list[Batches]) -> None:
        """Write commits to the copy. Raises DefragError."""
        assert self.copy is not None
        for batches in backlog:
            self.check()
            try:
                _write_growing(self.copy, batches)
            except lmdb.Error as error:
                raise DefragError(f"cannot write to {self._path}: {error}") from error

    def install(self) -> None:
        """Put the copy in the place of the database.

        Raises:
            DefragError: nothing has changed.
            OSError: the copy is in place, but may not be there after a power cut.
        """
        if failpoint.active:
            failpoint.hit("defragBeforeRename")
        path = self._database.path
        with self._install_lock:
            self.check()
            try:
                self._path.rename(path)
            except OSError as error:
                raise DefragError(f"cannot rename {self._path} to {path}: {error}") from error
            self.installed = True
        # LMDB has the copy's lock file open and must find it at the next start of a second
        # process; so it moves along.
        lock_path(self._path).rename(lock_path(path))
        sync_directory(path.parent)

    def discard(self) -> None:
        """Remove what there is of the copy."""
        assert not self.installed
        if self.copy is not None:
            self.copy.close()
            self.copy = None
        remove_leftovers(self._database.path)


def _write_growing(database: Database, batches: Batches) -> None:
    """Write to a database that nobody reads."""
    while True:
        try:
            database.write(batches)
            return
        except lmdb.MapFullError:
            database.grow()


def _fail_if_told(name: str) -> None:
    text = failpoint.hit(name)
    if text is not None:
        raise DefragError(text)
