"""Reads and makes write-ahead log frames; shares no code with the server under test.

The layout is etcd's: an 8-byte little-endian length word (low 56 bits the record's length, the top
byte 0x80 + padding if there is padding), the record (type, crc, data), zeros up to 8 bytes. The
CRC-32C of every record's data goes on from that of the record before it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import google_crc32c

from kvorum.pb import walpb

METADATA, ENTRY, STATE, CRC, SNAPSHOT = 1, 2, 3, 4, 5


class WalFileError(AssertionError):
    """The file is no sound log."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One record and where it lies: from ``start`` up to ``end``, padding included."""

    start: int
    end: int
    kind: int
    crc: int
    data: bytes


def read_frames(path: Path) -> list[Frame]:
    """All records up to the zero length word; WalFileError if the chain of CRCs is broken."""
    content = path.read_bytes()
    frames: list[Frame] = []
    crc = 0
    at = 0
    while at + 8 <= len(content):
        (word,) = struct.unpack_from("<Q", content, at)
        if word == 0:
            break
        length = word & ((1 << 56) - 1)
        padding = (word >> 56) & 7 if word >> 63 else 0
        end = at + 8 + length + padding
        if end > len(content):
            raise WalFileError(f"{path.name}: the frame at {at} goes beyond the end")
        record = walpb.Record.FromString(content[at + 8 : at + 8 + length])
        crc = _next_crc(path, crc, record, at)
        frames.append(Frame(at, end, record.type, record.crc, record.data))
        at = end
    return frames


def _next_crc(path: Path, crc: int, record: walpb.Record, at: int) -> int:
    if record.type == CRC:
        if crc not in (0, record.crc):
            raise WalFileError(f"{path.name}: crc record at {at}: {record.crc}, not {crc}")
        return record.crc
    crc = google_crc32c.extend(crc, record.data)
    if crc != record.crc:
        raise WalFileError(f"{path.name}: record at {at} has crc {record.crc}, not {crc}")
    return crc


def make_frame(crc_before: int, kind: int, data: bytes) -> bytes:
    """The bytes of one frame that goes on after a record with ``crc_before``."""
    record = walpb.Record(type=kind, crc=google_crc32c.extend(crc_before, data), data=data)
    body = record.SerializeToString()
    padding = -len(body) % 8
    word = len(body) | ((0x80 | padding) << 56 if padding else 0)
    return struct.pack("<Q", word) + body + bytes(padding)
