"""Who leads, and what happens to those who do not any more."""

from __future__ import annotations

import asyncio
from pathlib import Path

from support.cluster import cluster_of
from support.embedded import story

from kvorum.raft.types import MsgType


@story
async def test_a_new_cluster_elects_one_leader_and_all_apply_the_same(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        leader = await cluster.leader()
        await leader.put("k", "v")
        await cluster.agree()
        assert [node.peek("k") for node in cluster.running] == ["v"] * 3
        states = {node.server.applier.conf_state for node in cluster.running}
        assert len(states) == 1
        assert states.pop().voters == tuple(sorted(node.id for node in cluster.running))


@story
async def test_members_that_start_do_not_wait_out_an_election_timeout(tmp_path: Path) -> None:
    """Of ten ticks eight are skipped once the others are heard of."""
    loop = asyncio.get_running_loop()
    async with cluster_of(tmp_path, heartbeat_interval=100, election_timeout=1000) as cluster:
        started = loop.time()
        await cluster.leader()
        assert loop.time() - started < 1.6  # two to twelve ticks, of which one of three has few
    async with cluster_of(
        tmp_path / "slow",
        heartbeat_interval=100,
        election_timeout=1000,
        initial_election_tick_advance=False,
    ) as cluster:
        started = loop.time()
        await cluster.leader()
        assert loop.time() - started >= 0.9


@story
async def test_a_leader_that_is_cut_off_is_replaced_and_follows(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        old = await cluster.leader()
        rest = cluster.followers(old)
        await old.put("k", "before")
        cluster.wire.isolate(old.id)
        new = await cluster.leader(*rest)
        await cluster.until("stepped down", lambda: not old.server.raft.is_leader)
        assert not old.server.lessor.primary
        assert new.server.lessor.primary
        await new.put("k", "after")
        assert old.peek("k") == "before"
        cluster.wire.heal()
        await cluster.agree()
        assert old.peek("k") == "after"
        assert old.server.telemetry.server.leader_changes.value >= 2


@story
async def test_a_stopping_leader_hands_over_first(tmp_path: Path) -> None:
    """Before anybody's election time-out could pass."""
    loop = asyncio.get_running_loop()
    async with cluster_of(tmp_path, heartbeat_interval=50, election_timeout=2500) as cluster:
        old = await cluster.leader()
        rest = cluster.followers(old)
        stopped = loop.time()
        await old.stop()
        new = await cluster.leader(*rest)
        await new.put("k", "v")
        assert loop.time() - stopped < 2.0


@story
async def test_leadership_is_moved_on_request_and_no_request_is_lost(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        old = await cluster.leader()
        target = cluster.followers(old)[0]
        puts = [asyncio.create_task(node.put(node.name, "1")) for node in cluster.running * 10]
        old.server.raft.transfer_leader(target.id)
        puts += [asyncio.create_task(node.put(node.name, "2")) for node in cluster.running * 10]
        await asyncio.gather(*puts)
        await cluster.until("moved", lambda: target.server.raft.is_leader)
        await cluster.agree()
        assert target.server.store.rev == 61


@story
async def test_a_partition_of_one_does_not_disturb_the_others(tmp_path: Path) -> None:
    """It asks for votes in a trial round, and does not come back with a higher term."""
    async with cluster_of(tmp_path) as cluster:
        leader = await cluster.leader()
        lonely = cluster.followers(leader)[0]
        term = leader.server.raft.term
        cluster.wire.isolate(lonely.id)
        await cluster.until("no leader", lambda: lonely.server.raft.leader == 0)
        await leader.put("k", "v")
        cluster.wire.heal()
        await cluster.agree()
        assert leader.server.raft.is_leader
        assert {node.server.raft.term for node in cluster.running} == {term}


@story
async def test_each_batch_is_one_message_to_each_peer(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, heartbeat_interval=100, election_timeout=10_000) as cluster:
        # Nobody leads by itself within the test.
        first = cluster["a"]
        first.server.raft._node.campaign()
        first.server.raft.wake()
        leader = await cluster.leader()
        await cluster.agree()
        sent = cluster.wire.sent
        before = sent[MsgType.APP]
        await asyncio.gather(*(leader.put(f"k{i}") for i in range(500)))
        await cluster.agree()
        # To each of two: the entries, and the commit index as it moves.
        assert 2 <= sent[MsgType.APP] - before <= 8
        before = sent[MsgType.APP], sent.get(MsgType.PROP, 0)
        follower = cluster.followers(leader)[0]
        await asyncio.gather(*(follower.put(f"k{i}") for i in range(500)))
        await cluster.agree()
        assert 2 <= sent[MsgType.APP] - before[0] <= 8
        assert sent[MsgType.PROP] - before[1] == 1
