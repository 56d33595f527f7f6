"""Power cuts under load: what was acknowledged had been fsynced, and any half of the rest is fine.

Servers written in Go call the kernel without the C library, so they cannot be tested this way.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from crash.harness import CrashRun
from crash.power import cut_power, unsynced
from crash.workload import Epoch
from support.binaries import is_kvorum
from support.member import Member, MemberFactory
from support.need import allow, need
from support.seeds import fresh_seed

CYCLES = 3
FLAGS = ["--log-level=warn", "--snapshot-count=500"]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    allow(compiler is not None, "no C compiler for the shim")
    library = tmp_path_factory.mktemp("shim") / "power_shim.so"
    source = Path(__file__).with_name("power_shim.c")
    flags = ["-shared", "-fPIC", "-O1", "-pthread"]
    subprocess.run([str(compiler), *flags, "-o", str(library), str(source)], check=True)
    return library


@pytest.fixture
def seed(pytestconfig: pytest.Config) -> int:
    return pytestconfig.getoption("crash_seed") or fresh_seed()


def shim_env(shim: Path, journal: Path, match: str) -> dict[str, str]:
    return {
        "LD_PRELOAD": str(shim),
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


def power_run(member: Member, shim: Path, seed: int) -> tuple[CrashRun, PowerCut]:
    journal = member.folder / "journal"
    member.env |= shim_env(shim, journal, "/member/")
    member.env["POWER_SHIM_SYNC_MICROSECONDS"] = "4000"
    run = CrashRun(member, seed)
    return run, PowerCut(run, journal, seed)


@pytest.mark.timeout(7200)
def test_power_cuts_lose_nothing_acknowledged(
    members: MemberFactory, kvorum: Path, shim: Path, seed: int, pytestconfig: pytest.Config
) -> None:
    need(is_kvorum(kvorum), "the shim works on dynamically linked programs only")
    print(f"--crash-seed {seed}")
    run, cut = power_run(members(kvorum, flags=FLAGS), shim, seed)
    for _ in range(pytestconfig.getoption("crash_cycles") or CYCLES):
        run.cycle(cut)
    print(f"{run.acked} acknowledged writes, {cut.undone} writes to the disk undone")
    assert cut.undone > 0, "every write was synced at once: the shim sees nothing"


def test_a_server_that_does_not_sync_is_found(
    members: MemberFactory, kvorum: Path, shim: Path
) -> None:
    """--unsafe-no-fsync does what it says, and the test above would notice."""
    need(is_kvorum(kvorum), "the shim works on dynamically linked programs only")
    run, cut = power_run(members(kvorum, flags=[*FLAGS, "--unsafe-no-fsync"]), shim, 3)
    cut.rng.choice = max  # type: ignore[method-assign,assignment]
    run.cycle(run.kill)
    with pytest.raises(AssertionError):
        run.cycle(cut)


def test_the_journal_knows_what_is_synced(shim: Path, tmp_path: Path) -> None:
    """Every kind of write, before and after an fsync, undone to the synced state."""
    program = """
import os
fd = os.open("member/file", os.O_RDWR | os.O_CREAT)
os.write(fd, b"aaaabbbbcccc")
os.fdatasync(fd)
os.lseek(fd, 4, os.SEEK_SET)
os.write(fd, b"XX")
os.writev(fd, [b"Y", b"Y"])
os.pwrite(fd, b"ZZ", 0)
os.pwritev(fd, [b"W", b"W"], 10)
os.pwrite(fd, b"beyond", 12)
sure = os.open("member/sure", os.O_WRONLY | os.O_CREAT | os.O_DSYNC)
os.write(sure, b"kept")
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
