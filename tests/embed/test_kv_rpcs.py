"""etcdserverpb.KV on a member as a whole."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.embedded import Client, ending, op, read, serving, status, story
from support.rpc import COMPACT, DELETE_RANGE, HASH_KV, LEASE_GRANT, PUT, RANGE, TXN

from kvorum import errors, failpoint
from kvorum.errors import Code
from kvorum.h2 import StreamCall
from kvorum.pb import etcdserverpb as pb
from kvorum.wal import WriteTimes

STREAM = "/etcdserverpb.KV/RangeStream"
ALL = {"key": b"\0", "range_end": b"\0"}


# Range, Put, DeleteRange, Txn


@story
async def test_headers_tell_who_answers_and_at_which_revision(tmp_path: Path) -> None:
    async with serving(tmp_path) as (member, client):
        server = member.server
        for response in (
            await client.call(PUT, key=b"a"),
            await client.call(RANGE, key=b"a"),
            await client.call(RANGE, key=b"a", serializable=True),
            await client.call(DELETE_RANGE, key=b"b"),
            await client.call(TXN, success=[op("range", key=b"a")]),
        ):
            assert response.header == pb.ResponseHeader(
                cluster_id=server.cluster.id, member_id=server.id, revision=2, raft_term=2
            )


@story
async def test_writes_are_read_back(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        assert await client.put(b"a", b"1") == 2
        assert await client.put(b"b", b"2") == 3
        response = await client.call(PUT, key=b"a", value=b"3", prev_kv=True)
        assert (response.prev_kv.value, response.header.revision) == (b"1", 4)
        for serializable in (False, True):
            found = await client.call(RANGE, **ALL, serializable=serializable)
            assert [(kv.key, kv.value, kv.version) for kv in found.kvs] == [
                (b"a", b"3", 2),
                (b"b", b"2", 1),
            ]
        old = await client.call(RANGE, **ALL, revision=2)
        assert [(kv.key, kv.value) for kv in old.kvs] == [(b"a", b"1")]
        assert old.header.revision == 4
        gone = await client.call(DELETE_RANGE, **ALL, prev_kv=True)
        assert (gone.deleted, gone.header.revision) == (2, 5)
        assert [kv.key for kv in gone.prev_kvs] == [b"a", b"b"]
        assert (await client.call(RANGE, **ALL)).count == 0


@story
async def test_a_read_after_a_write_sees_it_on_every_connection(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        other = client.another()
        for number in range(50):
            value = b"%d" % number
            await client.put(b"k", value)
            assert (await other.call(RANGE, key=b"k")).kvs[0].value == value
        await other.close()


@story
async def test_concurrent_increments_lose_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        await client.put(b"n", b"0")

        async def increment() -> None:
            while True:
                kv = (await client.call(RANGE, key=b"n")).kvs[0]
                same = pb.Compare(key=b"n", target=pb.Compare.MOD, mod_revision=kv.mod_revision)
                put = op("put", key=b"n", value=b"%d" % (int(kv.value) + 1))
                if (await client.call(TXN, compare=[same], success=[put])).succeeded:
                    return

        await asyncio.gather(*(increment() for _ in range(30)))
        kv = (await client.call(RANGE, key=b"n")).kvs[0]
        assert (kv.value, kv.version) == (b"30", 31)


@story
async def test_a_transaction_goes_through_the_log_only_to_write(tmp_path: Path) -> None:
    async with serving(tmp_path) as (member, client):
        await client.put(b"a")
        applier = member.server.applier
        before = applier.index
        for serializable in (True, False):
            ranges = [op("range", key=b"a", serializable=serializable)]
            found = await client.call(TXN, success=ranges)
            assert found.responses[0].response_range.kvs[0].key == b"a"
        assert applier.index == before
        await client.call(TXN, success=[op("range", key=b"a"), op("delete_range", key=b"a")])
        assert applier.index == before + 1


@pytest.mark.parametrize(
    ("rpc", "fields", "error"),
    [
        (RANGE, {}, errors.EmptyKey),
        (RANGE, {"key": b"a", "sort_order": 9}, errors.InvalidSortOption),
        (RANGE, {"key": b"a", "revision": 99}, errors.FutureRev),
        (RANGE, {"key": b"a", "revision": 99, "serializable": True}, errors.FutureRev),
        (RANGE, {"key": b"a", "revision": 2}, errors.Compacted),
        (PUT, {}, errors.EmptyKey),
        (PUT, {"key": b"a", "ignore_value": True, "value": b"v"}, errors.ValueProvided),
        (PUT, {"key": b"a", "ignore_lease": True, "lease": 1}, errors.LeaseProvided),
        (PUT, {"key": b"x", "ignore_value": True}, errors.KeyNotFound),
        (PUT, {"key": b"a", "lease": 77}, errors.LeaseNotFound),
        (PUT, {"key": b"a", "value": bytes(2048)}, errors.RequestTooLarge),
        (DELETE_RANGE, {"range_end": b"\0"}, errors.EmptyKey),
        (TXN, {"success": [pb.RequestOp()]}, errors.KeyNotFound),
        (TXN, {"success": [op("put", key=b"a")] * 2}, errors.DuplicateKey),
        (TXN, {"success": [op("range", key=b"a")] * 5}, errors.TooManyOps),
        (TXN, {"compare": [pb.Compare()]}, errors.EmptyKey),
        (TXN, {"success": [op("range", key=b"a", revision=99)]}, errors.FutureRev),
        (
            TXN,
            {"success": [op("range", key=b"a", revision=2, serializable=True)]},
            errors.Compacted,
        ),
        (TXN, {"success": [op("put", key=b"x", lease=77)]}, errors.LeaseNotFound),
        (COMPACT, {"revision": 3}, errors.Compacted),
        (COMPACT, {"revision": 99}, errors.FutureRev),
        (COMPACT, {"revision": 99, "physical": True}, errors.FutureRev),
        (COMPACT, {"revision": 3, "physical": True}, errors.Compacted),
    ],
)
@story
async def test_refusals(
    tmp_path: Path, rpc: Any, fields: dict[str, Any], error: type[errors.EtcdError]
) -> None:
    async with serving(tmp_path, max_txn_ops=4, max_request_bytes=2000) as (member, client):
        for _ in range(3):
            await client.put(b"a")
        await client.call(COMPACT, revision=3)
        assert await client.error(rpc, **fields) == status(error)
        assert await client.put(b"a") == 5  # nothing happened, and it goes on
        assert not member.server.failure.done()


# Requests that are none


@pytest.mark.parametrize("method", ["Range", "Put", "DeleteRange", "Txn", "Compact"])
@story
async def test_unparsable_requests(tmp_path: Path, method: str) -> None:
    async with serving(tmp_path) as (_, client):
        code, text = await client.raw_error(f"/etcdserverpb.KV/{method}", b"\xff\xff")
        assert code is Code.INTERNAL
        assert text.startswith("grpc: error unmarshalling request: ")
        assert await client.put(b"k") == 2


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/etcdserverpb.KV/Nothing", "unknown method Nothing for service etcdserverpb.KV"),
        ("/etcdserverpb.Nothing/Put", "unknown service etcdserverpb.Nothing"),
        ("/Put", 'malformed method name: "/Put"'),
    ],
)
@story
async def test_methods_that_are_not_there(tmp_path: Path, path: str, text: str) -> None:
    async with serving(tmp_path) as (_, client):
        assert await client.raw_error(path, b"") == (Code.UNIMPLEMENTED, text)


@story
@pytest.mark.plain
async def test_a_deadline_ends_a_call_and_not_the_request(tmp_path: Path) -> None:
    """The client hears at once; the entry is in the log and will be applied."""
    async with serving(tmp_path) as (member, client):
        member.server._disk._times = WriteTimes(0.0, 1.0)  # so the log's thread writes the next
        failpoint.enable("walBeforeSync", "1*sleep(300)")
        try:
            late = client.channel.unary(
                PUT.path, pb.PutRequest(key=b"k").SerializeToString(), timeout=0.05
            )
            with pytest.raises(Exception, match="deadline exceeded"):
                await late
        finally:
            failpoint.disable("walBeforeSync")
        assert (await client.call(RANGE, key=b"k")).count in (0, 1)
        assert await client.put(b"after") == 3
        assert (await client.call(RANGE, key=b"k")).count == 1
        assert member.server.proposer.waiting == {}


# Compact


@story
async def test_a_physical_compaction_is_answered_when_it_is_done(tmp_path: Path) -> None:
    async with serving(tmp_path, compaction_batch_limit=10) as (member, client):
        for number in range(100):
            await client.put(b"k", b"%d" % number)
        failpoint.enable("compactBeforeCommitBatch", "1*sleep(50)")
        try:
            response = await client.call(COMPACT, revision=90, physical=True)
        finally:
            failpoint.disable("compactBeforeCommitBatch")
        server = member.server
        assert response.header.revision == 101
        assert not server.store.compactions
        left = server.backend.range("key", b"", None)
        assert len(left) == 12
        with server.backend.read_view() as view:
            assert view.get("meta", b"finishedCompactRev") == (90).to_bytes(
                8, "big"
            ) + b"_" + bytes(8)


@story
async def test_a_logical_one_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path, compaction_batch_limit=10) as (member, client):
        for number in range(100):
            await client.put(b"k", b"%d" % number)
        await client.call(COMPACT, revision=90)
        assert member.server.store.compactions
        assert await client.error(RANGE, key=b"k", revision=89) == status(errors.Compacted)
        assert (await client.call(RANGE, key=b"k", revision=90)).kvs[0].value == b"88"
        # A physical one waits for those before it, even if there is nothing left to do for it.
        assert await client.error(COMPACT, revision=90, physical=True) == status(errors.Compacted)
        assert not member.server.store.compactions


# RangeStream


async def range_stream(client: Client, **fields: Any) -> StreamCall:
    request = pb.RangeRequest(**fields).SerializeToString()
    return await client.channel.server_stream(STREAM, request)


async def chunks(stream: StreamCall) -> list[pb.RangeResponse]:
    found = []
    while (message := await read(stream, pb.RangeStreamResponse)) is not None:
        found.append(message.range_response)
    return found


async def fill(client: Client, count: int, size: int = 1) -> None:
    await asyncio.gather(*(client.put(b"k%04d" % i, bytes(size)) for i in range(count)))


@story
async def test_a_stream_gives_what_a_range_gives(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        await fill(client, 137)
        for fields in (
            {},
            {"serializable": True},
            {"keys_only": True},
            {"revision": 50},
            {"limit": 1},
            {"limit": 10},
            {"limit": 11},
            {"limit": 136},
            {"limit": 137},
            {"limit": 138},
            {"limit": -1},
            {"key": b"k0007", "range_end": b""},
            {"key": b"k0100", "range_end": b"k0110"},
            {"key": b"z"},
            {"count_only": True},
            {"count_only": True, "limit": 3},
            {"sort_order": 1},
            {"sort_target": 3},
        ):
            request: dict[str, Any] = {**ALL, **fields}
            whole = await client.call(RANGE, **request)
            parts = await chunks(await range_stream(client, **request))
            *others, last = parts
            assert all(part.kvs and not part.HasField("header") for part in others), fields
            assert not any(part.more or part.count for part in others)
            assert [kv for part in parts for kv in part.kvs] == list(whole.kvs), fields
            assert (last.header, last.more) == (whole.header, whole.more), fields
            assert last.count == whole.count, fields


@story
async def test_chunks_begin_small_and_grow_towards_the_largest_request(tmp_path: Path) -> None:
    async with serving(tmp_path, max_request_bytes=20_000) as (_, client):
        await fill(client, 300, 100)
        sizes = [len(part.kvs) for part in await chunks(await range_stream(client, **ALL))]
        assert sizes[:4] == [10, 20, 40, 80]  # of about 110 bytes each, aiming at 20,000
        assert sum(sizes) == 300
        assert max(sizes) <= 160


@story
async def test_chunks_shrink_when_pairs_become_large(tmp_path: Path) -> None:
    async with serving(tmp_path, max_request_bytes=20_000) as (_, client):
        await fill(client, 70)
        for number in range(200):
            await client.put(b"l%03d" % number, bytes(18_000))
        sizes = [len(part.kvs) for part in await chunks(await range_stream(client, **ALL))]
        assert sizes[:8] == [10, 20, 40, 80, 40, 20, 10, 5]
        assert sizes[8:] == [2] * 22 + [1]
        assert sum(sizes) == 270


@story
async def test_a_stream_stays_at_its_revision(tmp_path: Path) -> None:
    """While it goes on, keys are changed, deleted and added behind and before it."""
    async with serving(tmp_path) as (_, client):
        await fill(client, 200, 100_000)
        stream = await range_stream(client, **ALL)
        first = (await read(stream, pb.RangeStreamResponse)).range_response
        assert [kv.key for kv in first.kvs] == [b"k%04d" % i for i in range(10)]
        await client.call(DELETE_RANGE, key=b"k0150", range_end=b"k0160")
        await client.put(b"k0190", b"changed")
        await client.put(b"k0000", b"changed")
        await client.put(b"k0195x", b"new")
        parts = [first, *await chunks(stream)]
        found = [kv for part in parts for kv in part.kvs]
        assert [kv.key for kv in found] == [b"k%04d" % i for i in range(200)]
        assert {kv.value for kv in found} == {bytes(100_000)}
        assert (parts[-1].header.revision, parts[-1].count) == (201, 200)


@story
async def test_a_slow_reader_holds_the_stream_up_and_nothing_else(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        await fill(client, 400, 100_000)
        failpoint.enable("beforeRangeStreamChunk", "sleep(0)")  # to be counted
        try:
            stream = await range_stream(client, **ALL)
            stream.rpc.pause_reading()
            other = client.another()
            for number in range(100):
                await other.put(b"x%d" % number)
            unread = failpoint.status("beforeRangeStreamChunk")[1]
            stream.rpc.resume_reading()
            parts = await chunks(stream)
            assert sum(len(part.kvs) for part in parts) == 400
            assert unread < failpoint.status("beforeRangeStreamChunk")[1] / 2
            await other.close()
        finally:
            failpoint.disable("beforeRangeStreamChunk")


@story
async def test_a_client_that_leaves_ends_its_stream(tmp_path: Path) -> None:
    async with serving(tmp_path) as (member, client):
        await fill(client, 200, 100_000)
        for _ in range(5):
            stream = await range_stream(client, **ALL)
            await read(stream, pb.RangeStreamResponse)
            stream.cancel()
        assert await client.put(b"after") == 202
        assert not member.server.failure.done()


@story
async def test_a_compaction_meets_a_stream(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        await fill(client, 400, 100_000)
        stream = await range_stream(client, **ALL)
        stream.rpc.pause_reading()
        await client.put(b"new")
        await client.put(b"newer")
        await client.call(COMPACT, revision=403)
        stream.rpc.resume_reading()
        assert await ending(stream) == status(errors.Compacted)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, status(errors.EmptyKey)),
        ({"key": b"a", "sort_target": 9}, status(errors.InvalidSortOption)),
        (
            {"key": b"a", "sort_order": 2},
            (Code.UNIMPLEMENTED, "RangeStream does not support custom sort orders"),
        ),
        (
            {"key": b"a", "sort_order": 1, "sort_target": 1},
            (Code.UNIMPLEMENTED, "RangeStream does not support custom sort orders"),
        ),
        (
            {"key": b"a", "max_create_revision": 1},
            (Code.UNIMPLEMENTED, "RangeStream does not support revision filters"),
        ),
        ({"key": b"a", "revision": 9}, status(errors.FutureRev)),
        ({"key": b"a", "revision": 9, "count_only": True}, status(errors.FutureRev)),
        ({"key": b"a", "revision": 2, "serializable": True}, status(errors.Compacted)),
    ],
)
@story
async def test_refused_streams(
    tmp_path: Path, fields: dict[str, Any], expected: tuple[Code, str]
) -> None:
    async with serving(tmp_path) as (_, client):
        await client.put(b"a")
        await client.put(b"a")
        await client.call(COMPACT, revision=3)
        assert await ending(await range_stream(client, **fields)) == expected


@story
async def test_an_unparsable_stream_request(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        stream = await client.channel.server_stream(STREAM, b"\xff\xff")
        code, text = await ending(stream)
        assert code is Code.INTERNAL
        assert text.startswith("grpc: failed to unmarshal the received message: ")


@story
async def test_a_stream_takes_one_request(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        await fill(client, 3)
        stream = await client.stream(STREAM)
        request = pb.RangeRequest(**ALL).SerializeToString()
        await stream.send(request)
        await stream.send(request)
        await stream.end()
        code, text = await ending(stream)
        assert code is Code.INTERNAL
        assert "received multiple request messages" in text


@story
async def test_a_stream_without_a_request(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        stream = await client.channel.stream(STREAM, timeout=1.0)
        await stream.end()
        code, text = await ending(stream)
        assert code is Code.INTERNAL
        assert "received no request message" in text


# HashKV over the same history


@story
async def test_hashes_follow_the_history(tmp_path: Path) -> None:
    async with serving(tmp_path / "a") as (_, a), serving(tmp_path / "b") as (_, b):
        for client in (a, b):
            await client.call(LEASE_GRANT, ID=5, TTL=100)
            for number in range(30):
                await client.put(b"k%d" % (number % 7), b"%d" % number, lease=5 * (number % 2))
            await client.call(DELETE_RANGE, key=b"k3")
        for revision in (0, 1, 10, 32):
            first = await a.call(HASH_KV, revision=revision)
            second = await b.call(HASH_KV, revision=revision)
            assert (first.hash, first.compact_revision) == (second.hash, second.compact_revision)
            assert first.hash_revision == (revision or 32)
        await a.put(b"k3")
        assert (await a.call(HASH_KV)).hash != (await b.call(HASH_KV)).hash
        assert await a.error(HASH_KV, revision=99) == status(errors.FutureRev)
        await a.call(COMPACT, revision=20, physical=True)
        assert await a.error(HASH_KV, revision=19) == status(errors.Compacted)
        assert (await a.call(HASH_KV)).compact_revision == 20
