"""Where the core reports what it does: any object with these four methods, such as kvorum's log."""

from __future__ import annotations

from typing import Protocol


class Logger(Protocol):
    """Takes finished lines; the core never formats one on the hot path."""

    def debug(self, msg: str, /) -> None: ...

    def info(self, msg: str, /) -> None: ...

    def warn(self, msg: str, /) -> None: ...

    def error(self, msg: str, /) -> None: ...


class NullLogger:
    """Says nothing."""

    def debug(self, msg: str, /) -> None:
        pass

    def info(self, msg: str, /) -> None:
        pass

    def warn(self, msg: str, /) -> None:
        pass

    def error(self, msg: str, /) -> None:
        pass
