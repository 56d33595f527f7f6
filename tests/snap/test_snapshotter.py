"""The snapshot files of a member."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvorum.pb import raftpb, snappb
from kvorum.raft.types import ConfState, Snapshot, SnapshotMetadata
from kvorum.snap import BrokenSnapshot, NoSnapshot, SnapError, Snapshotter, read_snapshot
from kvorum.wal import SnapshotRecord


def snapshot(index: int, term: int = 1, data: bytes = b"data") -> Snapshot:
    return Snapshot(data, SnapshotMetadata(ConfState((1, 2), (3,)), index, term))


@pytest.fixture
def files(tmp_path: Path) -> Snapshotter:
    return Snapshotter(tmp_path)


def names(files: Snapshotter) -> list[str]:
    return sorted(path.name for path in files.directory.iterdir())


def test_a_snapshot_is_saved_and_loaded(files: Snapshotter) -> None:
    times = files.save(snapshot(0x1234, 5))
    assert names(files) == ["0000000000000005-0000000000001234.snap"]
    assert 0 < times.sync < times.total
    assert 0 < times.encode < times.total
    assert files.load_newest() == snapshot(0x1234, 5)


def test_the_bytes_are_etcds(files: Snapshotter) -> None:
    files.save(snapshot(7, 2))
    outer = snappb.snapshot.FromString(files.path_of(2, 7).read_bytes())
    inner = raftpb.Snapshot.FromString(outer.data)
    assert inner.data == b"data"
    assert (inner.metadata.index, inner.metadata.term) == (7, 2)
    assert list(inner.metadata.conf_state.voters) == [1, 2]
    assert list(inner.metadata.conf_state.learners) == [3]


def test_an_empty_snapshot_is_not_saved(files: Snapshotter) -> None:
    files.save(Snapshot())
    assert names(files) == []


def test_the_newest_that_the_log_knows_is_loaded(files: Snapshotter) -> None:
    for index, term in ((10, 1), (20, 1), (15, 2), (30, 3)):
        files.save(snapshot(index, term))
    assert files.load_newest() == snapshot(30, 3)
    recorded = [SnapshotRecord(), SnapshotRecord(20, 1), SnapshotRecord(15, 2)]
    assert files.load_newest(recorded) == snapshot(15, 2)
    assert files.load_newest(recorded[:2]) == snapshot(20, 1)
    with pytest.raises(NoSnapshot, match="no snapshot available"):
        files.load_newest([SnapshotRecord(30, 2)])
    assert len(files.files()) == 4


def test_no_snapshot(files: Snapshotter) -> None:
    with pytest.raises(NoSnapshot):
        files.load_newest()


def _spoil(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "empty":
        content.clear()
    elif kind == "flipped":
        content[-10] ^= 1
    elif kind == "cut":
        del content[-3:]
    elif kind == "no crc":
        data = snappb.snapshot.FromString(bytes(content)).data
        content[:] = snappb.snapshot(data=data).SerializeToString()
    elif kind == "no data":
        content[:] = snappb.snapshot(crc=7).SerializeToString()
    else:
        from google_crc32c import value

        content[:] = snappb.snapshot(crc=value(b"\x08"), data=b"\x08").SerializeToString()
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("empty", "empty snapshot"),
        ("flipped", "crc mismatch"),
        ("cut", "not a snapshot file"),
        ("no crc", "empty snapshot"),
        ("no data", "empty snapshot"),
        ("no raft snapshot", "not a raft snapshot"),
    ],
)
def test_a_broken_file_is_set_aside(files: Snapshotter, kind: str, why: str) -> None:
    files.save(snapshot(10))
    files.save(snapshot(20))
    path = files.path_of(1, 20)
    _spoil(path, kind)
    with pytest.raises(BrokenSnapshot, match=why):
        read_snapshot(path)
    assert files.load_newest() == snapshot(10)
    assert names(files) == [files.path_of(1, 10).name, f"{path.name}.broken"]


def test_a_directory_in_place_of_a_file(files: Snapshotter) -> None:
    files.save(snapshot(10))
    files.path_of(1, 20).mkdir()
    assert files.load_newest() == snapshot(10)


def test_only_snapshots_are_listed(files: Snapshotter) -> None:
    files.save(snapshot(10))
    for name in ("db", "kvorum.mdb", "tmp-x", "db.tmp.123", "0000000000000007.snap.db"):
        (files.directory / name).touch()
    assert [path.name for path in files.files()] == [files.path_of(1, 10).name]
    assert "db.tmp.123" not in names(files)
    files.remove_temporary()
    assert "tmp-x" not in names(files)
    assert "db" in names(files)


def test_purge_keeps_the_newest(files: Snapshotter) -> None:
    for index in range(1, 8):
        files.save(snapshot(index))
        files.save_db([b"x"], index)
    removed = files.purge(5)
    assert [path.name for path in removed] == [
        files.path_of(1, 1).name,
        files.path_of(1, 2).name,
        files.db_path(1).name,
        files.db_path(2).name,
    ]
    assert len(names(files)) == 10
    assert len(files.purge(3, 4)) == 3


def test_received_databases(files: Snapshotter) -> None:
    path = files.save_db(iter([b"one", b"two"]), 0x20)
    assert path.name == "0000000000000020.snap.db"
    assert path.read_bytes() == b"onetwo"
    assert files.find_db(0x20) == path
    files.save_db([b"another"], 0x20)
    assert path.read_bytes() == b"onetwo"
    with pytest.raises(NoSnapshot, match="doesn't exist"):
        files.find_db(0x21)
    files.save_db([b""], 0x30)
    assert files.release_dbs(0x20) == []
    assert files.release_dbs(0x30) == [path]
    assert names(files) == ["0000000000000030.snap.db"]


def test_the_lock_of_a_database_that_was_being_put_in_its_place(files: Snapshotter) -> None:
    """LMDB makes it as soon as the file is opened; the process was killed then."""
    for name in ("0000000000000010.snap.db-lock", "0000000000000020.snap.db-lock"):
        (files.directory / name).touch()
    files.release_dbs(0x20)
    assert names(files) == ["0000000000000020.snap.db-lock"]


def test_a_stream_that_breaks_leaves_nothing(files: Snapshotter) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionResetError("gone")

    with pytest.raises(SnapError, match="gone"):
        files.save_db(chunks(), 7)
    assert names(files) == []


def test_a_disk_that_refuses(files: Snapshotter, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(SnapError, match=r"cannot be saved: .*No space left"):
        files.save(snapshot(10))
    assert names(files) == []
    with pytest.raises(NoSnapshot):
        files.load_newest()


def test_a_snapshot_is_on_disk_before_it_has_its_name(
    files: Snapshotter, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, rename = os.fsync, os.rename

    def record_fsync(fd: int) -> None:
        calls.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{fd}')).name}")
        fsync(fd)

    def record_rename(source: Path, target: Path) -> None:
        calls.append(f"rename {Path(source).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", record_rename)
    files.save(snapshot(10))
    made = f"tmp-{files.path_of(1, 10).name}"
    assert calls == [f"fsync {made}", f"rename {made}", f"fsync {files.directory.name}"]
