"""The database file as it is, for a member that keeps its data in the same format.

LMDB writes no page that a reader may see, so the file can be read beside its writer as long as a
view is open: the pages of the view are in it, and what else is in it the view's meta page does not
refer to. Both meta pages, which are written anew all the time, are given out as the view has them.

::

    page    number u64, u16, flags u16, u32; then, on the first two, the meta
    meta    magic, version (u32), address, map size (u64), two trees (48 bytes each, the first
            beginning with the page size, u32), last page, transaction (u64)

That is LMDB's ``mdb.c`` (MDB_page, MDB_meta), in the machine's own byte order.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
from pathlib import Path
from typing import Final, NamedTuple

import lmdb

from kvorum.backend.bucket import Bucket, loaded_item, stored_key
from kvorum.backend.errors import BackendError, CorruptError
from kvorum.backend.view import ReadView

FORMAT: Final = f"lmdb-1-{sys.byteorder}-{8 * struct.calcsize('P')}-{mmap.PAGESIZE}"
"""Who can use whose files. 1 is how LMDB lays out its pages, and we our buckets."""
AVAILABLE: Final = struct.calcsize("P") == 8
"""The layout above has 64 bits."""

_HEAD: Final = struct.Struct("=QHHI")
_META: Final = struct.Struct("=IIQQI92sQQ")
_MAGIC: Final = 0xBEEFC0DE
_VERSION: Final = 1
_IS_META: Final = 0x08


class _Meta(NamedTuple):
    magic: int
    version: int
    address: int
    map_size: int
    page_size: int
    trees: bytes
    last_page: int
    transaction: int

    @property
    def file_size(self) -> int:
        return (self.last_page + 1) * self.page_size


class Image:
    """The file of a database as of a view, which it owns. Read by one thread at a time."""

    def __init__(self, path: Path, view: ReadView) -> None:
        """No commit may be under way. Raises BackendError if it is not what was expected."""
        self.view = view
        self._at = 0
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            meta = _newest_meta(self._fd)
            if meta is None or meta.transaction != view.number():
                raise BackendError(f"{path} does not begin as LMDB files do")
            self.size = meta.file_size
            self._head = _head(meta)
        except BaseException:
            os.close(self._fd)
            raise

    def read(self, size: int) -> bytes:
        """The next bytes, b"" at the end. Raises ViewLostError if the view was closed."""
        at = self._at
        if at == 0:
            self._at = len(self._head)
            return self._head
        size = min(size, self.size - at)
        data = os.pread(self._fd, size, at)
        self.view.number()  # what was read while it is open is what it sees
        self._at = at + size
        # LMDB need not have written pages at the end that are free.
        return data if len(data) == size else data.ljust(size, b"\0")

    def close(self) -> None:
        """Not while it is read."""
        self.view.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def is_image(path: Path) -> bool:
    """Whether a file begins as one of LMDB's."""
    with path.open("rb") as file:
        head = file.read(_HEAD.size + 4)
    return head[_HEAD.size :] == _MAGIC.to_bytes(4, sys.byteorder)


def image_value(path: Path, bucket: Bucket, key: bytes) -> bytes | None:
    """The value of a key in an image that nobody has open, and that is known to be what was sent:
    LMDB ends the process where a page is damaged.

    Raises:
        CorruptError: it is none, or too short.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        meta = _newest_meta(fd)
        if meta is None or os.fstat(fd).st_size < meta.file_size:
            raise CorruptError(f"{path} is no whole LMDB file")
    finally:
        os.close(fd)
    try:
        with (
            lmdb.open(
                os.fspath(path), subdir=False, readonly=True, lock=False, max_dbs=len(Bucket)
            ) as env,
            env.begin() as txn,
        ):
            db = env.open_db(bucket.encode(), txn, create=False)
            place = stored_key(key)
            value = txn.get(place, None, db)
    except lmdb.Error as error:
        raise CorruptError(f"{path} cannot be read: {error}") from error
    return None if value is None else loaded_item(place, value)[1]


def _newest_meta(fd: int) -> _Meta | None:
    """The meta that LMDB would take; None if there is no good one."""
    first = _meta_at(fd, 0)
    if first is None:
        return None
    second = _meta_at(fd, first.page_size)
    if second is None or second.page_size != first.page_size:
        return None
    return first if first.transaction >= second.transaction else second


def _meta_at(fd: int, offset: int) -> _Meta | None:
    data = os.pread(fd, _HEAD.size + _META.size, offset)
    if len(data) < _HEAD.size + _META.size:
        return None
    flags = _HEAD.unpack_from(data)[2]
    meta = _Meta._make(_META.unpack_from(data, _HEAD.size))
    sound = (meta.magic, meta.version) == (_MAGIC, _VERSION) and flags & _IS_META
    return meta if sound and meta.page_size else None


def _head(meta: _Meta) -> bytes:
    """The first two pages. The other one is as an older transaction's that ended the same."""
    older = meta._replace(transaction=max(0, meta.transaction - 1))
    own = meta.transaction & 1  # where LMDB writes it
    pages = b""
    for number in (0, 1):
        page = _HEAD.pack(number, 0, _IS_META, 0) + _META.pack(*(meta if number == own else older))
        pages += page.ljust(meta.page_size, b"\0")
    return pages
