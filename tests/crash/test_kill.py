"""SIGKILL under load, again and again: nothing acknowledged is lost, nothing is there by half."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from crash.harness import CrashRun
from support.member import MemberFactory
from support.seeds import fresh_seed

CYCLES = 3
FLAGS = ["--log-level=warn", "--snapshot-count=1000"]


@pytest.fixture
def seed(pytestconfig: pytest.Config) -> int:
    return pytestconfig.getoption("crash_seed") or fresh_seed()


@pytest.fixture
def cycles(pytestconfig: pytest.Config) -> int:
    given = pytestconfig.getoption("crash_cycles") or os.environ.get("KVORUM_CRASH_CYCLES")
    return int(given or CYCLES)


@pytest.mark.timeout(7200)
def test_kills_under_load_lose_nothing(
    members: MemberFactory, kvorum: Path, seed: int, cycles: int
) -> None:
    print(f"crash run: --crash-seed {seed} --crash-cycles {cycles}")
    run = CrashRun(members(kvorum, flags=FLAGS), seed)
    for number in range(cycles):
        run.cycle(run.kill)
        if number % 3 == 2:
            run.kill_while_starting()
    print(f"{run.acked} acknowledged writes, {run.model.revision} revisions")
    assert run.model.revision > cycles
