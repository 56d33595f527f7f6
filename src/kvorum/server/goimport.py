"""Takes over a database in etcd's format: that of a directory which etcd itself left behind, or one
that a leader sent.

The log and the snapshot files need no change, since they are etcd's own formats here too. The
database is copied into a new file beside the old one, which stays as it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from kvorum.backend.database import sync_directory
from kvorum.backend.image import is_image
from kvorum.log import get_logger
from kvorum.server.errors import BadDataDirectory
from kvorum.snap import BoltError, convert_bolt, remove_partial

GO_FILE_NAME: Final = "db"

_STEPS: Final = 10
_LARGE: Final = 64 << 20

lg = get_logger()


class Interrupted(Exception):
    """The conversion is not wanted any more."""


def import_go_database(
    source: Path, target: Path, *, stopping: Callable[[], bool] = lambda: False
) -> None:
    """Copy every bucket of the bbolt file ``source`` into a new backend file ``target``. It takes
    some seconds for a gigabyte, and is given up soon after ``stopping`` is true.

    The target appears whole, by a rename, or not at all.

    Raises:
        BadDataDirectory: the source cannot be read, or holds what etcd never writes.
        BackendError: the target cannot be written.
        Interrupted: it was given up.
    """
    unfinished = target.with_name(target.name + ".import")
    remove_partial(unfinished)
    lg.info("converting the database of etcd", source=str(source), target=str(target))
    try:
        entries = convert_bolt(source, unfinished, _Progress(source, stopping))
    except BoltError as error:
        raise BadDataDirectory(f"cannot convert the database of etcd: {error}") from error
    os.rename(unfinished, target)
    sync_directory(target.parent)
    lg.info("converted the database of etcd; the original was kept", entries=entries)


def made_usable(
    received: Path, converted: Path, *, stopping: Callable[[], bool] = lambda: False
) -> Path:
    """Where the content of a database that was sent lies in our format: in itself or, after an
    `import_go_database`, whose errors this raises, in `converted`."""
    if is_image(received):
        return received
    import_go_database(received, converted, stopping=stopping)
    return converted


class _Progress:
    """Says ten times how far the conversion of a large file has come."""

    def __init__(self, source: Path, stopping: Callable[[], bool]) -> None:
        self._source = source
        self._stopping = stopping
        self._told = 0

    def __call__(self, done: int, total: int) -> None:
        if self._stopping():
            raise Interrupted
        step = done * _STEPS // total
        if total >= _LARGE and step > self._told:
            self._told = step
            lg.info(
                "converting the database of etcd",
                source=str(self._source),
                percent=100 * step // _STEPS,
                bytes=done,
                total_bytes=total,
            )
