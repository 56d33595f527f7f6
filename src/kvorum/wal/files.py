"""What a log asks of the file system: locks, preallocation, directory syncs, purging."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import sys
from pathlib import Path
from typing import Final

from kvorum.log import get_logger

PRIVATE_FILE: Final = 0o600
PRIVATE_DIRECTORY: Final = 0o700
_PIECE: Final = 1 << 20

# struct flock of a 64-bit Linux: type, whence, start, length (0: to the end), pid.
_WRITE_LOCK: Final = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
_OFD_SETLK: Final[int | None] = (
    getattr(fcntl, "F_OFD_SETLK", None) if sys.platform == "linux" else None
)

lg = get_logger()


def try_lock(fd: int) -> bool:
    """Take the whole file for this open file description; False if somebody else has it.

    Open-file-description locks as Go etcd takes them, so that each sees the other's; flock where
    the system has none. Either goes when ``fd`` is closed.
    """
    if _OFD_SETLK is not None:
        try:
            fcntl.fcntl(fd, _OFD_SETLK, _WRITE_LOCK)
            return True
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            if error.errno != errno.EINVAL:
                raise
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def open_locked(path: Path, flags: int) -> int | None:
    """A locked descriptor of ``path``, or None if somebody else has the lock."""
    fd = os.open(path, flags | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        locked = try_lock(fd)
    except OSError:
        os.close(fd)
        raise
    if not locked:
        os.close(fd)
        return None
    return fd


def preallocate(fd: int, size: int) -> None:
    """Grow the file to ``size`` bytes of zeros with their disk space taken, or raise OSError."""
    if size == 0:
        return
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
    elif os.fstat(fd).st_size < size:
        os.ftruncate(fd, size)


def zero_to_end(fd: int, offset: int) -> None:
    """Zero everything from ``offset`` on, keeping the file's length and its disk space."""
    size = os.fstat(fd).st_size
    os.ftruncate(fd, offset)
    preallocate(fd, size)


def rewrite(fd: int, size: int) -> None:
    """Write the first ``size`` bytes again as they are, to be synced.

    A file may show what is not on disk. Where that is because a sync failed, Linux holds it for
    written: the next sync has nothing to do, and succeeds.
    """
    offset = 0
    while offset < size:
        data = os.pread(fd, min(_PIECE, size - offset), offset)
        offset += os.pwrite(fd, data, offset)


def sync_data(fd: int) -> None:
    """Put the file's bytes, and what is needed to find them, on disk."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        os.fsync(fd)


def fsync_directory(path: Path) -> None:
    """Make the names in a directory last: creations, renames and removals."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_private_directory(path: Path) -> None:
    path.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)


def purge(directory: Path, suffix: str, keep: int) -> list[Path]:
    """Remove the oldest files by name until ``keep`` are left; stop at one that is in use.

    Returns what was removed. A locked file and everything newer than it stay, as with etcd.
    """
    names = sorted(entry for entry in os.listdir(directory) if entry.endswith(suffix))
    removed = []
    for name in names[: max(0, len(names) - keep)]:
        path = directory / name
        try:
            fd = open_locked(path, os.O_WRONLY)
        except FileNotFoundError:  # removed by somebody else since it was listed
            continue
        if fd is None:
            break
        try:
            path.unlink()
        finally:
            os.close(fd)
        lg.info("purged", path=str(path))
        removed.append(path)
    return removed


def remove_quietly(path: Path) -> None:
    """For clean-up on a path that has failed already, where the first error is the one to tell."""
    with contextlib.suppress(OSError):
        path.unlink()
