"""etcdserverpb.Watch on a member as a whole; the rules of watching have tests of their own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.embedded import Client, config_of, ending, member_on, op, read, serving, status, story
from support.rpc import COMPACT, DELETE_RANGE, TXN, WATCH_PATH

from kvorum import errors
from kvorum.errors import Code
from kvorum.h2 import StreamCall
from kvorum.mvcc.watch import WatchLimits
from kvorum.pb import etcdserverpb as pb

ALL = {"key": b"\0", "range_end": b"\0"}


async def create(stream: StreamCall, **fields: Any) -> pb.WatchResponse:
    request = pb.WatchRequest(create_request=pb.WatchCreateRequest(**fields))
    await stream.send(request.SerializeToString())
    return await response(stream)


async def response(stream: StreamCall) -> pb.WatchResponse:
    message = await read(stream, pb.WatchResponse)
    assert isinstance(message, pb.WatchResponse)
    return message


async def watching(client: Client, **fields: Any) -> StreamCall:
    stream = await client.stream(WATCH_PATH)
    created = await create(stream, **fields)
    assert created.created, created
    assert not created.canceled, created
    return stream


async def events(stream: StreamCall, count: int) -> list[tuple[int, bytes, int]]:
    """So many events: (type, key, revision)."""
    found: list[tuple[int, bytes, int]] = []
    while len(found) < count:
        message = await response(stream)
        assert not message.canceled, message
        found += [(e.type, e.kv.key, e.kv.mod_revision) for e in message.events]
    assert len(found) == count
    return found


@story
async def test_what_is_written_is_seen_by_those_who_asked(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        one = await watching(client, key=b"a")
        many = await watching(client, key=b"a", range_end=b"c", prev_kv=True)
        await client.put(b"a", b"1")
        await client.put(b"b")
        await client.put(b"c")
        ops = [op("put", key=b"a", value=b"2"), op("delete_range", key=b"b")]
        await client.call(TXN, success=ops)
        assert await events(one, 2) == [(0, b"a", 2), (0, b"a", 5)]
        first, second, third = [await response(many) for _ in range(3)]
        assert [len(r.events) for r in (first, second, third)] == [1, 1, 2]
        assert [e.prev_kv.value for e in third.events] == [b"1", b""]
        assert third.header.revision == 5


@story
async def test_history_and_present_join_without_a_seam(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        for number in range(500):
            await client.put(b"k%d" % (number % 10))
        stream = await watching(client, **ALL, start_revision=100)
        writer = asyncio.ensure_future(write(client, 500))
        found = await events(stream, 502 - 100 + 500)
        await writer
        assert [revision for _, _, revision in found] == list(range(100, 1002))


async def write(client: Client, count: int) -> None:
    for number in range(count):
        await client.put(b"n%d" % number)


@story
async def test_a_revision_that_was_compacted(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        for _ in range(5):
            await client.put(b"k")
        await client.call(COMPACT, revision=4)
        stream = await client.stream(WATCH_PATH)
        created = await create(stream, key=b"k", start_revision=2)
        assert created.created
        cancelled = await response(stream)
        assert (cancelled.canceled, cancelled.compact_revision) == (True, 4)
        assert not (await create(stream, key=b"k", start_revision=4)).canceled
        assert len(await events(stream, 3)) == 3


@story
async def test_many_watches_share_a_stream_and_end_one_by_one(tmp_path: Path) -> None:
    async with serving(tmp_path) as (member, client):
        stream = await watching(client, key=b"k0")
        for number in range(1, 50):
            assert (await create(stream, key=b"k%d" % number)).watch_id == number
        cancel = pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=7))
        await stream.send(cancel.SerializeToString())
        gone = await response(stream)
        assert (gone.watch_id, gone.canceled) == (7, True)
        for number in range(50):
            await client.put(b"k%d" % number)
        seen = [(await response(stream)).watch_id for _ in range(49)]
        assert seen == [number for number in range(50) if number != 7]
        assert member.telemetry.mvcc.watchers.read() == 49
        await stream.end()
        assert await ending(stream) == (Code.OK, "")
        assert member.telemetry.mvcc.watchers.read() == 0
        assert member.telemetry.mvcc.watch_streams.read() == 0


@story
async def test_progress_on_demand_and_by_the_clock(tmp_path: Path) -> None:
    config = config_of(tmp_path, watch_progress_notify_interval=0.1)
    async with member_on(config) as (_, client):
        stream = await watching(client, key=b"k", progress_notify=True)
        await client.put(b"other")
        by_clock = await response(stream)
        assert (len(by_clock.events), by_clock.watch_id) == (0, 0)
        quiet = await watching(client, key=b"k")
        request = pb.WatchRequest(progress_request=pb.WatchProgressRequest())
        await quiet.send(request.SerializeToString())
        on_demand = await response(quiet)
        assert (len(on_demand.events), on_demand.watch_id) == (0, -1)
        assert on_demand.header.revision == 2


@story
async def test_a_request_that_is_none_ends_the_stream_alone(tmp_path: Path) -> None:
    async with serving(tmp_path) as (member, client):
        good = await watching(client, key=b"k")
        bad = await watching(client, key=b"k")
        await bad.send(b"\xff\xff")
        code, text = await ending(bad)
        assert code is Code.INTERNAL
        assert text.startswith("grpc: failed to unmarshal the received message: ")
        await client.put(b"k")
        assert await events(good, 1) == [(0, b"k", 2)]
        assert member.telemetry.mvcc.watchers.read() == 1


@story
async def test_a_slow_reader_gets_everything_in_the_end(tmp_path: Path) -> None:
    """What it does not read is not kept for it in memory: it is read from history again."""
    async with serving(tmp_path) as (member, client):
        others = client.another(), client.another()
        slow, fast = [await watching(other, **ALL) for other in others]
        slow.rpc.pause_reading()
        reading = asyncio.ensure_future(events(fast, 300))
        for number in range(300):
            await client.put(b"k%d" % (number % 20), bytes(30_000))
        assert [revision for _, _, revision in await reading] == list(range(2, 302))
        unsent = max(
            call.backlog
            for listener in member._listeners
            for link in listener.links
            for call in link._core.streams.values()  # type: ignore[union-attr]
        )
        assert unsent < 4_000_000  # of 9 MB
        slow.rpc.resume_reading()
        assert [revision for _, _, revision in await events(slow, 300)] == list(range(2, 302))
        for other in others:
            await other.close()


@story
async def test_a_client_that_only_asks_and_never_reads_is_put_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as (member, client):
        monkeypatch.setattr(member.server.hub, "limits", WatchLimits(control_backlog=5))
        other = client.another()
        stream = await watching(other, key=b"k")
        stream.rpc.pause_reading()
        for _ in range(4):
            await client.put(b"k", bytes(1_400_000))
        request = pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"x"))
        for _ in range(8):
            await stream.send(request.SerializeToString())
        await client.call(DELETE_RANGE, key=b"nothing")
        stream.rpc.resume_reading()
        assert await ending(stream) == status(errors.RequestTooManyRequests)
        assert await client.put(b"k") == 6
        await other.close()


@story
async def test_large_events_are_fragmented_if_asked_for(tmp_path: Path) -> None:
    async with serving(tmp_path, max_request_bytes=100_000) as (_, client):
        for number in range(60):
            await client.put(b"k%02d" % number, bytes(50_000))
        stream = await watching(client, **ALL, start_revision=2, fragment=True)
        pieces = []
        while not pieces or sum(len(piece.events) for piece in pieces) < 60:
            pieces.append(await response(stream))
        assert max(piece.ByteSize() for piece in pieces) <= 100_000 + 512 * 1024
        assert [piece.fragment for piece in pieces[:1]] == [True]


@story
async def test_streams_of_clients_that_vanish_are_forgotten(tmp_path: Path) -> None:
    async with serving(tmp_path) as (member, client):
        for _ in range(5):
            other = client.another()
            for _ in range(3):
                await watching(other, **ALL)
            await other.close()
        last = await watching(client, **ALL)
        await client.put(b"k")
        await events(last, 1)
        assert member.telemetry.mvcc.watchers.read() == 1
