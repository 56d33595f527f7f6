"""A whole database written at once, from a snapshot."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import lmdb

from kvorum.backend.bucket import Bucket
from kvorum.backend.database import LOCK_SUFFIX, Database, sync_directory
from kvorum.backend.errors import CommitError

BATCH_BYTES: Final = 32 << 20
"""Written in one transaction."""
_OP_COST: Final = 64

Triple = tuple[str, bytes, bytes]


def write_database(path: Path, items: Iterable[Triple]) -> None:
    """Write (bucket, key, value) triples to a new database file, synced.

    A file that cannot be finished is removed. Call it in a thread: it may take long.

    Raises:
        FileExistsError: there is something at `path`.
        OpenError: the file cannot be made.
        CommitError: it cannot be written.
        ValueError: there is no bucket of that name.
    """
    path.touch(mode=0o600, exist_ok=False)
    try:
        database = Database(path)
        try:
            _fill(database, items)
        finally:
            database.close()
        path.with_name(path.name + LOCK_SUFFIX).unlink(missing_ok=True)
        sync_directory(path.parent)
    except BaseException:
        path.unlink(missing_ok=True)
        path.with_name(path.name + LOCK_SUFFIX).unlink(missing_ok=True)
        raise


def _fill(database: Database, items: Iterable[Triple]) -> None:
    pending: dict[Bucket, dict[bytes, bytes | None]] = {bucket: {} for bucket in Bucket}
    size = 0
    for bucket, key, value in items:
        pending[Bucket(bucket)][key] = value
        size += len(key) + len(value) + _OP_COST
        if size >= BATCH_BYTES:
            _flush(database, pending)
            size = 0
    _flush(database, pending)


def _flush(database: Database, pending: dict[Bucket, dict[bytes, bytes | None]]) -> None:
    while True:
        try:
            database.write([(bucket, changes) for bucket, changes in pending.items() if changes])
            break
        except lmdb.MapFullError:
            database.grow()
        except lmdb.Error as error:
            raise CommitError(f"cannot write the database {database.path}: {error}") from error
    for changes in pending.values():
        changes.clear()
