"""Disks that are full, broken, read-only, taken or garbled: a clear end, and nothing lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from crash.shims import WAYS, build, check_way
from support.binaries import is_kvorum
from support.member import Member, MemberExited, MemberFactory
from support.need import allow, need
from support.rpc import PUT, RANGE, Client
from support.wait import wait_for

from kvorum.pb import etcdserverpb as pb

FLAGS = ["--log-level=warn"]
END_SECONDS = 30.0
_EIO = "Input/output error"


class Ledger:
    """Writes until the server is gone, and remembers what was acknowledged."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.acked: dict[bytes, bytes] = {}

    def write(self, count: int, size: int = 100, before: Callable[[], None] = lambda: None) -> int:
        """Up to ``count`` puts; ``before`` is run after the first ten. How many were answered."""
        answered = 0
        with Client(self.endpoint) as client:
            for number in range(count):
                if number == 10:
                    before()
                key = b"ledger/%d/%d" % (size, number)
                put = pb.PutRequest(key=key, value=os.urandom(size // 2).hex().encode())
                reply = client.raw(PUT.path, put.SerializeToString(), timeout=10.0)
                if not reply.ok:
                    return answered
                answered += 1
                self.acked[put.key] = put.value
        return answered

    def write_together(self, before: Callable[[], None]) -> None:
        """Until the server is gone, by four clients at a time."""
        with ThreadPoolExecutor(3) as pool:
            for size in (102, 104, 106):
                pool.submit(self.write, 20_000, size)
            self.write(20_000, before=before)

    def check(self) -> None:
        """Everything acknowledged can be read; nothing was changed."""
        with Client(self.endpoint) as client:
            found = client.call(RANGE, key=b"ledger/", range_end=b"ledger0", timeout=60.0)
        values = {kv.key: kv.value for kv in found.kvs}
        lost = [key for key, value in self.acked.items() if values.get(key) != value]
        assert not lost, f"{len(lost)} of {len(self.acked)} acknowledged writes lost: {lost[:5]}"


def check_clear_end(member: Member, *words: str) -> None:
    """A non-zero exit, and a fatal line that names the trouble, without a stack of Python's."""
    code = member.wait_exit(timeout=END_SECONDS)
    log = member.log_text()
    assert code not in (0, None), log
    told = '"level":"fatal"' in log or '"level":"panic"' in log or "panic:" in log
    assert told, log
    assert any(word.lower() in log.lower() for word in words), log
    assert "Traceback (most recent call last)" not in log, log


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts small file systems in memory; unmounts them again."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        point = tmp_path / f"disk{len(mounted)}"
        point.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(point)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        allow(done.returncode == 0, f"no right to mount: {done.stderr.strip()}")
        mounted.append(point)
        return point

    yield mount
    for point in mounted:
        subprocess.run(["umount", "-l", str(point)], check=False)


def remount(point: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(point)], check=True)


@pytest.fixture
def member(members: MemberFactory, kvorum: Path) -> Member:
    return members(kvorum, flags=FLAGS)


def test_a_full_disk_ends_the_server_and_loses_nothing(
    member: Member, tmpfs: Callable[[str], Path]
) -> None:
    disk = tmpfs("size=160m")
    member.data_dir = disk / "data"
    member.start()
    ledger = Ledger(member.endpoint)
    assert 10 < ledger.write(2000, 200_000) < 2000
    check_clear_end(member, "no space left", "disk full", "disk is full")
    remount(disk, "size=600m")
    member.start()
    ledger.check()
    assert ledger.write(20) == 20
    member.stop()


def test_a_disk_that_turns_read_only_loses_nothing(
    member: Member, tmpfs: Callable[[str], Path]
) -> None:
    """Writable files stay writable on such a mount, so this looks at the next start."""
    disk = tmpfs("size=400m")
    member.data_dir = disk / "data"
    member.start()
    ledger = Ledger(member.endpoint)
    assert ledger.write(50) == 50
    member.kill()
    remount(disk, "ro")
    member.clear_log()
    member.spawn()
    check_clear_end(member, "read-only file system", "cannot write to")
    remount(disk, "rw")
    member.start()
    ledger.check()
    member.stop()


def test_a_folder_that_cannot_be_made_is_told(member: Member, tmpfs: Callable[[str], Path]) -> None:
    disk = tmpfs("size=1m,ro")
    member.data_dir = disk / "data"
    member.spawn()
    check_clear_end(member, "read-only file system", "cannot write to")


def test_a_second_server_on_the_folder_gives_up(
    member: Member, members: MemberFactory, kvorum: Path
) -> None:
    """etcd waits for ever, with a warning; ending with a message is better."""
    member.start()
    ledger = Ledger(member.endpoint)
    assert ledger.write(20) == 20
    second = members(kvorum)
    second.data_dir = member.data_dir
    second.spawn()
    if is_kvorum(kvorum):
        check_clear_end(second, "in use", "locked", "another process", "lock")
    else:
        wait_for(lambda: "flock" in second.log_text(), "a warning of the lock", timeout=30.0)
        second.kill()
    assert ledger.write(20) == 20
    member.kill()
    member.start()
    ledger.check()


def garble_the_start(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(os.urandom(16384))


def cut_to_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def replace_by_text(path: Path) -> None:
    path.write_text("this is no database\n" * 1000)


@pytest.mark.parametrize("damage", [garble_the_start, cut_to_half, empty, replace_by_text])
def test_a_garbled_database_is_never_served(member: Member, damage: Callable[[Path], None]) -> None:
    """Refused with a message; or, where the log alone holds everything, rebuilt from it."""
    member.start()
    ledger = Ledger(member.endpoint)
    assert ledger.write(300) == 300
    member.stop()
    assert member.database().exists()
    damage(member.database())
    member.clear_log()
    try:
        member.start(timeout=20.0)
    except MemberExited:
        check_clear_end(member, member.database().name, "database", "invalid")
        return
    ledger.check()


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The libraries that make fsync fail, and that refuse asynchronous I/O."""
    return build(tmp_path_factory.mktemp("shim"), "refuse_shim", "fsync_shim")


def shim_env(shim: str, trigger: Path, match: str) -> dict[str, str]:
    return {
        "LD_PRELOAD": shim,
        "FSYNC_SHIM_TRIGGER": str(trigger),
        "FSYNC_SHIM_MATCH": match,
    }


DIRECTLY = "os.fdatasync(fd)"
BY_THE_KERNEL = """
    from caio import linux_aio
    context, results = linux_aio.Context(max_requests=1), []
    operation = linux_aio.Operation.fdsync(fd)
    operation.set_callback(results.append)
    context.submit(operation)
    context.process_events(1, 1, 10)
    if results[0]:
        raise OSError(5, os.strerror(2**64 - results[0]))
"""


@pytest.mark.parametrize("sync", [DIRECTLY, BY_THE_KERNEL])
def test_the_shim_itself_works(shim: str, tmp_path: Path, sync: str) -> None:
    """It fails only files that match, and only once the trigger is there."""
    trigger = tmp_path / "now"
    program = f"""
import os, pathlib
def sync(fd):
    {sync}
def told(name):
    with open(name, "wb") as file:
        try:
            sync(file.fileno())
            return "ok"
        except OSError as error:
            return error.strerror
print(told("a.wal"), told("b.txt"))
pathlib.Path({str(trigger)!r}).touch()
print(told("a.wal"), told("b.txt"), sep=", ")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=shim_env(shim, trigger, ".wal"),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert done.stdout.splitlines() == ["ok ok", f"{_EIO}, ok"]


@pytest.mark.parametrize(
    ("match", "way"), [*((".wal", way) for way in WAYS), ("/member/snap/", "not there")]
)
def test_a_failing_fsync_ends_the_server_and_loses_nothing(
    members: MemberFactory, kvorum: Path, shim: str, tmp_path: Path, match: str, way: str
) -> None:
    """After a failed fsync nobody knows what is on the disk: not one more acknowledgement."""
    # Go programs call the kernel without the C library, so the shim cannot reach them.
    need(is_kvorum(kvorum), "the shim works on dynamically linked programs only")
    trigger = tmp_path / "now"
    member = members(kvorum)
    only = {"FSYNC_SHIM_ASYNC_ONLY": "1"} if way == "by the kernel" else {}
    member.spawn(shim_env(shim, trigger, match) | WAYS[way] | only)
    member.wait_ready()
    ledger = Ledger(member.endpoint)
    ledger.write_together(before=trigger.touch)
    check_clear_end(member, _EIO, "EIO")
    check_way(member, way)
    member.start()
    ledger.check()
    assert ledger.write(20) == 20
