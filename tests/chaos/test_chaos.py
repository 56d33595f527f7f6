"""Three members, and everything that can happen to them, under the eyes of the checkers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import uvloop
from chaos.cluster import Cluster, Settings
from chaos.nemesis import NETWORK, PROCESSES, Nemesis
from chaos.network import Network, why_not
from chaos.run import Run
from support.need import need
from support.seeds import fresh_seed

SECONDS = 40.0
ROUND = 40.0
SETTINGS = Settings(snapshot_count=200, catch_up=50)


@pytest.fixture
def seed(pytestconfig: pytest.Config) -> int:
    return pytestconfig.getoption("chaos_seed") or fresh_seed()


@pytest.fixture
def network() -> Iterator[Network]:
    need(not why_not(), why_not())
    made = Network(3)
    yield made
    made.close()


@pytest.mark.timeout(100_000)
def test_chaos(
    tmp_path: Path, kvorum: Path, network: Network, seed: int, pytestconfig: pytest.Config
) -> None:
    seconds = pytestconfig.getoption("chaos_seconds") or SECONDS
    print(f"--chaos-seed {seed} --chaos-seconds {seconds}")
    logs = pytestconfig.getoption("server_log_dir")
    cluster = Cluster(tmp_path, dict.fromkeys("abc", kvorum), network, SETTINGS, logs)
    uvloop.run(chaos(cluster, seed, seconds))


async def chaos(cluster: Cluster, seed: int, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    try:
        await cluster.start()
        run = Run(cluster, seed)
        nemesis = Nemesis(cluster, Random(seed), PROCESSES | NETWORK)
        while loop.time() < end:
            report = await run.disturbed(nemesis, min(ROUND, end - loop.time()))
            print(report)
            print(report.failures)
            told = [*report.wrong, *nemesis.story, cluster.log_tails()]
            assert not report.wrong, "\n".join(told)
    finally:
        await cluster.close()
