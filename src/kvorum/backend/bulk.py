"""A whole database written at once, from a snapshot."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import lmdb

from kvorum.backend.bucket import Bucket, Item
from kvorum.backend.database import LOCK_SUFFIX, Database, sync_directory
from kvorum.backend.errors import CommitError

BATCH_BYTES: Final = 8 << 20
"""Written in one transaction, and so in memory until then."""
_OP_COST: Final = 64

Batch = tuple[Bucket, list[Item]]


def write_database(path: Path, batches: Iterable[Batch]) -> None:
    """Write items of buckets to a new database file, synced. Revisions had better come in order.

    A file that cannot be finished is removed. Call it in a thread: it may take long.

    Raises:
        FileExistsError: there is something at `path`.
        OpenError: the file cannot be made.
        CommitError: it cannot be written.
    """
    path.touch(mode=0o600, exist_ok=False)
    try:
        database = Database(path)
        try:
            _fill(database, batches)
        except lmdb.Error as error:
            raise CommitError(f"cannot write the database {path}: {error}") from error
        finally:
            database.close()
        path.with_name(path.name + LOCK_SUFFIX).unlink(missing_ok=True)
        sync_directory(path.parent)
    except BaseException:
        path.unlink(missing_ok=True)
        path.with_name(path.name + LOCK_SUFFIX).unlink(missing_ok=True)
        raise


def _fill(database: Database, batches: Iterable[Batch]) -> None:
    pending: list[Batch] = []
    size = 0
    for bucket, items in batches:
        pending.append((bucket, items))
        size += sum(len(value) for _, value in items) + _OP_COST * len(items)
        if size >= BATCH_BYTES:
            _flush(database, pending)
            pending, size = [], 0
    _flush(database, pending)


def _flush(database: Database, pending: list[Batch]) -> None:
    while True:
        try:
            database.append(pending)
            return
        except lmdb.MapFullError:
            database.grow()
