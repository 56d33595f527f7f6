"""From a bolt file to a backend file: all of it and synced, or nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvorum.backend import Backend, Bucket
from kvorum.snap import BoltError, BoltWriter, convert, convert_bolt, remove_partial

REVISIONS = [(i.to_bytes(8, "big") + b"_" + bytes(8), b"record %d" % i) for i in range(5000)]
CONTENT = {
    Bucket.AUTH_ROLES: [(bytes([i]) * 700, b"role") for i in range(1, 9)],
    Bucket.KEY: [*REVISIONS, (bytes([1] * 8) + b"_" + bytes(8) + b"t", b"gone")],
    Bucket.LEASE: [],
    Bucket.META: [(b"consistent_index", (42).to_bytes(8, "big"))],
}
ENTRIES = sum(map(len, CONTENT.values()))


def write_bolt(path: Path, content: dict[Bucket, list[tuple[bytes, bytes]]] = CONTENT) -> Path:
    with BoltWriter(path, sync=False) as writer:
        for bucket, items in content.items():
            writer.add_bucket(bucket.encode(), items)
    return path


def content_of(path: Path) -> dict[Bucket, list[tuple[bytes, bytes]]]:
    backend = Backend(path)
    try:
        return {bucket: backend.range(bucket, b"", None) for bucket in CONTENT}
    finally:
        backend.close()


def test_everything_is_converted(tmp_path: Path) -> None:
    source = write_bolt(tmp_path / "db")
    before = source.read_bytes()
    assert convert_bolt(source, tmp_path / "new") == ENTRIES
    assert source.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["db", "new"]
    assert content_of(tmp_path / "new") == CONTENT


def test_progress_is_told_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "PROGRESS_PAGES", 8)
    told: list[tuple[int, int]] = []
    source = write_bolt(tmp_path / "db")
    convert_bolt(source, tmp_path / "new", lambda done, total: told.append((done, total)))
    size = source.stat().st_size
    assert len(told) > 5
    assert told == sorted(told)
    assert told[-1] == (size, size)
    assert {total for _, total in told} == {size}


def test_who_is_told_can_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Enough(Exception): ...

    def enough(done: int, total: int) -> None:
        raise Enough

    monkeypatch.setattr(convert, "PROGRESS_PAGES", 8)
    source = write_bolt(tmp_path / "db")
    with pytest.raises(Enough):
        convert_bolt(source, tmp_path / "new", enough)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("key", [b"short", bytes(16), bytes(19), b"k" * 600])
def test_what_is_no_revision(tmp_path: Path, key: bytes) -> None:
    """The longest of these does not even fit into our file."""
    source = write_bolt(tmp_path / "db", {Bucket.KEY: [(key, b"value")]})
    with pytest.raises(BoltError, match="which is no revision"):
        convert_bolt(source, tmp_path / "new")
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("place", [0.3, 0.6, 0.97])
def test_a_file_that_is_cut_off(tmp_path: Path, place: float) -> None:
    source = write_bolt(tmp_path / "db")
    os.truncate(source, int(source.stat().st_size * place))
    with pytest.raises(BoltError, match="the file ends after"):
        convert_bolt(source, tmp_path / "new")
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
def test_a_page_that_is_spoilt(tmp_path: Path, place: float) -> None:
    """Found when the reading gets there, with half of the file converted."""
    source = write_bolt(tmp_path / "db")
    page = int(source.stat().st_size * place) // 4096
    with source.open("r+b") as file:
        file.seek(4096 * page)
        file.write(b"\xff" * 64)
    with pytest.raises(BoltError, match=f"page {page}"):
        convert_bolt(source, tmp_path / "new")
    assert list(tmp_path.iterdir()) == [source]


def test_a_target_that_is_there(tmp_path: Path) -> None:
    source = write_bolt(tmp_path / "db")
    (tmp_path / "new").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        convert_bolt(source, tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == b"mine"


_WAITING = """
import sys
from pathlib import Path
from kvorum.backend import bulk
from kvorum.snap import convert, convert_bolt

def wait(done, total):
    print(done, flush=True)
    sys.stdin.readline()

bulk.BATCH_BYTES = 1000
convert.PROGRESS_PAGES = 8
convert_bolt(Path(sys.argv[1]), Path(sys.argv[2]), wait)
"""


def test_a_kill_in_the_middle(tmp_path: Path) -> None:
    """What is left is no database to anybody, and goes away."""
    source = write_bolt(tmp_path / "db")
    before = source.read_bytes()
    target = tmp_path / "new"
    process = subprocess.Popen(
        [sys.executable, "-c", _WAITING, str(source), str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    for _ in range(4):
        assert process.stdout.readline()
        process.stdin.write(b"\n")
        process.stdin.flush()
    process.kill()
    assert process.wait(20) == -signal.SIGKILL
    process.stdin.close()
    process.stdout.close()
    assert target.stat().st_size > 10_000
    assert source.read_bytes() == before
    remove_partial(target)
    assert list(tmp_path.iterdir()) == [source]
    assert convert_bolt(source, target) == ENTRIES
    assert content_of(target) == CONTENT
