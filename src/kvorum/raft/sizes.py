"""How large entries are, counted for the limits on messages and on unapplied entries.

The count is the protobuf size as etcd 3.7 has it: field tags and varints of term, index and data,
and two bytes of type for a configuration change. It is needed for every entry more than once, so
the common batch (one term, plain entries) is counted with one pass over the lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kvorum.raft.types import NO_LIMIT, Entry


def varint_size(value: int) -> int:
    """Bytes that ``value`` takes as a varint; 1 for 0."""
    return (value.bit_length() + 6) // 7 or 1


def entry_size(entry: Entry) -> int:
    """The encoded size of one entry, in bytes."""
    length = len(entry.data)
    size = 2 + varint_size(entry.term) + varint_size(entry.index)
    if length:
        size += 1 + varint_size(length) + length
    return size + 2 if entry.type else size


def entries_size(entries: Sequence[Entry]) -> int:
    """The encoded size of consecutive entries, in bytes."""
    count = len(entries)
    if count > 4:
        size = _uniform_size(entries, count)
        if size:
            return size
    return sum([entry_size(entry) for entry in entries])


def _uniform_size(entries: Sequence[Entry], count: int) -> int:
    """The same if all entries are plain and take equally many bytes before their data, else 0."""
    first, last = entries[0], entries[-1]
    lengths = [len(entry.data) for entry in entries if not entry.type]
    # Terms and indexes only grow, so that equal sizes at both ends mean equal sizes between.
    index_width = varint_size(last.index)
    if len(lengths) != count or first.term != last.term:
        return 0
    shortest, width = min(lengths), varint_size(max(lengths))
    if not shortest or varint_size(shortest) != width or varint_size(first.index) != index_width:
        return 0
    return sum(lengths) + count * (3 + varint_size(last.term) + index_width + width)


def payload_size(entries: Sequence[Entry]) -> int:
    """The size of what was proposed, in bytes: an empty entry counts nothing."""
    return sum([len(entry.data) for entry in entries])


def take(entries: list[Entry], start: int, stop: int, max_size: int) -> list[Entry]:
    """A copy of the longest prefix of ``entries[start:stop]`` within ``max_size`` bytes.

    The first entry is always taken, however large. Long stretches are counted in pages, so that a
    follower that is far behind does not make its leader count the whole log for every message.
    """
    if max_size >= NO_LIMIT:
        return entries[start:stop]
    taken: list[Entry] = []
    while start < stop:
        page = entries[start : min(stop, start + _PAGE)]
        size = entries_size(page)
        if size > max_size:
            return taken + _prefix(page, max_size, at_least=0 if taken else 1)
        if not taken and start + _PAGE >= stop:
            return page
        taken += page
        max_size -= size
        start += _PAGE
    return taken


_PAGE: Final = 256


def _prefix(entries: list[Entry], max_size: int, at_least: int) -> list[Entry]:
    size = 0
    for count, entry in enumerate(entries):
        size += entry_size(entry)
        if size > max_size and count >= at_least:
            return entries[:count]
    return entries
