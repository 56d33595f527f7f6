"""A snapshot from the leader takes the place of this member's state.

Each step is on disk before the next one begins:

1. the database, as ``<index>.snap.db``;
2. the ``.snap`` file, then the record of it in the log, then the hard state (`RaftNode`);
3. the database, converted if it is etcd's, in the place of the old one.

Cut off before the record, nothing has happened but for a file that is in nobody's way. Cut off
after it, the log begins at the snapshot, the database is behind it, and the next start does step 3.
The leader hears of success after step 2: converting takes its time, and meanwhile entries go on
coming into the log.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Final

from kvorum import failpoint
from kvorum.backend import FILE_NAME, Backend, Bucket, CorruptError
from kvorum.backend.image import image_value, is_image
from kvorum.log import get_logger
from kvorum.raft.types import Snapshot
from kvorum.server.goimport import made_usable
from kvorum.snap import BoltError, BoltFile, SnapError
from kvorum.snap import Snapshotter as SnapFiles
from kvorum.telemetry import Gauge
from kvorum.types import Index
from kvorum.wal.files import fsync_directory

CONVERTED: Final = "tmp-" + FILE_NAME
"""The converted database until it is in its place. What begins like this is removed at a start."""

lg = get_logger()


class SnapshotInstaller:
    """Installs what was received, one after the other; of several that wait, only the last.

    ``restore`` is called in the step in which the backend has the new content, and has to take all
    state from it; ``done`` afterwards, with the index.
    """

    def __init__(
        self,
        *,
        files: SnapFiles,
        backend: Backend,
        loop: asyncio.AbstractEventLoop,
        restore: Callable[[Snapshot], None],
        done: Callable[[Index], None],
        failed: Callable[[BaseException], None],
        in_progress: Gauge,
    ) -> None:
        self._files = files
        self._backend = backend
        self._loop = loop
        self._restore = restore
        self._done = done
        self._failed = failed
        self._in_progress = in_progress
        self._wanted: Snapshot | None = None
        self._placing = threading.Lock()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self.busy = False
        """Whether the state is about to be replaced, so that what is in memory belongs to the old
        one."""

    # Step 1

    async def adopt(self, database: Path, index: Index) -> None:
        """Make a received file the database of the snapshot at ``index``. Raises SnapError for one
        that cannot be that, or cannot be saved; then it is not on record, and nothing happened.

        It stays even if raft does not want this snapshot: another leader may have sent one of the
        same index, and it is that one's database too. The next snapshot of this member's own lets
        it go.
        """
        path = self._files.db_path(index)
        await self._backend.in_thread(lambda: _adopt(database, path, index, self._placing))
        lg.info("saved database snapshot to disk", path=str(path))

    # Step 3

    def install(self, snapshot: Snapshot) -> None:
        """Begin to replace the state by ``snapshot``, which is in the log."""
        self._wanted = snapshot
        self.busy = True
        if self._task is None:
            self._in_progress.value = 1
            self._task = self._loop.create_task(self._run())

    async def stop(self) -> None:
        """Let go; the next start completes what is not complete."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        try:
            while self._wanted is not None:
                snapshot, self._wanted = self._wanted, None
                await self._install(snapshot)
        except Exception as error:
            self._failed(error)
        finally:
            self._task = None
            self._in_progress.value = 0

    async def _install(self, snapshot: Snapshot) -> None:
        meta = snapshot.metadata
        started = self._loop.time()
        lg.info(
            "applying snapshot",
            incoming_leader_snapshot_index=meta.index,
            incoming_leader_snapshot_term=meta.term,
        )
        received = self._files.find_db(meta.index)
        converted = self._files.directory / CONVERTED
        if failpoint.active:
            failpoint.hit("applyBeforeOpenSnapshot")
        usable = await self._backend.in_thread(
            lambda: made_usable(received, converted, stopping=lambda: self._stopping)
        )
        if self._wanted is not None:
            return  # it is out of date before it was in use
        self._backend.on_replace = lambda: self._take(snapshot)
        await self._backend.replace(usable)
        await self._backend.in_thread(lambda: self._files.release_dbs(meta.index + 1))
        lg.info(
            "applied snapshot",
            incoming_leader_snapshot_index=meta.index,
            incoming_leader_snapshot_term=meta.term,
            took=timedelta(seconds=self._loop.time() - started),
        )

    def _take(self, snapshot: Snapshot) -> None:
        if failpoint.active:
            failpoint.hit("applyAfterOpenSnapshot")
        self._restore(snapshot)
        self.busy = self._wanted is not None
        self._done(snapshot.metadata.index)


def _adopt(database: Path, target: Path, index: Index, placing: threading.Lock) -> None:
    try:
        _check(database, target, index)
        with open(database, "rb+") as file:
            os.fsync(file.fileno())
        with placing:  # several may come at a time
            if target.exists():  # it came twice: the first may be in use already
                database.unlink()
            else:
                database.rename(target)
        fsync_directory(target.parent)  # even if it came twice: this may have failed before
    except OSError as error:
        raise SnapError(target, f"cannot be saved: {error}") from error


def _check(database: Path, target: Path, index: Index) -> None:
    """Whether it is a database of that index, as far as can be seen without reading all of it: once
    it is on record, a member with a file that is none could not start again."""
    try:
        found = _index_of(database)
    except (BoltError, CorruptError) as error:
        raise SnapError(target, f"what was received is no database: {error}") from error
    if found < index:
        raise SnapError(target, f"what was received ends at entry {found}, and not at {index}")


def _index_of(database: Path) -> Index:
    """Of the last entry whose result it holds."""
    key = b"consistent_index"
    if is_image(database):
        value = image_value(database, Bucket.META, key)
    else:
        with BoltFile(database) as file:
            value = dict(file.items(Bucket.META.value.encode())).get(key)
    return Index(int.from_bytes(value or b"", "big"))
