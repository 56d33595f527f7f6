"""Where log lines go: standard streams, files, rotated files and the systemd journal.

A sink is written to on the thread that logs. One that fails drops the line and counts it: a log
that is gone must never stop a member that serves.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import select
import shutil
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Protocol

STALL_LIMIT: Final = 1.0
"""Seconds to wait for a non-blocking stream whose reader is slow, before the line is dropped."""

JOURNAL_SOCKET: Final = "/run/systemd/journal/socket"
_JOURNAL_PRIORITY: Final = {
    "debug": 7,
    "info": 6,
    "warn": 4,
    "error": 3,
    "dpanic": 2,
    "panic": 2,
    "fatal": 2,
}


class Sink(Protocol):
    dropped: int

    def write(self, line: bytes, level: str) -> None:
        """Take one whole line (newline included). Never raises."""

    def close(self) -> None: ...


class StreamSink:
    """An open descriptor that belongs to somebody else: standard output or standard error."""

    __slots__ = ("dropped", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.dropped = 0

    def write(self, line: bytes, level: str) -> None:
        try:
            write_all(self.fd, line)
        except OSError:
            self.dropped += 1

    def close(self) -> None:
        """The descriptor stays open; whoever opened it closes it."""


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`, also to a pipe that somebody made non-blocking.

    Raises OSError, TimeoutError (an OSError) among them when the reader stalls.
    """
    written = 0
    while written < len(data):
        try:
            written += os.write(fd, data[written:] if written else data)
        except BlockingIOError:
            if not select.select([], [fd], [], STALL_LIMIT)[1]:
                raise TimeoutError("the reader of the log does not read") from None


class FileSink:
    """A file opened for appending, created if missing. Raises OSError when it cannot be opened."""

    __slots__ = ("dropped", "fd")

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self.dropped = 0

    def write(self, line: bytes, level: str) -> None:
        try:
            write_all(self.fd, line)
        except OSError:
            self.dropped += 1

    def close(self) -> None:
        os.close(self.fd)


@dataclass(frozen=True, slots=True)
class Rotation:
    """The settings of --log-rotation-config-json. maxsize in MB (0: 100), maxage in days and
    maxbackups as a count (0: no limit)."""

    maxsize: int = 0
    maxage: int = 0
    maxbackups: int = 0
    localtime: bool = False
    compress: bool = False

    @classmethod
    def parse(cls, text: str) -> Rotation:
        """Read the JSON object; keys match without regard to case, unknown ones are ignored.

        Raises ValueError with a text that says what is wrong.
        """
        try:
            given = json.loads(text)
        except ValueError as error:
            raise ValueError(f"improperly formatted log rotation config: {error}") from None
        if not isinstance(given, dict):
            raise ValueError("invalid log rotation config: it must be a JSON object")
        kinds = {field.name: type(field.default) for field in fields(cls)}
        chosen: dict[str, Any] = {}
        for key, value in given.items():
            kind = kinds.get(key.lower())
            if kind is None or value is None:
                continue
            if type(value) is not kind:
                raise ValueError(f"invalid log rotation config: {key} must be {kind.__name__}")
            chosen[key.lower()] = value
        return cls(**chosen)


class RotatingFileSink:
    """A file moved aside as ``<stem>-<time><suffix>`` before it would grow past the limit."""

    MEGABYTE: Final = 1 << 20

    def __init__(self, path: str, rotation: Rotation) -> None:
        self.path = Path(path)
        self.rotation = rotation
        self.limit = (rotation.maxsize or 100) * self.MEGABYTE
        self.dropped = 0
        self._file: FileSink | None = None
        self._size = 0
        self._cleaner: threading.Thread | None = None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._open()

    def write(self, line: bytes, level: str) -> None:
        try:
            if self._size + len(line) > self.limit and self._size:
                self._rotate()
            if self._file is None:
                self._open()
            assert self._file is not None
            write_all(self._file.fd, line)
            self._size += len(line)
        except OSError:
            self.dropped += 1

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._cleaner is not None:
            self._cleaner.join()

    def _open(self) -> None:
        self._file = FileSink(str(self.path))
        self._size = os.fstat(self._file.fd).st_size

    def _rotate(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        now = time.time()
        clock = time.localtime(now) if self.rotation.localtime else time.gmtime(now)
        stamp = time.strftime("%Y-%m-%dT%H-%M-%S", clock) + f".{int(now * 1000) % 1000:03d}"
        backup = self.path.with_name(f"{self.path.stem}-{stamp}{self.path.suffix}")
        with suppress(FileNotFoundError):  # somebody removed it: begin a new one
            self.path.rename(backup)
        self._open()
        self._tidy()

    def _tidy(self) -> None:
        """Remove and compress old files off the caller's thread; one such thread at a time."""
        if self._cleaner is not None and self._cleaner.is_alive():
            return
        self._cleaner = threading.Thread(target=self._clean, name="log-rotation", daemon=True)
        self._cleaner.start()

    def _clean(self) -> None:
        rotation = self.rotation
        newest_first = self.backups()
        keep = newest_first[: rotation.maxbackups] if rotation.maxbackups else newest_first
        oldest = time.time() - rotation.maxage * 86400 if rotation.maxage else 0.0
        for backup in newest_first:
            try:
                if backup not in keep or backup.stat().st_mtime < oldest:
                    backup.unlink()
                elif rotation.compress and backup.suffix != ".gz":
                    _compress(backup)
            except OSError:
                self.dropped += 1

    def backups(self) -> list[Path]:
        """The files moved aside and still there, newest first."""
        stem, suffix = re.escape(self.path.stem), re.escape(self.path.suffix)
        pattern = re.compile(rf"{stem}-\d{{4}}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{{3}}{suffix}(\.gz)?")
        found = [path for path in self.path.parent.iterdir() if pattern.fullmatch(path.name)]
        return sorted(found, key=lambda path: path.name, reverse=True)


def _compress(path: Path) -> None:
    target = path.with_name(path.name + ".gz")
    part = path.with_name(path.name + ".gz.tmp")
    with path.open("rb") as plain, gzip.open(part, "wb") as packed:
        shutil.copyfileobj(plain, packed)
    part.rename(target)
    path.unlink()


class JournalSink:
    """The systemd journal, one datagram a line; standard error when there is no journal."""

    def __init__(self, path: str = JOURNAL_SOCKET, fallback_fd: int = 2) -> None:
        self.dropped = 0
        self._path = path
        self._fallback = StreamSink(fallback_fd)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def write(self, line: bytes, level: str) -> None:
        try:
            self._socket.sendto(journal_message(line.rstrip(b"\n"), level), self._path)
        except OSError:
            self._fallback.write(line, level)
            self.dropped = self._fallback.dropped

    def close(self) -> None:
        self._socket.close()


def journal_message(text: bytes, level: str) -> bytes:
    """One entry of the journal's native protocol. MESSAGE goes in the form with a length (8 bytes,
    little-endian) before the value, since a value may hold a newline."""
    size = len(text).to_bytes(8, "little")
    priority = _JOURNAL_PRIORITY[level]
    return (
        f"PRIORITY={priority}\nSYSLOG_IDENTIFIER=kvorum\n".encode()
        + b"MESSAGE\n"
        + size
        + text
        + b"\n"
    )
