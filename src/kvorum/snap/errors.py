"""What can be wrong with snapshot files and bolt files, with the file and the reason."""

from __future__ import annotations

from pathlib import Path


class SnapError(Exception):
    """A snapshot cannot be saved or loaded."""

    def __init__(self, path: Path, why: str) -> None:
        self.path = path
        self.why = why
        super().__init__(f"snap: {path}: {why}")


class NoSnapshot(SnapError):
    """No file that can be read and that was asked for."""


class BrokenSnapshot(SnapError):
    """A file that is not a whole snapshot."""


class BadStore(SnapError):
    """The v2 store inside a snapshot makes no sense."""


class BoltError(Exception):
    """The file is no sound bolt file. ``page`` is the page that shows it, if one does."""

    def __init__(self, path: Path, why: str, *, page: int | None = None) -> None:
        self.path = path
        self.why = why
        self.page = page
        place = f"{path}" if page is None else f"{path}: page {page}"
        super().__init__(f"bolt: {place}: {why}")


class BoltLocked(BoltError):
    """Another process has the file open for writing."""
