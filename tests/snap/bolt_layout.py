"""A bolt file taken apart with the layout rules alone, every page accounted for."""

from __future__ import annotations

import struct
from pathlib import Path

Tree = dict[bytes, "bytes | Tree"]


def read_bolt(path: Path) -> dict[bytes, dict[bytes, bytes]]:
    """Bucket -> key -> value. Fails if any page is used twice or not at all."""
    content = path.read_bytes()
    size = struct.unpack_from("<I", content, 16 + 8)[0]
    metas = []
    for page in (0, 1):
        at = page * size + 16
        magic, version, page_size, _ = struct.unpack_from("<IIII", content, at)
        root, _, freelist, high, transaction = struct.unpack_from("<QQQQQ", content, at + 16)
        assert (magic, version, page_size) == (0xED0CDAED, 2, size)
        checksum = 14695981039346656037
        for byte in content[at : at + 56]:
            checksum = (checksum ^ byte) * 1099511628211 % (1 << 64)
        assert checksum == struct.unpack_from("<Q", content, at + 56)[0]
        metas.append((transaction, root, freelist, high))
    transaction, root, freelist, high = max(metas)
    assert len(content) >= high * size
    seen = {0, 1}
    found = {}
    for name, value, flags in _walk(content, size, root, seen):
        assert flags == 1
        start = struct.unpack_from("<Q", value)[0]
        if start:
            assert len(value) == 16
            found[name] = {k: v for k, v, f in _walk(content, size, start, seen) if f == 0}
        else:
            found[name] = {k: v for k, v, f in _elements(value[16:]) if f == 0}
    if freelist != (1 << 64) - 1:
        seen |= _freelist(content, size, freelist)
        assert seen == set(range(high))
    return found


def _walk(content: bytes, size: int, page: int, seen: set[int]) -> list[tuple[bytes, bytes, int]]:
    stored, flags, count, overflow = struct.unpack_from("<QHHI", content, page * size)
    assert stored == page
    run = set(range(page, page + overflow + 1))
    assert not run & seen
    seen |= run
    data = content[page * size : (page + overflow + 1) * size]
    if flags == 2:
        return _elements(data)
    assert flags == 1
    items = []
    for i in range(count):
        at = 16 + 16 * i
        position, key_size, child = struct.unpack_from("<IIQ", data, at)
        key = data[at + position : at + position + key_size]
        below = _walk(content, size, child, seen)
        assert key <= below[0][0]
        assert not items or items[-1][0] < key
        items += below
    return items


def _elements(data: bytes) -> list[tuple[bytes, bytes, int]]:
    count = struct.unpack_from("<H", data, 10)[0]
    items: list[tuple[bytes, bytes, int]] = []
    for i in range(count):
        at = 16 + 16 * i
        flags, position, key_size, value_size = struct.unpack_from("<IIII", data, at)
        start = at + position
        key = data[start : start + key_size]
        assert not items or items[-1][0] < key
        items.append((key, data[start + key_size : start + key_size + value_size], flags))
    return items


def _freelist(content: bytes, size: int, page: int) -> set[int]:
    _, flags, count, overflow = struct.unpack_from("<QHHI", content, page * size)
    assert flags == 0x10
    ids = struct.unpack_from(f"<{count}Q", content, page * size + 16)
    return {*range(page, page + overflow + 1), *ids}
