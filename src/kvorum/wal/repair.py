"""Takes off the end of a log what an interrupted write left there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from kvorum.log import get_logger
from kvorum.wal import names
from kvorum.wal.decoder import Decoder, open_source
from kvorum.wal.errors import SegmentLocked, UnexpectedEOF
from kvorum.wal.files import open_locked

lg = get_logger()


def repair(directory: Path) -> bool:
    """Cut the last segment after its last whole record, keeping a copy as ``<name>.broken``.

    True if something was cut, False if the segment ends well. Raises `CorruptLog` for damage that
    no interrupted write explains: that is never cut away.
    """
    path = directory / str(names.list_segments(directory)[-1])
    fd = open_locked(path, os.O_RDWR)
    if fd is None:
        raise SegmentLocked(path, "held by another process")
    try:
        lg.info("repairing", path=str(path))
        return _repair_segment(path, fd)
    finally:
        os.close(fd)


def _repair_segment(path: Path, fd: int) -> bool:
    source = open_source(path, fd)
    decoder = Decoder([source])
    try:
        for _ in decoder:
            pass
    except UnexpectedEOF as torn:
        shutil.copyfile(path, f"{path}.broken")
        os.ftruncate(fd, decoder.offset)
        os.fsync(fd)
        lg.info("repaired", path=str(path), offset=decoder.offset, error=torn.why)
        return True
    finally:
        source.file.close()
    lg.info("repaired", path=str(path), error="EOF")
    return False
