"""From etcd's database file to ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from kvorum.backend import Bucket
from kvorum.backend.bulk import Batch, write_database
from kvorum.backend.database import LOCK_SUFFIX
from kvorum.snap.bolt_reader import BoltFile, Item
from kvorum.snap.errors import BoltError

REVISION_SIZES = frozenset((17, 18))
"""Bytes of a key in bucket ``key``: a revision, and the same of a deletion."""

PROGRESS_PAGES = 1024
"""Pages between two calls of a progress callback."""

Progress = Callable[[int, int], object]
"""Called with the bytes read so far and those of the whole file. What it raises ends the work."""


def _no_progress(done: int, total: int) -> None: ...


def convert_bolt(source: Path, target: Path, progress: Progress = _no_progress) -> int:
    """Write all that a bolt file holds to a new backend file; the number of entries. For a thread,
    in bounded memory.

    The target is there whole and synced, or not at all; but a kill leaves a part of it, so it must
    not have the name by which a database is known.

    Raises:
        BoltError: the source is no sound bolt file, or holds what etcd never writes.
        FileExistsError: there is something at ``target``.
        OpenError, CommitError, OSError: the source cannot be read, or the target not written.
    """
    with BoltFile(source) as file:
        reading = _Reading(file, progress)
        write_database(target, reading.batches())
        return reading.entries


def remove_partial(target: Path) -> None:
    """Take away what a conversion that was killed left at ``target``."""
    for path in (target, target.with_name(target.name + LOCK_SUFFIX)):
        path.unlink(missing_ok=True)


class _Reading:
    """Takes the file apart, checks what is etcd's about it, and counts."""

    def __init__(self, file: BoltFile, progress: Progress) -> None:
        self.entries = 0
        self._file = file
        self._progress = progress
        self._buckets = {bucket.value.encode(): bucket for bucket in Bucket}

    def batches(self) -> Iterator[Batch]:
        file = self._file
        for name in file.buckets():
            if name not in self._buckets:
                raise BoltError(file.path, f"it holds a bucket that etcd does not know: {name!r}")
        told = 0
        for name, items in file.batches():
            bucket = self._buckets[name]
            if bucket is Bucket.KEY:
                self._check_revisions(items)
            self.entries += len(items)
            yield bucket, items
            if file.pages_read - told >= PROGRESS_PAGES:
                told = file.pages_read
                self._progress(told * file.page_size, file.db_size)
        self._progress(file.db_size, file.db_size)

    def _check_revisions(self, items: list[Item]) -> None:
        if not REVISION_SIZES.issuperset(map(len, [key for key, _ in items])):
            wrong = next(key for key, _ in items if len(key) not in REVISION_SIZES)
            raise BoltError(self._file.path, f"bucket key holds {wrong!r}, which is no revision")
