"""A database that another process has open: read beside it, at one moment of its content."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from kvorum.backend.bucket import Bucket
from kvorum.backend.database import MAX_READERS
from kvorum.backend.errors import OpenError
from kvorum.backend.mapping import release_mapping
from kvorum.backend.view import ReadView


@contextmanager
def foreign_view(path: Path, map_size: int) -> Iterator[ReadView]:
    """What is committed now. Its owner goes on writing, and uses no page again that is seen here,
    until the view is closed or, if this process dies, until the owner looks for dead readers.

    `map_size` is that of the owner. Raises OpenError.
    """
    try:
        env = lmdb.open(
            os.fspath(path),
            map_size=map_size,
            subdir=False,
            readonly=True,
            create=False,
            max_dbs=len(Bucket),
            max_readers=MAX_READERS,
        )
    except lmdb.Error as error:
        raise OpenError(f"cannot read the database {path}: {error}") from error
    with env, ReadView(_Foreign(path, env)) as view:
        yield view


class _Foreign:
    """The little of a `Database` that a view needs."""

    def __init__(self, path: Path, env: lmdb.Environment) -> None:
        self.path = path
        self.env = env
        self.dbs = {bucket: env.open_db(bucket.encode(), create=False) for bucket in Bucket}
        self._inode = path.stat().st_ino

    def enter(self, view: ReadView) -> None: ...

    def leave(self, view: ReadView) -> None: ...

    def release_memory(self) -> None:
        release_mapping(self._inode)
