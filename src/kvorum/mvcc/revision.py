"""Revisions as bytes, so that they are key, order and index entry in one.

==========  =====  ================================
bytes       what   meaning
==========  =====  ================================
0 to 7      main   big endian
8           ``_``
9 to 16     sub    big endian: place in the transaction
17          ``t``  only where the key was deleted
==========  =====  ================================

All bytes of the low numbers sort before those of the high ones, hence ``a < b`` compares
revisions, and ``a < before(n)`` asks for a main revision below n.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final, cast

from kvorum.types import Revision, RevKey

REV_KEY_LEN: Final = 17
SEPARATOR: Final = 0x5F
TOMBSTONE_MARK: Final = b"t"

pack_rev: Final = cast(Callable[[int, int, int], RevKey], Struct(">QBQ").pack)
"""``pack_rev(main, SEPARATOR, sub)`` is a RevKey: for hot paths, `rev_key` elsewhere."""
_pack_main: Final = Struct(">Q").pack


def rev_key(main: int, sub: int = 0) -> RevKey:
    """The revision of a put."""
    return pack_rev(main, SEPARATOR, sub)


def tombstone_key(main: int, sub: int = 0) -> RevKey:
    """The revision of a delete."""
    return RevKey(pack_rev(main, SEPARATOR, sub) + TOMBSTONE_MARK)


def is_tombstone(key: bytes) -> bool:
    """Whether the revision is that of a delete."""
    return len(key) > REV_KEY_LEN


def main_of(key: bytes) -> Revision:
    """The main revision."""
    return cast(Revision, int.from_bytes(key[:8], "big"))


def sub_of(key: bytes) -> int:
    """The sub revision."""
    return int.from_bytes(key[9:REV_KEY_LEN], "big")


def before(main: int) -> bytes:
    """A bound: every revision with a smaller main is less, every other one greater."""
    return _pack_main(main)
