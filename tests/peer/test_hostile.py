"""Peers that send what no peer sends: nothing may break, grow or wait for ever."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from peerlab import CLUSTER, FAST, Node
from peersite import run, until

from kvorum.peer.message_codec import encode_framed
from kvorum.peer.service import PEER_LIMITS
from kvorum.raft.types import Message, MsgType

LOST = "lost TCP streaming connection with remote peer"
OK = b"HTTP/1.1 200 OK\r\nX-Server-Version: 3.7.1\r\nTransfer-Encoding: chunked\r\n\r\n"
BEAT = encode_framed(Message(MsgType.HEARTBEAT, 1, 2, 5))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@asynccontextmanager
async def evil_peer(
    folder: Path, script: Callable[[asyncio.StreamWriter], object], path: bytes = b"/message/"
) -> AsyncIterator[Node]:
    """A member whose peer runs ``script`` on each stream of one kind, and is silent on others."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if path in head:
            writer.write(OK)
            with suppress(OSError):
                await script(writer)
        else:
            await asyncio.sleep(60)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    node = Node(1, folder, timing=replace(FAST, probe=50.0))
    node.transport.add_peer(2, [f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"])
    try:
        yield node
    finally:
        await node.close()
        server.close()


@pytest.mark.parametrize(
    ("path", "sent", "error"),
    [
        (b"/message/", chunk(b"\xff" * 8), "are announced"),
        (b"/message/", chunk(bytes(7) + b"\3\xff\xff\xff"), "bad varint"),
        (b"/message/", b"not a chunk\r\n", "malformed HTTP reply"),
        (b"/message/", b"ffffffffffffffffffff\r\n", "malformed HTTP reply"),
        (b"/message/", chunk(BEAT[:-1]), "closed"),
        (b"/msgapp/", chunk(b"\x09"), "a frame of kind 9"),
        (b"/msgapp/", chunk(b"\x01" + b"\xff" * 8), "an append of"),
        (b"/msgapp/", chunk(b"\x02" + BEAT), "MsgHeartbeat on the msgapp stream"),
    ],
)
def test_a_stream_of_junk_is_dropped_and_dialled_again(
    tmp_path: Path, path: bytes, sent: bytes, error: str
) -> None:
    times = 0

    async def script(writer: asyncio.StreamWriter) -> None:
        nonlocal times
        times += 1
        writer.write(sent)
        await writer.drain()
        if error == "closed":
            return
        await asyncio.sleep(60)

    async def work() -> None:
        async with evil_peer(tmp_path, script, path) as node:
            await until(lambda: times >= 3)
            errors = [str(f["error"]) for text, f in node.log.lines if text == LOST]
            assert error in errors[0]
            assert node.host.got == []

    run(work())


def test_good_messages_before_the_junk_are_taken(tmp_path: Path) -> None:
    taken = asyncio.Event()

    async def script(writer: asyncio.StreamWriter) -> None:
        writer.write(chunk(BEAT))
        await taken.wait()
        writer.write(chunk(b"\xff" * 9))
        await asyncio.sleep(60)

    async def work() -> None:
        async with evil_peer(tmp_path, script) as node:
            await until(lambda: node.host.got)
            taken.set()
            await until(lambda: LOST in node.log.texts())
            assert node.host.got[0] == Message(MsgType.HEARTBEAT, 1, 2, 5)

    run(work())


def test_a_message_that_drips(tmp_path: Path) -> None:
    """Each byte is a sign of life, and costs no more than a byte."""

    async def script(writer: asyncio.StreamWriter) -> None:
        for byte in BEAT * 20:
            writer.write(chunk(bytes((byte,))))
            await writer.drain()
        await asyncio.sleep(60)

    async def work() -> None:
        async with evil_peer(tmp_path, script) as node:
            await until(lambda: len(node.host.got) == 20)
            assert LOST not in node.log.texts()

    run(work())


def test_an_announced_message_that_never_comes_takes_no_memory(tmp_path: Path) -> None:
    async def script(writer: asyncio.StreamWriter) -> None:
        writer.write(chunk((500 << 20).to_bytes(8, "big") + b"x" * 1000))
        await asyncio.sleep(60)

    async def work() -> None:
        async with evil_peer(tmp_path, script) as node:
            await until(lambda: LOST in node.log.texts())
            errors = [str(f["error"]) for text, f in node.log.lines if text == LOST]
            assert errors[0].startswith("nothing came for")

    run(work())


def test_an_answer_whose_head_never_comes(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async def work() -> None:
        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        node = Node(1, tmp_path, timing=replace(FAST, idle=0.1))
        node.transport.add_peer(2, [f"http://127.0.0.1:{port}"])

        def said() -> bool:
            errors = [str(fields.get("error")) for _, fields in node.log.lines]
            return any("nothing came for 0.1s" in error for error in errors)

        await until(said)
        await node.close()
        server.close()

    run(work())


def test_random_bytes_as_a_peer(tmp_path: Path) -> None:
    chance = random.Random(3)
    times = 0

    async def script(writer: asyncio.StreamWriter) -> None:
        nonlocal times
        times += 1
        writer.write(chunk(bytes((chance.randrange(3),)) + chance.randbytes(200)))
        await writer.drain()

    async def work() -> None:
        for path in (b"/message/", b"/msgapp/"):
            before = times
            async with evil_peer(tmp_path, script, path) as node:
                await until(lambda before=before: times >= before + 10)
                assert node.errors == []

    run(work())


# --- at the peer port


HEAD = (
    b"X-Server-From: 2\r\nX-Server-Version: 3.5.1\r\nX-Min-Cluster-Version: 3.0.0\r\n"
    b"X-Etcd-Cluster-ID: %x\r\nHost: x\r\n" % CLUSTER
)


async def said(node: Node, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(data)
    answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x00\xa5\x01\x00\x00", b"400"),
        (b"POST /raft HTTP/1.1\r\nContent-Length: 99999999999\r\n" + HEAD + b"\r\n", b"413"),
        (b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 100_000 + b"\r\n", b"431"),
        (
            b"POST /raft HTTP/1.1\r\nConnection: close\r\nContent-Length: 3\r\n"
            + HEAD
            + b"\r\n\xff\xff\xff",
            b"400",
        ),
    ],
)
def test_requests_that_are_none(tmp_path: Path, data: bytes, status: bytes) -> None:
    async def work() -> None:
        async with Node(1, tmp_path) as node:
            assert (await said(node, data)).startswith(b"HTTP/1.1 " + status)
            assert node.host.got == []

    run(work())


def test_a_request_that_drips_is_ended(tmp_path: Path) -> None:
    async def work() -> None:
        limits = replace(PEER_LIMITS, header_timeout=0.2, http_idle_timeout=0.2)
        async with Node(1, tmp_path, limits=limits) as node:
            post = b"POST /raft HTTP/1.1\r\nContent-Length: 100\r\n" + HEAD + b"\r\nabc"
            assert (await said(node, post)).startswith(b"HTTP/1.1 408")
            upload = b"POST /raft/snapshot HTTP/1.1\r\nContent-Length: 100\r\n" + HEAD + b"\r\nabc"
            await said(node, upload)
            assert node.host.snapshots == []

    run(work())
