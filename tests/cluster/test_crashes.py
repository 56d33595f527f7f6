"""Members die, networks fail, and what was acknowledged stays."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from support.cluster import Node, Refused, TestCluster, cluster_of
from support.embedded import story

from kvorum.config import server as config_module


class Clients:
    """Put numbered keys through whoever runs, and remember what was acknowledged."""

    def __init__(self, cluster: TestCluster, count: int) -> None:
        self.acknowledged: dict[str, str] = {}
        self._cluster = cluster
        self._stop = False
        self._chance = random.Random(1)
        self._tasks = [asyncio.create_task(self._run(number)) for number in range(count)]

    async def _run(self, number: int) -> None:
        turn = 0
        while not self._stop:
            running = self._cluster.running
            turn += 1
            key, value = f"{number}-{turn % 7}", str(turn)
            try:
                await self._chance.choice(running).put(key, value)
            except Refused:
                self.acknowledged.pop(key, None)  # it may or may not have been done
                continue
            self.acknowledged[key] = value
            await asyncio.sleep(0)

    async def stop(self) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)


async def check(cluster: TestCluster, clients: Clients) -> None:
    await clients.stop()
    assert len(clients.acknowledged) > 10
    await cluster.leader()
    await cluster.agree()
    for node in cluster.running:
        for key, value in clients.acknowledged.items():
            assert node.peek(key) == value


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_module, "REQUEST_BASE", 0.5)


async def progress(cluster: TestCluster, node: Node, count: int = 40) -> None:
    goal = node.server.store.rev + count
    await cluster.until("progress", lambda: node.server.store.rev >= goal)


@story
async def test_acknowledged_writes_survive_the_death_of_leaders(tmp_path: Path) -> None:
    async with cluster_of(
        tmp_path, backend_batch_interval=0.02, snapshot_count=100, snapshot_catchup_entries=50
    ) as cluster:
        clients = Clients(cluster, 24)
        for _ in range(3):
            leader = await cluster.leader()
            await progress(cluster, leader)
            await leader.kill()
            new = await cluster.leader()
            await progress(cluster, new)
            await leader.start()
        await check(cluster, clients)


@story
async def test_all_die_at_once(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, backend_batch_interval=10.0) as cluster:
        clients = Clients(cluster, 24)
        leader = await cluster.leader()
        await progress(cluster, leader)
        await clients.stop()
        for node in cluster.running:
            await node.kill()
        for node in cluster.nodes.values():
            await node.start()
        await check(cluster, clients)


@story
async def test_a_network_that_loses_and_delays(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        await cluster.leader()
        clients = Clients(cluster, 24)
        cluster.wire.loss, cluster.wire.delay = 0.1, 0.002
        await progress(cluster, cluster["a"], 200)
        cluster.wire.heal()
        await check(cluster, clients)


@story
async def test_leaders_that_are_cut_off_one_after_the_other(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        clients = Clients(cluster, 24)
        for _ in range(4):
            leader = await cluster.leader()
            cluster.wire.isolate(leader.id)
            new = await cluster.leader(*cluster.followers(leader))
            await progress(cluster, new)
            cluster.wire.heal()
            await cluster.leader()
        await check(cluster, clients)


@story
async def test_a_half_partition(tmp_path: Path) -> None:
    """The leader hears one of two, and neither of those hears the other."""
    async with cluster_of(tmp_path) as cluster:
        leader = await cluster.leader()
        one, two = cluster.followers(leader)
        clients = Clients(cluster, 24)
        cluster.wire.cut |= {(one.id, two.id), (two.id, one.id), (two.id, leader.id)}
        await progress(cluster, leader, 30)
        cluster.wire.heal()
        await check(cluster, clients)


@story
async def test_a_member_that_stands_still(tmp_path: Path) -> None:
    """It neither sends nor hears for a while, as a process that was stopped."""
    async with cluster_of(tmp_path) as cluster:
        leader = await cluster.leader()
        clients = Clients(cluster, 24)
        leader.server.transport.pause()
        new = await cluster.leader(*cluster.followers(leader))
        await progress(cluster, new)
        leader.server.transport.resume()
        await check(cluster, clients)
