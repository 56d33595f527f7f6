"""Maintenance.Snapshot: whole, a prefix of history, at the client's pace, and few at a time."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest
from support.embedded import Client, ending, read, serving, status, story
from support.rpc import COMPACT, HASH_KV, LEASE_GRANT, PUT

from kvorum import errors
from kvorum.api import snapshot as snapshot_module
from kvorum.backend import Backend
from kvorum.errors import Code
from kvorum.h2 import Call, StreamCall
from kvorum.mvcc.store import Store
from kvorum.pb import etcdserverpb as pb
from kvorum.snap import BoltFile, convert_bolt

SNAPSHOT = "/etcdserverpb.Maintenance/Snapshot"


async def opened(client: Client) -> StreamCall:
    stream = await client.stream(SNAPSHOT)
    await stream.send(pb.SnapshotRequest().SerializeToString())
    await stream.end()
    return stream


async def taken(client: Client) -> list[pb.SnapshotResponse]:
    stream = await opened(client)
    found = []
    while (response := await read(stream, pb.SnapshotResponse)) is not None:
        found.append(response)
    return found


def file_of(messages: list[pb.SnapshotResponse], path: Path) -> Path:
    path.write_bytes(b"".join(message.blob for message in messages))
    return path


async def fill(client: Client, count: int = 300) -> None:
    await client.call(LEASE_GRANT, ID=7, TTL=1000)
    for number in range(count):
        await client.put(b"k%d" % (number % 50), b"%d" % number * 300, lease=7 * (number % 2))


@story
async def test_blocks_digest_and_version(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        await fill(client)
        messages = await taken(client)
    *blocks, last = messages
    assert {len(block.blob) for block in blocks[:-1]} == {32768}
    assert 0 < len(blocks[-1].blob) <= 32768
    size = sum(len(block.blob) for block in blocks)
    left = size
    for block in blocks:
        left -= len(block.blob)
        assert (block.remaining_bytes, block.HasField("header")) == (left, False)
    digest = hashlib.sha256(b"".join(block.blob for block in blocks)).digest()
    assert (last.blob, last.remaining_bytes) == (digest, 0)
    assert {message.version for message in messages} == {"3.7.0"}
    with BoltFile(file_of(messages, tmp_path / "snap")) as file:
        assert file.db_size == size
        assert len(file.buckets()) == 10
        assert len(list(file.items(b"key"))) == 300
        assert len(list(file.items(b"lease"))) == 1


async def hash_in(snapshot: Path, folder: Path) -> tuple[int, int]:
    """The revision of a saved snapshot, and the hash there."""
    convert_bolt(snapshot, folder / "restored.mdb")
    backend = Backend(folder / "restored.mdb", loop=asyncio.get_running_loop())
    try:
        store = Store(backend)
        store.restore()
        found, rev = await store.hash_kv()
        return rev, found.hash
    finally:
        backend.close()


@story
async def test_while_ten_thousand_keys_are_written(tmp_path: Path) -> None:
    """What is saved is the state at one revision: it has the hash that the member has there."""
    async with serving(tmp_path, backend_batch_interval=0.005) as (_, client):
        await fill(client)
        await client.call(COMPACT, revision=100)
        stop = asyncio.Event()

        async def write(name: int) -> int:
            count = 0
            while not stop.is_set() or count < 2500:
                await client.put(b"w%d/%d" % (name, count % 700), b"x" * 200)
                count += 1
            return count

        writers = [asyncio.create_task(write(name)) for name in range(4)]
        await asyncio.sleep(0.05)
        saved = [await taken(client) for _ in range(3)]
        stop.set()
        assert sum(await asyncio.gather(*writers)) >= 10_000
        revisions = []
        for number, messages in enumerate(saved):
            folder = tmp_path / str(number)
            folder.mkdir()
            rev, value = await hash_in(file_of(messages, folder / "snap"), folder)
            assert (await client.call(HASH_KV, revision=rev)).hash == value
            revisions.append(rev)
        assert 302 < revisions[0] < revisions[1] < revisions[2]


async def big(client: Client, megabytes: int = 8) -> None:
    for number in range(megabytes):
        await client.put(b"big%d" % number, bytes(1_000_000))


@story
async def test_a_client_that_does_not_read_costs_little(tmp_path: Path) -> None:
    """No more than a backlog waits for it; and when it reads again, all comes."""
    calls: list[Call] = []

    class Watched(snapshot_module._Outlet):
        def __init__(self, call: Call, *others: Any) -> None:
            calls.append(call)
            super().__init__(call, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshot_module, "_Outlet", Watched)
        await read_late(tmp_path, calls)


async def read_late(folder: Path, calls: list[Call]) -> None:
    async with serving(folder) as (_, client):
        await big(client, 24)
        other = client.another()
        stream = await opened(other)
        first = await read(stream, pb.SnapshotResponse)
        (call,) = calls
        backlogs = []
        while len(backlogs) < 20:
            backlogs.append(call.backlog)
            await client.put(b"meanwhile")
        assert 0 < max(backlogs) < 2 * snapshot_module.BACKLOG
        assert backlogs[-1] == backlogs[-2]
        size = len(first.blob)
        while (response := await read(stream, pb.SnapshotResponse)) is not None:
            size += len(response.blob)
        assert size == first.remaining_bytes + len(first.blob) + 32
        await other.close()


@story
async def test_a_client_that_goes_away(tmp_path: Path) -> None:
    async with serving(tmp_path) as (member, client):
        await big(client)
        for way in ("cancelled", "lost"):
            other = client.another()
            stream = await opened(other)
            await read(stream, pb.SnapshotResponse)
            assert member.server.backend.database.views == 1
            if way == "cancelled":
                stream.cancel()
            else:
                await other.close()
            await until(lambda: member.server.backend.database.views == 0)
            await other.close()
        assert (await taken(client))[-1].remaining_bytes == 0


async def until(true: Any) -> None:
    while not true():  # noqa: ASYNC110 - nothing tells when the server has noticed
        await asyncio.sleep(0.001)


@story
async def test_a_client_that_stalls_is_given_up(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshot_module, "STALL", 0.1)
        async with serving(tmp_path) as (member, client):
            await big(client, 24)
            stream = await opened(client)
            await until(lambda: member.server.backend.database.views == 1)
            await until(lambda: member.server.backend.database.views == 0)
            assert await ending(stream) == (
                Code.ABORTED,
                "snapshot: nothing was taken for 0 seconds",
            )


@story
async def test_several_at_once_but_not_many(tmp_path: Path) -> None:
    async with serving(tmp_path) as (member, client):
        await big(client, 24)
        others = [client.another() for _ in range(snapshot_module.MAX_SNAPSHOTS)]
        streams = [await opened(other) for other in others]
        for stream in streams:
            await read(stream, pb.SnapshotResponse)
        assert member.server.backend.database.views == len(streams)
        refused = await opened(client)
        assert await ending(refused) == status(errors.RequestTooManyRequests)
        await client.put(b"they disturb nobody")
        streams[0].cancel()
        await until(lambda: member.server.backend.database.views == len(streams) - 1)
        assert (await taken(client))[-1].remaining_bytes == 0
        ends = await asyncio.gather(*(ending(stream) for stream in streams[1:]))
        assert set(ends) == {(Code.OK, "")}
        for other in others:
            await other.close()


@story
async def test_a_member_that_stops_meanwhile(tmp_path: Path) -> None:
    async with serving(tmp_path) as (member, client):
        await big(client, 24)
        stream = await opened(client)
        await read(stream, pb.SnapshotResponse)
        await member.stop()
        code, _ = await ending(stream)
        assert code != Code.OK


@story
async def test_a_malformed_request(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        stream = await client.stream(SNAPSHOT)
        await stream.send(b"\xff")
        code, text = await ending(stream)
        assert code == Code.INTERNAL
        assert "unmarshal" in text
        assert await client.put(b"k") > 0
        await client.call(PUT, key=b"k")
