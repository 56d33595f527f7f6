"""Makes a new log's directory so that it is there as a whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from kvorum.wal import names
from kvorum.wal.errors import LogExists, SegmentLocked, WriteFailed
from kvorum.wal.files import fsync_directory, make_private_directory, open_locked, preallocate
from kvorum.wal.names import SegmentName


def create_directory(directory: Path, head: bytes, segment_size: int) -> int:
    """Make the first segment under ``<directory>.tmp`` and rename it; its locked descriptor."""
    _check_vacant(directory)
    made = directory.with_name(directory.name + ".tmp")
    if made.exists():
        shutil.rmtree(made)
    make_private_directory(made)
    try:
        fd = _create_first_segment(made, head, segment_size)
        try:
            if directory.exists():
                shutil.rmtree(directory)
            os.rename(made, directory)
        except OSError:
            os.close(fd)
            raise
    except OSError:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return fd


def _check_vacant(directory: Path) -> None:
    if names.exists(directory):
        raise LogExists(directory, "there is a log already")
    if directory.exists():
        others = [path.name for path in directory.iterdir() if path.suffix != ".tmp"]
        if others:
            why = f"the directory holds other files, such as {others[0]!r}"
            raise LogExists(directory, why)


def _create_first_segment(directory: Path, head: bytes, segment_size: int) -> int:
    path = directory / str(SegmentName(0, 0))
    fd = open_locked(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    if fd is None:
        raise SegmentLocked(path, "held by another process")
    try:
        preallocate(fd, segment_size)
        if os.pwrite(fd, head, 0) != len(head):
            raise WriteFailed(path, "a short write", offset=0)
        os.fsync(fd)
        fsync_directory(directory)
    except BaseException:
        os.close(fd)
        raise
    return fd
