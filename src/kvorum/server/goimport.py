"""Takes over the database of a data directory that etcd itself left behind.

The log and the snapshot files need no change, since they are etcd's own formats here too. The
database is copied into a new file beside the old one, which stays as it is.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from kvorum.backend import Backend, Bucket
from kvorum.backend.database import LOCK_SUFFIX, sync_directory
from kvorum.log import get_logger
from kvorum.server.errors import BadDataDirectory
from kvorum.snap import BoltError, import_bolt

GO_FILE_NAME: Final = "db"
_BATCH: Final = 50_000

lg = get_logger()


def import_go_database(source: Path, target: Path) -> None:
    """Copy every bucket of the bbolt file ``source`` into a new backend file ``target``.

    The target appears whole, by a rename, or not at all.

    Raises:
        BadDataDirectory: the source cannot be read, or holds what etcd never writes.
    """
    unfinished = target.with_name(target.name + ".import")
    _remove(unfinished)
    lg.info("converting the database of etcd", source=str(source), target=str(target))
    backend = Backend(unfinished)
    try:
        counts = import_bolt(source, _Copier(source, backend).put)
        backend.commit_now()
    except BoltError as error:
        raise BadDataDirectory(f"cannot convert {source}: {error}") from error
    finally:
        backend.close()
    os.rename(unfinished, target)
    _remove(unfinished)
    sync_directory(target.parent)
    entries = sum(counts.values())
    lg.info("converted the database of etcd; the original was kept", entries=entries)


def _remove(unfinished: Path) -> None:
    """Take away what an interrupted conversion left, and the file that the storage locks."""
    for path in (unfinished, unfinished.with_name(unfinished.name + LOCK_SUFFIX)):
        path.unlink(missing_ok=True)


class _Copier:
    """Writes entries to the backend, committing now and then to bound the memory."""

    def __init__(self, source: Path, backend: Backend) -> None:
        self._source = source
        self._backend = backend
        self._buckets = {bucket.value.encode(): bucket for bucket in Bucket}
        self._copied = 0

    def put(self, name: bytes, key: bytes, value: bytes) -> None:
        bucket = self._buckets.get(name)
        if bucket is None:
            raise BadDataDirectory(f"{self._source} holds a bucket etcd does not know: {name!r}")
        self._backend.put(bucket, key, value)
        self._copied += 1
        if self._copied % _BATCH == 0:
            self._backend.commit_now()
            lg.info("converting the database of etcd", entries=self._copied)
