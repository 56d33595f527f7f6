"""Taking over a database of etcd: whole, or not at all."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import lmdb
import pytest

from kvorum.backend import Backend, CommitError, bulk
from kvorum.backend.database import Database
from kvorum.server import goimport
from kvorum.server.errors import BadDataDirectory
from kvorum.server.goimport import Interrupted, import_go_database
from kvorum.snap import BoltWriter, convert

CONTENT = {
    b"alarm": [(b"\x08\x01\x10\x01", b"")],
    b"cluster": [(b"clusterVersion", b"3.5.0")],
    b"key": [(bytes([0, 0, 0, 0, 0, 0, 0, i]) + b"_" + bytes(8), b"kv%d" % i) for i in range(99)],
    b"lease": [],
    b"meta": [(b"consistent_index", (42).to_bytes(8, "big"))],
}


def write_bolt(path: Path, content: dict[bytes, list[tuple[bytes, bytes]]] | None = None) -> None:
    with BoltWriter(path) as writer:
        for bucket, items in sorted((content or CONTENT).items()):
            writer.add_bucket(bucket, items)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "db"
    write_bolt(path)
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "kvorum.mdb"


def content_of(path: Path) -> dict[bytes, list[tuple[bytes, bytes]]]:
    backend = Backend(path)
    try:
        return {bucket: backend.range(bucket.decode(), b"", None) for bucket in CONTENT}
    finally:
        backend.close()


@pytest.mark.parametrize("batch", [1, 100, 8 << 20])
def test_every_bucket_is_copied(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(bulk, "BATCH_BYTES", batch)
    before = source.read_bytes()
    import_go_database(source, target)
    assert content_of(target) == CONTENT
    assert source.read_bytes() == before
    assert sorted(p.name for p in target.parent.iterdir() if "lock" not in p.name) == [
        "db",
        "kvorum.mdb",
    ]
    assert not list(target.parent.glob("*import*"))


def test_a_bucket_that_etcd_does_not_know(source: Path, target: Path) -> None:
    source.unlink()
    write_bolt(source, {**CONTENT, b"zoo": [(b"k", b"v")]})
    with pytest.raises(
        BadDataDirectory, match=r"db: it holds a bucket that etcd does not know: b'zoo'"
    ):
        import_go_database(source, target)
    assert not target.exists()


@pytest.mark.parametrize("damage", ["empty", "cut", "other"])
def test_a_damaged_database(source: Path, target: Path, damage: str) -> None:
    whole = source.read_bytes()
    source.write_bytes({"empty": b"", "cut": whole[:9000], "other": b"x" * 40_000}[damage])
    with pytest.raises(BadDataDirectory, match=r"cannot convert .*db: "):
        import_go_database(source, target)
    assert not target.exists()


def test_a_database_that_etcd_has_open(source: Path, target: Path) -> None:
    with source.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BadDataDirectory, match="cannot convert"):
            import_go_database(source, target)
    import_go_database(source, target)
    assert content_of(target) == CONTENT


def test_what_an_interrupted_conversion_left_is_begun_again(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PowerCut(Exception): ...

    def cut(*_: object) -> None:
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", cut)
        with pytest.raises(PowerCut):
            import_go_database(source, target)
    unfinished = target.with_name("kvorum.mdb.import")
    assert unfinished.exists()
    assert not target.exists()
    unfinished.write_bytes(b"half of it")
    import_go_database(source, target)
    assert content_of(target) == CONTENT
    assert not unfinished.exists()


def test_a_disk_that_is_full(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise lmdb.DiskError("mdb_txn_commit: No space left on device", 28)

    with monkeypatch.context() as patch:
        patch.setattr(Database, "append", full)
        with pytest.raises(CommitError, match="No space left"):
            import_go_database(source, target)
    assert not target.exists()
    import_go_database(source, target)
    assert content_of(target) == CONTENT


def test_progress_of_a_large_one_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ten times at the most, up to the end; a small one only begins and ends."""
    revs = [(i.to_bytes(8, "big") + b"_" + bytes(8), bytes(300)) for i in range(5000)]
    write_bolt(tmp_path / "db", {b"key": revs})
    monkeypatch.setattr(convert, "PROGRESS_PAGES", 8)
    import_go_database(tmp_path / "db", tmp_path / "small")
    assert len(capfd.readouterr().err.splitlines()) == 2
    monkeypatch.setattr(goimport, "_LARGE", 0)
    import_go_database(tmp_path / "db", tmp_path / "large")
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    first, *between, last = lines
    assert first["msg"] == "converting the database of etcd"
    assert [line["percent"] for line in between] == list(range(10, 101, 10))
    size = (tmp_path / "db").stat().st_size
    assert {line["total-bytes"] for line in between} == {size}
    assert last["msg"] == "converted the database of etcd; the original was kept"
    assert last["entries"] == 5000


def test_one_that_is_not_wanted_any_more(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "PROGRESS_PAGES", 1)
    with pytest.raises(Interrupted):
        import_go_database(source, target, stopping=lambda: True)
    assert list(target.parent.iterdir()) == [source]
    import_go_database(source, target)
    assert content_of(target) == CONTENT
