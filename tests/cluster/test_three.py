"""Three members over a network that does what the test wants."""

from __future__ import annotations

from pathlib import Path

from support.cluster import cluster_of
from support.embedded import story


@story
async def test_a_new_cluster_elects_one_leader_and_all_apply_the_same(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        leader = await cluster.leader()
        await leader.put("k", "v")
        await cluster.agree()
        assert [node.peek("k") for node in cluster.running] == ["v"] * 3
        assert {node.server.applier.conf_state for node in cluster.running} == {
            leader.server.applier.conf_state
        }
