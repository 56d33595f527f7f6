"""A log read with the layout rules alone: a second opinion that shares no code with the package."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

METADATA, ENTRY, STATE, CRC, SNAPSHOT = 1, 2, 3, 4, 5


def _table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()


def crc32c(value: int, data: bytes) -> int:
    value ^= 0xFFFFFFFF
    for byte in data:
        value = _TABLE[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


class LaidOut(NamedTuple):
    kind: int
    crc: int
    data: bytes | None
    offset: int
    end: int


def fields(data: bytes) -> list[tuple[int, int | bytes]]:
    """(field number, value) of a protobuf message of varints and byte strings."""
    found: list[tuple[int, int | bytes]] = []
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        value, at = _varint(data, at)
        if tag & 7 == 2:
            found.append((tag >> 3, data[at : at + value]))
            at += value
        else:
            assert tag & 7 == 0, f"wire type {tag & 7}"
            found.append((tag >> 3, value))
    assert at == len(data)
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def segment_records(path: Path) -> list[LaidOut]:
    """Every record of one file, its padding and its alignment checked."""
    content = path.read_bytes()
    records = []
    at = 0
    while at < len(content):
        (word,) = struct.unpack_from("<Q", content, at)
        if word == 0:
            assert not content[at:].strip(b"\0"), f"{path}: something follows the end at {at}"
            break
        length = word & (1 << 56) - 1
        top = word >> 56
        padding = -length % 8
        assert top == (0x80 | padding if padding else 0), f"{path}: top byte {top:x} at {at}"
        body = content[at + 8 : at + 8 + length]
        end = at + 8 + length + padding
        assert not any(content[at + 8 + length : end]), f"{path}: padding before {end}"
        parts = fields(body)
        assert [number for number, _ in parts] in ([1, 2], [1, 2, 3])
        kind, crc = parts[0][1], parts[1][1]
        data = parts[2][1] if len(parts) == 3 else None
        assert isinstance(kind, int)
        assert isinstance(crc, int)
        assert data is None or isinstance(data, bytes)
        records.append(LaidOut(kind, crc, data, at, end))
        at = end
    return records


def check_log(directory: Path, checksum: Callable[[int, bytes], int] = crc32c) -> list[LaidOut]:
    """Every record of a log from its first segment; the checksum chain and the heads checked.

    For long logs a faster ``checksum`` may be given.
    """
    names = sorted(path.name for path in directory.iterdir() if path.suffix == ".wal")
    assert names[0] == f"{0:016x}-{0:016x}.wal"
    running = last_index = 0
    metadata = None
    log: list[LaidOut] = []
    for sequence, name in enumerate(names):
        if sequence:
            assert name == f"{sequence:016x}-{last_index + 1:016x}.wal"
        records = segment_records(directory / name)
        assert [record.kind for record in records[:2]] == [CRC, METADATA]
        assert records[0].crc == running
        assert metadata in (None, records[1].data)
        metadata = records[1].data
        for record in records:
            if record.kind == CRC:
                assert record.data is None
                continue
            assert record.data is not None
            running = checksum(running, record.data)
            assert record.crc == running, f"{name} at {record.offset}"
            if record.kind == ENTRY:
                last_index = int(dict(fields(record.data))[3])
            elif record.kind == SNAPSHOT:
                last_index = max(last_index, int(dict(fields(record.data)).get(1, 0)))
        log += records
    return log
