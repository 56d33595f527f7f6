"""What the consensus core reports, in the server's log."""

from __future__ import annotations

from kvorum.log import Logger


class RaftLog:
    """Passes lines on. One of them, that a write was reported twice, is no news here: every write
    reports all that is not known to be on disk, so that those under way at once overlap."""

    def __init__(self, lg: Logger) -> None:
        self.debug = lg.debug
        self.warn = lg.warn
        self.error = lg.error
        self._info = lg.info

    def info(self, msg: str, /) -> None:
        if msg.startswith("entry at index"):
            self.debug(msg)
        else:
            self._info(msg)
