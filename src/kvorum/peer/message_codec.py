"""The ``message`` stream, and the head of a snapshot: raft messages, each after its length.

Layout: 8 bytes BE length, a raftpb.Message, and so on. A heartbeat from nobody to nobody keeps the
link alive and means nothing else.
"""

from __future__ import annotations

from typing import Final

from kvorum.peer.framing import MAX_MESSAGE, UINT64, FrameDecoder, checked_size
from kvorum.raft import codec
from kvorum.raft.types import Message, MsgType

LINK_HEARTBEAT: Final = b"\x00\x00\x00\x00\x00\x00\x00\x02\x08\x08"

_HEAD: Final = 8


def is_link_heartbeat(message: Message) -> bool:
    return message.type is MsgType.HEARTBEAT and not message.from_ and not message.to


def encode_framed(message: Message) -> bytes:
    data = codec.encode_message(message)
    return UINT64.pack(len(data)) + data


class MessageEncoder:
    """Has no state: any message may come at any time."""

    def encode(self, message: Message, out: list[bytes]) -> int:
        """Add the message to ``out``; its size in bytes, length included."""
        data = codec.encode_message(message)
        out += (UINT64.pack(len(data)), data)
        return _HEAD + len(data)


class MessageDecoder(FrameDecoder):
    """Reads a ``message`` stream; ``limit`` is the largest message in bytes."""

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        super().__init__()
        self._limit = limit

    def _read(self, buf: bytes, found: list[Message]) -> int:
        pos, size = 0, len(buf)
        while size - pos >= _HEAD:
            length = checked_size(UINT64.unpack_from(buf, pos)[0], self._limit)
            end = pos + _HEAD + length
            if end > size:
                self._need = end - pos
                return pos
            message = codec.decode_message(buf, pos + _HEAD, end)
            if not is_link_heartbeat(message):
                found.append(message)
            pos = end
        self._need = _HEAD
        return pos
