"""Maintenance, Cluster and Health on a member as a whole."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.embedded import Client, config_of, ending, member_on, read, serving, status, story
from support.rpc import (
    ALARM,
    COMPACT,
    DEFRAGMENT,
    HASH_KV,
    MEMBER_LIST,
    PUT,
    RANGE,
    STATUS,
    Rpc,
)

from kvorum import errors, failpoint
from kvorum.embed import Member
from kvorum.errors import Code
from kvorum.pb import etcdserverpb as pb
from kvorum.pb import healthpb

HASH = Rpc("/etcdserverpb.Maintenance/Hash", pb.HashRequest, pb.HashResponse)
MOVE_LEADER = Rpc(
    "/etcdserverpb.Maintenance/MoveLeader", pb.MoveLeaderRequest, pb.MoveLeaderResponse
)
CHECK = Rpc(
    "/grpc.health.v1.Health/Check", healthpb.HealthCheckRequest, healthpb.HealthCheckResponse
)
LIST = Rpc("/grpc.health.v1.Health/List", healthpb.HealthListRequest, healthpb.HealthListResponse)
WATCH = "/grpc.health.v1.Health/Watch"

Health = healthpb.HealthCheckResponse
ACTIVATE, DEACTIVATE = pb.AlarmRequest.ACTIVATE, pb.AlarmRequest.DEACTIVATE


# Status


@story
async def test_status(tmp_path: Path) -> None:
    async with serving(tmp_path, quota_backend_bytes=100_000_000) as (member, client):
        await client.put(b"k", b"v")
        await member.server.backend.commit()
        found = await client.call(STATUS)
        server = member.server
        assert found.header.member_id == found.leader == server.id
        assert (found.version, found.storageVersion) == ("3.7.1", "3.7.0")
        assert found.raftTerm == found.header.raft_term == 2
        assert found.raftAppliedIndex == found.raftIndex == server.applier.index == 5
        assert (found.dbSizeQuota, found.isLearner) == (100_000_000, False)
        assert 0 < found.dbSizeInUse <= found.dbSize == server.backend.size()
        assert list(found.errors) == []
        assert found.downgradeInfo == pb.DowngradeInfo()


@story
async def test_status_tells_of_alarms_and_of_a_missing_leader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as (member, client):
        await client.call(ALARM, action=ACTIVATE, memberID=5, alarm=pb.NOSPACE)
        await client.call(ALARM, action=ACTIVATE, memberID=6, alarm=pb.CORRUPT)
        member.server.alarms.activate(7, 9)  # type: ignore[arg-type] # of a later version
        monkeypatch.setattr(member.server.raft, "leader", 0)
        assert list((await client.call(STATUS)).errors) == [
            "etcdserver: no leader",
            "memberID:5 alarm:NOSPACE ",
            "memberID:6 alarm:CORRUPT ",
            "memberID:7 alarm:9 ",
        ]


# Alarm


@story
async def test_alarms_are_raised_listed_and_taken_back(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):

        async def send(**fields: Any) -> list[tuple[int, int]]:
            response = await client.call(ALARM, **fields)
            assert response.header.revision == 1
            return [(alarm.memberID, alarm.alarm) for alarm in response.alarms]

        assert await send() == []
        assert await send(action=ACTIVATE, memberID=5, alarm=pb.NOSPACE) == [(5, pb.NOSPACE)]
        assert await client.error(PUT, key=b"k") == status(errors.NoSpace)
        assert await send(action=ACTIVATE, memberID=5, alarm=pb.CORRUPT) == [(5, pb.CORRUPT)]
        assert await client.error(PUT, key=b"k") == status(errors.Corrupt)
        assert await send() == [(5, pb.NOSPACE), (5, pb.CORRUPT)]
        assert await send(alarm=pb.CORRUPT) == [(5, pb.CORRUPT)]
        assert (await client.call(RANGE, key=b"k")).count == 0  # reads go on
        for alarm in (pb.CORRUPT, pb.NOSPACE):
            assert await send(action=DEACTIVATE, memberID=5, alarm=alarm) == [(5, alarm)]
        assert await client.put(b"k") == 2


@story
async def test_an_unknown_action_is_refused(tmp_path: Path) -> None:
    """etcd's process ends on one."""
    async with serving(tmp_path) as (_, client):
        assert await client.error(ALARM, action=7) == (
            Code.INVALID_ARGUMENT,
            "unknown alarm action 7",
        )


@story
async def test_an_unknown_alarm_is_no_end(tmp_path: Path) -> None:
    """Nor is it one at the next start."""
    config = config_of(tmp_path)
    for _ in range(2):
        async with member_on(config) as (member, client):
            await client.call(ALARM, action=ACTIVATE, memberID=5, alarm=9)
            (alarm,) = (await client.call(ALARM)).alarms
            assert (alarm.memberID, alarm.alarm) == (5, 9)
            assert not member.server.failure.done()


# Defragment


@story
async def test_the_file_shrinks_while_requests_are_served(tmp_path: Path) -> None:
    async with serving(tmp_path, backend_batch_interval=0.01) as (member, client):
        for _ in range(3):
            for number in range(40):
                await client.put(b"k%d" % number, bytes(100_000))
        revision = await client.put(b"last")
        await client.call(COMPACT, revision=revision, physical=True)
        before = await client.call(STATUS)
        failpoint.enable("defragBeforeRename", "1*sleep(50)")
        try:
            work = asyncio.ensure_future(client.call(DEFRAGMENT))
            served = 0
            while not work.done():
                await client.put(b"during")
                assert (await client.call(RANGE, key=b"k7")).kvs[0].value == bytes(100_000)
                served += 1
            assert await work == pb.DefragmentResponse()
        finally:
            failpoint.disable("defragBeforeRename")
        assert served > 3
        after = await client.call(STATUS)
        assert after.dbSize < before.dbSize / 2
        assert after.dbSizeInUse <= after.dbSize
        kv = (await client.call(RANGE, key=b"during")).kvs[0]
        assert (kv.version, kv.mod_revision) == (served, revision + served)
        assert not member.server.failure.done()


@story
async def test_what_was_defragmented_is_there_after_a_restart(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    async with member_on(config) as (_, client):
        for number in range(50):
            await client.put(b"k%d" % number)
        before = await client.call(HASH_KV)
        await client.call(DEFRAGMENT)
        await client.call(DEFRAGMENT)
        assert (await client.call(HASH_KV)).hash == before.hash
    async with member_on(config) as (_, client):
        assert (await client.call(HASH_KV)).hash == before.hash


@story
async def test_a_failed_defragmentation_is_told_and_changes_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as (member, client):
        await client.put(b"k")
        failpoint.enable("defragOpenFileError", 'return("no room")')
        try:
            code, text = await client.error(DEFRAGMENT)
        finally:
            failpoint.disable("defragOpenFileError")
        assert code is Code.UNKNOWN
        assert "no room" in text
        assert await client.put(b"k") == 3
        assert not member.server.failure.done()


# Hashes


@story
async def test_hash_covers_the_whole_database(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    async with member_on(config) as (_, client):
        first = await client.call(HASH)
        assert first.header.revision == 1
        await client.put(b"k")
        second = await client.call(HASH)
        assert second.hash != first.hash
    async with member_on(config) as (_, client):
        assert await client.put(b"k") == 3


@story
async def test_many_hashes_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        for number in range(100):
            await client.put(b"k%d" % number)
        found = await asyncio.gather(*(client.call(HASH_KV) for _ in range(20)))
        assert len({response.hash for response in found}) == 1


# MoveLeader, MemberList


@story
async def test_leadership_can_only_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path) as (member, client):
        me = member.server.id
        assert await client.call(MOVE_LEADER, targetID=me) == pb.MoveLeaderResponse()
        assert await client.error(MOVE_LEADER, targetID=77) == status(errors.BadLeaderTransferee)
        monkeypatch.setattr(member.server.raft, "is_leader", False)
        assert await client.error(MOVE_LEADER, targetID=me) == status(errors.NotLeader)


@pytest.mark.parametrize("linearizable", [True, False])
@story
async def test_members(tmp_path: Path, linearizable: bool) -> None:
    async with serving(tmp_path) as (member, client):
        config = member.config
        await client.put(b"k")
        found = await client.call(MEMBER_LIST, linearizable=linearizable)
        assert list(found.members) == [
            pb.Member(
                ID=member.server.id,
                name="m",
                peerURLs=[str(url) for url in config.initial_advertise_peer_urls],
                clientURLs=[str(url) for url in config.advertise_client_urls],
            )
        ]
        assert (found.header.revision, found.header.raft_term) == (0, 2)  # as in etcd


@pytest.mark.parametrize(
    "path",
    [
        "/etcdserverpb.Maintenance/Alarm",
        "/etcdserverpb.Maintenance/Status",
        "/etcdserverpb.Maintenance/Defragment",
        "/etcdserverpb.Maintenance/Hash",
        "/etcdserverpb.Maintenance/HashKV",
        "/etcdserverpb.Maintenance/MoveLeader",
        "/etcdserverpb.Cluster/MemberList",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/List",
    ],
)
@story
async def test_unparsable_requests(tmp_path: Path, path: str) -> None:
    async with serving(tmp_path) as (_, client):
        code, text = await client.raw_error(path, b"\xff\xff")
        assert code is Code.INTERNAL
        assert text.startswith("grpc: error unmarshalling request: ")


# Health


async def watch_health(client: Client, service: str = "") -> Any:
    request = healthpb.HealthCheckRequest(service=service).SerializeToString()
    return await client.channel.server_stream(WATCH, request)


@story
async def test_health_of_the_server_and_of_nothing_else(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        assert (await client.call(CHECK)).status == Health.SERVING
        listed = await client.call(LIST)
        assert {name: s.status for name, s in listed.statuses.items()} == {"": Health.SERVING}
        assert await client.error(CHECK, service="etcdserverpb.KV") == (
            Code.NOT_FOUND,
            "unknown service",
        )
        stream = await watch_health(client, "etcdserverpb.KV")
        assert (await read(stream, Health)).status == Health.SERVICE_UNKNOWN


@story
async def test_watchers_of_health_are_told_of_changes_alone(tmp_path: Path) -> None:
    async with serving(tmp_path) as (member, client):
        stream = await watch_health(client)
        assert (await read(stream, Health)).status == Health.SERVING
        health = member._health
        for serving_now in (False, False, True):
            health.set_serving(serving_now)
        assert (await read(stream, Health)).status == Health.NOT_SERVING
        assert (await read(stream, Health)).status == Health.SERVING
        stream.cancel()
        await client.call(CHECK)
        assert health._watchers == {}


@story
async def test_a_member_that_stops_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvorum.embed.DRAIN_SECONDS", 0.1)
    config = config_of(tmp_path)
    member = Member(config)
    await member.start()
    client = Client(config)
    stream = await watch_health(client)
    assert (await read(stream, Health)).status == Health.SERVING
    stopping = asyncio.ensure_future(member.stop())
    assert (await read(stream, Health)).status == Health.NOT_SERVING
    await stopping
    assert (await ending(stream))[0] is Code.UNAVAILABLE
    await client.close()


@pytest.mark.parametrize(
    ("messages", "text"),
    [([], "received no request message"), ([b"", b""], "received multiple request messages")],
)
@story
async def test_a_watch_of_health_takes_one_request(
    tmp_path: Path, messages: list[bytes], text: str
) -> None:
    async with serving(tmp_path) as (member, client):
        stream = await client.stream(WATCH)
        for message in messages:
            await stream.send(message)
        await stream.end()
        assert await ending(stream) == (Code.INTERNAL, f"cardinality violation: {text}")
        assert member._health._watchers == {}
