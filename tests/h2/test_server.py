"""The server on real sockets."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from pathlib import Path

import hpack
import pytest
from h2site import Site, run, serving, until
from h2wire import Reader, Wire, answer, grpc

from kvorum.h2 import (
    Channel,
    GrpcServer,
    HttpRequest,
    HttpResponse,
    Limits,
    RpcError,
    chunks,
    frames,
)
from kvorum.h2.http import Answer
from kvorum.h2.http1 import Http1Connection
from kvorum.h2.limits import MIB
from kvorum.h2.server import Link

LIMITS = Limits()
GREETED = frames.PREFACE + frames.settings({})


class RawClient:
    """Raw bytes over a socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.frames = Reader()
        self.wire = Wire(greet=False)  # builds requests
        self.lines: list[str] = []

    @classmethod
    async def connect(cls, port: int) -> RawClient:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def until(self, text: str) -> list[str]:
        """Read until a line contains the text."""
        while not any(text in line for line in self.lines):
            data = await self.reader.read(65536)
            if not data:
                raise EOFError(self.lines)
            self.lines += map(str, self.frames.read(data))
        return self.lines

    async def until_ended(self, calls: int) -> None:
        """Read until so many calls have ended well."""
        while sum(line.endswith("END grpc-status=0") for line in self.lines) < calls:
            data = await self.reader.read(65536)
            if not data:
                raise EOFError(self.lines[-10:])
            self.lines += map(str, self.frames.read(data))


def test_a_call_over_a_socket() -> None:
    async def story() -> None:
        async with serving() as site, Channel("127.0.0.1", site.port) as channel:
            assert await channel.unary("/t.S/Now", b"hello") == b"hello"
            assert site.server.connections == 1
            assert site.server.bytes_in > 100
            assert site.server.bytes_out > 50
            assert site.methods["/t.S/Now"].handled[0] == 1

    run(story())


def test_unix_sockets_and_given_sockets(tmp_path: Path) -> None:
    async def story() -> None:
        path = str(tmp_path / "s")
        async with serving(path=path), Channel("local", 0, path=path) as channel:
            assert await channel.unary("/t.S/Now", b"a") == b"a"
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            async with serving(sock=listener), Channel("127.0.0.1", port) as channel:
                assert await channel.unary("/t.S/Now", b"b") == b"b"

    run(story())


def test_answers_of_one_turn_are_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[int] = []
    flush = Link.flush

    def counting(link: Link) -> None:
        writes.append(1)
        flush(link)

    async def story() -> None:
        async with serving() as site, Channel("127.0.0.1", site.port) as channel:
            await channel.unary("/t.S/Now", b"")
            calls = [asyncio.ensure_future(channel.unary("/t.S/Hold", b"x")) for _ in range(20)]
            await until(lambda: len(site.held) == 20)
            monkeypatch.setattr(Link, "flush", counting)
            for call in site.held:
                call.reply(b"y")
            assert await asyncio.gather(*calls) == [b"y"] * 20
            assert sum(writes) <= 3  # ours, and the client's acknowledgements

    run(story())


def test_http_1_and_http_2_on_one_port() -> None:
    async def story() -> None:
        async with serving() as site:
            one = await RawClient.connect(site.port)
            one.writer.write(b"P")
            await until(lambda: site.server.connections == 1)
            one.writer.write(b"OST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi")
            head = await one.reader.readuntil(b"\r\n\r\n")
            assert b"content-length: 14\r\n" in head
            assert b"date: " in head
            assert await one.reader.readexactly(14) == b"POST /a 1.1 2\n"
            two = await RawClient.connect(site.port)
            for at in range(len(GREETED)):
                two.writer.write(GREETED[at : at + 1])
                await two.writer.drain()
            two.writer.write(two.wire.request(1))
            lines = await two.until("HEADERS 1 END")
            assert lines[3:] == answer(1, b"hello")

    run(story())


@pytest.mark.parametrize(
    ("target", "status", "body"),
    [
        ("/wait", 200, b"waited\n"),
        ("/wait?break", 500, b"Internal Server Error\n"),
        ("/break", 500, b"Internal Server Error\n"),
        ("/inject", 500, b"Internal Server Error\n"),
    ],
)
def test_handlers_that_wait_or_break(target: str, status: int, body: bytes) -> None:
    async def story() -> None:
        async with serving() as site:
            client = await RawClient.connect(site.port)
            client.writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            head = await client.reader.readuntil(b"\r\n\r\n")
            assert int(head.split()[1]) == status
            assert await client.reader.readexactly(len(body)) == body
            assert bool(site.reports) is (status == 500)

    run(story())


def test_without_a_handler_plain_requests_are_not_found() -> None:
    async def story() -> None:
        server = GrpcServer({})
        listener = await server.listen("127.0.0.1", 0)
        client = await RawClient.connect(listener.sockets[0].getsockname()[1])
        client.writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await client.reader.readuntil(b"found\n")).startswith(b"HTTP/1.1 404 Not Found")
        server.close()

    run(story())


def test_closing_ends_answers_under_way() -> None:
    ended = asyncio.Event()

    async def never(request: HttpRequest) -> HttpResponse:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    async def story() -> None:
        server = GrpcServer({}, never)
        listener = await server.listen("127.0.0.1", 0)
        client = await RawClient.connect(listener.sockets[0].getsockname()[1])
        client.writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: server._responder._tasks)
        server.close()
        await ended.wait()
        assert await client.reader.read() == b""

    run(story())


def test_growing_answers() -> None:
    async def story() -> None:
        async with serving() as site:
            client = await RawClient.connect(site.port)
            client.writer.write(b"GET /grow HTTP/1.1\r\nHost: x\r\n\r\n")
            await client.reader.readuntil(b"\r\n\r\n")
            text = await client.reader.readuntil(b"0\r\n\r\n")
            assert text == b"2\r\n0\n\r\n2\r\n1\n\r\n2\r\n2\n\r\n0\r\n\r\n"
            client.writer.write(b"GET /grow?13 HTTP/1.1\r\nHost: x\r\n\r\n")
            await client.reader.readuntil(b"\r\n\r\n")
            assert await client.reader.read() == b""
            assert len(site.reports) == 1

    run(story())


@pytest.mark.parametrize("waits", [False, True])
def test_an_answer_that_somebody_takes_over(waits: bool) -> None:
    """It is written to from outside of any request, until it is ended or its client leaves."""
    taken: list[Answer] = []
    left = asyncio.Event()

    async def later() -> HttpResponse:
        await asyncio.sleep(0)
        return HttpResponse(200, taken.append, [("x-a", "1")])

    def handle(request: HttpRequest) -> HttpResponse | Awaitable[HttpResponse]:
        return later() if waits else HttpResponse(200, taken.append, [("x-a", "1")])

    async def story() -> None:
        server = GrpcServer({}, handle)
        listener = await server.listen("127.0.0.1", 0)
        client = await RawClient.connect(listener.sockets[0].getsockname()[1])
        client.writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert b"\r\nx-a: 1\r\n" in head
        assert b"\r\ntransfer-encoding: chunked\r\n" in head
        taken[0].write(b"one")
        assert await client.reader.readexactly(8) == b"3\r\none\r\n"
        taken[0].end()
        assert await client.reader.readexactly(5) == b"0\r\n\r\n"
        client.writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await client.reader.readuntil(b"\r\n\r\n")
        taken[1].on_cancel = left.set
        client.writer.transport.abort()

        def noticed() -> bool:  # a half-closed connection shows by what cannot be written
            taken[1].write(b"more")
            return left.is_set()

        await until(noticed)
        server.close()

    run(story())


def test_an_answer_to_a_request_that_was_given_up_goes_nowhere() -> None:
    """Its body did not come in time, and the handler says so when nobody listens any more."""
    answered = asyncio.Event()
    reports: list[BaseException] = []

    async def handle(request: HttpRequest) -> HttpResponse:
        assert request.source is not None
        with pytest.raises(ConnectionResetError):
            async for _ in chunks(request.source):
                pass
        answered.set()
        return HttpResponse(400, b"too late")

    async def story() -> None:
        limits = Limits(http_idle_timeout=0.1, header_timeout=0.1)
        server = GrpcServer(
            {}, handle, limits, report=reports.append, wants_source=lambda request: True
        )
        listener = await server.listen("127.0.0.1", 0)
        client = await RawClient.connect(listener.sockets[0].getsockname()[1])
        client.writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
        assert await client.reader.read() == b""
        await answered.wait()
        await until(lambda: not server.links)
        assert reports == []
        server.close()

    run(story())


def test_deadlines_on_a_loop() -> None:
    async def story() -> None:
        async with serving() as site:
            client = await RawClient.connect(site.port)
            wire = client.wire
            long = wire.head(1, "/t.S/Hold", ("grpc-timeout", "30S"))
            short = wire.head(3, "/t.S/Hold", ("grpc-timeout", "20m"))
            client.writer.write(
                GREETED
                + long
                + wire.data(1, grpc(b""), end=True)
                + short
                + wire.data(3, grpc(b""), end=True)
            )
            before = asyncio.get_running_loop().time()
            lines = await client.until("HEADERS 3 END")
            assert asyncio.get_running_loop().time() - before >= 0.02
            assert "grpc-status=4 grpc-message=context deadline exceeded" in lines[-1]
            assert site.cancelled == [site.held[1]]

    run(story())


def test_a_stream_is_produced_no_faster_than_it_is_read() -> None:
    async def story() -> None:
        async with serving() as site, Channel("127.0.0.1", site.port) as channel:
            call = await channel.server_stream("/t.S/Count", b"3000 10000")
            await until(lambda: site.largest_backlog > 0)
            count = 0
            async for message in call:
                assert len(message) > 10_000
                count += 1
            assert count == 3000
            assert site.largest_backlog < 250_000

    run(story())


def test_a_peer_that_never_reads_is_stopped_then_cut() -> None:
    """Its requests are no longer read once its answers pile up; in the end it is cut, and others
    are served all the while."""
    limits = replace(LIMITS, write_stall_timeout=0.5)

    async def story() -> None:
        async with serving(limits) as site, Channel("127.0.0.1", site.port) as good:
            client = await RawClient.connect(site.port)
            settings = {frames.Setting.INITIAL_WINDOW_SIZE: 2**31 - 1}
            client.writer.write(
                frames.PREFACE
                + frames.settings(settings)
                + frames.window_update(0, 2**31 - 1 - 65535)
            )
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            sid = 1
            while site.server.connections == 2 or sid < 100:
                client.writer.write(client.wire.request(sid, b"x" * 16_000))
                sid += 2
                if sid % 100 == 1:
                    assert await good.unary("/t.S/Now", b"fine") == b"fine"
                for link in site.server.links:
                    core = link._core
                    assert not isinstance(core, Http1Connection)
                    waiting = core.backlog if core is not None else 0  # type: ignore[attr-defined]
                    assert waiting + link.transport.get_write_buffer_size() < 6 * MIB
                if client.writer.transport.get_write_buffer_size() > 2**20:
                    await until(lambda: site.server.connections < 2)
                    break
            await until(lambda: site.server.connections < 2)
            assert await good.unary("/t.S/Now", b"fine") == b"fine"
            client.writer.transport.abort()

    run(story())


def test_a_peer_that_reads_at_last_gets_everything() -> None:
    async def story() -> None:
        async with serving() as site:
            client = await RawClient.connect(site.port)
            window = 2**31 - 1
            client.writer.write(
                frames.PREFACE
                + frames.settings({frames.Setting.INITIAL_WINDOW_SIZE: window})
                + frames.window_update(0, window - 65535)
            )
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            link = (await first_link(site))[0]
            sid = 1
            while not (link._choked and client.writer.transport.get_write_buffer_size()):
                client.writer.write(client.wire.request(sid, b"x" * 16_000))
                sid += 2
                await asyncio.sleep(0)
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            await client.until_ended((sid - 1) // 2)  # in whatever order
            assert not link._choked
            assert link._stalled is None

    run(story())


async def first_link(site: Site) -> list[Link]:
    await until(lambda: site.server.links)
    return list(site.server.links)


def test_a_flood_that_wants_no_answers_read_is_stopped_too() -> None:
    """Answers without DATA are not subject to windows, but they fill the socket as well."""
    limits = replace(LIMITS, stop_reading=100_000)

    async def story() -> None:
        async with serving(limits) as site:
            client = await RawClient.connect(site.port)
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.writer.write(GREETED)
            link = (await first_link(site))[0]
            sid = 1
            while not link._stopped:
                for _ in range(20):
                    # A few bytes each, for an answer that names the method.
                    client.writer.write(client.wire.head(sid, "/t.S/" + "N" * 2000, end=True))
                    sid += 2
                await asyncio.sleep(0)
            assert link.transport.get_write_buffer_size() < 2 * MIB
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            await client.until(f"HEADERS {sid - 2} END")
            assert not link._stopped

    run(story())


def test_a_socket_that_says_nothing_is_closed() -> None:
    limits = replace(LIMITS, handshake_timeout=0.2)

    async def story() -> None:
        async with serving(limits) as site:
            silent = await RawClient.connect(site.port)
            partial = await RawClient.connect(site.port)
            partial.writer.write(b"PRI * HT")
            assert await silent.reader.read() == b""
            lines = await partial.until("GOAWAY")
            assert "SETTINGS_TIMEOUT" in lines[-1]
            await until(lambda: site.server.connections == 0)

    run(story())


def test_a_bad_peer_reads_why_before_the_end() -> None:
    async def story() -> None:
        async with serving() as site, Channel("127.0.0.1", site.port) as good:
            client = await RawClient.connect(site.port)
            client.writer.write(GREETED + frames.window_update(0, 0) + b"x" * 100_000)
            lines = await client.until("GOAWAY")
            assert "PROTOCOL_ERROR" in lines[-1]
            assert await client.reader.read() == b""
            assert await good.unary("/t.S/Now", b"fine") == b"fine"
            client.writer.close()

    run(story())


def test_draining() -> None:
    async def story() -> None:
        async with serving() as site, Channel("127.0.0.1", site.port) as channel:
            call = asyncio.ensure_future(channel.unary("/t.S/Hold", b"x"))
            await site.arrived.wait()
            idle = await RawClient.connect(site.port)
            await until(lambda: site.server.connections == 2)
            drained = asyncio.ensure_future(site.server.drain(10))
            assert await idle.reader.read() == b""
            with pytest.raises(OSError, match="refused"):
                await RawClient.connect(site.port)
            assert not drained.done()
            site.held[0].reply(b"done")
            assert await call == b"done"
            assert await drained
            assert site.server.connections == 0

    run(story())


def test_draining_is_bounded() -> None:
    async def story() -> None:
        async with serving() as site:
            channel = Channel("127.0.0.1", site.port)
            call = asyncio.ensure_future(channel.unary("/t.S/Hold", b"x"))
            await site.arrived.wait()
            assert not await site.server.drain(0.05)
            site.server.close()
            with pytest.raises(RpcError, match="UNAVAILABLE"):
                await call
            assert site.cancelled == site.held
            await channel.close()

    run(story())


def test_an_empty_server_drains_at_once() -> None:
    async def story() -> None:
        async with serving() as site:
            assert await site.server.drain(1)

    run(story())


def test_a_read_ahead_pauses_http_1() -> None:
    limits = replace(LIMITS, max_pipelined=2)

    async def story() -> None:
        async with serving(limits) as site:
            client = await RawClient.connect(site.port)
            client.writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
            got = b""
            while got.count(b"waited") < 200:
                got += await client.reader.read(65536)
            assert got.count(b"HTTP/1.1 200 OK") == 200

    run(story())


def test_uploads_larger_than_memory_should_hold() -> None:
    limits = replace(LIMITS, max_http_body=1000, stream_window=200_000)

    async def story() -> None:
        async with serving(limits) as site:
            client = await RawClient.connect(site.port)
            size = 30_000_000
            head = f"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
            client.writer.write(head.encode())
            for _ in range(size // 100_000):
                client.writer.write(b"x" * 100_000)
                await client.writer.drain()
            text = await client.reader.readuntil(b"30000000\n")
            assert text.startswith(b"HTTP/1.1 200 OK")
            assert site.largest_chunk < 1_000_000
            client.writer.write(head.encode() + b"x" * 1000)
            await client.writer.drain()
            client.writer.transport.abort()
            await until(lambda: site.lost_uploads == 1)
            await until(lambda: site.server.connections == 0)
            assert not site.reports

    run(story())


def test_a_half_closed_client_still_gets_its_answer() -> None:
    async def story() -> None:
        async with serving() as site:
            client = await RawClient.connect(site.port)
            client.writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
            client.writer.write_eof()
            assert (await client.reader.read()).endswith(b"waited\n")
            early = await RawClient.connect(site.port)
            early.writer.write_eof()
            assert await early.reader.read() == b""

    run(story())


@pytest.mark.parametrize("version", ["1.1", "2"])
def test_a_growing_answer_waits_for_its_reader(version: str) -> None:
    """What is produced is bounded by what is read."""
    made: list[int] = []

    async def endless() -> AsyncIterator[bytes]:
        while True:
            made.append(1)
            yield b"x" * 10_000

    async def story() -> None:
        server = GrpcServer({}, lambda request: HttpResponse(200, endless()))
        listener = await server.listen("127.0.0.1", 0)
        client = await RawClient.connect(listener.sockets[0].getsockname()[1])
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        one = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        client.writer.write(one if version == "1.1" else GREETED + get_over_http_2())
        await until(lambda: len(made) > 20)
        before = -1
        while len(made) != before:  # until no more is made in a while
            before = len(made)
            await asyncio.sleep(0.05)
        assert before < 3000
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert await client.reader.read(65536)
        client.writer.transport.abort()
        await until(lambda: server.connections == 0)
        server.close()

    run(story())


def get_over_http_2() -> bytes:
    fields = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "x")]
    return frames.frame(frames.HEADERS, 5, 1, hpack.Encoder().encode(fields))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A self-signed certificate for localhost, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    import subprocess

    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=someone", "-addext"),
            *("subjectAltName=DNS:localhost", "-keyout", key, "-out", cert),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


def test_tls(certificate: tuple[str, str]) -> None:
    cert, key = certificate
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=cert)
    server_side.load_cert_chain(cert, key)
    server_side.verify_mode = ssl.CERT_OPTIONAL
    client_side = ssl.create_default_context(cafile=cert)
    client_side.load_cert_chain(cert, key)

    async def story() -> None:
        async with serving(ssl=server_side) as site:
            channel = Channel("localhost", site.port, ssl=client_side)
            assert await channel.unary("/t.S/Now", b"x" * 100_000) == b"x" * 100_000
            call = asyncio.ensure_future(channel.unary("/t.S/Hold", b"x"))
            await site.arrived.wait()
            held = site.held[0]
            assert held.certificate is not None
            assert held.certificate["subject"] == ((("commonName", "someone"),),)
            link = next(iter(channel.links))
            assert link.transport.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
            held.reply(b"")
            await call
            await channel.close()

    run(story())
