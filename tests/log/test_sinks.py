"""Rotation, the journal, and slow readers."""

from __future__ import annotations

import gzip
import os
import socket
import threading
from pathlib import Path

import pytest

from kvorum.logsink import (
    JournalSink,
    RotatingFileSink,
    Rotation,
    StreamSink,
    journal_message,
)

LINE = b"x" * 99 + b"\n"


def rotating(path: Path, **settings: int | bool) -> RotatingFileSink:
    sink = RotatingFileSink(str(path), Rotation(**settings))  # type: ignore[arg-type]
    sink.limit = 1000
    return sink


def fill(sink: RotatingFileSink, lines: int) -> None:
    for _ in range(lines):
        sink.write(LINE, "info")


def test_rotates_before_the_limit_is_passed(tmp_path: Path) -> None:
    sink = rotating(tmp_path / "k.log")
    fill(sink, 10)
    assert sink.backups() == []
    fill(sink, 1)
    (backup,) = sink.backups()
    assert (backup.stat().st_size, (tmp_path / "k.log").stat().st_size) == (1000, 100)
    assert backup.name.startswith("k-")
    assert backup.suffix == ".log"
    sink.close()


def test_goes_on_with_the_file_of_a_former_run(tmp_path: Path) -> None:
    (tmp_path / "k.log").write_bytes(LINE * 9)
    sink = rotating(tmp_path / "k.log")
    fill(sink, 1)
    assert sink.backups() == []
    fill(sink, 1)
    assert len(sink.backups()) == 1
    sink.close()


def test_a_line_over_the_limit_is_not_lost(tmp_path: Path) -> None:
    sink = rotating(tmp_path / "k.log")
    sink.write(b"y" * 5000, "info")
    assert (tmp_path / "k.log").stat().st_size == 5000
    assert sink.dropped == 0
    sink.close()


def old_backups(folder: Path, *stamps: str) -> list[Path]:
    paths = [folder / f"k-{stamp}.log" for stamp in stamps]
    for path in paths:
        path.write_bytes(b"old")
    return paths


def test_keeps_so_many_and_leaves_other_files_alone(tmp_path: Path) -> None:
    oldest, newer = old_backups(tmp_path, "2020-01-01T00-00-00.000", "2021-01-01T00-00-00.000")
    stranger = tmp_path / "k-other.log"
    stranger.write_text("mine")
    sink = rotating(tmp_path / "k.log", maxbackups=2)
    fill(sink, 11)
    sink.close()
    assert not oldest.exists()
    assert newer.exists()
    assert stranger.exists()
    assert len(sink.backups()) == 2


def test_removes_what_is_too_old(tmp_path: Path) -> None:
    old, fresh = old_backups(tmp_path, "2020-01-01T00-00-00.000", "2021-01-01T00-00-00.000")
    os.utime(old, (0, 0))
    sink = rotating(tmp_path / "k.log", maxage=1)
    fill(sink, 11)
    sink.close()
    assert not old.exists()
    assert fresh.exists()


def test_compresses(tmp_path: Path) -> None:
    sink = rotating(tmp_path / "k.log", compress=True)
    fill(sink, 11)
    sink.close()
    (backup,) = sink.backups()
    assert backup.name.endswith(".log.gz")
    assert gzip.decompress(backup.read_bytes()) == LINE * 10


def test_a_folder_that_vanished_costs_only_lines(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    sink = rotating(folder / "k.log")
    fill(sink, 10)
    (folder / "k.log").unlink()
    folder.rmdir()
    fill(sink, 2)
    assert sink.dropped == 2
    folder.mkdir()
    fill(sink, 1)
    assert (folder / "k.log").read_bytes() == LINE
    sink.close()


@pytest.mark.parametrize(
    ("text", "rotation"),
    [
        ("{}", Rotation()),
        ('{"MaxSize": 5, "localtime": true, "x": 1}', Rotation(maxsize=5, localtime=True)),
        ('{"maxage": null}', Rotation()),
    ],
)
def test_settings(text: str, rotation: Rotation) -> None:
    assert Rotation.parse(text) == rotation


@pytest.mark.parametrize("text", ['{"maxsize": true}', '{"compress": 1}', '{"maxage": 1.5}'])
def test_settings_are_strict(text: str) -> None:
    with pytest.raises(ValueError, match="invalid log rotation config"):
        Rotation.parse(text)


def test_journal(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(path)
        journal.settimeout(5)
        sink = JournalSink(path)
        sink.write(b"two\nlines\n", "warn")
        received = journal.recv(4096)
        sink.close()
    assert received == journal_message(b"two\nlines", "warn")
    assert b"PRIORITY=4\n" in received
    assert received.endswith(b"MESSAGE\n\x09\0\0\0\0\0\0\0two\nlines\n")


def test_journal_that_is_not_there(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    sink = JournalSink(str(tmp_path / "none"), fallback_fd=writing)
    sink.write(b"line\n", "info")
    assert os.read(reading, 100) == b"line\n"
    sink.close()
    os.close(reading)
    os.close(writing)


def test_a_slow_reader_is_waited_for() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    long = b"z" * 300_000  # more than a pipe holds
    received = bytearray()

    def drain() -> None:
        while len(received) < len(long):
            received.extend(os.read(reading, 65536))

    reader = threading.Thread(target=drain)
    reader.start()
    sink = StreamSink(writing)
    sink.write(long, "info")
    reader.join(10)
    assert bytes(received) == long
    assert sink.dropped == 0
    os.close(reading)
    os.close(writing)


def test_a_reader_that_stopped_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvorum.logsink.STALL_LIMIT", 0.01)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    sink = StreamSink(writing)
    sink.write(b"z" * 300_000, "info")
    assert sink.dropped == 1
    os.close(reading)
    os.close(writing)
