"""Databases between members: whole, in bounded memory, interrupted at any place."""

from __future__ import annotations

import asyncio
import os
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google_crc32c import value as crc32c
from peerlab import CLUSTER, FAST, Node, RemovedMember, WrongMember, nodes
from peersite import RawServer, run, until

from kvorum.backend.image import FORMAT
from kvorum.peer import handshake, snapshot_receiver
from kvorum.peer.interface import OutgoingSnapshot
from kvorum.peer.message_codec import encode_framed
from kvorum.peer.sizes import humane_size
from kvorum.peer.snapshot_sender import IMAGE_PATH
from kvorum.raft import codec
from kvorum.raft.types import Message
from kvorum.snap.errors import SnapError

MIB = 1 << 20


def blocks(count: int, size: int = 65536) -> Iterator[bytes]:
    """A database whose pieces all differ."""
    for number in range(count):
        yield number.to_bytes(4, "big") * (size // 4)


def lend(node: Node, count: int, size: int = 65536) -> None:
    node.host.database = blocks(count, size)
    node.host.database_size = count * size


def leftovers(node: Node) -> list[str]:
    return os.listdir(node.host.folder)


def test_fifty_megabytes_in_bounded_memory(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(2, tmp_path) as (one, two):
            lend(one, 800)
            tracemalloc.start()
            one.transport.send([one.snapshot(two, 42)])
            await until(lambda: one.host.reports)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert one.host.reports == [(two.id, True)]
            ((message, path),) = two.host.snapshots
            assert message == one.snapshot(two, 42)
            assert path.parent == two.host.folder
            assert path.name.startswith("tmp")
            with path.open("rb") as file:
                assert all(file.read(65536) == block for block in blocks(800))
                assert file.read() == b""
            assert peak < 15 * MIB, f"{peak} bytes in both members together"
            sent, received = one.telemetry.transfer, two.telemetry.transfer
            assert sent.sent.with_labels("2").value == 1
            assert sent.sending.with_labels("2").value == 0
            assert sent.send_seconds.with_labels("2").count == 1
            assert received.received.with_labels("1").value == 1
            assert received.receiving.with_labels("1").value == 0
            assert received.receive_seconds.with_labels("1").count == 1
            assert two.telemetry.snap.db_fsync.count == two.telemetry.snap.db_save.count == 1
            assert one.telemetry.peer.sent_bytes.with_labels("2").value >= 50 * MIB
            assert "sent database snapshot" in one.log.texts()
            assert "received and saved database snapshot" in two.log.texts()

    run(work())


def test_messages_pass_a_snapshot_on_its_way(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(2, tmp_path) as (one, two):
            lend(one, 800)
            one.transport.send([one.snapshot(two)])
            await until(lambda: "receiving database snapshot" in two.log.texts())
            one.transport.send([one.message(two)])
            await until(lambda: two.host.got)
            assert one.host.reports == []
            await until(lambda: one.host.reports)

    run(work())


def test_one_snapshot_at_a_time_to_one_peer(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(2, tmp_path) as (one, two):
            lend(one, 100)
            one.transport.send([one.snapshot(two), one.snapshot(two)])
            await until(lambda: len(one.host.reports) == 2)
            assert sorted(one.host.reports) == [(2, False), (2, True)]
            assert len(two.host.snapshots) == 1

    run(work())


def test_a_database_that_cannot_be_read_fails_the_snapshot(tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"x" * 100_000
        raise OSError("disk error")

    async def work() -> None:
        async with nodes(2, tmp_path) as (one, two):
            one.host.database = broken()
            one.transport.send([one.snapshot(two)])
            await until(lambda: one.host.reports)
            assert one.host.reports == [(2, False)]
            await until(lambda: two.telemetry.transfer.receive_failures.children())
            await until(lambda: leftovers(two) == [])
            assert two.host.snapshots == []
            assert one.telemetry.transfer.send_failures.with_labels("2").value == 1
            failed = [f for t, f in one.log.lines if t == "failed to send database snapshot"]
            assert "disk error" in str(failed[0]["error"])

    run(work())


def test_a_host_without_a_database_fails_the_snapshot(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(2, tmp_path) as (one, two):

            @asynccontextmanager
            async def refuse(message: Message, *, image: bool) -> AsyncIterator[OutgoingSnapshot]:
                raise LookupError("no database")
                yield

            one.host.open_snapshot = refuse
            one.transport.send([one.snapshot(two)])
            await until(lambda: one.host.reports)
            assert one.host.reports == [(2, False)]
            assert one.host.unreachable == [2]

    run(work())


def test_a_receiver_that_dies_fails_the_snapshot_and_leaves_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(2, tmp_path) as (one, two):
            lend(one, 100_000)
            one.transport.send([one.snapshot(two)])
            await until(lambda: leftovers(two))
            two.deaf()
            await until(lambda: one.host.reports)
            assert one.host.reports == [(2, False)]
            await until(lambda: leftovers(two) == [])
            assert two.host.snapshots == []
            assert two.telemetry.transfer.receive_failures.with_labels("1").value == 1
            assert two.telemetry.transfer.receiving.with_labels("1").value == 0

    run(work())


def test_a_sender_that_stops_leaves_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(2, tmp_path) as (one, two):
            lend(one, 100_000)
            one.transport.send([one.snapshot(two)])
            await until(lambda: leftovers(two))
            one.transport.remove_peer(two.id)
            await until(lambda: one.host.reports)
            assert one.host.reports == [(2, False)]
            await until(lambda: leftovers(two) == [])

    run(work())


def test_a_receiver_that_stands_still_fails_the_snapshot(tmp_path: Path) -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.transport.pause_reading()
        await asyncio.sleep(30)

    async def work() -> None:
        server = await asyncio.start_server(swallow, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        node = Node(1, tmp_path, timing=replace(FAST, idle=0.2))
        node.transport.add_peer(2, [f"http://127.0.0.1:{port}"])
        lend(node, 10_000)
        to = Node(2, tmp_path)
        node.transport.send([node.snapshot(to)])
        await until(lambda: node.host.reports)
        assert node.host.reports == [(2, False)]
        failed = [f for t, f in node.log.lines if t == "failed to send database snapshot"]
        assert failed[0]["error"] == "TimeoutError" or isinstance(failed[0]["error"], TimeoutError)
        await node.close()
        await to.close()
        server.close()

    run(work())


def test_a_snapshot_for_nobody_is_reported(tmp_path: Path) -> None:
    async def work() -> None:
        node, other = Node(1, tmp_path), Node(2, tmp_path)
        node.transport.send([node.snapshot(other)])
        await until(lambda: node.host.reports == [(2, False)])
        node.transport.add_remote(other.id, [other.url])
        node.transport.send([node.snapshot(other)])
        await until(lambda: node.host.reports == [(2, False)] * 2)
        node.transport.pause()
        node.transport.send([node.snapshot(other)])
        await until(lambda: node.host.reports == [(2, False)] * 3)
        await node.close()
        await other.close()

    run(work())


@pytest.mark.parametrize(
    "error", [RemovedMember, WrongMember, SnapError(Path("db"), "broken"), OSError("disk full")]
)
def test_a_host_that_refuses_the_snapshot(tmp_path: Path, error: Any) -> None:
    async def work() -> None:
        async with nodes(2, tmp_path) as (one, two):
            two.host.refuse = error
            lend(one, 3)
            one.transport.send([one.snapshot(two)])
            await until(lambda: one.host.reports)
            assert one.host.reports == [(2, False)]
            assert leftovers(two) == []
            assert "failed to process Raft message" in two.log.texts()

    run(work())


# --- files of our own


def test_an_image_goes_to_a_member_that_can_use_it(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(2, tmp_path) as (one, two):
            lend(one, 50)
            one.host.lends_images = True
            one.transport.send([one.snapshot(two, 42)])
            await until(lambda: one.host.reports)
            assert one.host.reports == [(two.id, True)]
            ((_, path),) = two.host.snapshots
            assert path.read_bytes() == b"".join(blocks(50))  # and no checksum behind it
            sent = [fields for text, fields in two.log.lines if text.startswith("received and")]
            assert sent[0]["incoming_snapshot_size_bytes"] == 50 * 65536

    run(work())


def test_who_does_not_say_so_is_sent_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an etcd, or a member on a machine with other pages."""
    monkeypatch.setattr(handshake, "FORMAT", "lmdb-1-big-64-65536")

    async def work() -> None:
        async with nodes(2, tmp_path) as (one, two):
            lend(one, 3)
            one.host.lends_images = True
            one.transport.send([one.snapshot(two)])
            await until(lambda: one.host.reports)
            assert one.host.asked_for_images == [False]
            assert one.host.reports == [(two.id, True)]

    run(work())


def test_what_the_member_says_last_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with nodes(2, tmp_path) as (one, two):
            contact = one.transport.peers[two.id].contact
            assert contact.takes_images
            monkeypatch.setattr(handshake, "FORMAT", "another")
            one.deaf()
            await one.listen()
            await until(lambda: not contact.takes_images)

    run(work())


# --- what others may send


async def upload(
    node: Node, body: Any, path: str = "/raft/snapshot", **more: str
) -> tuple[int, bytes]:
    headers = {
        "X-Server-From": "2",
        "X-Server-Version": "3.5.1",
        "X-Min-Cluster-Version": "3.0.0",
        "X-Etcd-Cluster-ID": f"{CLUSTER:x}",
    }
    reply = await node.http.request(
        "POST", node.url, path, headers={**headers, **more}, body=body, timeout=10.0
    )
    return reply.status, reply.body


async def upload_image(node: Node, content: bytes, format: str = FORMAT) -> tuple[int, bytes]:
    body = encode_framed(node.snapshot(node)) + content
    return await upload(node, body, IMAGE_PATH, **{handshake.IMAGES: format})


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_an_image_with_its_checksum(tmp_path: Path, size: int) -> None:
    async def work() -> None:
        async with Node(1, tmp_path) as node:
            data = os.urandom(size)
            assert await upload_image(node, data + crc32c(data).to_bytes(4, "little")) == (204, b"")
            ((_, path),) = node.host.snapshots
            assert path.read_bytes() == data

    run(work())


@pytest.mark.parametrize("damage", ["a bit", "the end", "all"])
def test_an_image_that_is_not_what_was_sent(tmp_path: Path, damage: str) -> None:
    data = bytearray(os.urandom(2_000_000))
    data += crc32c(bytes(data)).to_bytes(4, "little")
    if damage == "a bit":
        data[1_234_567] ^= 1
    else:
        del data[-4096 if damage == "the end" else 0 :]

    async def work() -> None:
        async with Node(1, tmp_path) as node:
            status, text = await upload_image(node, bytes(data))
            assert status == 500
            assert b"its checksum is wrong" in text
            assert node.host.snapshots == []
            await until(lambda: leftovers(node) == [])

    run(work())


@pytest.mark.parametrize("format", ["", "lmdb-1-big-64-65536"])
def test_an_image_of_another_kind_is_refused(tmp_path: Path, format: str) -> None:
    async def work() -> None:
        async with Node(1, tmp_path) as node:
            answer = await upload_image(node, b"x" * 100_000, format)
            assert answer == (400, b"a database file for other machines\n")
            assert leftovers(node) == []
            failures = node.telemetry.transfer.receive_failures.children()
            assert sum(child.value for _, child in failures) == 1

    run(work())


@pytest.mark.parametrize(
    ("start", "status", "text"),
    [
        (b"", 400, b"failed to decode raft message (unexpected EOF)\n"),
        (b"\0\0\0\0\0\0\0\7\x08\x07", 400, b"failed to decode raft message (unexpected EOF)\n"),
        (
            b"\0\0\1\0\0\0\0\0",
            400,
            b"failed to decode raft message (1099511627776 bytes are announced, more than "
            b"67108864)\n",
        ),
        (b"\0\0\0\0\0\0\0\1\xff", 400, b"failed to decode raft message (bad varint)\n"),
        (b"\0\0\0\0\0\0\0\2\x08\x03", 400, b"wrong raft message type\n"),
        (b"\0\0\0\0\0\0\0\2\x08\x07", 400, b"wrong raft message type\n"),
    ],
)
def test_bodies_that_are_no_snapshot(
    tmp_path: Path, start: bytes, status: int, text: bytes
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for byte in start:  # one by one
            yield bytes((byte,))

    async def work() -> None:
        async with Node(1, tmp_path) as node:
            assert await upload(node, pieces()) == (status, text)
            assert leftovers(node) == []
            failures = node.telemetry.transfer.receive_failures.children()
            assert sum(child.value for _, child in failures) == 1

    run(work())


def test_a_snapshot_for_another_member_is_refused_before_it_is_stored(tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        other = Node(3, tmp_path)
        yield encode_framed(other.snapshot(other))
        await other.close()
        while True:
            yield b"x" * 65536

    async def work() -> None:
        async with Node(1, tmp_path) as node:
            status, text = await upload(node, endless())
            assert status == 500
            assert text.startswith(b"failed to process raft message (")
            assert leftovers(node) == []

    run(work())


def test_a_disk_that_fails(tmp_path: Path) -> None:
    async def work() -> None:
        async with Node(1, tmp_path) as node:
            node.host.folder = tmp_path / "missing"
            body = encode_framed(node.snapshot(node)) + b"database"
            status, text = await upload(node, body)
            assert status == 500
            assert text.startswith(b"failed to save KV snapshot (")
            assert node.host.snapshots == []

    run(work())


def test_snapshots_at_a_time_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_receiver, "MAX_INCOMING", 1)

    async def work() -> None:
        async with Node(1, tmp_path) as node:
            release = asyncio.Event()

            async def slow() -> AsyncIterator[bytes]:
                yield encode_framed(node.snapshot(node))
                await release.wait()

            first = asyncio.ensure_future(upload(node, slow()))
            await until(lambda: leftovers(node))
            body = encode_framed(node.snapshot(node))
            status, text = await upload(node, body)
            assert (status, text) == (
                500,
                b"failed to save KV snapshot (too many snapshots at a time)\n",
            )
            release.set()
            assert await first == (204, b"")

    run(work())


def test_the_wire_is_etcds(tmp_path: Path) -> None:
    """The framed message, then the raw file, chunked, with the headers of a post."""

    async def work() -> None:
        site = RawServer(b"HTTP/1.1 204 No Content\r\n\r\n")
        server = await asyncio.start_server(site.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        node, to = Node(1, tmp_path, timing=replace(FAST, probe=50.0)), Node(2, tmp_path)
        node.transport.add_peer(2, [f"http://127.0.0.1:{port}"])
        peer = node.transport.peers[2]
        for reader in peer._readers:
            reader.stop()
        lend(node, 2, 8)
        message = node.snapshot(to)
        node.transport.send([message])
        await until(lambda: node.host.reports == [(2, True)])
        data = codec.encode_message(message)
        assert site.bodies == [len(data).to_bytes(8, "big") + data + bytes(8) + b"\0\0\0\1" * 2]
        head = site.heads[0].decode().lower()
        assert head.startswith("post /raft/snapshot http/1.1\r\n")
        for line in (
            "content-type: application/octet-stream",
            "x-server-from: 1",
            "x-etcd-cluster-id: c1c1",
            f"x-peerurls: {node.url}",
            "transfer-encoding: chunked",
        ):
            assert f"\r\n{line}\r\n" in head
        await node.close()
        await to.close()
        server.close()

    run(work())


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (25_000, "25 kB"),
        (9_949_999, "9.9 MB"),
        (9_960_000, "10 MB"),
        (52_428_800, "52 MB"),
        (3 * 10**18, "3.0 EB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert humane_size(size) == text
