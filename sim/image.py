"""What members see in place of the image of an LMDB file: the simulated file's content as bytes."""

from __future__ import annotations

import marshal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import lmdb

if TYPE_CHECKING:
    from kvorum.backend.bucket import Bucket

MARK: Final = b"an image of a simulated database\n"


class Image:
    """`kvorum.backend.image.Image`. ``view`` is of a simulated database."""

    def __init__(self, path: Path, view: Any) -> None:
        self.view = view
        trees = {name: tree.items for name, tree in view._txn.trees().items()}
        self._data = MARK + marshal.dumps(trees)
        self._at = 0
        self.size = len(self._data)

    def read(self, size: int) -> bytes:
        with self.view._reading():  # raises where it is closed
            piece = self._data[self._at : self._at + size]
        self._at += len(piece)
        return piece

    def close(self) -> None:
        self.view.close()


def is_image(path: Path) -> bool:
    return path.read_bytes().startswith(MARK)


def image_value(path: Path, bucket: Bucket, key: bytes) -> bytes | None:
    """As it is found in the buckets whose items are kept as they are."""
    return content(path.read_bytes()).get(bucket.encode(), {}).get(key)


def content(data: bytes) -> dict[bytes, dict[bytes, bytes]]:
    """The databases of an image, by name."""
    if not data.startswith(MARK):
        raise lmdb.InvalidError(f"not a simulated database: {len(data)} bytes")
    trees: dict[bytes, dict[bytes, bytes]] = marshal.loads(data[len(MARK) :])
    return trees
