"""Three members, and everything that can happen to them, under the eyes of the checkers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import pytest
import uvloop
from chaos.cluster import Cluster, Settings
from chaos.nemesis import NETWORK, PROCESSES, Nemesis
from chaos.network import Network
from chaos.run import Run

SECONDS = 40.0
ROUND = 40.0
SETTINGS = Settings(snapshot_count=200, catch_up=50)


@pytest.mark.timeout(100_000)
def test_chaos(
    tmp_path: Path, kvorum: Path, network: Network, chaos_seed: int, pytestconfig: pytest.Config
) -> None:
    seconds = pytestconfig.getoption("chaos_seconds") or SECONDS
    print(f"--chaos-seed {chaos_seed} --chaos-seconds {seconds}")
    logs = pytestconfig.getoption("server_log_dir")
    cluster = Cluster(tmp_path, dict.fromkeys("abc", kvorum), network, SETTINGS, logs)
    uvloop.run(chaos(cluster, chaos_seed, seconds))


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
