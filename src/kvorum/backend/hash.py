"""Maintenance.Hash: a checksum over everything that is stored."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Set
from itertools import chain
from typing import Final, TypeVar

import google_crc32c

from kvorum.backend.bucket import Bucket, Item
from kvorum.backend.view import ReadView

T = TypeVar("T")
Skip = Set[tuple[str, bytes]]

HASH_SKIP: Final[Skip] = frozenset(
    (Bucket.META, key) for key in (b"consistent_index", b"term", b"storageVersion")
)
"""What members may differ in without differing in content."""

CHUNK: Final = 512
"""Pairs between two pauses: some 0.2 ms in which the interpreter is not shared."""


def extend(crc: int, items: Iterable[Item]) -> int:
    """The checksum, led on over keys and values."""
    return int(google_crc32c.extend(crc, b"".join(chain.from_iterable(items))))


def politely(chunks: Iterable[T]) -> Iterator[T]:
    """The same chunks, with a pause after each as long as the work on it took: for threads that
    compute, so that the event loop gets the interpreter whenever it wants it."""
    started = time.thread_time()
    for chunk in chunks:
        yield chunk
        time.sleep(time.thread_time() - started)
        started = time.thread_time()


def hash_view(view: ReadView, skip: Skip = HASH_SKIP) -> int:
    """CRC-32C over each bucket's name, keys and values, buckets in the order of their names."""
    crc = 0
    for bucket in sorted(Bucket):
        crc = int(google_crc32c.extend(crc, bucket.encode()))
        ignored = {key for name, key in skip if name == bucket}
        for chunk in politely(view.chunks(bucket, CHUNK)):
            if ignored:
                chunk = [item for item in chunk if item[0] not in ignored]
            crc = extend(crc, chunk)
    return crc
