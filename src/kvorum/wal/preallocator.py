"""Keeps the file of the next segment ready, so that a cut does not wait for disk space."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from kvorum.log import get_logger
from kvorum.wal.errors import SegmentLocked
from kvorum.wal.files import open_locked, preallocate, remove_quietly

lg = get_logger()


class Preallocator:
    """Makes ``0.tmp`` and ``1.tmp`` in turn, one ahead, in a thread that ends when it is made.

    ``failed`` holds what went wrong with the one being made, if anything has.
    """

    def __init__(self, directory: Path, size: int) -> None:
        self._directory = directory
        self._size = size
        self._count = 0
        self._ready: tuple[Path, int] | None = None
        self.failed: Exception | None = None
        self._start()

    def take(self) -> tuple[Path, int]:
        """(path, locked descriptor) of a file of zeros, to be renamed; the next one is begun.

        If it could not be made in the background it is tried again here, since the disk may have
        room by now; raises OSError or `SegmentLocked` if it still cannot.
        """
        self._thread.join()
        if self._ready is None:
            self.failed = None
            self._ready = self._make()
        taken, self._ready = self._ready, None
        self._count += 1
        self._start()
        return taken

    def close(self) -> None:
        """Remove the file that was made ahead."""
        self._thread.join()
        if self._ready is not None:
            path, fd = self._ready
            remove_quietly(path)
            os.close(fd)
            self._ready = None

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="wal-preallocate", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._ready = self._make()
        except Exception as error:
            self.failed = error
            why = "failed to preallocate space when creating a new WAL"
            lg.error(why, size=self._size, error=str(error))

    def _make(self) -> tuple[Path, int]:
        path = self._directory / f"{self._count % 2}.tmp"
        fd = open_locked(path, os.O_RDWR | os.O_CREAT)
        if fd is None:
            raise SegmentLocked(path, "held by another process")
        try:
            # A cut that was interrupted may have left records here.
            os.ftruncate(fd, 0)
            preallocate(fd, self._size)
        except OSError:
            remove_quietly(path)
            os.close(fd)
            raise
        return path, fd
