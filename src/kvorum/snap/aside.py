"""Makes the bolt file of a backend in a process of its own: ``python -m kvorum.snap.aside``.

To make a gigabyte takes some seconds of Python, in which a thread of the member would take turns
with its event loop. Here it is the other processor's work.

Arguments: the database's path and the size of its map. Output: an empty line as soon as the view is
open; a line of JSON with the file's size and the content of the small buckets, in hex; the file.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Final

from kvorum.backend import Bucket, ReadView
from kvorum.backend.foreign import foreign_view
from kvorum.snap.bolt_export import BoltExport

SMALL: Final = (Bucket.META, Bucket.CLUSTER, Bucket.MEMBERS, Bucket.MEMBERS_REMOVED)
"""The buckets that say what the database is and whose."""
NICENESS: Final = 5
"""Requests come first, but not so that this never ends."""

Small = dict[str, dict[bytes, bytes]]


def small_buckets(view: ReadView) -> Small:
    """The whole content of `SMALL`."""
    return {bucket.value: dict(view.items(bucket)) for bucket in SMALL}


def encode_head(size: int, small: Small) -> bytes:
    """The second line of the output."""
    buckets = {
        name: {key.hex(): value.hex() for key, value in items.items()}
        for name, items in small.items()
    }
    return json.dumps({"size": size, "buckets": buckets}).encode() + b"\n"


def decode_head(line: bytes) -> tuple[int, Small]:
    """The inverse. Raises ValueError for anything else, such as nothing at all."""
    fields = json.loads(line)
    try:
        size, buckets = fields["size"], fields["buckets"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"not the head of a file: {line[:100]!r}") from error
    small = {
        name: {bytes.fromhex(key): bytes.fromhex(value) for key, value in items.items()}
        for name, items in buckets.items()
    }
    return size, small


def main(path: str, map_size: str) -> None:
    """Write the file to the standard output. Raises OSError when nobody reads it any more."""
    os.nice(NICENESS)
    with foreign_view(Path(path), int(map_size)) as view:
        _write(b"\n")
        export = BoltExport(view, nap=lambda: None)
        _write(encode_head(export.size, small_buckets(view)))
        for piece in export.pieces():
            _write(piece)


def _write(data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(1, rest) :]


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except BrokenPipeError:
        sys.exit(1)
