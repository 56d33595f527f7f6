"""Gives back the memory that a mapped file takes.

LMDB maps its file, and every page that was read counts as memory of the process from then on, up
to the whole file. It is the system's cache, and free when others need it; but who reads a gigabyte
once should not look like somebody who needs a gigabyte.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import suppress

MAPS = "/proc/self/maps"


def release_mapping(inode: int) -> None:
    """Forget the mapped pages of the file with this inode number.

    Of a shared mapping only the note which pages were touched is lost: the next touch finds them in
    the cache. Where the system does not tell its mappings, nothing happens.
    """
    with suppress(OSError, AttributeError):
        advise = ctypes.CDLL(None).madvise
        for start, length in _mappings(inode):
            advise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def _mappings(inode: int) -> Iterator[tuple[int, int]]:
    """(address, length) of each place where the file is mapped in this process."""
    with open(MAPS) as lines:
        for line in lines:
            addresses, _, _, _, number, *_ = line.split(maxsplit=5)
            if int(number) == inode:
                start, end = (int(address, 16) for address in addresses.split("-"))
                yield start, end - start
