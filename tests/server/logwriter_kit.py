"""A log, a thread that writes and a kernel that syncs when the test says so."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvorum.raft.types import Entry, EntryType, HardState
from kvorum.server.logwriter import LogWriter
from kvorum.types import Index, MemberID, Term
from kvorum.wal import WAL, WriteBatch, open_log


class Loop:
    def __init__(self) -> None:
        self.soon: deque[Callable[[], None]] = deque()

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def turn(self) -> None:
        for _ in range(len(self.soon)):
            self.soon.popleft()()


class Thread:
    """Does what it was given when it is told to, and reports at once."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[Callable[[], Any], Callable[[Any], None]]] = deque()
        self.closed = 0

    def submit(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        self.waiting.append((work, done))

    @property
    def idle(self) -> bool:
        return not self.waiting

    def run(self) -> None:
        work, done = self.waiting[0]
        try:
            result = work()
        except Exception as error:
            result = error
        self.waiting.popleft()
        done(result)

    def close(self) -> None:
        while self.waiting:
            self.run()
        self.closed += 1


class Kernel:
    """One sync at a time, done when the test says so."""

    def __init__(self) -> None:
        self.fd = -1
        self.syncs = 0
        self.refusal: OSError | None = None
        self.closed = 0
        self._done: Callable[[OSError | None], None] | None = None

    @property
    def busy(self) -> bool:
        return self._done is not None

    def start(self, fd: int, done: Callable[[OSError | None], None]) -> None:
        assert self._done is None, "two at a time"
        assert not self.closed
        if self.refusal is not None:
            raise self.refusal
        os.fstat(fd)
        self.fd, self._done = fd, done
        self.syncs += 1

    def finish(self, error: OSError | None = None) -> None:
        done, self._done = self._done, None
        assert done is not None
        done(error)

    def wait(self) -> None:
        self.finish()

    def close(self) -> None:
        assert self._done is None
        self.closed += 1


class Bench:
    def __init__(self, folder: Path, *, kernel: bool = True, segment_size: int = 1 << 20) -> None:
        self.folder = folder / "wal"
        self.wal = WAL.create(self.folder, b"metadata", segment_size=segment_size)
        self.loop, self.thread, self.kernel = Loop(), Thread(), Kernel()
        self.writer = LogWriter(
            self.wal,
            self.thread,
            kernel=self.kernel if kernel else None,
            loop=self.loop,  # type: ignore[arg-type]
        )
        self.results: list[Any] = []
        self.index = 0

    def batch(self, size: int = 10) -> WriteBatch:
        self.index += 1
        entry = Entry(Term(1), Index(self.index), EntryType.NORMAL, b"x" * size)
        return self.wal.encode(HardState(Term(1), MemberID(1), Index(0)), [entry])

    def write(self, size: int = 10) -> None:
        self.writer.write(self.batch(size), self.results.append)

    def on_disk(self) -> bytes:
        return b"".join(path.read_bytes() for path in sorted(self.folder.glob("*.wal")))

    def read_back(self) -> list[int]:
        self.writer.close()
        self.wal.close()
        log, read = open_log(self.folder)
        log.close()
        return [entry.index for entry in read.entries]
