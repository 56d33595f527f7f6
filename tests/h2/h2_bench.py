"""How much a unary call costs: ``python tests/h2/h2_bench.py [calls per read]``.

Feeds encoded requests to a server connection without a socket, in reads of several calls each, and
prints microseconds of CPU a call, handler excluded but for its one ``reply``. With ``h2load`` at
hand it also drives a real server: requests a second, and the server's CPU a request.
"""

from __future__ import annotations

import asyncio
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import hpack
import uvloop

from kvorum.h2 import Call, GrpcServer, Limits, Method, frames
from kvorum.h2.deadlines import Deadlines
from kvorum.h2.server_core import ServerConnection
from kvorum.h2.service import Service

PATH = "/etcdserverpb.KV/Put"
REQUEST = b"k" * 290  # a put of a 256-byte value
ANSWER = b"r" * 30
HEAD = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", PATH),
    (":authority", "127.0.0.1:2379"),
    ("content-type", "application/grpc"),
    ("user-agent", "grpc-go/1.82.1"),
    ("te", "trailers"),
]


def encoded(calls: int, per_read: int, *, timeouts: bool) -> list[bytes]:
    """The client's side of a connection as reads; with timeouts, each head is a new one."""
    encoder = hpack.Encoder()
    window = 2**31 - 1
    opening = frames.settings({frames.Setting.INITIAL_WINDOW_SIZE: window})
    reads = [frames.PREFACE + opening + frames.window_update(0, window - 65535)]
    body = b"\0" + len(REQUEST).to_bytes(4, "big") + REQUEST
    sid = 1
    for _ in range(calls // per_read):
        parts = []
        for _ in range(per_read):
            left = [("grpc-timeout", f"{4_999_000 + sid % 997}u")] if timeouts else []
            block = encoder.encode(HEAD + left)
            parts.append(frames.frame(frames.HEADERS, frames.END_HEADERS, sid, block))
            parts.append(frames.frame(frames.DATA, frames.END_STREAM, sid, body))
            sid += 2
        reads.append(b"".join(parts))
    return reads


def measure(reads: list[bytes], calls: int) -> float:
    """Microseconds of CPU a call."""
    method = Method(lambda call, message: call.reply(ANSWER))
    service = Service({PATH: method}, Deadlines(lambda when: None))
    conn = ServerConnection(service, Limits(), lambda: None, 0.0)
    conn.receive(reads[0], 0.0)
    conn.take()
    start = time.process_time()
    for data in reads[1:]:
        conn.receive(data, 1.0)
        conn.take()
    spent = time.process_time() - start
    assert method.handled[0] == calls
    return spent / calls * 1e6


def best(calls: int, per_read: int, *, timeouts: bool, rounds: int = 5) -> float:
    reads = encoded(calls, per_read, timeouts=timeouts)
    return min(measure(reads, calls // per_read * per_read) for _ in range(rounds))


async def end_to_end(h2load: str, body: Path) -> None:
    loop = asyncio.get_running_loop()

    def later(call: Call, message: bytes) -> None:
        loop.call_soon(call.reply, ANSWER)

    methods = {
        "/b.S/Now": Method(lambda call, message: call.reply(ANSWER)),
        "/b.S/Later": Method(later),
    }
    server = GrpcServer(methods)
    listener = await server.listen("127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    for path in methods:
        for conns, streams in ((10, 10), (1, 100), (100, 10)):
            await load(h2load, f"http://127.0.0.1:{port}{path}", conns, streams, body)
    server.close()


async def load(h2load: str, url: str, conns: int, streams: int, body: Path) -> None:
    count = 100_000
    options = ["-n", str(count), "-c", str(conns), "-m", str(streams), "-d", str(body)]
    heads = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    before = resource.getrusage(resource.RUSAGE_SELF)
    process = await asyncio.create_subprocess_exec(
        h2load, *options, *heads, url, stdout=asyncio.subprocess.PIPE
    )
    text = (await process.communicate())[0].decode()
    after = resource.getrusage(resource.RUSAGE_SELF)
    rate = next(line for line in text.splitlines() if line.startswith("finished")).split(",")[1]
    spent = (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime) / count * 1e6
    name = url.rpartition("/")[2]
    print(f"{name:6} {conns:3} conns x {streams:3} streams:{rate}, server CPU {spent:.1f} us")


def main() -> None:
    sizes = [int(size) for size in sys.argv[1:]] or [1, 10, 100]
    for per_read in sizes:
        plain = best(100_000, per_read, timeouts=False)
        timed = best(100_000, per_read, timeouts=True)
        print(f"{per_read:4} calls a read: {plain:.2f} us a call, {timed:.2f} with a deadline")
    h2load = shutil.which("h2load")
    if h2load:
        with tempfile.TemporaryDirectory() as folder:
            body = Path(folder, "body")
            body.write_bytes(b"\0" + len(REQUEST).to_bytes(4, "big") + REQUEST)
            uvloop.run(end_to_end(h2load, body))


if __name__ == "__main__":
    main()
