"""etcdserverpb.Lease on a member as a whole, with real time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.embedded import Client, config_of, ending, member_on, read, serving, status, story
from support.rpc import (
    KEEP_ALIVE_PATH,
    LEASE_GRANT,
    LEASE_LEASES,
    LEASE_REVOKE,
    LEASE_TTL,
    PUT,
    RANGE,
    WATCH_PATH,
)

from kvorum import errors, failpoint
from kvorum.config import parse_gates
from kvorum.errors import Code
from kvorum.h2 import StreamCall
from kvorum.lease.lessor import Lessor, LessorLimits
from kvorum.pb import etcdserverpb as pb
from kvorum.types import LeaseID

FAST = {"heartbeat_interval": 10, "election_timeout": 50}
"""With these the shortest lease has one second."""


async def keep_alive(stream: StreamCall, lease: int) -> pb.LeaseKeepAliveResponse:
    await stream.send(pb.LeaseKeepAliveRequest(ID=lease).SerializeToString())
    answer = await read(stream, pb.LeaseKeepAliveResponse)
    assert isinstance(answer, pb.LeaseKeepAliveResponse)
    assert lease == answer.ID
    return answer


@story
async def test_granted_listed_looked_at_and_revoked(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        granted = await client.call(LEASE_GRANT, ID=7, TTL=100)
        assert (granted.ID, granted.TTL, granted.error) == (7, 100, "")
        assert (await client.call(LEASE_GRANT, ID=8, TTL=1)).TTL == 2  # the shortest
        for key in (b"b", b"a"):
            await client.put(key, lease=7)
        assert {lease.ID for lease in (await client.call(LEASE_LEASES)).leases} == {7, 8}
        found = await client.call(LEASE_TTL, ID=7, keys=True)
        assert (found.grantedTTL, list(found.keys)) == (100, [b"a", b"b"])
        assert 98 <= found.TTL <= 100
        assert list((await client.call(LEASE_TTL, ID=7)).keys) == []
        response = await client.call(LEASE_REVOKE, ID=7)
        assert response.header.revision == 4
        assert (await client.call(RANGE, key=b"\0", range_end=b"\0")).count == 0
        unknown = await client.call(LEASE_TTL, ID=7, keys=True)
        assert (unknown.TTL, unknown.grantedTTL) == (-1, 0)


@story
async def test_ids_are_made_up_if_none_is_given(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        made = {(await client.call(LEASE_GRANT, TTL=60)).ID for _ in range(10)}
        assert len(made) == 10
        assert all(number > 0 for number in made)
        given = await client.call(LEASE_GRANT, ID=-5, TTL=60)
        assert given.ID == -5
        assert (await client.call(LEASE_TTL, ID=-5)).grantedTTL == 60


@pytest.mark.parametrize(
    ("rpc", "fields", "error"),
    [
        (LEASE_GRANT, {"ID": 5, "TTL": 10}, errors.LeaseExist),
        (LEASE_GRANT, {"TTL": 9_000_000_001}, errors.LeaseTTLTooLarge),
        (LEASE_REVOKE, {"ID": 6}, errors.LeaseNotFound),
        (LEASE_REVOKE, {}, errors.LeaseNotFound),
        (PUT, {"key": b"k", "lease": 6}, errors.LeaseNotFound),
    ],
)
@story
async def test_refusals(
    tmp_path: Path, rpc: Any, fields: dict[str, Any], error: type[errors.EtcdError]
) -> None:
    async with serving(tmp_path) as (_, client):
        await client.call(LEASE_GRANT, ID=5, TTL=10)
        assert await client.error(rpc, **fields) == status(error)


@pytest.mark.parametrize("method", ["Grant", "Revoke", "TimeToLive", "Leases"])
@story
async def test_unparsable_requests(tmp_path: Path, method: str) -> None:
    async with serving(tmp_path) as (_, client):
        code, text = await client.raw_error(f"/etcdserverpb.Lease/Lease{method}", b"\xff")
        assert code is Code.INTERNAL
        assert text.startswith("grpc: error unmarshalling request: ")


# Keeping alive


@story
async def test_a_lease_is_kept_alive(tmp_path: Path) -> None:
    async with serving(tmp_path) as (member, client):
        await client.call(LEASE_GRANT, ID=7, TTL=50)
        stream = await client.stream(KEEP_ALIVE_PATH)
        lease = member.server.lessor.get(LeaseID(7))
        assert lease is not None
        lease.expiry -= 40
        answer = await keep_alive(stream, 7)
        assert (answer.TTL, answer.header.revision) == (50, 1)
        assert (await client.call(LEASE_TTL, ID=7)).TTL >= 48
        await stream.end()
        assert await ending(stream) == (Code.OK, "")


@story
async def test_one_stream_keeps_many_leases_and_answers_for_unknown_ones(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        stream = await client.stream(KEEP_ALIVE_PATH)
        for number in range(1, 6):
            await client.call(LEASE_GRANT, ID=number, TTL=10 * number)
        ttls = [(await keep_alive(stream, number)).TTL for number in range(7)]
        assert ttls == [0, 10, 20, 30, 40, 50, 0]
        await stream.send(b"\xff")
        code, text = await ending(stream)
        assert code is Code.INTERNAL
        assert text.startswith("grpc: failed to unmarshal the received message: ")


@story
async def test_an_expired_lease_is_answered_when_it_is_gone(tmp_path: Path) -> None:
    """Not before, since until then nobody can know; and with no time left."""
    async with serving(tmp_path, **FAST) as (member, client):
        await client.call(LEASE_GRANT, ID=7, TTL=1)
        await client.put(b"k", lease=7)
        watch = await watching(client, b"k")
        await read(watch, pb.WatchResponse)
        stream = await client.stream(KEEP_ALIVE_PATH)
        lease = member.server.lessor.get(LeaseID(7))
        assert lease is not None
        lease.expiry = 0.0  # the time is up, but its revocation comes when it was planned
        answer = await keep_alive(stream, 7)
        assert answer.TTL == 0
        (event,) = (await read(watch, pb.WatchResponse)).events
        assert (event.type, event.kv.key) == (1, b"k")


async def watching(client: Client, key: bytes) -> StreamCall:
    stream = await client.stream(WATCH_PATH)
    create = pb.WatchCreateRequest(key=key)
    await stream.send(pb.WatchRequest(create_request=create).SerializeToString())
    return stream


@story
@pytest.mark.plain
async def test_more_renewals_of_an_expired_lease_than_may_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The surplus is refused, each with its stream; the member does not mind."""
    async with serving(tmp_path) as (member, client):
        lessor = member.server.lessor
        monkeypatch.setattr(lessor, "limits", LessorLimits(waiters=3))
        monkeypatch.setattr(lessor, "expired", lambda now, limit: [])  # the revocation is late
        await client.call(LEASE_GRANT, ID=7, TTL=60)
        lease = lessor.get(LeaseID(7))
        assert lease is not None
        lease.expiry = 0.0
        streams = [await client.stream(KEEP_ALIVE_PATH) for _ in range(4)]
        request = pb.LeaseKeepAliveRequest(ID=7).SerializeToString()
        for stream in streams:
            await stream.send(request)
        assert await ending(streams[3]) == status(errors.RequestTooManyRequests)
        await client.call(LEASE_REVOKE, ID=7)
        for stream in streams[:3]:
            assert (await read(stream, pb.LeaseKeepAliveResponse)).TTL == 0
        assert not member.server.failure.done()


@story
async def test_who_is_not_primary_yet_renews_when_it_is(tmp_path: Path) -> None:
    """As a new leader, which first has to apply all of the former term."""
    async with serving(tmp_path) as (member, client):
        await client.call(LEASE_GRANT, ID=7, TTL=60)
        lessor = member.server.lessor
        lease = lessor.get(LeaseID(7))
        assert lease is not None
        waiting, asking = [await client.stream(KEEP_ALIVE_PATH) for _ in range(2)]
        lease.expiry = 0.0
        lessor._expiries.reset()  # nobody will revoke it
        await waiting.send(pb.LeaseKeepAliveRequest(ID=7).SerializeToString())
        await client.call(LEASE_LEASES)  # by now the renewal has arrived
        lessor.demote()
        await asking.send(pb.LeaseKeepAliveRequest(ID=7).SerializeToString())
        assert await client.error(LEASE_TTL, ID=7) == status(errors.LeaderChanged)
        assert [x.ID for x in (await client.call(LEASE_LEASES)).leases] == [7]
        lessor.promote(member.server.now(), 1.0)
        for stream in (waiting, asking):
            assert (await read(stream, pb.LeaseKeepAliveResponse)).TTL == 60


@story
async def test_renewals_of_one_stream_are_answered_in_order(tmp_path: Path) -> None:
    """Also if one has to wait, and although the client has no more to say."""
    async with serving(tmp_path) as (member, client):
        for lease in (7, 8):
            await client.call(LEASE_GRANT, ID=lease, TTL=60)
        late = member.server.lessor.get(LeaseID(7))
        assert late is not None
        late.expiry = 0.0
        stream = await client.stream(KEEP_ALIVE_PATH)
        for lease in (7, 8, 9):
            await stream.send(pb.LeaseKeepAliveRequest(ID=lease).SerializeToString())
        await stream.end()
        await client.call(LEASE_REVOKE, ID=7)
        answers = [await read(stream, pb.LeaseKeepAliveResponse) for _ in range(3)]
        assert [(x.ID, x.TTL) for x in answers] == [(7, 0), (8, 60), (9, 0)]
        assert await ending(stream) == (errors.Code.OK, "")


# Expiry


@story
async def test_expiry_deletes_all_keys_of_a_lease_in_one_revision(tmp_path: Path) -> None:
    async with serving(tmp_path, **FAST) as (member, client):
        await client.call(LEASE_GRANT, ID=7, TTL=1)
        for number in range(20):
            await client.put(b"k%02d" % number, lease=7)
        await client.put(b"other")
        stream = await client.stream(WATCH_PATH)
        create = pb.WatchCreateRequest(key=b"\0", range_end=b"\0", prev_kv=True)
        await stream.send(pb.WatchRequest(create_request=create).SerializeToString())
        assert (await read(stream, pb.WatchResponse)).created
        response = await read(stream, pb.WatchResponse)
        assert [event.kv.key for event in response.events] == [b"k%02d" % i for i in range(20)]
        assert {event.kv.mod_revision for event in response.events} == {23}
        assert {event.prev_kv.lease for event in response.events} == {7}
        left = await client.call(RANGE, key=b"\0", range_end=b"\0")
        assert [kv.key for kv in left.kvs] == [b"other"]
        assert member.telemetry.lease.expired.read() == 1


@story
async def test_a_key_that_changed_its_lease_stays(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        for lease in (7, 8):
            await client.call(LEASE_GRANT, ID=lease, TTL=60)
        await client.put(b"moved", lease=7)
        await client.put(b"moved", lease=8)
        await client.put(b"freed", lease=7)
        await client.put(b"freed")
        await client.put(b"kept", b"1", lease=7)
        await client.put(b"kept", b"2", ignore_lease=True)
        await client.call(LEASE_REVOKE, ID=7)
        left = await client.call(RANGE, key=b"\0", range_end=b"\0")
        assert [kv.key for kv in left.kvs] == [b"freed", b"moved"]


@story
async def test_leases_survive_a_restart_and_begin_anew(tmp_path: Path) -> None:
    config = config_of(tmp_path, **FAST)
    async with member_on(config) as (member, client):
        await client.call(LEASE_GRANT, ID=7, TTL=1)
        await client.call(LEASE_GRANT, ID=8, TTL=500)
        await client.put(b"short", lease=7)
        await client.put(b"long", lease=8)
        lease = member.server.lessor.get(LeaseID(8))
        assert lease is not None
        lease.expiry -= 400
    async with member_on(config) as (_, client):
        found = await client.call(LEASE_TTL, ID=8, keys=True)
        assert (found.grantedTTL, list(found.keys)) == (500, [b"long"])
        assert 498 <= found.TTL <= 501  # without checkpoints, the time begins anew
        stream = await watching(client, b"short")
        assert (await read(stream, pb.WatchResponse)).created
        (event,) = (await read(stream, pb.WatchResponse)).events
        assert event.kv.key == b"short"


@story
@pytest.mark.plain
async def test_with_checkpoints_the_time_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate LeaseCheckpoint: what is left is written down now and then; and a renewal is
    answered only when the log says that the whole time is there again."""
    limits = LessorLimits(min_ttl=1, checkpoint_interval=0.2)
    make = Lessor.__init__

    def quick(self: Lessor, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **{**kwargs, "limits": limits})

    monkeypatch.setattr(Lessor, "__init__", quick)
    config = config_of(tmp_path, feature_gates=parse_gates("LeaseCheckpoint=true"), **FAST)
    async with member_on(config) as (member, client):
        await client.call(LEASE_GRANT, ID=7, TTL=500)
        lease = member.server.lessor.get(LeaseID(7))
        assert lease is not None
        written = asyncio.Event()
        lessor = member.server.lessor
        checkpoint = lessor.checkpoint

        def noticed(*args: Any) -> None:
            checkpoint(*args)
            written.set()

        monkeypatch.setattr(lessor, "checkpoint", noticed)
        lease.expiry -= 400
        async with asyncio.timeout(10):
            await written.wait()
        assert 98 <= lease.remaining <= 100
    async with member_on(config) as (member, client):
        assert 98 <= (await client.call(LEASE_TTL, ID=7)).TTL <= 101
        before = member.server.applier.index
        stream = await client.stream(KEEP_ALIVE_PATH)
        assert (await keep_alive(stream, 7)).TTL == 500
        assert member.server.applier.index > before  # through the log
        assert (await client.call(LEASE_TTL, ID=7)).TTL >= 498
        before = member.server.applier.index
        assert (await keep_alive(stream, 7)).TTL == 500
        lease = member.server.lessor.get(LeaseID(7))
        assert lease is not None
        assert lease.remaining == 0


@story
async def test_without_the_gate_nothing_is_written_down(tmp_path: Path) -> None:
    async with serving(tmp_path, **FAST) as (member, client):
        await client.call(LEASE_GRANT, ID=7, TTL=500)
        before = member.server.applier.index
        failpoint.enable("beforeCheckpointInLeaseRenew", "sleep(0)")
        try:
            stream = await client.stream(KEEP_ALIVE_PATH)
            await keep_alive(stream, 7)
            assert failpoint.status("beforeCheckpointInLeaseRenew")[1] == 0
        finally:
            failpoint.disable("beforeCheckpointInLeaseRenew")
        assert member.server.applier.index == before
