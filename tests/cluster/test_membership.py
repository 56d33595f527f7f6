"""Members come and go, while the others go on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.cluster import Refused, cluster_of
from support.embedded import story

from kvorum import errors
from kvorum.membership import Member, changes
from kvorum.server import server as server_module
from kvorum.server.errors import MemberRemoved
from kvorum.types import MemberID


@pytest.fixture(autouse=True)
def leave_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "LEAVE_SECONDS", 0.05)


@story
async def test_a_removed_member_ends_and_the_others_go_on(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        leader = await cluster.leader()
        gone, other = cluster.followers(leader)
        await other.change(changes.removing(gone.id))
        assert isinstance(await gone.server.failure, MemberRemoved)
        with pytest.raises(Refused, match=errors.Stopped.message):
            await gone.put("k")
        await gone.stop()
        await leader.put("k", "v")
        await cluster.agree()
        assert leader.server.applier.conf_state.voters == tuple(sorted((leader.id, other.id)))
        assert list(leader.server.transport.peers) == [other.id]  # type: ignore[attr-defined]


@story
async def test_a_removed_leader_ends_too(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        leader = await cluster.leader()
        rest = cluster.followers(leader)
        await leader.change(changes.removing(leader.id))
        assert isinstance(await leader.server.failure, MemberRemoved)
        await leader.stop()
        new = await cluster.leader(*rest)
        await new.put("k", "v")
        await cluster.agree()


@story
async def test_who_was_removed_while_away_is_told(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        leader = await cluster.leader()
        gone, other = cluster.followers(leader)
        cluster.wire.isolate(gone.id)
        await leader.change(changes.removing(gone.id))
        await cluster.agree(leader, other)
        cluster.wire.heal()
        assert isinstance(await gone.server.failure, MemberRemoved)


@story
async def test_who_was_removed_ends_at_every_start(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        leader = await cluster.leader()
        gone, _ = cluster.followers(leader)
        await leader.change(changes.removing(gone.id))
        await gone.server.failure
        await gone.stop()
        await gone.start()
        assert isinstance(await gone.server.failure, MemberRemoved)


@story
async def test_changes_from_several_members_at_once_wait_for_each_other(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        await cluster.leader()
        await asyncio.gather(
            *(
                node.change(changes.updating(Member(node.id, (f"http://127.0.0.1:{i}00",))))
                for node in cluster.running
                for i in (1, 2, 3)
            ),
            return_exceptions=True,
        )
        await cluster.agree()
        members = {tuple(node.server.cluster.sorted()) for node in cluster.running}
        assert len(members) == 1
        for node in cluster.running:
            urls = node.server.cluster.members[node.id].peer_urls
            others = cluster.followers(node)
            for other in others:
                assert other.server.transport.peers[node.id] == urls  # type: ignore[attr-defined]


@story
async def test_a_change_that_the_rules_refuse_is_refused_to_its_proposer(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        leader = await cluster.leader()
        for node in cluster.running:
            with pytest.raises(Refused, match=errors.MemberNotFound.message):
                await node.change(changes.removing(MemberID(77)))
        await leader.put("k", "v")
        await cluster.agree()


@story
async def test_learners_get_everything_and_count_for_nothing(tmp_path: Path) -> None:
    """Here by making one of a voter's data; joining is another story."""
    async with cluster_of(tmp_path, names="a") as cluster:
        alone = await cluster.leader()
        await alone.change(
            changes.adding(Member(MemberID(99), ("http://127.0.0.1:98",), is_learner=True))
        )
        assert alone.server.applier.conf_state.learners == (99,)
        await alone.put("k", "v")  # the learner is not there, and nobody waits for it
        with pytest.raises(Refused, match=errors.TooManyLearners.message):
            await alone.change(
                changes.adding(Member(MemberID(98), ("http://127.0.0.1:99",), is_learner=True))
            )
