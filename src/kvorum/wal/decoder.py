"""Reads the records of consecutive segments and checks each against the checksum chain."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from google_crc32c import extend

from kvorum.wal.errors import CorruptLog, CRCMismatch, UnexpectedEOF
from kvorum.wal.record import (
    FRAME_HEAD,
    RecordType,
    looks_torn,
    parse_record,
)
from kvorum.wal.shapes import LAST, PAIRS, ReadShapes

READ_BUFFER: Final = 1 << 20
_END: Final = bytes(FRAME_HEAD)
_USUAL: Final = {
    b"\x08%c\x10" % kind: int(kind) for kind in RecordType if kind is not RecordType.CRC
}
"""How a record begins whose data counts for the checksum."""

_shapes: Final = ReadShapes()


@dataclass(frozen=True, slots=True)
class Source:
    """One segment to read, from the start of the file."""

    path: Path
    file: BinaryIO
    size: int


def open_source(path: Path, fd: int | None = None) -> Source:
    """A segment for reading; with ``fd``, through that descriptor, which stays open afterwards."""
    if fd is None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        file = os.fdopen(fd, "rb", READ_BUFFER)
    else:
        os.lseek(fd, 0, os.SEEK_SET)
        file = os.fdopen(fd, "rb", READ_BUFFER, closefd=False)
    return Source(path, file, os.fstat(file.fileno()).st_size)


class Decoder:
    """Iterates over ``(type, data)``. Memory: the longest record, and never more than the file.

    After each record ``path`` and ``offset`` say where it ends, and ``crc`` is the chain's value
    there. CRC records are checked and not handed out. Raises `UnexpectedEOF` for what an
    interrupted write can leave at the end, `CorruptLog` for anything else that is wrong.
    """

    def __init__(self, sources: list[Source]) -> None:
        assert sources
        self.path = sources[0].path
        self.offset = 0
        self.crc = 0
        self._sources = sources

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        for source in self._sources:
            self.path = source.path
            self.offset = 0
            yield from self._segment(source, is_last=source is self._sources[-1])

    def _segment(self, source: Source, *, is_last: bool) -> Iterator[tuple[int, bytes]]:
        """Hot when a member starts: a record in the usual form is compared, not taken apart."""
        read = source.file.read
        while (head := read(FRAME_HEAD)) and head != _END:
            if len(head) < FRAME_HEAD:
                raise UnexpectedEOF(self.path, "the file ends in a length word", offset=self.offset)
            length, total, start, middle = _shapes[head]
            left = source.size - self.offset - FRAME_HEAD
            # Compared before reading: a damaged length must not ask for memory without need.
            if total > left or len(body := read(total)) < total:
                why = f"a record of {length} bytes, {total} with padding, but {left} are left"
                raise UnexpectedEOF(self.path, why, offset=self.offset)
            data = body[start:length]
            crc = extend(self.crc, data)
            stored = PAIRS[crc & 0x3FFF] + PAIRS[crc >> 14 & 0x3FFF] + LAST[crc >> 28] + middle
            kind = _USUAL.get(body[:3])
            if kind is not None and body[3:start] == stored:
                self.crc = crc
            else:
                kind, data = self._check_frame(body, length, is_last=is_last)
            self.offset += FRAME_HEAD + total
            if kind != RecordType.CRC:
                yield kind, data

    def _check_frame(self, body: bytes, length: int, *, is_last: bool) -> tuple[int, bytes]:
        """(type, data) of a record in whatever form, or the error that fits."""
        try:
            return self._check_record(body[:length])
        except CorruptLog as error:
            if is_last and looks_torn(body, self.offset + FRAME_HEAD):
                why = f"a sector of the record was never written: {error.why}"
                raise UnexpectedEOF(self.path, why, offset=self.offset) from error
            raise

    def _check_record(self, record: bytes) -> tuple[int, bytes]:
        try:
            kind, crc, data = parse_record(record)
        except ValueError as error:
            raise CorruptLog(self.path, str(error), offset=self.offset) from error
        if kind == RecordType.CRC:
            self._adopt(crc)
        else:
            self._check(kind, crc, data)
        return kind, data

    def _adopt(self, crc: int) -> None:
        """A segment starts with the value its predecessor ended at; a first read takes it over."""
        if self.crc not in (0, crc):
            why = (
                f"the segment continues checksum {crc:08x}, the one before ended at {self.crc:08x}"
            )
            raise CRCMismatch(self.path, why, offset=self.offset)
        self.crc = crc

    def _check(self, kind: int, crc: int, data: bytes) -> None:
        computed = extend(self.crc, data)
        if computed != crc:
            why = f"a record of type {kind} has checksum {crc:08x}, computed {computed:08x}"
            raise CRCMismatch(self.path, why, offset=self.offset)
        self.crc = computed
