"""The buckets, and how their keys become LMDB keys.

LMDB allows keys of 511 bytes. A shorter key is stored as it is. A longer one (only names of users
and roles get that long) is stored under exactly 511 bytes, its first 479 and the SHA-256 of all of
it, and its value is preceded by the length of the key (4 bytes BE) and the key::

    b"a" * 600  ->  b"a" * 479 + sha256(b"a" * 600)  :  00000258 + b"a" * 600 + value

So that the length tells the two forms apart, a key of 511 bytes is stored the long way too. Keys
with the same first 479 bytes lie side by side, but not in their own order: a scan sorts them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import groupby
from typing import Final

Item = tuple[bytes, bytes]

KEY_LIMIT: Final = 511
"""LMDB's longest key; the tests compare it with the library's own."""
PREFIX: Final = KEY_LIMIT - 32


class Bucket(StrEnum):
    """etcd's buckets, each a named database. Sorted by name where the order matters (Hash)."""

    KEY = "key"
    META = "meta"
    LEASE = "lease"
    ALARM = "alarm"
    CLUSTER = "cluster"
    MEMBERS = "members"
    MEMBERS_REMOVED = "members_removed"
    AUTH = "auth"
    AUTH_USERS = "authUsers"
    AUTH_ROLES = "authRoles"


def stored_key(key: bytes) -> bytes:
    """The LMDB key of `key`."""
    if len(key) < KEY_LIMIT:
        return key
    return key[:PREFIX] + hashlib.sha256(key).digest()


def stored_item(key: bytes, value: bytes) -> Item:
    """What to write for a pair."""
    if len(key) < KEY_LIMIT:
        return key, value
    return stored_key(key), len(key).to_bytes(4, "big") + key + value


def loaded_item(stored: bytes, value: bytes) -> Item:
    """The pair that was stored under an LMDB key; the inverse of `stored_item`."""
    if len(stored) < KEY_LIMIT:
        return stored, value
    end = 4 + int.from_bytes(value[:4], "big")
    key = value[4:end]
    assert stored_key(key) == stored, f"a long key's record does not match its place: {stored!r}"
    return key, value[end:]


def loaded_items(items: Iterable[Item]) -> Iterator[Item]:
    """Pairs in the order of their keys, from LMDB's in the order of the stored ones."""
    for _, group in groupby(items, key=lambda item: item[0][:PREFIX]):
        first = next(group)
        if len(first[0]) < PREFIX:
            yield first
        else:
            yield from sorted(loaded_item(*item) for item in (first, *group))
