"""Opening a file: what is refused, and why."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvorum.backend import Backend, BackendError, CorruptError, LockedError, OpenError
from kvorum.backend import database as database_module
from kvorum.backend.database import MAX_READERS, Database

FILL = """
import sys
from pathlib import Path
from kvorum.backend import Backend
backend = Backend(Path(sys.argv[1]))
for i in range(2000):
    backend.put("key", b"%017d" % i, bytes(400))
backend.commit_now()
print(backend.size(), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    path = tmp_path / "kvorum.mdb"
    backend = Backend(path)
    for i in range(2000):
        backend.put("key", b"%017d" % i, bytes(400))
    backend.close()
    return path


def test_a_file_that_another_process_uses(tmp_path: Path) -> None:
    path = tmp_path / "kvorum.mdb"
    other = subprocess.Popen(
        [sys.executable, "-c", FILL, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout is not None
        assert int(other.stdout.readline()) > 800_000
        with pytest.raises(LockedError, match="in use by another process"):
            Backend(path)
    finally:
        other.kill()
        other.wait()
        for pipe in (other.stdin, other.stdout):
            assert pipe is not None
            pipe.close()
    backend = Backend(path)
    assert len(backend.range("key", b"", None)) == 2000
    backend.close()


def test_a_file_that_is_replaced_between_opening_and_locking(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner has just put a defragmented one in its place."""
    other = filled.with_name("other")
    other.write_bytes(filled.read_bytes())
    inode = other.stat().st_ino
    flock = fcntl.flock

    def slow(fd: int, operation: int) -> None:
        if other.exists():
            other.rename(filled)
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", slow)
    backend = Backend(filled)
    assert os.fstat(backend.database._lock_fd).st_ino == inode
    backend.close()


def test_a_file_that_this_process_uses(filled: Path) -> None:
    backend = Backend(filled)
    with pytest.raises(LockedError):
        Backend(filled)
    backend.put("meta", b"a", b"still works")
    backend.close()
    Backend(filled).close()


@pytest.mark.parametrize("content", [b"no database" * 1000, bytes(10_000), b"x"])
def test_a_file_that_is_no_database(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "kvorum.mdb"
    path.write_bytes(content)
    with pytest.raises(CorruptError, match=r"kvorum\.mdb is damaged or not of this kind"):
        Backend(path)
    assert path.read_bytes() == content


def test_a_file_of_another_version(filled: Path) -> None:
    data = bytearray(filled.read_bytes())
    page = os.sysconf("SC_PAGE_SIZE")
    for meta in (16, page + 16):
        data[meta + 4] = 77
    filled.write_bytes(data)
    with pytest.raises(CorruptError, match="data format v77 is not supported"):
        Backend(filled)


def test_a_file_that_was_cut_off_is_an_error_and_not_a_crash(filled: Path) -> None:
    """Reading the missing pages must not end the process: hence a process of its own."""
    os.truncate(filled, filled.stat().st_size // 2)
    script = """
import sys
from pathlib import Path
import lmdb
from kvorum.backend import Backend, OpenError
try:
    backend = Backend(Path(sys.argv[1]))
    print(len(backend.range("key", b"", None)))
except (OpenError, lmdb.Error) as error:
    print("refused", error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(filled)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refused")


def test_an_empty_file_is_a_new_database(tmp_path: Path) -> None:
    path = tmp_path / "kvorum.mdb"
    path.touch()
    backend = Backend(path)
    backend.put("meta", b"a", b"1")
    backend.close()


def test_files_are_for_the_owner_alone(filled: Path) -> None:
    assert [file.stat().st_mode & 0o777 for file in filled.parent.iterdir()] == [0o600, 0o600]


@pytest.mark.parametrize("place", ["missing/kvorum.mdb", "file/kvorum.mdb", "folder"])
def test_a_place_where_no_file_can_be(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OpenError, match="cannot open the database"):
        Backend(tmp_path / place)


def test_a_directory_where_the_lock_file_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "kvorum.mdb-lock").mkdir()
    with pytest.raises(OpenError, match="cannot open the database"):
        Backend(tmp_path / "kvorum.mdb")
    (tmp_path / "kvorum.mdb-lock").rmdir()
    Backend(tmp_path / "kvorum.mdb").close()


def test_a_directory_that_may_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OpenError, match=r"cannot open .*kvorum.mdb: Permission denied"):
        Backend(tmp_path / "kvorum.mdb")


def test_leftovers_that_cannot_be_removed(tmp_path: Path) -> None:
    (tmp_path / "kvorum.mdb.defrag").mkdir()
    with pytest.raises(OpenError, match="cannot remove what an earlier run left"):
        Backend(tmp_path / "kvorum.mdb")
    (tmp_path / "kvorum.mdb.defrag").rmdir()
    Backend(tmp_path / "kvorum.mdb").close()


def test_less_address_space_will_do(tmp_path: Path) -> None:
    script = """
import resource, sys
from pathlib import Path
from kvorum.backend import Backend
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
backend = Backend(Path(sys.argv[1]))
print(backend.database.map_size)
backend.put("meta", b"a", b"1")
backend.close()
"""
    path = tmp_path / "kvorum.mdb"
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert database_module.MIN_MAP_SIZE <= int(done.stdout) <= 2 << 30


def test_no_address_space_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "MIN_MAP_SIZE", 1 << 62)
    with pytest.raises(OpenError, match="Cannot allocate memory"):
        Database(tmp_path / "kvorum.mdb", map_size=1 << 62)


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """The commit fails with a clear message, and what was committed before is still there."""
    script = """
import resource, signal, sys
from pathlib import Path
from kvorum.backend import Backend, CommitError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
backend = Backend(Path(sys.argv[1]))
backend.put("meta", b"before", b"1")
backend.commit_now()
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
for i in range(100):
    backend.put("meta", b"%d" % i, bytes(50_000))
try:
    backend.commit_now()
except CommitError as error:
    print(error)
"""
    path = tmp_path / "kvorum.mdb"
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"cannot commit to the database {path}: mdb_txn_commit")
    backend = Backend(path)
    assert backend.range("meta", b"", None) == [(b"before", b"1")]
    backend.close()


def test_too_many_views(filled: Path) -> None:
    backend = Backend(filled)
    views = [backend.read_view() for _ in range(MAX_READERS - 1)]
    with pytest.raises(BackendError, match="MDB_READERS_FULL"):
        backend.read_view()
    for view in views:
        view.close()
        view.close()
    backend.read_view().close()
    assert backend.database.views == 0
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.read_view()
    backend.close()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mappings")
def test_memory_of_the_mapped_file_is_given_back(tmp_path: Path) -> None:
    """What was read is no longer counted as ours; reading goes on."""
    backend = Backend(tmp_path / "kvorum.mdb")
    for i in range(300):
        backend.put("meta", b"%d" % i, bytes(10_000))
    backend.commit_now()
    with backend.read_view() as view:
        assert view.count("meta") == len(list(view.items("meta")))
        before = _resident(backend.path)
        view.release_memory()
        assert before > 1000
        assert _resident(backend.path) == 0
        assert len(list(view.items("meta"))) == 300
    backend.close()


def _resident(path: Path) -> int:
    """Kilobytes of the file's mapping in memory."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.endswith(str(path)):
            return next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))
    raise AssertionError(f"{path} is not mapped")
