"""What a member does with a database that its leader sent, where whole members cannot show it."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from kvorum.server import install
from kvorum.snap import SnapError
from kvorum.types import Index

INDEX = Index(7)


def test_a_name_that_may_get_lost_is_synced_when_the_database_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the log would count on a file that the next power cut takes away."""
    monkeypatch.setattr(install, "_check", lambda *_: None)
    target = tmp_path / "7.snap.db"
    synced: list[Path] = []

    def sync(folder: Path) -> None:
        synced.append(folder)
        if len(synced) == 1:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(install, "fsync_directory", sync)
    (tmp_path / "first").write_bytes(b"database")
    with pytest.raises(SnapError, match="Input/output error"):
        install._adopt(tmp_path / "first", target, INDEX, threading.Lock())
    (tmp_path / "second").write_bytes(b"database")
    install._adopt(tmp_path / "second", target, INDEX, threading.Lock())
    assert synced == [tmp_path, tmp_path]
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_a_file_that_may_be_in_use_is_not_replaced_by_one_that_came_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is opened by its name, and what is written into it would be in another file than the
    next start finds."""
    monkeypatch.setattr(install, "_check", lambda *_: None)
    target = tmp_path / "7.snap.db"

    class Taken:
        """The lock is with whoever was first, and comes back when that file is in its place."""

        def __enter__(self) -> None:
            target.write_bytes(b"first")

        def __exit__(self, *_: object) -> None: ...

    (tmp_path / "second").write_bytes(b"second")
    install._adopt(tmp_path / "second", target, INDEX, Taken())  # type: ignore[arg-type]
    assert target.read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
