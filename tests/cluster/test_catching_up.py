"""Members that were away: through the log, and through the leader's database."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import wire
from support.cluster import Node, cluster_of
from support.embedded import story

from kvorum.pb import etcdserverpb as pb
from kvorum.raft.types import Message, MsgType, Snapshot, SnapshotMetadata
from kvorum.server import install, raftnode
from kvorum.server.cluster import sending
from kvorum.server.install import SnapshotInstaller
from kvorum.snap import SnapError
from kvorum.types import Index, Term


@pytest.fixture(params=["bolt", "image"], autouse=True)
def format(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As what databases are sent."""
    monkeypatch.setattr(wire, "IMAGES", request.param == "image")
    return str(request.param)


SHORT: dict[str, Any] = {
    "snapshot_catchup_entries": 10,
    "snapshot_count": 50,
    "backend_batch_interval": 0.005,
}
"""A log that is soon too short."""


async def fill(node: Node, count: int, value: str = "v") -> None:
    for first in range(0, count, 100):
        keys = range(first, min(first + 100, count))
        await asyncio.gather(*(node.put(f"key{i}", f"{value}{i}") for i in keys))


async def cut_log(leader: Node, above: int) -> None:
    """Until the leader's log in memory begins after what a member has. An attempt to send the
    database holds it for a while, and it is cut with the entries that come then."""
    storage = leader.server._snapshotter._storage
    async with asyncio.timeout(20):
        while storage.first_index() <= above + 1:
            await leader.put("cut")
            await asyncio.sleep(0.005)


@story
async def test_a_member_that_was_away_gets_the_log(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        leader = await cluster.leader()
        away = cluster.followers(leader)[0]
        cluster.wire.isolate(away.id)
        await fill(leader, 1000)
        cluster.wire.heal()
        await cluster.agree()
        assert not cluster.wire.snapshots


@story
async def test_one_that_was_away_for_too_long_gets_the_database(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, **SHORT) as cluster:
        leader = await cluster.leader()
        away, other = cluster.followers(leader)
        await leader.propose("lease_grant", pb.LeaseGrantRequest(ID=7, TTL=1000))
        await leader.propose("put", pb.PutRequest(key=b"leased", lease=7))
        await cluster.agree()
        behind = away.server.applier.index
        changes: list[bytes] = []
        watch_all(away, changes)
        cluster.wire.isolate(away.id)
        await fill(leader, 500)
        await leader.propose("lease_revoke", pb.LeaseRevokeRequest(ID=7))
        await leader.propose("lease_grant", pb.LeaseGrantRequest(ID=8, TTL=1000))
        await leader.propose("compaction", pb.CompactionRequest(revision=100))
        alarm = pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=1, alarm=pb.CORRUPT)
        await leader.propose("alarm", alarm)
        alarm.action = pb.AlarmRequest.DEACTIVATE
        await other.propose("alarm", alarm)
        await cut_log(leader, behind)
        cluster.wire.heal()
        await cluster.agree()
        assert [member for member, _ in cluster.wire.snapshots] == [away.id]
        assert away.server.lessor.leases(0.0) == [8]
        assert away.server.store.compact_rev == 100
        assert away.server.cluster.members == leader.server.cluster.members
        assert away.server.applier.conf_state == leader.server.applier.conf_state
        await cluster.until("removed", lambda: not received(away))
        # It goes on like any other.
        await away.put("after", "1")
        await cluster.agree()
        assert await away.get("after") == "1"
        assert away.server.telemetry.server.snapshot_applying.value == 0


def watch_all(node: Node, seen: list[bytes]) -> None:
    class Sink:
        def send(self, message: bytes) -> None:
            seen.append(message)

        def writable(self) -> bool:
            return True

    stream = node.server.hub.stream(Sink())
    create = pb.WatchCreateRequest(key=b"\0", range_end=b"\0")
    stream.handle(pb.WatchRequest(create_request=create))


@story
async def test_watches_go_on_over_a_database_that_was_received(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, **SHORT) as cluster:
        leader = await cluster.leader()
        away = cluster.followers(leader)[0]
        await cluster.agree()
        seen: list[bytes] = []
        watch_all(away, seen)
        behind = away.server.applier.index
        cluster.wire.isolate(away.id)
        await fill(leader, 300)
        await cut_log(leader, behind)
        cluster.wire.heal()
        await cluster.agree()
        assert cluster.wire.snapshots
        await away.put("last")

        def revisions() -> list[int]:
            responses = [pb.WatchResponse.FromString(message) for message in seen]
            return [event.kv.mod_revision for each in responses for event in each.events]

        await cluster.until("all events", lambda: revisions()[-1:] == [away.server.store.rev])
        assert revisions() == list(range(2, away.server.store.rev + 1))


@story
async def test_what_was_received_and_not_installed_is_installed_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster_of(tmp_path, **SHORT) as cluster:
        leader = await cluster.leader()
        away = cluster.followers(leader)[0]
        await cluster.agree()
        behind = away.server.applier.index
        cluster.wire.isolate(away.id)
        await fill(leader, 300)
        await cut_log(leader, behind)
        with monkeypatch.context() as patch:
            patch.setattr(SnapshotInstaller, "install", lambda self, snapshot: None)
            cluster.wire.heal()
            # It takes part in the log, though its state stands still.
            await cluster.until("received", lambda: bool(cluster.wire.snapshots))
            await leader.put("while it stands still", "v")
            committed = leader.server.raft.committed
            await cluster.until("logged", lambda: away.server.raft.committed >= committed)
            assert away.server.applier.index == behind
            await away.kill()
        await away.start()
        await cluster.agree()
        assert away.peek("while it stands still") == "v"
        assert len(cluster.wire.snapshots) == 1


@story
async def test_a_second_database_overtakes_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member may be so slow to install one that it needs the next."""
    async with cluster_of(tmp_path, **SHORT) as cluster:
        leader = await cluster.leader()
        away = cluster.followers(leader)[0]
        monkeypatch.setattr(sending, "MAX_HELD_BYTES", 0)
        behind = away.server.applier.index
        installer = away.server._installer
        held: list[Any] = []
        install = installer.install
        monkeypatch.setattr(installer, "install", held.append)
        for round_ in range(2):
            cluster.wire.isolate(away.id)
            await fill(leader, 300, f"{round_}-")
            await cut_log(leader, max(behind, away.server.raft.committed))
            cluster.wire.heal()
            await cluster.until("received", lambda n=round_: len(held) > n)  # type: ignore[misc]
            await leader.put("more")
            committed = leader.server.raft.committed
            await cluster.until(
                "logged",
                lambda index=committed: away.server.raft.committed >= index,  # type: ignore[misc]
            )
        for snapshot in held:
            install(snapshot)
        await cluster.agree()
        assert away.peek("key7") == "1-7"


@story
async def test_what_a_former_leader_had_logged_for_nothing_stays_away(tmp_path: Path) -> None:
    """Its log on disk ends in entries that nobody else ever had, beyond the snapshot that replaced
    them."""
    async with cluster_of(tmp_path, **SHORT) as cluster:
        old = await cluster.leader()
        rest = cluster.followers(old)
        await cluster.agree()
        cluster.wire.isolate(old.id)
        in_vain = [asyncio.create_task(old.put(f"vain{i}")) for i in range(600)]
        storage = old.server._snapshotter._storage
        await cluster.until("logged in vain", lambda: storage.last_index() > 600)
        new = await cluster.leader(*rest)
        await fill(new, 300)
        await cut_log(new, old.server.applier.index)
        cluster.wire.heal()
        await cluster.until("received", lambda: bool(cluster.wire.snapshots))
        await cluster.until("installed", lambda: old.server.applier.index >= 300)
        for node in cluster.running:
            cluster.wire.isolate(node.id)  # so that no entry of the new log comes on top
        await old.kill()
        for task in in_vain:
            task.cancel()
        await old.start()
        log = old.server.raft._node.raft.log
        assert log.last_index() < 600
        terms = [
            entry.term for entry in log.slice(log.first_index(), log.last_index() + 1, 1 << 30)
        ]
        assert terms == sorted(terms)
        cluster.wire.heal()
        await cluster.agree()
        assert old.peek("vain7") is None


@story
async def test_a_restarted_member_goes_on_where_it_was(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, **SHORT) as cluster:
        leader = await cluster.leader()
        member = cluster.followers(leader)[0]
        await fill(leader, 200)
        await member.kill()
        await fill(leader, 20, "w")
        await member.start()
        await cluster.agree()
        await member.stop()
        await member.start()
        await cluster.agree()
        assert member.peek("key3") == "w3"


def stray(leader: Node, member: Node, index: int = 0) -> Message:
    """A snapshot that raft did not ask for."""
    meta = SnapshotMetadata(leader.server.applier.conf_state, Index(index), Term(1))
    return Message(
        MsgType.SNAP,
        member.id,
        leader.id,
        leader.server.raft.term,
        snapshot=Snapshot(metadata=meta),
    )


def received(node: Node) -> list[Path]:
    return list(node.server.host.snapshot_directory().glob("*.snap.db"))


@story
async def test_a_snapshot_that_is_not_needed_goes_with_the_next_of_its_own(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, **SHORT) as cluster:
        leader = await cluster.leader()
        member = cluster.followers(leader)[0]
        await leader.put("k", "v")
        await cluster.agree()
        leader.server.transport.send([stray(leader, member)])
        await cluster.until("delivered", lambda: bool(cluster.wire.snapshots))
        assert received(member)
        await fill(member, 100)
        await cluster.until("removed", lambda: not received(member))
        await cluster.agree()


@story
async def test_two_leaders_send_a_snapshot_of_one_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one's is refused, and its database is that of the new one's too."""
    async with cluster_of(tmp_path, **SHORT) as cluster:
        leader = await cluster.leader()
        away = cluster.followers(leader)[0]
        await cluster.agree()
        cluster.wire.isolate(away.id)
        await fill(leader, 300)
        await cut_log(leader, away.server.applier.index)
        host = away.server.host
        receive = host.receive_snapshot
        kept: list[Path] = []

        async def receive_both(message: Message, database: Path) -> None:
            copy = database.with_name("tmp-copy")
            shutil.copyfile(database, copy)
            assert message.snapshot is not None
            old = stray(leader, away, message.snapshot.metadata.index)
            old.term = Term(message.term - 1)
            await receive(old, copy)
            await asyncio.sleep(0)  # the turn in which raft refuses it
            kept.extend(received(away))
            await receive(message, database)

        monkeypatch.setattr(host, "receive_snapshot", receive_both)
        cluster.wire.heal()
        await cluster.agree()
        assert len(kept) == 1
        await cluster.until("removed", lambda: not received(away))
        await away.put("after", "1")
        await cluster.agree()


@story
async def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    """Before it is on record: a member could not start again with it."""
    async with cluster_of(tmp_path, **SHORT) as cluster:
        leader = await cluster.leader()
        member = cluster.followers(leader)[0]
        host = member.server.host
        garbage = host.snapshot_directory() / "tmp-garbage"
        garbage.write_bytes(b"x" * 100_000)
        with pytest.raises(SnapError, match="is no database"):
            await host.receive_snapshot(stray(leader, member, 5000), garbage)
        async with leader.server.host.open_snapshot(stray(leader, member)) as real:
            garbage.write_bytes(b"".join([chunk async for chunk in real.chunks]))
        with pytest.raises(SnapError, match="and not at 5000"):
            await host.receive_snapshot(stray(leader, member, 5000), garbage)
        assert not received(member)
        await leader.put("k", "v")
        await cluster.agree()


@story
async def test_a_database_that_comes_twice_is_there_when_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster_of(tmp_path, **SHORT) as cluster:
        leader = await cluster.leader()
        away = cluster.followers(leader)[0]
        await cluster.agree()
        cluster.wire.isolate(away.id)
        await fill(leader, 300)
        await cut_log(leader, away.server.applier.index)
        installer = away.server._installer
        held: list[Any] = []
        monkeypatch.setattr(installer, "install", held.append)
        cluster.wire.heal()
        await cluster.until("logged", lambda: bool(held))
        (path,) = received(away)
        copy = path.with_name("tmp-copy")
        shutil.copyfile(path, copy)
        index = held[0].metadata.index
        await away.server.host.receive_snapshot(stray(leader, away, index), copy)
        assert received(away) == [path]
        assert not copy.exists()
        monkeypatch.undo()
        installer.install(held[0])
        await cluster.agree()
        await cluster.until("removed", lambda: not received(away))


POINTS = (
    "raftBeforeSaveSnap",
    "raftAfterSaveSnap",
    "raftBeforeSave",
    "raftBeforeApplySnap",
    "raftAfterApplySnap",
    "raftAfterWALRelease",
    "applyBeforeOpenSnapshot",
    "applyAfterOpenSnapshot",
)


@pytest.mark.plain
@pytest.mark.parametrize("point", POINTS)
def test_a_member_dies_while_it_gets_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """Wherever that is, the next start finds one state or the other, and all goes on."""
    hits: list[str] = []

    def hit(name: str) -> None:
        if name == point:
            hits.append(name)
            raise Death(name)

    @story
    async def die_and_come_back() -> None:
        settings = SHORT | {"snapshot_count": 1_000_000}  # else others pass the same points
        async with cluster_of(tmp_path, **settings) as cluster:
            leader = await cluster.leader()
            away = cluster.followers(leader)[0]
            await cluster.agree()
            behind = away.server.applier.index
            cluster.wire.isolate(away.id)
            await fill(leader, 300)
            await cut_log(leader, behind)
            with monkeypatch.context() as patch:
                watched = watched_points(away, hit)
                patch.setattr(raftnode, "failpoint", watched)
                patch.setattr(install, "failpoint", watched)
                cluster.wire.heal()
                assert isinstance(await away.server.failure, Death)
                await away.stop()
            assert hits
            await leader.put("meanwhile", "v")
            await away.start()
            await cluster.agree()
            assert away.peek("meanwhile") == "v"
            assert away.peek("key7") == "v7"
            assert not list(away.server.host.snapshot_directory().glob("tmp*"))

    die_and_come_back()


class Death(Exception):
    """What a failpoint does, within the process."""


def watched_points(node: Node, hit: Callable[[str], None]) -> Any:
    """The module of failpoints as one member sees it; of the others none dies."""
    installing = node.server.raft

    def of_this_member(name: str) -> None:
        frame = sys._getframe(1)
        while frame is not None:
            owner = frame.f_locals.get("self")
            if owner is installing or owner is node.server._installer:
                hit(name)
                return
            frame = frame.f_back  # type: ignore[assignment]

    return SimpleNamespace(active=True, hit=of_this_member)
