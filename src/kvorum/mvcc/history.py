"""The history of one key: which of its revisions exist.

A history is a plain bytearray, and this module the only one that knows its layout:

=============  =====  ==============================================================
bytes          what   meaning
=============  =====  ==============================================================
0 to 7         u64    create revision of the key's current life, big endian
8 to 15        u64    version: puts in the current life
16 + 18 n      slot   a revision (17 bytes), and ``t`` if it deletes the key, else 0
=============  =====  ==============================================================

Slots are ascending and there is at least one. A tombstone ends a life; create revision and version
mean nothing after it until the next put.

This takes 18 bytes a revision where a list of bytes objects takes 72, and the garbage collector,
which would walk millions of lists, does not look at bytearrays.

What compaction leaves of a key put at 2 and 3, deleted at 5 and put at 7, and what HashKV counts
as kept:

======  ===============  =============================================
at      left             kept
======  ===============  =============================================
2       2, 3, 5t, 7      2
3, 4    3, 5t, 7         3
5       5t, 7            none: a tombstone stays, but does not count
6       7                none: 7 is later
======  ===============  =============================================
"""

from __future__ import annotations

from bisect import bisect_left
from struct import Struct
from typing import Final, TypeAlias

from kvorum.mvcc.revision import REV_KEY_LEN, TOMBSTONE_MARK, before, is_tombstone
from kvorum.types import RevKey

History: TypeAlias = bytearray

HEAD: Final = 16
SLOT: Final = REV_KEY_LEN + 1
_PUT_MARK: Final = b"\x00"

_head = Struct(">QQ")
read_head: Final = _head.unpack_from
"""``read_head(history)``: create revision and version."""
_write_head: Final = _head.pack_into


def new_history(first: RevKey, created: int, version: int) -> History:
    """The history of a key with one revision."""
    return History(_head.pack(created, version) + _slot(first))


def _slot(rev: RevKey) -> bytes:
    return rev if is_tombstone(rev) else rev + _PUT_MARK


def is_dead(history: History) -> bool:
    """Whether the key is deleted now."""
    return history[-1] != 0


def newest(history: History) -> RevKey:
    """The last revision of a key that is not deleted."""
    return RevKey(bytes(history[-SLOT:-1]))


def append_put(history: History, rev: RevKey, main: int) -> tuple[int, int, RevKey | None]:
    """Add a put at `rev`, whose main revision is `main`: create revision and version that it gets,
    and the live revision before it."""
    assert history[-SLOT:] < rev, f"{rev.hex()} is not after {history[-SLOT:].hex()}"
    if history[-1]:
        created, version, previous = main, 1, None
    else:
        created, version = read_head(history)
        version += 1
        previous = RevKey(bytes(history[-SLOT:-1]))
    _write_head(history, 0, created, version)
    history += rev + _PUT_MARK
    return created, version, previous


def append_tombstone(history: History, tombstone: RevKey) -> None:
    """Add a delete; the key must be live."""
    assert not is_dead(history), f"{tombstone.hex()} deletes a key that is deleted"
    assert history[-SLOT:] < tombstone, f"{tombstone.hex()} is not after {history[-SLOT:].hex()}"
    assert tombstone.endswith(TOMBSTONE_MARK), tombstone
    history += tombstone


def live_at(history: History, bound: bytes) -> RevKey | None:
    """The newest revision below `bound` (see `before`), None if the key did not exist then."""
    end = _end_of(history, bound)
    if end == HEAD or history[end - 1]:
        return None
    return RevKey(bytes(history[end - SLOT : end - 1]))


def _end_of(history: History, bound: bytes) -> int:
    """The offset behind the slots below `bound`."""
    if history[-SLOT:] < bound:
        return len(history)
    slots = range(HEAD, len(history), SLOT)
    return HEAD + SLOT * bisect_left(slots, bound, key=lambda at: bytes(history[at : at + SLOT]))


def kept_at(history: History, at: int) -> RevKey | None:
    """The revision that a compaction at `at` has to keep, None if there is none or if it is a
    tombstone. Later puts, deletes and compactions up to `at` do not change the answer."""
    return live_at(history, before(at + 1))


def cut_at(history: History, at: int) -> tuple[int, bool]:
    """What a compaction at `at` forgets: the offset up to which slots go, and whether one at or
    before `at` is left.

    The newest revision at or before `at` stays, unless it is a tombstone before `at`. Then
    nothing that old is left, and if nothing newer follows the key itself goes.
    """
    end = _end_of(history, before(at + 1))
    if end == HEAD:
        return HEAD, False
    last = end - SLOT
    if history[end - 1] and history[last:end] < before(at):
        return end, False
    return last, True


def keep_from(history: History, at: int) -> History:
    """A new history without the slots before the offset `at`."""
    return history[:HEAD] + history[at:]


def revisions(history: History, start: int, end: int) -> list[RevKey]:
    """The revisions in the slots between two offsets."""
    return [
        RevKey(bytes(history[at : at + SLOT]))
        if history[at + REV_KEY_LEN]
        else RevKey(bytes(history[at : at + REV_KEY_LEN]))
        for at in range(start, end, SLOT)
    ]
