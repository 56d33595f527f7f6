"""Power is cut before every single step of creating, appending and cutting; the log must open."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wal_layout
from power_cut import Disk, PowerCut

from kvorum import wal
from kvorum.raft.types import ConfState, Entry, EntryType, HardState
from kvorum.wal import WAL, SnapshotRecord, open_log

SEGMENT = 3000
SEEDS = (None, 1, 2)


def story(log: WAL, promised: list[int]) -> None:
    """Batches ahead of the writes, commits alone, a snapshot, several cuts."""
    index = 0
    for turn in range(12):
        batches = []
        for size in (10, 700 + 90 * turn):
            index += 1
            state = HardState(1 + turn // 5, 1, index - 1)
            batches.append(log.encode(state, [Entry(1, index, EntryType.NORMAL, b"x" * size)]))
        log.write_all(batches[:1] if turn % 2 else batches)
        if turn % 2:
            log.write(batches[1])
        promised[0] = index
        log.write(log.encode(HardState(1 + turn // 5, 1, index), []))
        if turn == 6:
            log.write(log.encode_snapshot(SnapshotRecord(index, 1, ConfState((1,)))))


def check_and_go_on(directory: Path, promised: int) -> None:
    log, result = open_log(directory, segment_size=SEGMENT)
    indexes = [entry.index for entry in result.entries]
    assert indexes == list(range(1, len(indexes) + 1))
    assert len(indexes) >= promised, "a promise was lost"
    following = len(indexes) + 1
    for index in (following, following + 1):
        log.write(log.encode(None, [Entry(9, index, EntryType.NORMAL, b"y" * SEGMENT)]))
    log.close()
    wal_layout.check_log(directory)
    assert len(wal.read_log(directory).entries) == following + 1


def test_a_power_cut_while_appending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0
    finished = False
    while not finished:
        root = tmp_path / str(steps)
        root.mkdir()
        log = WAL.create(root / "wal", b"meta", segment_size=SEGMENT)
        disk = Disk(monkeypatch, steps)
        promised = [0]
        try:
            story(log, promised)
            finished = True
        except PowerCut:
            pass
        disk.off()
        for seed in SEEDS:
            copy = tmp_path / f"{steps}-{seed}"
            disk.after_the_cut(root, copy, None if seed is None else seed * 1000 + steps)
            try:
                check_and_go_on(copy / "wal", promised[0])
            except BaseException:
                print(f"power cut before step {steps}, seed {seed}")
                raise
            shutil.rmtree(copy)
        log.failed = wal.WALError(root, "power cut")
        log.close()
        shutil.rmtree(root)
        steps += 1
    assert steps > 50


def test_a_power_cut_while_creating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0
    finished = False
    outcomes = set()
    while not finished:
        root = tmp_path / str(steps)
        root.mkdir()
        disk = Disk(monkeypatch, steps)
        try:
            WAL.create(root / "wal", b"meta", segment_size=SEGMENT).close()
            finished = True
        except PowerCut:
            pass
        disk.off()
        for seed in SEEDS:
            copy = tmp_path / f"{steps}-{seed}"
            disk.after_the_cut(root, copy, seed)
            there = wal.exists(copy / "wal")
            outcomes.add(there)
            if not there:
                WAL.create(copy / "wal", b"meta", segment_size=SEGMENT).close()
            check_and_go_on(copy / "wal", 0)
            assert not (copy / "wal.tmp").exists() or there
        steps += 1
    assert steps > 5
    assert outcomes == {True, False}


@pytest.mark.parametrize(("left", "segments"), [("0.tmp", 2), ("1.tmp", 3)])
def test_what_an_interrupted_cut_left_never_shows_up_again(
    tmp_path: Path, left: str, segments: int
) -> None:
    """The file of the next segment has records in it; those that follow do not cover them."""
    directory = tmp_path / "wal"
    log = WAL.create(directory, b"meta", segment_size=SEGMENT)
    batches = [log.encode(None, [Entry(1, i, EntryType.NORMAL, b"x" * 200)]) for i in range(1, 99)]
    stale = next(batch.cut.head for batch in batches if batch.cut) * 30
    log.close()
    (directory / left).write_bytes(stale)
    log, _ = open_log(directory, segment_size=SEGMENT)
    index = 0
    while len(list(directory.glob("*.wal"))) < segments:
        index += 1
        log.write(log.encode(None, [Entry(1, index, EntryType.NORMAL, b"x" * 200)]))
    log.close()
    wal_layout.check_log(directory)
    assert len(wal.read_log(directory).entries) == index


class Recorder:
    """The names of the calls that change the disk, with the file each is for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, str]] = []
        for name in ("pwrite", "ftruncate", "fdatasync", "fsync", "rename"):
            self._watch(monkeypatch, name, getattr(os, name))

    def _watch(self, monkeypatch: pytest.MonkeyPatch, name: str, real: Callable[..., Any]) -> None:
        def call(target: Any, *args: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                path = os.readlink(f"/proc/self/fd/{target}") if name != "rename" else target
                self.calls.append((name, Path(path).name))
            return real(target, *args)

        monkeypatch.setattr(os, name, call)


def test_a_segment_is_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = WAL.create(tmp_path / "wal", b"meta", segment_size=SEGMENT)
    first = log.directory / f"{0:016x}-{0:016x}.wal"
    recorder = Recorder(monkeypatch)
    log.write(log.encode(None, [Entry(1, 1, EntryType.NORMAL, b"x" * SEGMENT)]))
    assert recorder.calls == [
        ("pwrite", first.name),
        ("ftruncate", first.name),
        ("fdatasync", first.name),
        ("pwrite", "0.tmp"),
        ("fdatasync", "0.tmp"),
        ("rename", "0.tmp"),
        ("fsync", "wal"),
    ]
    log.close()


def test_a_log_is_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    log = WAL.create(tmp_path / "data" / "wal", b"meta", segment_size=SEGMENT)
    first = f"{0:016x}-{0:016x}.wal"
    assert recorder.calls == [
        ("pwrite", first),
        ("fsync", first),
        ("fsync", "wal.tmp"),
        ("rename", "wal.tmp"),
        ("fsync", "data"),
    ]
    log.close()


def test_what_a_start_has_read_outlives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was killed had written it, but not synced it. The next one says that it has it."""
    root = tmp_path / "data"
    WAL.create(root / "wal", b"meta", segment_size=SEGMENT).close()
    disk = Disk(monkeypatch, steps=1000)
    killed, _ = open_log(root / "wal", segment_size=SEGMENT)
    killed.begin(killed.encode(HardState(7, 3, 0), [Entry(7, 1, EntryType.NORMAL, b"x" * 1500)]))
    killed._release_files()
    log, found = open_log(root / "wal", segment_size=SEGMENT)
    assert (found.hard_state, len(found.entries)) == (HardState(7, 3, 0), 1)
    disk.off()
    log.close()
    for seed in range(8):
        disk.after_the_cut(root, tmp_path / f"copy{seed}", seed)
        assert wal.read_log(tmp_path / f"copy{seed}" / "wal") == found


def test_a_start_syncs_what_a_failed_sync_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux has forgotten by then that it is not on disk, so it is written once more."""
    log = WAL.create(tmp_path / "wal", b"meta", segment_size=SEGMENT)
    log.write(log.encode(None, [Entry(1, 1, EntryType.NORMAL, b"x" * 100)]))
    size = log._offset
    log.close()
    first = log.directory / f"{0:016x}-{0:016x}.wal"
    content = first.read_bytes()
    again: list[tuple[int, int]] = []
    pwrite = os.pwrite

    def write(fd: int, data: bytes, offset: int) -> int:
        again.append((offset, len(data)))
        return pwrite(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", write)
        recorder = Recorder(monkeypatch)
        log, _ = open_log(tmp_path / "wal", segment_size=SEGMENT)
    assert again == [(0, size)]
    assert recorder.calls == [
        ("ftruncate", first.name),
        ("pwrite", first.name),
        ("fdatasync", first.name),
        ("fsync", "wal"),
        ("fsync", tmp_path.name),
    ]
    log.close()
    assert first.read_bytes() == content
