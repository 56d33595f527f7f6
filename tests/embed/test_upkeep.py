"""What a member does beside its requests: compactions of its own, purging, warnings, failpoints."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.embedded import config_of, ending, member_on, serving, status, story
from support.rpc import COMPACT, DEFRAGMENT, DELETE_RANGE, LEASE_GRANT, LEASE_TTL, PUT, RANGE

import kvorum
from kvorum import errors, failpoint
from kvorum.backend import CommitError
from kvorum.embed import Member
from kvorum.pb import etcdserverpb as pb
from kvorum.server import server as server_module
from kvorum.server.autocompact import RevisionPolicy
from kvorum.server.kernelsync import KernelSync
from kvorum.server.publisher import Publisher
from kvorum.types import MemberID, Term
from kvorum.wal import WriteFailed


@pytest.fixture(autouse=True)
def no_failpoints() -> Iterator[None]:
    yield
    failpoint.disable_all()


async def compacted(member: Member, at_least: int) -> int:
    """The compaction revision, once it has come so far."""
    store = member.server.store
    compact, event = store.compact, asyncio.Event()

    def noticed(revision: int) -> Any:
        job = compact(revision)
        if revision >= at_least:
            event.set()
        return job

    store.compact = noticed  # type: ignore[method-assign]
    if store.compact_rev < at_least:
        async with asyncio.timeout(10):
            await event.wait()
    return store.compact_rev


@story
@pytest.mark.plain
async def test_compaction_by_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RevisionPolicy, "interval", 0.05)
    settings = {"auto_compaction_mode": "revision", "auto_compaction_retention": "10"}
    async with serving(tmp_path, **settings) as (member, client):
        for _ in range(50):
            await client.put(b"k")
        assert await compacted(member, 41) == 41
        assert await client.error(RANGE, key=b"k", revision=40) == status(errors.Compacted)
        assert (await client.call(RANGE, key=b"k", revision=41)).count == 1


@story
@pytest.mark.plain
async def test_compaction_by_time(tmp_path: Path) -> None:
    settings = {"auto_compaction_mode": "periodic", "auto_compaction_retention": "200ms"}
    async with serving(tmp_path, **settings) as (member, client):
        for _ in range(50):
            await client.put(b"k")
        assert await compacted(member, 51) == 51


@story
async def test_snapshots_and_logs_are_purged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "PURGE_INTERVAL", 0.05)
    config = config_of(tmp_path, snapshot_count=10, backend_batch_interval=0.001, max_snapshots=2)
    async with member_on(config) as (member, client):
        files = member.server._snapshotter.files
        purged, purge = asyncio.Event(), files.purge

        def noticed(*args: Any) -> list[Path]:
            removed = purge(*args)
            if removed:
                loop.call_soon_threadsafe(purged.set)
            return removed

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(files, "purge", noticed)
        async with asyncio.timeout(10):
            while not purged.is_set():
                await client.put(b"k")
        assert len(files.files()) <= 4


@story
async def test_the_log_of_what_changes_nothing_is_cut_too(tmp_path: Path) -> None:
    settings = {"snapshot_count": 200, "snapshot_catchup_entries": 10}
    config = config_of(tmp_path, **settings, backend_batch_interval=0.001)
    async with member_on(config) as (member, client):
        taker = member.server._snapshotter
        async with asyncio.timeout(10):
            while taker.last < 500:
                await client.call(DELETE_RANGE, key=b"nothing")
        assert taker._storage.first_index() > 400


@story
async def test_a_slow_apply_is_counted(tmp_path: Path) -> None:
    async with serving(tmp_path, warning_apply_duration=0.0) as (member, client):
        await client.put(b"k")
        assert member.telemetry.server.slow_applies.read() >= 1


@story
async def test_a_lost_leadership_makes_leases_endless(tmp_path: Path) -> None:
    """Which a member alone does not meet; it is told by hand."""
    async with serving(tmp_path) as (member, client):
        server = member.server
        assert server.lessor.primary
        server.leader_changed(MemberID(9), is_leader=False, term=Term(7))
        assert not server.lessor.primary
        assert (await client.call(RANGE, key=b"k")).header.raft_term == 7
        server.leader_changed(server.id, is_leader=True, term=Term(8))
        server.term_begun(Term(7))  # an entry of the past
        assert not server.lessor.primary
        server.term_begun(server.raft.term)
        assert server.lessor.primary


def points() -> set[str]:
    """Every failpoint that there is in the code of a member."""
    source = Path(kvorum.__file__).parent
    found = set()
    for path in source.rglob("*.py"):
        found |= set(re.findall(r'failpoint\.(?:hit|evaluate)\(\s*"(\w+)"', path.read_text()))
    return found


ELSEWHERE = {
    "beforeCheckpointInLeaseRenew": "the tests of leases",
    "defragOpenFileError": "the tests of maintenance",
    "defragdbFail": "the tests of the backend",
    "raftBeforeFollowerSend": "a cluster of several",
    "raftBeforeAdvance": "a cluster of several",
    "raftBeforeApplySnap": "a cluster of several",
    "raftAfterApplySnap": "a cluster of several",
    "applyBeforeOpenSnapshot": "a cluster of several",
    "applyAfterOpenSnapshot": "a cluster of several",
    "beforeLookupWhenForwardLeaseTimeToLive": "a cluster of several",
    "beforeServeHTTPLeaseRenew": "a cluster of several",
}


@story
@pytest.mark.plain
async def test_every_failpoint_is_passed(tmp_path: Path) -> None:
    """A point that is never reached would make a test that uses it pass for nothing."""
    expected = points() - ELSEWHERE.keys()
    assert len(expected) > 25
    assert expected <= failpoint.NAMES
    for name in expected:
        failpoint.enable(name, "sleep(0)")
    config = config_of(tmp_path, snapshot_count=10, backend_batch_interval=0.001)
    async with member_on(config) as (member, client):
        watch = await client.stream("/etcdserverpb.Watch/Watch")
        create = pb.WatchCreateRequest(key=b"k")
        await watch.send(pb.WatchRequest(create_request=create).SerializeToString())
        await watch.recv()
        for _ in range(50):
            await client.put(b"k")
        await client.call(LEASE_GRANT, ID=5, TTL=60)
        await client.call(LEASE_TTL, ID=5)
        request = pb.RangeRequest(key=b"k").SerializeToString()
        await ending(await client.channel.server_stream("/etcdserverpb.KV/RangeStream", request))
        await client.call(COMPACT, revision=20, physical=True)
        await client.call(DEFRAGMENT)
        await member.server.backend.commit()
        watch.cancel()
    missed = {name for name in expected if not failpoint.status(name)[1]}
    assert missed == set()


# Starts that meet a bad disk


@story
async def test_a_disk_that_fails_before_the_member_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, unsafe_no_fsync=False)
    async with member_on(config) as (_, client):
        await client.put(b"k")

    def broken(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("kvorum.wal.log.sync_data", broken)
        patch.setattr(KernelSync, "open", lambda loop: None)  # the log's thread syncs
        for _ in range(2):
            with pytest.raises(WriteFailed, match="Input/output error"):
                await Member(config).start()
    async with member_on(config) as (_, client):
        assert (await client.call(RANGE, key=b"k")).count == 1


@story
async def test_the_first_reason_is_the_one_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that was given up, on a disk that also refuses what the stop would bring there."""
    config = config_of(tmp_path, backend_batch_interval=60.0)

    def broken(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Publisher, "attempt", lambda self: None)
        patch.setattr("kvorum.backend.database.Database.write", broken)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(Member(config).start(), 0.2)
    async with member_on(config) as (member, client):
        assert await client.put(b"k") == 2
        assert await client.error(PUT) == status(errors.EmptyKey)
        assert not isinstance(member.server.failure, CommitError)
