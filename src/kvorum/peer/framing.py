"""What the two stream encodings have in common: bytes come in pieces of any size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from struct import Struct
from typing import Final

from kvorum.raft.errors import DecodeError
from kvorum.raft.types import Message

MAX_MESSAGE: Final = 512 * 1024 * 1024
"""Bytes of one message. etcd's reader: 512 MiB."""

UINT64: Final = Struct(">Q")


class FrameDecoder(ABC):
    """Collects pieces until there are enough of them to go on, and only then looks at them: a
    message that comes byte by byte costs no more than its length."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._held = 0
        self._need = 1
        """Bytes without which nothing more can be read."""

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are whole with this piece; link heartbeats are left out.

        Raises DecodeError; after that nothing more can be read.
        """
        self._held += len(data)
        if self._parts:
            self._parts.append(data)
            if self._held < self._need:
                return []
            data = b"".join(self._parts)
            self._parts.clear()
        elif self._held < self._need:
            self._parts.append(data)
            return []
        found: list[Message] = []
        pos = self._read(data, found)
        self._held = len(data) - pos
        if self._held:
            self._parts.append(data[pos:])
        return found

    @abstractmethod
    def _read(self, buf: bytes, found: list[Message]) -> int:
        """Add what is whole in ``buf`` to ``found`` and say how far it was read; the rest comes
        again once ``_need`` bytes of it are there."""


def checked_size(size: int, limit: int) -> int:
    """Raises DecodeError for a length that nobody sends."""
    if size > limit:
        raise DecodeError(f"{size} bytes are announced, more than {limit}")
    return size
