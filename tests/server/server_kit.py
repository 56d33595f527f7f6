"""What tests of the server's parts have in common: a store on disk, callers that remember."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvorum.backend import Backend
from kvorum.lease.lessor import Lessor
from kvorum.mvcc.store import Store


class Caller:
    """Remembers what it was told: (0, bytes) for a reply, (code, text) for a failure."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, bytes | str]] = []

    def reply(self, message: bytes) -> None:
        self.answers.append((0, message))

    def fail(self, code: int, message: str) -> None:
        self.answers.append((int(code), message))

    @property
    def message(self) -> bytes:
        """The one reply."""
        ((code, message),) = self.answers
        assert code == 0, message
        assert isinstance(message, bytes)
        return message

    @property
    def failure(self) -> str:
        """The one failure's text."""
        ((code, message),) = self.answers
        assert code != 0, message
        assert isinstance(message, str)
        return message


class State:
    """A backend without a loop, with leases and a store on top."""

    def __init__(self, folder: Path) -> None:
        self.backend = Backend(folder / "kvorum.mdb")
        self.lessor = Lessor(
            lambda key, value: self.backend.put("lease", key, value),
            lambda key: self.backend.delete("lease", key),
        )
        self.lessor.restore(value for _, value in self.backend.range("lease", b"", None))
        self.store = Store(self.backend, self.lessor)
        self.store.restore()


@contextmanager
def open_state(folder: Path) -> Iterator[State]:
    state = State(folder)
    try:
        yield state
    finally:
        state.backend.close()
