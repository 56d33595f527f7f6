"""The engine with other people's programs: grpcio, curl, nghttp, h2load."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from h2site import run, serving, until
from h2wire import grpc

from kvorum.h2 import Channel, RpcError

pytest.importorskip("grpc", reason="grpcio is not installed")

PROGRAMS = Path(__file__).with_name("h2_programs.py")


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


async def output(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    return out.decode()


def told(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


EXPECTED = [
    {"unary": [0, 1, 1000, 16379, 70_000, 2_000_000]},
    {"many": sum(range(300))},
    {"gzip": 100_000},
    {"echo": [1, 100_000, 0]},
    {"count": 2000},
    {"sum": sum(range(1000))},
    {"code": "FAILED_PRECONDITION", "details": "no: wörld"},
    {"code": "UNIMPLEMENTED", "details": "unknown method None for service t.S"},
    {
        "code": "RESOURCE_EXHAUSTED",
        "details": "grpc: received message larger than max (3000000 vs. 2097152)",
    },
    {"code": "DEADLINE_EXCEEDED"},
    {"metadata": 0},
    {"end": True},
]


def test_a_grpcio_client() -> None:
    async def story() -> None:
        async with serving() as site:
            target = f"127.0.0.1:{site.port}"
            text = await output(sys.executable, str(PROGRAMS), "call", target)
            assert told(text) == EXPECTED
            await until(lambda: len(site.cancelled) >= 2)
            assert site.server.connections == 0
            assert not site.reports

    run(story())


def test_a_grpcio_client_over_tls(tmp_path: Path) -> None:
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    subprocess.run(
        [
            *(tool("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt"),
            *("ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=x", "-addext"),
            *("subjectAltName=DNS:localhost", "-keyout", key, "-out", cert),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)

    async def story() -> None:
        async with serving(ssl=context) as site:
            target = f"localhost:{site.port}"
            text = await output(sys.executable, str(PROGRAMS), "call", target, cert)
            assert told(text) == EXPECTED

    run(story())


@asynccontextmanager
async def grpcio_server(*options: str) -> AsyncIterator[tuple[int, asyncio.StreamReader]]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROGRAMS), "serve", *options),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        port = json.loads(await process.stdout.readline())["port"]
        yield port, process.stdout
    finally:
        process.stdin.close()
        await process.wait()


@pytest.mark.parametrize("options", [(), ("gzip",)], ids=["plain", "gzip"])
def test_our_client_with_a_grpcio_server(options: tuple[str, ...]) -> None:
    async def story() -> None:
        async with grpcio_server(*options) as (port, out), Channel("127.0.0.1", port) as channel:
            sizes = [0, 1, 1000, 16379, 70_000, 2_000_000]
            answers = [await channel.unary("/t.S/Now", b"x" * size, timeout=10) for size in sizes]
            assert [len(answer) for answer in answers] == sizes
            many = [channel.unary("/t.S/Now", b"%d" % n) for n in range(300)]
            assert await asyncio.gather(*many) == [b"%d" % n for n in range(300)]
            with pytest.raises(RpcError, match="DATA_LOSS: gone: wörld"):
                await channel.unary("/t.S/Fail", "wörld".encode())
            with pytest.raises(RpcError, match="UNIMPLEMENTED"):
                await channel.unary("/t.S/None", b"")
            async with await channel.stream("/t.S/Echo") as both:
                for size in (0, 1, 100_000):
                    await both.send(b"y" * size)
                    assert await both.recv() == b"y" * size
                await both.end()
                assert await both.recv() is None
            call = await channel.server_stream("/t.S/Count", b"3000")
            assert [int(message) async for message in call] == list(range(3000))
            call = await channel.server_stream("/t.S/Now", b"abc")
            assert [message async for message in call] == [b"abc"]
            assert ("got", "3") in call.trailers
            assert ("got-bin", "\0\xff") in call.trailers
            with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
                await channel.unary("/t.S/Wait", b"", timeout=0.1)
            assert json.loads(await out.readline()) == {"cancelled": True}

    run(story())


def test_curl() -> None:
    curl = tool("curl")

    async def story() -> None:
        async with serving() as site:
            url = f"http://127.0.0.1:{site.port}"
            http2 = "--http2-prior-knowledge"
            assert await output(curl, "-sS", http2, f"{url}/health") == "GET /health 2 0\n"
            assert await output(curl, "-sS", f"{url}/health") == "GET /health 1.1 0\n"
            assert await output(curl, "-sS", "--http2", f"{url}/up") == "GET /up 1.1 0\n"
            assert await output(curl, "-sS", "-0", f"{url}/old") == "GET /old 1.0 0\n"
            assert await output(curl, "-sS", http2, f"{url}/grow") == "0\n1\n2\n"
            assert await output(curl, "-sS", f"{url}/grow?2000") == "".join(
                f"{n}\n" for n in range(2000)
            )
            assert "200 OK" in await output(curl, "-sSI", f"{url}/head")
            assert "HTTP/2 200" in await output(curl, "-sSI", http2, f"{url}/head")
            big = "x" * 1_000_000
            for option in (http2, "--http1.1"):
                text = await output(curl, "-sS", option, f"{url}/post", "--data", big[:100_000])
                assert text.startswith("POST /post")
                assert text.endswith(" 100000\n")

    run(story())


def test_nghttp() -> None:
    nghttp = tool("nghttp")

    async def story() -> None:
        async with serving() as site:
            url = f"http://127.0.0.1:{site.port}"
            assert await output(nghttp, f"{url}/health?x=1") == "GET /health 2 0\n"
            verbose = await output(nghttp, "-v", f"{url}/a", f"{url}/b")
            assert verbose.count(":status: 200") == 2
            assert "GOAWAY frame <length=8, flags=0x00, stream_id=0>" in verbose
            assert "INVALID" not in verbose

    run(story())


@pytest.mark.parametrize("method", ["Now", "Later"])
def test_h2load(method: str, tmp_path: Path) -> None:
    h2load = tool("h2load")
    body = tmp_path / "body"
    body.write_bytes(grpc(b"k" * 256))

    async def story() -> None:
        async with serving() as site:
            url = f"http://127.0.0.1:{site.port}/t.S/{method}"
            heads = ("-H", "content-type: application/grpc", "-H", "te: trailers")
            load = ("-n", "5000", "-c", "10", "-m", "20", "-d", str(body))
            text = await output(h2load, *load, *heads, url)
            assert "5000 done, 5000 succeeded, 0 failed, 0 errored" in text
            assert site.methods[f"/t.S/{method}"].handled[0] == 5000

    run(story())
