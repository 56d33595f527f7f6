"""The HTTP client against servers that answer well, badly, late and never."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from peersite import RawServer, raw_server, run, serving, until

from kvorum.peer.http_client import HttpClient, HttpClientError, HttpReply, ReplyTooLarge
from kvorum.peer.http_connection import MAX_HEAD

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\nx-a: 2\r\n\r\n"
ENDLESS = b"HTTP/1.1 200 OK\r\n\r\n"


@asynccontextmanager
async def client(**options: Any) -> AsyncIterator[HttpClient]:
    made = HttpClient(**options)
    try:
        yield made
    finally:
        await made.close()


async def ask(site: RawServer, http: HttpClient, **options: Any) -> HttpReply:
    return await http.request("GET", site.url, "/x?y=1", timeout=5.0, **options)


def get(*replies: Any, **options: Any) -> HttpReply:
    """One request, answered with the given bytes."""

    async def work() -> HttpReply:
        async with raw_server(*replies) as site, client() as http:
            return await ask(site, http, **options)

    return run(work())


def test_a_reply_comes_whole_with_its_headers() -> None:
    reply = get(CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: 1\r\n\r\n")
    assert reply.status == 200
    assert reply.headers == {"transfer-encoding": "chunked", "x-a": "1, 2"}
    assert reply.body == b"abcde"


def test_a_reply_without_length_ends_with_its_connection() -> None:
    assert get(ENDLESS + b"all of it" + RawServer.CLOSE).body == b"all of it"


def test_an_interim_reply_is_passed_over() -> None:
    assert get(b"HTTP/1.1 100 Continue\r\nX-No: 1\r\n\r\n" + OK) == (
        200,
        {"content-length": "2"},
        b"ok",
    )


def test_no_content_has_no_body() -> None:
    assert get(b"HTTP/1.1 204 No Content\r\n\r\n").body == b""


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"junk that is no HTTP at all\r\n\r\n", HttpClientError),
        (CHUNKED + b"zz\r\n", HttpClientError),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n", OSError),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * (2 * MAX_HEAD), HttpClientError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab" + RawServer.CLOSE, ConnectionError),
        (CHUNKED + b"5\r\nab" + RawServer.CLOSE, ConnectionError),
        (b"HTTP/1.1 2" + RawServer.CLOSE, ConnectionError),
        (None, ConnectionError),
    ],
    ids=["junk", "chunk size", "upgrade", "large head", "short", "cut chunk", "cut head", "none"],
)
def test_a_bad_reply_is_an_error_of_the_other_side(reply: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        get(reply)


def test_a_reply_that_is_too_large_is_not_held() -> None:
    with pytest.raises(ReplyTooLarge):
        get(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + b"a" * 9000, max_body=100)


def test_a_silent_server_times_out_and_its_connection_is_closed() -> None:
    async def work() -> None:
        async with raw_server(...) as site, client() as http:
            with pytest.raises(TimeoutError):
                await http.request("GET", site.url, "/", timeout=0.05)
            await until(lambda: site.open == 0)

    run(work())


def test_nobody_listens() -> None:
    async def work() -> None:
        async with raw_server() as site:
            pass
        async with client() as http:
            with pytest.raises(ConnectionRefusedError):
                await ask(site, http)

    run(work())


def test_connections_are_used_again() -> None:
    async def work() -> None:
        async with raw_server(*[OK] * 4) as site, client() as http:
            for _ in range(4):
                assert (await ask(site, http)).body == b"ok"
            assert site.connections == 1
            assert site.heads[0].startswith(b"GET /x?y=1 HTTP/1.1\r\nHost: 127.0.0.1:")

    run(work())


def test_idle_connections_are_closed_in_time() -> None:
    async def work() -> None:
        async with raw_server(OK, OK) as site, client(idle_timeout=0.02) as http:
            await ask(site, http)
            await until(lambda: site.open == 0)
            await ask(site, http)
            assert site.connections == 2

    run(work())


def test_a_read_is_sent_again_if_the_kept_connection_is_gone() -> None:
    async def work() -> None:
        async with raw_server(OK, None, OK) as site, client() as http:
            await ask(site, http)
            assert (await ask(site, http)).body == b"ok"
            assert site.connections == 2

    run(work())


def test_a_change_is_never_sent_twice() -> None:
    async def work() -> None:
        async with raw_server(OK, None, OK) as site, client() as http:
            await ask(site, http)
            with pytest.raises(ConnectionError):
                await http.request("POST", site.url, "/", body=b"once", timeout=5.0)
            assert site.bodies == [b"", b"once"]

    run(work())


def test_bodies_are_sent_whole_or_chunked() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"a", b"", b"bc" * 100_000):
            yield piece

    async def work() -> None:
        async with raw_server(OK, OK, OK) as site, client() as http:
            for body in (b"whole", pieces(), b""):
                await http.request("POST", site.url, "/", body=body, timeout=5.0)
            assert site.bodies == [b"whole", b"a" + b"bc" * 100_000, b""]
            assert b"Content-Length: 0" in site.heads[2]
            assert site.connections == 1

    run(work())


def test_a_body_that_fails_fails_the_request() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"a"
        raise LookupError("the caller's own")

    async def work() -> None:
        async with raw_server(OK) as site, client() as http:
            with pytest.raises(LookupError):
                await http.request("POST", site.url, "/", body=broken(), timeout=5.0)
            await until(lambda: site.open == 0)

    run(work())


def test_an_answer_before_the_end_of_the_request_stops_it() -> None:
    """As a peer does that refuses a snapshot by its first bytes."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b"x" * 65536

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 412 Precondition Failed\r\nContent-Length: 2\r\n\r\nno")
        await writer.drain()

    async def work() -> None:
        async with serving(refuse) as url, client() as http:
            reply = await http.request("POST", url, "/", body=endless(), timeout=5.0)
            assert (reply.status, reply.body) == (412, b"no")
            stopped = sent
            await asyncio.sleep(0)
            assert sent == stopped

    run(work())


def test_a_body_waits_for_a_slow_reader() -> None:
    sent = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(400):
            sent += 65536
            yield b"x" * 65536

    async def work() -> None:
        released = asyncio.Event()
        taken = 0

        async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal taken
            await released.wait()
            while not (await reader.read(65536)).endswith(b"0\r\n\r\n"):
                taken += 1
            writer.write(OK)

        async with serving(slow) as url, client() as http:
            asked = asyncio.ensure_future(
                http.request("POST", url, "/", body=pieces(), timeout=20.0)
            )
            before = -1
            while before != sent or not sent:  # as long as it goes on by itself
                before = sent
                await asyncio.sleep(0.05)
            assert sent < 15_000_000, "sockets and buffers hold a few MB, not all"
            released.set()
            assert (await asked).status == 200
            assert sent == 400 * 65536

    run(work())


def test_a_streamed_reply_comes_in_pieces_and_waits_for_its_reader() -> None:
    async def work() -> None:
        total = 64 * 1024 * 1024
        written = 0

        async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal written
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
            while written < total:
                writer.write(b"x" * 65536)
                written += 65536
                await writer.drain()

        async with serving(pour) as url, client() as http:
            status, headers, body = await http.stream("GET", url, "/", timeout=5.0)
            assert (status, headers["content-length"]) == (200, str(total))
            before = -1
            while before != written or not written:
                before = written
                await asyncio.sleep(0.05)
            assert written < total // 2
            assert sum([len(piece) async for piece in body]) == total

    run(work())


def test_a_streamed_reply_that_is_given_up_closes_its_connection() -> None:
    async def work() -> None:
        async with raw_server(CHUNKED + b"3\r\nabc\r\n") as site, client() as http:
            reply = await http.stream("GET", site.url, "/", timeout=5.0)
            assert await anext(reply.body) == b"abc"
            await reply.body.aclose()
            await until(lambda: site.open == 0)

    run(work())


def test_connections_to_one_server_are_bounded() -> None:
    async def work() -> None:
        async with raw_server(*[OK] * 20) as site, client(max_connections=2) as http:
            replies = await asyncio.gather(*(ask(site, http) for _ in range(20)))
            assert all(reply.body == b"ok" for reply in replies)
            assert site.connections <= 2

    run(work())


def test_what_waits_for_a_connection_times_out_too() -> None:
    async def work() -> None:
        async with raw_server(..., OK) as site, client(max_connections=1) as http:
            first = asyncio.ensure_future(http.request("GET", site.url, "/", timeout=20.0))
            await until(lambda: site.heads)
            with pytest.raises(TimeoutError):
                await http.request("GET", site.url, "/", timeout=0.05)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            assert (await ask(site, http)).body == b"ok"

    run(work())


def test_a_reply_nobody_asked_for_closes_the_connection() -> None:
    async def work() -> None:
        async with raw_server(OK + OK, OK) as site, client() as http:
            assert (await ask(site, http)).body == b"ok"
            await until(lambda: site.open == 0)
            assert (await ask(site, http)).body == b"ok"

    run(work())


def test_close_ends_what_is_under_way() -> None:
    async def work() -> None:
        async with raw_server(...) as site, client() as http:
            asked = asyncio.ensure_future(ask(site, http))
            await until(lambda: site.heads)
            await http.close()
            with pytest.raises(OSError, match="closed"):
                await asked
            with pytest.raises(ConnectionAbortedError):
                await ask(site, http)

    run(work())


def test_unix_sockets(tmp_path: Path) -> None:
    async def work() -> None:
        site = RawServer(OK)
        server = await asyncio.start_unix_server(site.serve, tmp_path / "s")
        async with client() as http:
            reply = await http.request("GET", f"unix://{tmp_path}/s", "/", timeout=5.0)
            assert reply.body == b"ok"
        server.close()

    run(work())


@pytest.mark.parametrize(
    ("url", "path", "headers"),
    [
        ("ftp://127.0.0.1:1", "/", {}),
        ("127.0.0.1:1", "/", {}),
        ("http://127.0.0.1:1", "/a b", {}),
        ("http://127.0.0.1:1", "/a\r\nX: y", {}),
        ("http://127.0.0.1:1", "/", {"X": "a\nb"}),
    ],
)
def test_what_cannot_be_asked_is_refused(url: str, path: str, headers: dict[str, str]) -> None:
    async def work() -> None:
        async with client() as http:
            with pytest.raises(ValueError, match=r".+"):
                await http.request("GET", url, path, headers=headers, timeout=1.0)

    run(work())


def test_https_needs_settings() -> None:
    async def work() -> None:
        async with client() as http:
            with pytest.raises(HttpClientError, match="TLS"):
                await http.request("GET", "https://127.0.0.1:1", "/", timeout=1.0)
        async with raw_server(OK) as site, client(ssl=ssl.create_default_context()) as http:
            with pytest.raises(OSError):  # noqa: PT011 - whatever OpenSSL says of plain text
                await http.request("GET", site.url.replace("http", "https"), "/", timeout=0.2)

    run(work())
