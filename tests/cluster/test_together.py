"""What members do for each other besides raft: leases, promotions, versions, alarms."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.cluster import Node, Refused, TestCluster, cluster_of
from support.embedded import story

from kvorum import errors
from kvorum.membership import changes, quorum
from kvorum.pb import etcdserverpb as pb
from kvorum.server.cluster import together
from kvorum.types import LeaseID

LEASE = LeaseID(7)


async def grant(node: Node, ttl: int, lease: LeaseID = LEASE) -> None:
    await node.propose("lease_grant", pb.LeaseGrantRequest(ID=lease, TTL=ttl))


async def primary(cluster: TestCluster, *among: Node) -> Node:
    """The leader, once it minds the leases."""
    leader = await cluster.leader(*among)
    await cluster.until("a primary lessor", lambda: leader.server.lessor.primary)
    return leader


def has_lease(node: Node) -> bool:
    return node.server.lessor.has(LEASE)


# Leases


@story
async def test_leases_are_kept_from_any_member(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        leader = await primary(cluster)
        follower, other = cluster.followers(leader)
        await grant(follower, 60)
        request = pb.PutRequest(key=b"k", lease=LEASE)
        await other.propose("put", request)
        held = leader.server.lessor.get(LEASE)
        assert held is not None
        for node in (leader, follower, other):
            held.expiry -= 30
            assert await node.server.leases.renew(LEASE) == 60
            found = await node.server.leases.time_to_live(LEASE, keys=True)
            assert found.TTL in (59, 60)
            assert (found.grantedTTL, list(found.keys)) == (60, [b"k"])
            assert await node.server.leases.renew(LeaseID(9)) == 0
            assert (await node.server.leases.time_to_live(LeaseID(9), keys=True)).TTL == -1


@story
async def test_a_lease_outlives_its_leader_and_then_ends(tmp_path: Path) -> None:
    """The next leader gives it its whole time again, and an election time-out on top."""
    async with cluster_of(tmp_path) as cluster:
        leader = await primary(cluster)
        rest = cluster.followers(leader)
        await grant(rest[0], 1)
        await rest[0].propose("put", pb.PutRequest(key=b"k", lease=LEASE))
        await leader.kill()
        new = await primary(cluster, *rest)
        left = new.server.lessor.time_to_live(LEASE, new.server.now())
        assert left is not None
        held = new.server.lessor.get(LEASE)
        assert held is not None
        assert held.expiry > new.server.now() + 0.9
        for _ in range(4):
            assert await rest[0].server.leases.renew(LEASE) == 1
            await asyncio.sleep(0.4)
        assert all(map(has_lease, rest))
        await cluster.until("its end", lambda: not any(map(has_lease, rest)))
        assert [node.peek("k") for node in rest] == [None, None]


@story
async def test_who_was_replaced_ends_no_leases(tmp_path: Path) -> None:
    """It saw nobody renew it; but the others had another leader by then."""
    async with cluster_of(tmp_path) as cluster:
        old = await primary(cluster)
        rest = cluster.followers(old)
        await grant(old, 1)
        cluster.wire.isolate(old.id)
        new = await primary(cluster, *rest)
        for _ in range(8):
            assert await new.server.leases.renew(LEASE) == 1
            await asyncio.sleep(0.25)
        cluster.wire.heal()
        await cluster.leader()
        for _ in range(4):
            assert await old.server.leases.renew(LEASE) == 1
            await asyncio.sleep(0.25)
        assert all(map(has_lease, cluster.running))


@story
async def test_a_leader_that_stood_still_asks_before_it_speaks_for_leases(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        leader = await primary(cluster)
        await grant(leader, 60)
        leadership = leader.server.leadership
        leadership._last_tick -= 1.0  # as after a pause
        assert not leadership.is_sure(leader.server.now())
        assert await leader.server.leases.renew(LEASE) == 60
        await cluster.until("sure again", lambda: leadership.is_sure(leader.server.now()))


# Membership


@pytest.fixture
def quickly_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quorum, "STEADY", 0.05)


async def settle(node: Node, work: str, *arguments: object, **options: object) -> object:
    """Ask for a change until the members trust each other enough."""
    while True:
        try:
            return await getattr(node.server.members, work)(*arguments, **options)
        except (errors.Unhealthy, errors.LearnerNotReady):
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("quickly_steady")
@story
async def test_a_learner_joins_and_is_promoted_by_way_of_a_follower(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        leader = await primary(cluster)
        follower = cluster.followers(leader)[0]
        for number in range(50):
            await leader.put(f"k{number}")
        url = cluster.peer_of("d")
        await settle(follower, "add", [url], learner=True)
        (identity,) = follower.server.cluster.learners()
        # A majority without the leader's own disk may have been enough, so that it applies later.
        await cluster.until("the leader to know", lambda: bool(leader.server.cluster.learners()))
        with pytest.raises(errors.LearnerNotReady):
            await follower.server.members.promote(identity)
        learner = await cluster.join("d")
        assert learner.id == identity
        await cluster.until("it to catch up", lambda: learner.peek("k49") is not None)
        assert learner.server.cluster.is_learner()
        members = await settle(follower, "promote", identity)
        assert isinstance(members, list)
        assert {m.id: m.is_learner for m in members}[identity] is False
        await cluster.until("a vote", lambda: not learner.server.cluster.is_learner())
        await learner.put("k", "v")
        await cluster.agree()
        with pytest.raises(errors.MemberNotLearner):
            await follower.server.members.promote(identity)


@pytest.mark.usefixtures("quickly_steady")
@story
async def test_who_would_lose_the_quorum_is_stopped(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        leader = await primary(cluster)
        follower, away = cluster.followers(leader)
        await cluster.until("names", lambda: all(m.name for m in leader.server.cluster.sorted()))
        gone, transport = away.id, leader.server.transport
        await away.stop()
        await cluster.until("a loss", lambda: transport.active_since(gone) is None)
        members = leader.server.members
        with pytest.raises(errors.Unhealthy):
            await members.add(["http://127.0.0.1:99"], learner=False)
        with pytest.raises(errors.Unhealthy):
            await members.remove(follower.id)
        await settle(leader, "remove", gone)
        assert sorted(leader.server.cluster.members) == sorted((leader.id, follower.id))


@story
async def test_the_leader_is_moved(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        leader = await primary(cluster)
        follower, other = cluster.followers(leader)
        with pytest.raises(errors.NotLeader):
            await follower.server.members.move_leader(other.id)
        await leader.server.members.move_leader(follower.id)
        assert leader.server.raft.leader == follower.id
        await cluster.leader()
        await other.put("k", "v")
        await cluster.agree()


# Versions


@story
async def test_the_version_is_decided_once_all_can_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "INTERVAL", 0.05)
    async with cluster_of(tmp_path) as cluster:
        leader = await primary(cluster)
        gone = cluster.followers(leader)[0]

        def versions() -> set[tuple[str, str]]:
            return {(n.server.cluster.version, n.server.storage_version) for n in cluster.running}

        await cluster.until("3.7", lambda: versions() == {("3.7.0", "3.7.0")})
        await leader.server.downgrades.enable("3.6")
        await cluster.until("3.6", lambda: versions() == {("3.6.0", "3.6.0")})
        await gone.stop()
        await cluster.leader()
        await cluster.running[0].server.downgrades.cancel()
        for _ in range(5):  # the version is not raised while one member cannot be asked
            await cluster.running[0].put("k")
            await asyncio.sleep(0.05)
        assert versions() == {("3.6.0", "3.6.0")}
        await gone.start()
        await cluster.until("3.7 again", lambda: versions() == {("3.7.0", "3.7.0")})


@story
async def test_a_downgrade_is_known_everywhere_and_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "INTERVAL", 0.05)
    async with cluster_of(tmp_path, names="a") as cluster:
        alone = await primary(cluster)
        await cluster.until("a version", lambda: alone.server.cluster.version == "3.7.0")
        snapshot = alone.server._snapshotter.last
        with pytest.raises(errors.InvalidDowngradeTargetVersion):
            await alone.server.downgrades.enable("3.5")
        assert await alone.server.downgrades.enable("3.6") == "3.7.0"
        with pytest.raises(errors.DowngradeInProcess):
            await alone.server.downgrades.validate("3.6")
        await cluster.until("3.6", lambda: alone.server.storage_version == "3.6.0")
        await cluster.until("a short log", lambda: alone.server._snapshotter.last > snapshot)
        await alone.stop()
        await alone.start()
        alone = await primary(cluster)
        assert alone.server.cluster.downgrade_target == "3.6.0"
        assert (alone.server.cluster.version, alone.server.storage_version) == ("3.6.0", "3.6.0")
        with pytest.raises(errors.DowngradeInProcess):
            await alone.server.downgrades.enable("3.5")
        assert await alone.server.downgrades.cancel() == "3.6.0"
        await cluster.until("3.7", lambda: alone.server.storage_version == "3.7.0")


# Alarms


@story
async def test_an_alarm_of_one_member_stops_all_until_it_is_taken_back(tmp_path: Path) -> None:
    """Also after that member was removed: the alarm is the cluster's."""
    async with cluster_of(tmp_path) as cluster:
        leader = await primary(cluster)
        full, other = cluster.followers(leader)
        full.server.raise_no_space()
        await cluster.until("alarm", lambda: all(n.server.alarms.get() for n in cluster.running))
        for node in cluster.running:
            with pytest.raises(Refused, match="space exceeded"):
                await node.put("k")
        (alarm,) = leader.server.alarms.get()
        assert (alarm.memberID, alarm.alarm) == (full.id, pb.NOSPACE)
        await leader.change(changes.removing(full.id))
        with pytest.raises(Refused, match="space exceeded"):
            await other.put("k")
        fields = {"memberID": alarm.memberID, "alarm": alarm.alarm}
        request = pb.AlarmRequest(action=pb.AlarmRequest.DEACTIVATE, **fields)
        await other.propose("alarm", request)
        await cluster.agree(leader, other)
        for node in (leader, other):
            await node.put("k")
