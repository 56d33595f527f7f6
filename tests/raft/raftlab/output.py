"""What a trace shows: the harness's own lines, and the state machine's log above a level."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

LEVELS = ("DEBUG", "INFO", "WARN", "ERROR", "FATAL", "NONE")


class Output:
    """A raft ``Logger`` that writes into the trace. At level NONE nothing is shown at all."""

    def __init__(self) -> None:
        self.level = 0
        self._text: list[str] = []

    def set_level(self, name: str) -> None:
        if name.upper() not in LEVELS:
            raise ValueError(f"log levels must be either of [{' '.join(LEVELS)}]")
        self.level = LEVELS.index(name.upper())

    @property
    def quiet(self) -> bool:
        return self.level == len(LEVELS) - 1

    def write(self, text: str) -> None:
        if not self.quiet:
            self._text.append(text)

    def take(self) -> str:
        text, self._text = "".join(self._text), []
        return text

    @contextmanager
    def indented(self) -> Iterator[None]:
        outer, self._text = self._text, []
        try:
            yield
        finally:
            inner = "".join(self._text).splitlines()
            self._text = outer + [f"  {line}\n" for line in inner]

    def _log(self, level: int, msg: str) -> None:
        if self.level <= level:
            self._text.append(f"{LEVELS[level]} {msg}\n")

    def debug(self, msg: str, /) -> None:
        self._log(0, msg)

    def info(self, msg: str, /) -> None:
        self._log(1, msg)

    def warn(self, msg: str, /) -> None:
        self._log(2, msg)

    def error(self, msg: str, /) -> None:
        self._log(3, msg)
