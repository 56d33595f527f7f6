"""A process that dies at any moment leaves a database that opens, at a commit's boundary.

Each crash happens in a child process, which reports over a pipe what it was told is on disk.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kvorum import failpoint
from kvorum.backend import Backend, defrag
from kvorum.backend import database as database_module

EXIT_BY_FAILPOINT = 2
EXIT_BY_PATCH = 7


class Child:
    """The child's side: what it has been told is safe goes to the parent at once."""

    def __init__(self, path: Path, pipe: int) -> None:
        self.path = path / "kvorum.mdb"
        self.pipe = pipe
        self.index = 0

    def open(self) -> Backend:
        backend = Backend(self.path, loop=asyncio.get_running_loop(), batch_interval=3600)
        backend.pre_commit = lambda: backend.put("meta", b"index", b"%d" % self.index)
        return backend

    def write(self, backend: Backend, count: int = 50) -> None:
        for _ in range(count):
            self.index += 1
            backend.put_revision(b"%017d" % self.index, bytes(200))

    async def commit(self, backend: Backend) -> None:
        await backend.commit()
        os.write(self.pipe, b"%d\n" % self.index)


def crash(path: Path, script: Callable[[Child], Awaitable[None]], exit_code: int) -> int:
    """Run `script` in a child that must die; the last index it was told is on disk."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 2)
            asyncio.run(script(Child(path, writing)))  # type: ignore[arg-type]
        finally:
            os._exit(99)  # it should not have got here
    os.close(writing)
    with os.fdopen(reading) as reports:
        told = [int(line) for line in reports]
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == exit_code
    return told[-1] if told else 0


def check(path: Path, told: int, *, later: bool = False) -> int:
    """Records and index are of the same commit, which is the last one told or a later one."""
    backend = Backend(path / "kvorum.mdb")
    index = int(backend.get("meta", b"index") or b"0")
    assert index >= told if later else index == told
    expected = [b"%017d" % (i + 1) for i in range(index)]
    assert [key for key, _ in backend.range("key", b"", None)] == expected
    backend.put("meta", b"opened", b"")
    backend.close()
    assert sorted(file.name for file in path.iterdir()) == ["kvorum.mdb", "kvorum.mdb-lock"]
    return index


COMMIT_POINTS = [
    "commitBeforePreCommitHook",
    "commitAfterPreCommitHook",
    "beforeWritebackBuf",
    "afterWritebackBuf",
    "beforeStartDBTxn",
    "afterStartDBTxn",
    "beforeCommit",
    "afterCommit",
]


@pytest.mark.parametrize("name", COMMIT_POINTS)
@pytest.mark.parametrize("commits", [0, 3])
def test_dying_around_a_commit(tmp_path: Path, name: str, commits: int) -> None:
    async def script(child: Child) -> None:
        failpoint.enable(name, f"{commits}*off->panic" if commits else "panic")
        backend = child.open()
        for _ in range(10):
            child.write(backend)
            await child.commit(backend)

    told = crash(tmp_path, script, EXIT_BY_FAILPOINT)
    assert told == commits * 50
    index = check(tmp_path, told, later=name == "afterCommit")
    assert index == told + (50 if name == "afterCommit" else 0)


def exit_now(*_: object) -> None:
    os._exit(EXIT_BY_PATCH)


@pytest.mark.parametrize("name", ["defragBeforeCopy", "defragBeforeRename"])
def test_dying_in_a_defragmentation(tmp_path: Path, name: str) -> None:
    async def script(child: Child) -> None:
        backend = child.open()
        child.write(backend)
        await child.commit(backend)
        failpoint.enable(name, "panic")
        defragging = asyncio.create_task(backend.defrag())
        await asyncio.sleep(0)
        child.write(backend)
        await child.commit(backend)
        await defragging

    check(tmp_path, crash(tmp_path, script, EXIT_BY_FAILPOINT), later=True)


@pytest.mark.parametrize("moment", ["copied", "opened", "renamed", "renamed both", "after"])
def test_dying_at_any_step_of_a_defragmentation(tmp_path: Path, moment: str) -> None:
    async def script(child: Child) -> None:
        backend = child.open()
        child.write(backend)
        await child.commit(backend)
        patch_to_die(moment)
        await backend.defrag()
        child.write(backend)
        await child.commit(backend)
        exit_now()

    told = crash(tmp_path, script, EXIT_BY_PATCH)
    assert told == (100 if moment == "after" else 50)
    check(tmp_path, told)


def patch_to_die(moment: str) -> None:
    """Only ever done in a child."""
    if moment == "copied":
        os.fsync = exit_now  # type: ignore[assignment]
    elif moment == "opened":
        defrag.Defrag.catch_up = exit_now  # type: ignore[method-assign,assignment]
    elif moment == "renamed":
        rename = Path.rename
        done: list[Path] = []

        def first_only(self: Path, target: Path) -> Path:
            if done:
                exit_now()
            done.append(target)
            return rename(self, target)

        Path.rename = first_only  # type: ignore[method-assign,assignment]
    elif moment == "renamed both":
        defrag.sync_directory = exit_now  # type: ignore[attr-defined,assignment]


def test_a_kill_in_the_middle_of_everything(tmp_path: Path) -> None:
    """SIGKILL comes when some number of commits was reported, at whatever the child does then."""
    for commits in range(1, 8):
        folder = tmp_path / str(commits)
        folder.mkdir()

        async def script(child: Child, commits: int = commits) -> None:
            backend = child.open()
            defragging: asyncio.Task[None] | None = None
            while True:
                child.write(backend)
                await child.commit(backend)
                if child.index == commits * 50:
                    asyncio.get_running_loop().call_later(0.002 * commits, os.kill, os.getpid(), 9)
                if defragging is None or defragging.done():
                    defragging = asyncio.create_task(backend.defrag())

        check(folder, crash(folder, script, -9), later=True)


def test_the_copy_is_on_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut needs, and a killed process would not show."""
    order: list[str] = []
    fsync, rename, sync = os.fsync, Path.rename, database_module.sync_directory

    def noted_fsync(fd: int) -> None:
        order.append("fsync " + Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        fsync(fd)

    def noted_rename(self: Path, target: Path) -> Path:
        order.append(f"rename {self.name}")
        return rename(self, target)

    def noted_sync(path: Path) -> None:
        order.append("sync directory")
        sync(path)

    async def scenario() -> None:
        backend = Backend(tmp_path / "kvorum.mdb", loop=asyncio.get_running_loop())
        backend.put("meta", b"a", b"1")
        await backend.commit()
        monkeypatch.setattr(os, "fsync", noted_fsync)
        monkeypatch.setattr(Path, "rename", noted_rename)
        monkeypatch.setattr(defrag, "sync_directory", noted_sync)
        await backend.defrag()
        monkeypatch.undo()
        backend.close()

    asyncio.run(scenario())
    assert order == [
        "fsync kvorum.mdb.defrag",
        "rename kvorum.mdb.defrag",
        "rename kvorum.mdb.defrag-lock",
        "sync directory",
        f"fsync {tmp_path.name}",
    ]
