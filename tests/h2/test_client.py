"""The client: against our server, and against a server that misbehaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest
from h2site import Site, run, serving, until
from h2wire import Reader, grpc
from hypothesis import given
from hypothesis import strategies as st

from kvorum.errors import Code
from kvorum.h2 import Backoff, Channel, Limits, RpcError, frames
from kvorum.h2.channel import CLIENT_LIMITS
from kvorum.h2.frames import END_HEADERS, END_STREAM, HEADERS, ErrorCode, Setting
from kvorum.h2.hpack import encode
from kvorum.h2.status import (
    decode_message,
    decode_timeout,
    encode_message,
    encode_metadata,
    encode_timeout,
    go_quote,
)

Story = Callable[[Site, Channel], Awaitable[None]]


def against_site(story: Story, **options: object) -> None:
    async def whole() -> None:
        async with serving() as site, Channel("127.0.0.1", site.port, **options) as channel:  # type: ignore[arg-type]
            await story(site, channel)

    run(whole())


def test_unary_calls() -> None:
    async def story(site: Site, channel: Channel) -> None:
        sizes = [0, 1, 16379, 16380, 70_000, 2_000_000]
        for size in sizes:
            assert await channel.unary("/t.S/Now", b"x" * size) == b"x" * size
        many = [channel.unary("/t.S/Later", b"%d" % n) for n in range(500)]
        assert await asyncio.gather(*many) == [b"%d" % n for n in range(500)]
        assert site.server.connections == 1

    against_site(story)


def test_errors_have_code_and_message() -> None:
    async def story(site: Site, channel: Channel) -> None:
        with pytest.raises(RpcError) as caught:
            await channel.unary("/t.S/Fail", "wörld 100%".encode())
        assert caught.value.code is not None
        assert (caught.value.code, caught.value.message) == (9, "no: wörld 100%")
        assert str(caught.value) == "FAILED_PRECONDITION: no: wörld 100%"
        assert str(RpcError(77, "odd")) == "77: odd"

    against_site(story)


def test_a_message_too_large_for_the_server() -> None:
    async def story(site: Site, channel: Channel) -> None:
        with pytest.raises(RpcError, match="RESOURCE_EXHAUSTED: grpc: received message larger"):
            await channel.unary("/t.S/Now", b"x" * 3_000_000)
        assert await channel.unary("/t.S/Now", b"x") == b"x"

    against_site(story)


def test_a_message_too_large_for_the_client() -> None:
    async def story(site: Site, channel: Channel) -> None:
        with pytest.raises(RpcError, match=r"larger than max \(200 vs. 100\)"):
            await channel.unary("/t.S/Now", b"x" * 200)
        assert await channel.unary("/t.S/Now", b"x") == b"x"

    against_site(story, limits=replace(CLIENT_LIMITS, max_receive_message=100))


def test_streams_of_all_kinds() -> None:
    async def numbers() -> AsyncIterator[bytes]:
        for number in range(100):
            yield b"%d" % number

    async def story(site: Site, channel: Channel) -> None:
        assert await channel.client_stream("/t.S/Sum", numbers()) == b"4950"
        call = await channel.server_stream("/t.S/Count", b"5 0")
        assert [int(message) async for message in call] == [4, 3, 2, 1, 0]
        async with await channel.stream("/t.S/Echo") as both:
            for number in range(3):
                await both.send(b"%d" % number)
                assert await both.recv() == b"%d" % number
            await both.end()
            assert await both.recv() is None
            assert await both.recv() is None
            assert both.done

    against_site(story)


def test_a_stream_with_a_bad_status_raises() -> None:
    async def story(site: Site, channel: Channel) -> None:
        call = await channel.server_stream("/t.S/None", b"")
        with pytest.raises(RpcError, match="UNIMPLEMENTED"):
            await call.recv()
        with pytest.raises(RpcError, match="UNIMPLEMENTED"):
            await call.send(b"x")

    against_site(story)


def test_metadata_goes_there() -> None:
    async def story(site: Site, channel: Channel) -> None:
        more = [("Token", "abc"), ("x-bin", b"\0\xff")]
        call = asyncio.ensure_future(channel.unary("/t.S/Hold", b"", metadata=more))
        await site.arrived.wait()
        got = site.held[0].metadata
        assert ("token", "abc") in got
        assert ("x-bin", "\0\xff") in got
        assert ("always", "1") in got
        site.held[0].reply(b"")
        await call

    against_site(story, metadata=[("always", "1")])


def test_deadlines() -> None:
    async def story(site: Site, channel: Channel) -> None:
        with pytest.raises(RpcError, match="DEADLINE_EXCEEDED: context deadline exceeded"):
            await channel.unary("/t.S/Hold", b"", timeout=0.05)
        await until(lambda: site.cancelled == site.held)
        async with await channel.stream("/t.S/Echo", timeout=0.05) as call:
            with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
                await call.recv()
        assert await channel.unary("/t.S/Now", b"x", timeout=5) == b"x"

    against_site(story)


def test_cancelling_a_task_cancels_the_call() -> None:
    async def story(site: Site, channel: Channel) -> None:
        call = asyncio.ensure_future(channel.unary("/t.S/Hold", b""))
        await site.arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: site.cancelled == site.held)
        async with await channel.stream("/t.S/Echo") as both:
            await both.send(b"x")
            assert await both.recv() == b"x"
        await until(lambda: len(site.cancelled) == 2)

    against_site(story)


def test_a_slow_reader_stops_the_server() -> None:
    async def story(site: Site, channel: Channel) -> None:
        call = await channel.server_stream("/t.S/Count", b"5000 2000")
        await until(lambda: site.largest_backlog >= 100_000)
        count = 0
        async for _ in call:
            count += 1
        assert count == 5000

    against_site(story)


def test_one_reader_at_a_time() -> None:
    async def story(site: Site, channel: Channel) -> None:
        async with await channel.stream("/t.S/Echo") as call:
            first = asyncio.ensure_future(call.recv())
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError):
                await call.recv()
            await call.send(b"x")
            assert await first == b"x"

    against_site(story)


def test_sending_waits_for_the_server() -> None:
    async def story(site: Site, channel: Channel) -> None:
        async with await channel.stream("/t.S/Echo") as call:
            # Nothing of the echo is read, so that everything backs up at last.
            sender = asyncio.ensure_future(flood(call))
            await until(lambda: call.rpc.backlog > 100_000)
            assert not sender.done()
            for _ in range(200):
                assert await call.recv() == b"x" * 100_000
            await sender

    async def flood(call: object) -> None:
        for _ in range(200):
            await call.send(b"x" * 100_000)  # type: ignore[attr-defined]

    against_site(story)


def test_a_client_stream_wants_one_answer() -> None:
    async def nothing() -> AsyncIterator[bytes]:
        for never in ():
            yield never

    async def endless() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0)
            yield b"7"

    async def story(site: Site, channel: Channel) -> None:
        with pytest.raises(RpcError, match="not one response message"):
            await channel.client_stream("/t.S/Echo", nothing())
        # The server ends the call while the client would go on for ever.
        with pytest.raises(RpcError, match="UNIMPLEMENTED"):
            await channel.client_stream("/t.S/None", endless())

    against_site(story)


def test_a_cancelled_stream() -> None:
    async def story(site: Site, channel: Channel) -> None:
        call = await channel.stream("/t.S/Echo")
        await call.send(b"x")
        assert await call.recv() == b"x"
        call.cancel()
        call.cancel()
        with pytest.raises(RpcError, match="CANCELLED: context canceled"):
            await call.recv()
        await until(lambda: len(site.cancelled) == 1)

    against_site(story)


def test_sending_after_the_servers_end() -> None:
    async def story(site: Site, channel: Channel) -> None:
        call = await channel.stream("/t.S/Count")
        await call.send(b"2 0")
        assert [await call.recv() for _ in range(3)] == [b"1", b"0", None]
        with pytest.raises(RpcError, match="already ended"):
            await call.send(b"2 0")

    against_site(story)


def test_a_connection_without_ids_left_is_replaced() -> None:
    async def story(site: Site, channel: Channel) -> None:
        assert await channel.unary("/t.S/Now", b"1") == b"1"
        next(iter(channel.links)).core._next_sid = 2**31 - 1
        assert await channel.unary("/t.S/Now", b"2") == b"2"
        assert await channel.unary("/t.S/Now", b"3") == b"3"
        await until(lambda: len(channel.links) == 1)
        assert next(iter(channel.links)).core._next_sid == 3

    against_site(story)


def test_calls_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvorum.h2.channel._WAITING_CALLS", 3)

    async def script(server: FakePeer) -> None:
        await server.to_the_end()

    async def story(server: FakeServer, channel: Channel) -> None:
        waiting = [
            asyncio.ensure_future(channel.unary("/t.S/Now", b"", timeout=0.1)) for _ in range(3)
        ]
        await asyncio.sleep(0)
        with pytest.raises(RpcError, match="RESOURCE_EXHAUSTED: too many calls wait"):
            await channel.unary("/t.S/Now", b"")
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all("DEADLINE_EXCEEDED" in str(result) for result in results)

    against_fake(script, story)


def test_many_different_calls_are_all_right() -> None:
    """More heads than are remembered."""

    async def story(site: Site, channel: Channel) -> None:
        for number in range(300):
            more = [("n", str(number))]
            assert await channel.unary("/t.S/Now", b"x", metadata=more) == b"x"
        assert len(channel._blocks) <= 256

    against_site(story)


# --- connections ---------------------------------------------------------------------------------


class FakePeer:
    """The server's end of one connection, in raw frames. ``seen`` is what the client sent."""

    def __init__(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.number = number
        self.reader, self.writer = reader, writer
        self.frames = Reader()
        self.seen: list[str] = []

    async def until(self, text: str) -> None:
        while not any(text in line for line in self.seen):
            data = await self.reader.read(65536)
            if not data:
                raise EOFError(self.seen)
            self.seen += map(str, self.frames.read(data))

    async def to_the_end(self) -> None:
        await self.reader.read()

    def send(self, *parts: bytes) -> None:
        self.writer.write(b"".join(parts))


Script = Callable[[FakePeer], Awaitable[None]]


class FakeServer:
    """Runs a script for each connection."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.connections = 0
        self.port = 0

    async def __aenter__(self) -> FakeServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        assert await reader.readexactly(24) == frames.PREFACE
        try:
            await self._script(FakePeer(self.connections, reader, writer))
        except (EOFError, ConnectionError):
            pass  # the client's end of it; what the script wanted is checked by the story
        finally:
            writer.close()


def head(sid: int, *fields: tuple[bytes, bytes], end: bool = False) -> bytes:
    flags = END_HEADERS | (END_STREAM if end else 0)
    return frames.frame(HEADERS, flags, sid, encode(fields))


OK = (b":status", b"200"), (b"content-type", b"application/grpc")
DONE = ((b"grpc-status", b"0"),)


def reply(sid: int, message: bytes = b"fine") -> bytes:
    data = frames.frame(frames.DATA, 0, sid, grpc(message))
    return head(sid, *OK) + data + head(sid, *DONE, end=True)


def against_fake(
    script: Script,
    story: Callable[[FakeServer, Channel], Awaitable[None]],
    limits: Limits = CLIENT_LIMITS,
) -> None:
    async def whole() -> None:
        async with FakeServer(script) as server:
            backoff = Backoff(0.01, 1.6, 0.05)
            async with Channel("127.0.0.1", server.port, limits=limits, backoff=backoff) as channel:
                await story(server, channel)

    run(whole())


DATA = frames.DATA
END = head(1, *DONE, end=True)
REFUSAL = ((b"grpc-status", b"7"), (b"grpc-message", b"a%20b%zz"))

NOT_RIGHT = [
    (head(1, (b":status", b"503"), end=True), 14, "unexpected HTTP status"),
    (head(1, (b":status", b"404")), 12, "HTTP status code received from server: 404"),
    (head(1, (b":status", b"200"), (b"content-type", b"text/html")), 2, "no grpc-status"),
    (head(1, *OK, end=True), 2, "no grpc-status"),
    (head(1, *OK, *DONE, end=True), 13, "received no response message"),
    (head(1, *OK) + frames.frame(DATA, 0, 1, grpc(b"x") * 2) + END, 13, "another message"),
    (head(1, *OK) + frames.frame(DATA, END_STREAM, 1, grpc(b"x")), 13, "without sending trailers"),
    (head(1, *OK) + frames.frame(DATA, 0, 1, grpc(b"xyz")[:-1]) + END, 13, "unexpected EOF"),
    (frames.frame(DATA, 0, 1, grpc(b"x")), 13, "RST_STREAM with error code: PROTOCOL_ERROR"),
    (head(1, *OK) + head(1, *OK), 13, "PROTOCOL_ERROR"),
    (head(1, (b":status", b"abc")), 13, "PROTOCOL_ERROR"),
    (head(1, *OK, *[(b"x-large", b"y" * 7000)] * 2), 13, "FRAME_SIZE_ERROR"),
    (head(1, *OK, *REFUSAL, end=True), 7, "a b%zz"),
    (head(1, *OK, (b"grpc-status", b"x"), end=True), 2, ""),
    (frames.rst_stream(1, ErrorCode.CANCEL), 1, "RST_STREAM with error code: CANCEL"),
    (frames.rst_stream(1, ErrorCode.ENHANCE_YOUR_CALM), 8, "ENHANCE_YOUR_CALM"),
    (frames.rst_stream(1, 99), 13, "error code: 99"),
    (head(2, *OK), 14, "PROTOCOL_ERROR"),
    (head(3, *OK), 14, "PROTOCOL_ERROR"),
    (frames.frame(frames.PUSH_PROMISE, 4, 1, b"\0\0\0\2"), 14, "PROTOCOL_ERROR"),
    (b"HTTP/1.1 400 Bad Request\r\n\r\n", 14, "FRAME_SIZE_ERROR"),
    (b"", 14, "error reading from server: EOF"),
]


@pytest.mark.parametrize(("answer", "code", "text"), NOT_RIGHT)
def test_answers_that_are_not_right(answer: bytes, code: int, text: str) -> None:
    async def script(server: FakePeer) -> None:
        server.send(frames.settings({}))
        await server.until("DATA 1 END")
        server.send(answer)
        if answer and code != Code.UNAVAILABLE:
            await server.to_the_end()

    async def story(server: FakeServer, channel: Channel) -> None:
        with pytest.raises(RpcError) as caught:
            await channel.unary("/t.S/Now", b"hello")
        assert caught.value.code == code
        assert text in caught.value.message

    against_fake(script, story, replace(CLIENT_LIMITS, max_header_list=10_000))


def test_an_informational_head_is_skipped() -> None:
    async def script(server: FakePeer) -> None:
        server.send(frames.settings({}))
        await server.until("DATA 1 END")
        server.send(head(1, (b":status", b"103")), reply(1))
        await server.to_the_end()

    async def story(server: FakeServer, channel: Channel) -> None:
        assert await channel.unary("/t.S/Now", b"hello") == b"fine"

    against_fake(script, story)


def test_head_and_trailers_reach_the_caller() -> None:
    async def script(server: FakePeer) -> None:
        server.send(frames.settings({}))
        await server.until("DATA 1 END")
        server.send(
            head(1, *OK, (b"x-head", b"1")),
            head(1, *DONE, (b"x-tail-bin", b"AP8"), (b"bad-bin", b"?"), end=True),
        )
        await server.to_the_end()

    async def story(server: FakeServer, channel: Channel) -> None:
        call = await channel.server_stream("/t.S/Now", b"")
        assert await call.recv() is None
        assert call.head == [("x-head", "1")]
        assert call.trailers == [("x-tail-bin", "\0\xff")]

    against_fake(script, story)


def test_a_refused_call_is_tried_again() -> None:
    async def script(server: FakePeer) -> None:
        server.send(frames.settings({}))
        await server.until("DATA 1 END")
        server.send(frames.rst_stream(1, ErrorCode.REFUSED_STREAM))
        await server.until("DATA 3 END")
        server.send(reply(3))
        await server.to_the_end()

    async def story(server: FakeServer, channel: Channel) -> None:
        assert await channel.unary("/t.S/Now", b"hello", timeout=5) == b"fine"

    against_fake(script, story)


def test_goaway_moves_new_calls_to_a_new_connection() -> None:
    async def script(server: FakePeer) -> None:
        server.send(frames.settings({}))
        await server.until("DATA 1 END")
        if server.number == 1:
            await server.until("DATA 3 END")
            # The second call was not processed, the first is still to be answered.
            server.send(frames.goaway(1, 0, b"bye"))
            await gate.wait()
        server.send(reply(1, b"from %d" % server.number))
        await server.to_the_end()

    gate = asyncio.Event()

    async def story(server: FakeServer, channel: Channel) -> None:
        first = asyncio.ensure_future(channel.unary("/t.S/Now", b"1"))
        second = asyncio.ensure_future(channel.unary("/t.S/Now", b"2"))
        assert await second == b"from 2"
        gate.set()
        assert await first == b"from 1"
        await until(lambda: len(channel.links) == 1)

    against_fake(script, story)


def test_a_lost_connection_fails_its_calls_and_comes_back() -> None:
    async def script(server: FakePeer) -> None:
        server.send(frames.settings({}))
        await server.until("DATA 1 END")
        if server.number > 1:
            server.send(reply(1))
            await server.to_the_end()

    async def story(server: FakeServer, channel: Channel) -> None:
        with pytest.raises(RpcError, match="UNAVAILABLE"):
            await channel.unary("/t.S/Now", b"1")
        assert await channel.unary("/t.S/Now", b"2") == b"fine"
        assert server.connections == 2

    against_fake(script, story)


def test_the_servers_stream_limit_is_kept() -> None:
    async def script(server: FakePeer) -> None:
        server.send(frames.settings({Setting.MAX_CONCURRENT_STREAMS: 2}))
        for sid in range(1, 21, 2):
            await server.until(f"DATA {sid} END")
            opened = [line for line in server.seen if line.startswith("HEADERS")]
            assert len(opened) <= (sid + 1) // 2 + 1
            server.send(reply(sid))
        await server.to_the_end()

    async def story(server: FakeServer, channel: Channel) -> None:
        calls = [channel.unary("/t.S/Now", b"x") for _ in range(10)]
        assert await asyncio.gather(*calls) == [b"fine"] * 10

    against_fake(script, story)


def test_a_server_that_sends_no_settings() -> None:
    async def script(server: FakePeer) -> None:
        await server.to_the_end()

    async def story(server: FakeServer, channel: Channel) -> None:
        with pytest.raises(RpcError, match="UNAVAILABLE"):
            await channel.unary("/t.S/Now", b"")

    against_fake(script, story, replace(CLIENT_LIMITS, handshake_timeout=0.1))


def test_keepalive_finds_a_dead_server() -> None:
    async def script(server: FakePeer) -> None:
        server.send(frames.settings({}))
        await server.until("PING")
        await server.to_the_end()

    async def story(server: FakeServer, channel: Channel) -> None:
        with pytest.raises(RpcError, match=r"UNAVAILABLE: .*ping not answered"):
            await channel.unary("/t.S/Now", b"")

    limits = replace(CLIENT_LIMITS, keepalive_interval=0.1, keepalive_timeout=0.1)
    against_fake(script, story, limits)


def test_keepalive_is_content_with_answers() -> None:
    async def script(server: FakePeer) -> None:
        server.send(frames.settings({}))
        await server.until("PING")
        server.send(frames.ping(b"kvorum\0c", ack=True))
        server.seen.clear()
        await server.until("PING")
        server.send(frames.ping(b"kvorum\0c", ack=True), reply(1))
        await server.to_the_end()

    async def story(server: FakeServer, channel: Channel) -> None:
        assert await channel.unary("/t.S/Now", b"") == b"fine"

    against_fake(script, story, replace(CLIENT_LIMITS, keepalive_interval=0.1))


def test_nobody_there() -> None:
    async def story() -> None:
        channel = Channel("127.0.0.1", 1, backoff=Backoff(30.0))
        for _ in range(2):  # the second is within the backoff, and fails at once
            with pytest.raises(RpcError, match=r"UNAVAILABLE: connection error: .*refused"):
                await channel.unary("/t.S/Now", b"")
        with pytest.raises(RpcError, match=r"DEADLINE_EXCEEDED: .*refused"):
            await channel.unary("/t.S/Now", b"", timeout=0.05, wait_for_ready=True)
        await channel.close()
        with pytest.raises(RpcError, match="closed"):
            await channel.unary("/t.S/Now", b"")

    run(story())


def test_waiting_until_the_server_comes() -> None:
    async def story() -> None:
        async with serving() as site:
            port = site.port
        channel = Channel("127.0.0.1", port, backoff=Backoff(0.01, 1.0, 0.02))
        call = asyncio.ensure_future(channel.unary("/t.S/Now", b"x", wait_for_ready=True))
        with pytest.raises(RpcError, match="UNAVAILABLE"):
            await channel.unary("/t.S/Now", b"")
        again = Site()
        from kvorum.h2 import GrpcServer

        server = GrpcServer(again.methods)
        await server.listen("127.0.0.1", port)
        assert await call == b"x"
        await channel.close()
        server.close()

    run(story())


def test_closing_ends_what_is_open() -> None:
    async def story() -> None:
        async with serving() as site:
            channel = Channel("127.0.0.1", site.port)
            call = asyncio.ensure_future(channel.unary("/t.S/Hold", b"x"))
            await site.arrived.wait()
            stream = await channel.stream("/t.S/Echo")
            await channel.close()
            with pytest.raises(RpcError, match="UNAVAILABLE"):
                await call
            with pytest.raises(RpcError, match="UNAVAILABLE"):
                await stream.recv()
            await until(lambda: site.server.connections == 0)

    run(story())


def test_backoff_grows_to_its_bound() -> None:
    backoff = Backoff(0.1, 2.0, 1.0)
    waits = [backoff.next() for _ in range(10)]
    assert 0.08 <= waits[0] <= 0.12
    assert all(0.8 <= wait <= 1.2 for wait in waits[4:])
    backoff.reset()
    assert backoff.next() <= 0.12


# --- words on the wire ---------------------------------------------------------------------------


@given(st.text(max_size=50))
def test_messages_survive(text: str) -> None:
    clean = text.encode("utf-8", "replace").decode()
    raw = encode_message(text)
    assert decode_message(raw) == clean
    assert all(0x20 <= byte < 0x7F for byte in raw)


@given(st.floats(1e-9, 1e9))
def test_timeouts_survive(seconds: float) -> None:
    raw = encode_timeout(seconds)
    assert len(raw) <= 9
    back = decode_timeout(raw)
    assert back is not None
    assert seconds * 0.98 - 1e-9 <= back <= seconds * 1.000001


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("plain", '"plain"'),
        ('say "x" \\ y', r'"say \"x\" \\ y"'),
        ("tab\tnul\0del\x7f", r'"tab\tnul\x00del\x7f"'),
        ("ü\u200b\U000e0001", r'"ü\u200b\U000e0001"'),
    ],
)
def test_quoting_as_go_does(text: str, quoted: str) -> None:
    assert go_quote(text) == quoted


@pytest.mark.parametrize(
    ("seconds", "raw"),
    [
        (0.0, b"1n"),
        (0.05, b"50000000n"),
        (5, b"5000000u"),
        (1e10, b"2777777H"),
        (1e30, b"99999999H"),
    ],
)
def test_timeouts_on_the_wire(seconds: float, raw: bytes) -> None:
    assert encode_timeout(seconds) == raw


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("Token", "é", (b"token", "é".encode())),
        ("x-bin", b"\0\1", (b"x-bin", b"AAE")),
        ("x-bin", "\xff", (b"x-bin", b"/w")),
    ],
)
def test_metadata_on_the_wire(name: str, value: str | bytes, field: tuple[bytes, bytes]) -> None:
    assert encode_metadata(name, value) == field
