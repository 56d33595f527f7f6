"""Power cuts under load: what was acknowledged had been fsynced, and any half of the rest is fine.

Servers written in Go call the kernel without the C library, so they cannot be tested this way.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from crash.harness import CrashRun
from crash.power import cut_power, unsynced
from crash.shims import WAYS, build
from crash.workload import Epoch
from support.binaries import is_kvorum
from support.member import Member, MemberFactory
from support.need import need
from support.seeds import fresh_seed

CYCLES = 3
MORE_CYCLES = 30
"""At most, until a cut undoes something: one may fall between two writes, or spare them all."""
FLAGS = ["--log-level=warn", "--snapshot-count=500"]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build(tmp_path_factory.mktemp("shim"), "refuse_shim", "power_shim")


@pytest.fixture
def seed(pytestconfig: pytest.Config) -> int:
    return pytestconfig.getoption("crash_seed") or fresh_seed()


def shim_env(shim: str, journal: Path, match: str) -> dict[str, str]:
    return {
        "LD_PRELOAD": shim,
        "POWER_SHIM_JOURNAL": str(journal),
        "POWER_SHIM_MATCH": match,
    }


class PowerCut:
    """Ends an epoch with a kill, and takes away what was not on the disk."""

    def __init__(self, run: CrashRun, journal: Path, seed: int) -> None:
        self.run = run
        self.journal = journal
        self.rng = random.Random(seed)
        self.undone = 0

    def __call__(self, epoch: Epoch) -> None:
        self.run.kill(epoch)
        self.undone += cut_power(self.journal, self.run.member.data_dir, self.rng)


def power_run(member: Member, shim: str, seed: int) -> tuple[CrashRun, PowerCut]:
    journal = member.folder / "journal"
    member.env |= shim_env(shim, journal, "/member/")
    member.env["POWER_SHIM_SYNC_MICROSECONDS"] = "4000"
    run = CrashRun(member, seed)
    return run, PowerCut(run, journal, seed)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("way", ["by the kernel", "not there"])
def test_power_cuts_lose_nothing_acknowledged(
    members: MemberFactory,
    kvorum: Path,
    shim: str,
    seed: int,
    way: str,
    pytestconfig: pytest.Config,
) -> None:
    need(is_kvorum(kvorum), "the shim works on dynamically linked programs only")
    print(f"--crash-seed {seed}")
    run, cut = power_run(members(kvorum, flags=FLAGS, env=WAYS[way]), shim, seed)
    for _ in range(pytestconfig.getoption("crash_cycles") or CYCLES):
        run.cycle(cut)
    for _ in range(MORE_CYCLES):
        if not cut.undone:
            run.cycle(cut)
    print(f"{run.acked} acknowledged writes, {cut.undone} writes to the disk undone")
    assert cut.undone > 0, "every write was synced at once: the shim sees nothing"


def test_a_server_that_does_not_sync_is_found(
    members: MemberFactory, kvorum: Path, shim: str
) -> None:
    """--unsafe-no-fsync does what it says, and the test above would notice."""
    need(is_kvorum(kvorum), "the shim works on dynamically linked programs only")
    run, cut = power_run(members(kvorum, flags=[*FLAGS, "--unsafe-no-fsync"]), shim, 3)
    cut.rng.choice = max  # type: ignore[method-assign,assignment]
    run.cycle(run.kill)
    with pytest.raises(AssertionError):
        run.cycle(cut)


BY_THE_KERNEL = """
import errno
from caio import linux_aio
context = linux_aio.Context(max_requests=2)
context.submit(linux_aio.Operation.fdsync(fd))
while True:
    try:
        assert context.process_events(1, 1, 10) == 1
        break
    except SystemError as error:  # a machine that was stopped and goes on has interrupted it
        assert error.args[0] == errno.EINTR
"""
NOT_TOLD = "context.submit(linux_aio.Operation.fdsync(fd))"


@pytest.mark.parametrize(
    ("sync", "last"), [("os.fdatasync(fd)", ""), (BY_THE_KERNEL, ""), (BY_THE_KERNEL, NOT_TOLD)]
)
def test_the_journal_knows_what_is_synced(shim: str, tmp_path: Path, sync: str, last: str) -> None:
    """Every kind of write, before and after an fsync, undone to the synced state."""
    program = f"""
import os
fd = os.open("member/file", os.O_RDWR | os.O_CREAT)
os.write(fd, b"aaaabbbbcccc")
{sync}
os.lseek(fd, 4, os.SEEK_SET)
os.write(fd, b"XX")
os.writev(fd, [b"Y", b"Y"])
os.pwrite(fd, b"ZZ", 0)
os.pwritev(fd, [b"W", b"W"], 10)
os.pwrite(fd, b"beyond", 12)
sure = os.open("member/sure", os.O_WRONLY | os.O_CREAT | os.O_DSYNC)
os.write(sure, b"kept")
{last}
os.kill(os.getpid(), 9)
"""
    (tmp_path / "member").mkdir()
    journal = tmp_path / "journal"
    env = os.environ | shim_env(shim, journal, "/member/")
    subprocess.run([sys.executable, "-c", program], env=env, cwd=tmp_path, check=False)
    file = tmp_path / "member" / "file"
    assert file.read_bytes() == b"ZZaaXXYYccWWbeyond"
    assert len(unsynced(journal)[file.stat().st_ino]) == 5
    rng = random.Random(1)
    rng.choice = max  # type: ignore[method-assign,assignment]
    assert cut_power(journal, tmp_path, rng) == 5
    assert file.read_bytes() == b"aaaabbbbcccc\0\0\0\0\0\0"
    assert (tmp_path / "member" / "sure").read_bytes() == b"kept"
