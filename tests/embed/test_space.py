"""A member that runs out of its quota, and how it gets out of that again."""

from __future__ import annotations

import asyncio
from pathlib import Path

from support.embedded import Client, Refused, config_of, member_on, op, serving, status, story
from support.rpc import (
    ALARM,
    COMPACT,
    DEFRAGMENT,
    DELETE_RANGE,
    LEASE_GRANT,
    LEASE_REVOKE,
    PUT,
    RANGE,
    STATUS,
    TXN,
)

from kvorum import errors
from kvorum.pb import etcdserverpb as pb

QUOTA = 8 * 1024 * 1024
VALUE = bytes(200_000)
FAST = {"quota_backend_bytes": QUOTA, "backend_batch_interval": 0.01}


async def fill(client: Client) -> int:
    """Put until there is no space; how many puts were answered well."""
    for number in range(1000):
        try:
            await client.put(b"k%d" % (number % 5), VALUE)
        except Refused as refusal:
            if errors.NoSpace.message not in str(refusal):
                raise
            return number
    raise AssertionError("the quota was never met")


async def alarms(client: Client) -> list[tuple[int, int]]:
    return [(a.memberID, a.alarm) for a in (await client.call(ALARM)).alarms]


@story
async def test_the_whole_way_out_of_it(tmp_path: Path) -> None:
    config = config_of(tmp_path, **FAST)
    async with member_on(config) as (member, client):
        me = member.server.id
        await client.call(LEASE_GRANT, ID=7, TTL=1000)
        await client.put(b"leased", lease=7)
        await fill(client)
        assert await alarms(client) == [(me, pb.NOSPACE)]
        found = await client.call(STATUS)
        assert list(found.errors) == [f"memberID:{me} alarm:NOSPACE "]
        assert found.dbSizeQuota == QUOTA
        await refuses_writes(client)
        # Reads go on, and so does all that makes space.
        assert (await client.call(RANGE, key=b"k0")).kvs[0].value == VALUE
        assert (await client.call(TXN, success=[op("range", key=b"k1")])).succeeded
        assert (await client.call(DELETE_RANGE, key=b"k0")).deleted == 1
        deleted = await client.call(TXN, success=[op("delete_range", key=b"k1")])
        assert deleted.responses[0].response_delete_range.deleted == 1
        await client.call(LEASE_REVOKE, ID=7)
        revision = (await client.call(RANGE, key=b"leased")).header.revision
        await client.call(COMPACT, revision=revision, physical=True)
        # A compaction alone does not shrink the file, and nothing takes the alarm back.
        assert (await client.call(STATUS)).dbSize > QUOTA - 1_000_000
        await refuses_writes(client)
        await client.call(DEFRAGMENT)
        assert (await client.call(STATUS)).dbSize < QUOTA / 2
        await refuses_writes(client)
        off = await client.call(
            ALARM, action=pb.AlarmRequest.DEACTIVATE, memberID=me, alarm=pb.NOSPACE
        )
        assert len(off.alarms) == 1
        assert await client.put(b"again", VALUE) == revision + 1
        assert await alarms(client) == []
    async with member_on(config) as (_, client):
        assert await client.put(b"again") == revision + 2


async def refuses_writes(client: Client) -> None:
    for rpc, fields in (
        (PUT, {"key": b"x"}),
        (TXN, {"success": [op("put", key=b"x")]}),
        (TXN, {"failure": [op("txn", success=[op("put", key=b"x")])]}),
        (LEASE_GRANT, {"TTL": 60}),
    ):
        assert await client.error(rpc, **fields) == status(errors.NoSpace)


@story
async def test_disarmed_without_space_it_is_raised_again(tmp_path: Path) -> None:
    async with serving(tmp_path, **FAST) as (member, client):
        me = member.server.id
        await fill(client)
        for _ in range(2):
            await client.call(
                ALARM, action=pb.AlarmRequest.DEACTIVATE, memberID=me, alarm=pb.NOSPACE
            )
            assert await client.error(PUT, key=b"x", value=VALUE) == status(errors.NoSpace)
            assert await alarms(client) == [(me, pb.NOSPACE)]


@story
async def test_the_alarm_is_on_after_a_restart(tmp_path: Path) -> None:
    config = config_of(tmp_path, **FAST)
    async with member_on(config) as (_, client):
        await fill(client)
        await refuses_writes(client)
    async with member_on(config) as (_, client):
        await refuses_writes(client)
        assert (await client.call(RANGE, key=b"k0")).count == 1


@story
async def test_a_larger_quota_and_a_disarm_are_enough(tmp_path: Path) -> None:
    config = config_of(tmp_path, **FAST)
    async with member_on(config) as (member, client):
        await fill(client)
        me = member.server.id
    async with member_on(config_of(tmp_path, quota_backend_bytes=64 * QUOTA)) as (_, client):
        assert await client.error(PUT, key=b"x") == status(errors.NoSpace)
        await client.call(ALARM, action=pb.AlarmRequest.DEACTIVATE, memberID=me, alarm=pb.NOSPACE)
        await client.put(b"x", VALUE)


@story
async def test_without_a_quota_there_is_no_end(tmp_path: Path) -> None:
    async with serving(tmp_path, quota_backend_bytes=-1, backend_batch_interval=0.01) as (_, c):
        for number in range(60):
            await c.put(b"k%d" % number, VALUE)
        assert (await c.call(STATUS)).dbSizeQuota == -1
        assert await alarms(c) == []


@story
async def test_many_writers_meet_the_quota_at_once(tmp_path: Path) -> None:
    """Each goes on until it is told; the alarm is on once."""
    async with serving(tmp_path, **FAST) as (member, client):
        others = [client.another() for _ in range(4)]
        done = await asyncio.gather(*(fill(other) for other in others * 4))
        for other in others:
            await other.close()
        assert await alarms(client) == [(member.server.id, pb.NOSPACE)]
        await refuses_writes(client)
        found = await client.call(RANGE, key=b"k", range_end=b"l", keys_only=True)
        # Who was told off as the one that crossed the quota was carried out all the same.
        assert sum(done) <= sum(kv.version for kv in found.kvs) <= sum(done) + len(done)
