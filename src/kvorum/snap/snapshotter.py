"""The ``.snap`` files of a member: raft snapshots by term and index, newest first.

A file is ``snappb.snapshot``: CRC-32C of the data, then the data, a ``raftpb.Snapshot`` with the v2
store of the members in it. Beside them lie ``<index>.snap.db``, databases received from a leader
and not yet in use.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError
from google_crc32c import value as crc32c

from kvorum.log import get_logger
from kvorum.pb import snappb
from kvorum.raft import codec
from kvorum.raft.types import Snapshot
from kvorum.snap.errors import BrokenSnapshot, NoSnapshot, SnapError
from kvorum.wal.files import fsync_directory, purge, remove_quietly
from kvorum.wal.snapshot import SnapshotRecord

SUFFIX: Final = ".snap"
DB_SUFFIX: Final = ".snap.db"
BROKEN_SUFFIX: Final = ".broken"

TEMPORARY_PREFIX: Final = "tmp"
"""Files that are being written. Go etcd, too, removes them when it starts."""

_DEFRAG_PREFIX: Final = "db.tmp"
_DB_NAME: Final = re.compile(r"([0-9a-f]{16})\.snap\.db(?:-lock)?")
"""With LMDB's lock file, which is there while a database of ours is on the way to its place."""
_WRITE_SIZE: Final = 1 << 20

lg = get_logger()


class SaveTimes(NamedTuple):
    """Seconds in encoding, in syncs, and in all."""

    encode: float
    sync: float
    total: float


class Snapshotter:
    """The snapshot files in a directory, which must exist. Blocking; for a thread of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def save(self, snapshot: Snapshot) -> SaveTimes:
        """Put a snapshot on disk, file and directory synced. An empty one is not saved.

        The file appears at once or not at all. Raises `SnapError`.
        """
        if snapshot.is_empty():
            return SaveTimes(0.0, 0.0, 0.0)
        started = time.perf_counter()
        data = codec.encode_snapshot(snapshot)
        content = snappb.snapshot(crc=crc32c(data), data=data).SerializeToString()
        encoded = time.perf_counter()
        path = self.path_of(snapshot.metadata.term, snapshot.metadata.index)
        synced = self._write(path, (content,), mode=0o666)
        return SaveTimes(encoded - started, synced, time.perf_counter() - started)

    def load_newest(self, recorded: Collection[SnapshotRecord] | None = None) -> Snapshot:
        """The newest file that can be read and, unless None, is ``recorded`` in the log.

        A snapshot that the log does not vouch for may be ahead of what was promised. Files that
        cannot be read are set aside as ``.broken``. Raises `NoSnapshot`.
        """
        wanted = None if recorded is None else {(each.term, each.index) for each in recorded}
        for path in self.files():
            snapshot = self._read_or_set_aside(path)
            if snapshot is None:
                continue
            place = (snapshot.metadata.term, snapshot.metadata.index)
            if wanted is None or place in wanted:
                return snapshot
        raise NoSnapshot(self.directory, "no snapshot available")

    def files(self) -> list[Path]:
        """The snapshot files, newest first. Removes what an interrupted defragmentation left."""
        found = []
        for path in self.directory.iterdir():
            if path.name.startswith(_DEFRAG_PREFIX):
                lg.info("found orphaned defragmentation file; deleting", path=path.name)
                path.unlink(missing_ok=True)
            elif path.name.endswith(SUFFIX) and not path.name.startswith(TEMPORARY_PREFIX):
                found.append(path)
        return sorted(found, reverse=True)

    def path_of(self, term: int, index: int) -> Path:
        return self.directory / f"{term:016x}-{index:016x}{SUFFIX}"

    def purge(self, keep_snaps: int, keep_dbs: int | None = None) -> list[Path]:
        """Remove the oldest files of both kinds; returns them. None: as many as snapshots."""
        keep_dbs = keep_snaps if keep_dbs is None else keep_dbs
        removed = purge(self.directory, SUFFIX, keep_snaps)
        return removed + purge(self.directory, DB_SUFFIX, keep_dbs)

    def remove_temporary(self) -> None:
        """For a start, when nobody is writing: what was half written or half received."""
        for path in self.directory.iterdir():
            if path.name.startswith(TEMPORARY_PREFIX):
                path.unlink(missing_ok=True)

    # Databases received from a leader.

    def db_path(self, index: int) -> Path:
        return self.directory / f"{index:016x}{DB_SUFFIX}"

    def save_db(self, chunks: Iterable[bytes], index: int) -> Path:
        """Store a received database; nothing is kept if ``chunks`` raises. An earlier one of the
        same index stays. Raises `SnapError` if the disk refuses."""
        path = self.db_path(index)
        if not path.exists():
            self._write(path, chunks, mode=0o600)
            lg.info("saved database snapshot to disk", path=str(path), bytes=path.stat().st_size)
        return path

    def find_db(self, index: int) -> Path:
        """The database received for a snapshot; raises `NoSnapshot`."""
        path = self.db_path(index)
        if not path.exists():
            raise NoSnapshot(path, "snapshot file doesn't exist")
        return path

    def release_dbs(self, index: int) -> list[Path]:
        """Remove the databases that belong to snapshots before ``index``; returns them."""
        removed = []
        for path in sorted(self.directory.iterdir()):
            match = _DB_NAME.fullmatch(path.name)
            if match is not None and int(match[1], 16) < index:
                lg.info("found orphaned .snap.db file; deleting", path=path.name)
                path.unlink(missing_ok=True)
                removed.append(path)
        return removed

    def _read_or_set_aside(self, path: Path) -> Snapshot | None:
        try:
            return read_snapshot(path)
        except BrokenSnapshot as error:
            lg.warn("failed to read a snap file", path=str(path), error=error.why)
            broken = path.with_name(path.name + BROKEN_SUFFIX)
            path.rename(broken)
            lg.warn("renamed to a broken snap file", path=str(path), broken_path=str(broken))
            return None

    def _write(self, path: Path, chunks: Iterable[bytes], *, mode: int) -> float:
        """Seconds in syncs."""
        made = self.directory / f"{TEMPORARY_PREFIX}-{path.name}"
        try:
            fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
            with os.fdopen(fd, "wb", _WRITE_SIZE) as file:
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                started = time.perf_counter()
                os.fsync(fd)
            made.rename(path)
            fsync_directory(self.directory)
        except BaseException as error:
            remove_quietly(made)
            if isinstance(error, OSError):
                raise SnapError(path, f"cannot be saved: {error}") from error
            raise
        return time.perf_counter() - started


def read_snapshot(path: Path) -> Snapshot:
    """Raises `BrokenSnapshot` for a file that is empty, cut short, or not what was written."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BrokenSnapshot(path, str(error)) from error
    if not content:
        raise BrokenSnapshot(path, "empty snapshot")
    try:
        outer = snappb.snapshot.FromString(content)
    except DecodeError as error:
        raise BrokenSnapshot(path, "not a snapshot file") from error
    if not outer.data or not outer.crc:
        raise BrokenSnapshot(path, "empty snapshot")
    computed = crc32c(outer.data)
    if computed != outer.crc:
        why = f"crc mismatch: {outer.crc:08x} in the file, computed {computed:08x}"
        raise BrokenSnapshot(path, why)
    try:
        return codec.decode_snapshot(outer.data)
    except ValueError as error:
        raise BrokenSnapshot(path, f"not a raft snapshot: {error}") from error
