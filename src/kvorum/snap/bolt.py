"""The layout of a bolt file, as bbolt writes it: pages, metas, elements. Little endian.

::

    page    id u64, flags u16, count u16, overflow u32; then the elements or the meta
    leaf    count x (flags u32, pos u32, key size u32, value size u32), then keys and values
    branch  count x (pos u32, key size u32, child page u64), then keys
    meta    magic, version, page size, flags (u32); root page, root sequence, freelist page,
            high water mark, transaction (u64); FNV-1a of all these

``pos`` counts from the start of its element. A page longer than the page size goes on in the
``overflow`` pages behind it. The root tree's values are buckets: root page and sequence, or, for
root page 0, a whole small page behind these 16 bytes (an inline bucket).
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

PAGE_HEAD: Final = Struct("<QHHI")
LEAF_ELEMENT: Final = Struct("<IIII")
BRANCH_ELEMENT: Final = Struct("<IIQ")
BUCKET_HEAD: Final = Struct("<QQ")
_META: Final = Struct("<IIIIQQQQQ")
_CHECKSUM: Final = Struct("<Q")

META_SIZE: Final = _META.size + _CHECKSUM.size
ELEMENT_SIZE: Final = 16
assert LEAF_ELEMENT.size == BRANCH_ELEMENT.size == PAGE_HEAD.size == ELEMENT_SIZE

BRANCH: Final = 0x01
LEAF: Final = 0x02
META: Final = 0x04
FREELIST: Final = 0x10
BUCKET_FLAG: Final = 0x01
"""On a leaf element: its value is a bucket."""

MAGIC: Final = 0xED0CDAED
VERSION: Final = 2
NO_FREELIST: Final = (1 << 64) - 1
"""The freelist is not stored; whoever opens the file for writing finds the free pages itself."""

MIN_PAGE_SIZE: Final = 1024
MAX_PAGE_SIZE: Final = MIN_PAGE_SIZE << 14
MAX_KEY: Final = 32768
MAX_VALUE: Final = (1 << 31) - 2
MAX_ELEMENTS: Final = 0xFFFF - 1


class Meta(NamedTuple):
    page_size: int
    root: int
    freelist: int
    high_water: int
    """The first page that was never allocated: the file's size in pages."""
    transaction: int

    def encode(self) -> bytes:
        body = _META.pack(
            MAGIC,
            VERSION,
            self.page_size,
            0,
            self.root,
            0,
            self.freelist,
            self.high_water,
            self.transaction,
        )
        return body + _CHECKSUM.pack(fnv1a(body))


def decode_meta(data: bytes) -> Meta:
    """Raises ValueError that says what is wrong with it."""
    if len(data) < META_SIZE:
        raise ValueError("the file ends inside the meta")
    fields = _META.unpack_from(data)
    magic, version, page_size, _, root, _, freelist, high_water, transaction = fields
    if magic != MAGIC:
        raise ValueError("not a bolt file")
    if version != VERSION:
        raise ValueError(f"version {version} of the format is not known")
    (checksum,) = _CHECKSUM.unpack_from(data, _META.size)
    if checksum != fnv1a(data[: _META.size]):
        raise ValueError("the checksum of the meta is wrong")
    if page_size & page_size - 1 or not MIN_PAGE_SIZE <= page_size <= MAX_PAGE_SIZE:
        raise ValueError(f"a page size of {page_size}")
    return Meta(page_size, root, freelist, high_water, transaction)


def fnv1a(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value
