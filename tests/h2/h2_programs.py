"""Programs that the interop tests run beside themselves: a grpcio client and a grpcio server.

grpcio has threads and an event engine of its own, which do not mix with a test's loop; so each runs
as a process, and speaks JSON lines on its output.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc


def _same(data: bytes) -> bytes:
    return data


def tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


class Handlers(grpc.GenericRpcHandler):
    """Now echoes, Fail fails, Echo streams, Count streams as many as it is told."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        name = details.method.rpartition("/")[2]
        if name == "Now":
            return grpc.unary_unary_rpc_method_handler(self._now)
        if name == "Fail":
            return grpc.unary_unary_rpc_method_handler(self._fail)
        if name == "Echo":
            return grpc.stream_stream_rpc_method_handler(lambda many, context: many)
        if name == "Count":
            return grpc.unary_stream_rpc_method_handler(self._count)
        if name == "Wait":
            return grpc.unary_unary_rpc_method_handler(self._wait)
        return None

    def _now(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata([("got", str(len(message))), ("got-bin", b"\0\xff")])
        return message

    def _fail(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.DATA_LOSS, "gone: " + message.decode())
        raise AssertionError

    def _count(self, message: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        for number in range(int(message)):
            yield b"%d" % number + b" " * 1000

    def _wait(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        import threading

        ended = threading.Event()
        context.add_callback(ended.set)
        ended.wait(20)
        tell(cancelled=True)
        return b""


def serve(compress: bool) -> None:
    kind = grpc.Compression.Gzip if compress else grpc.Compression.NoCompression
    server = grpc.server(futures.ThreadPoolExecutor(8), compression=kind)
    server.add_generic_rpc_handlers((Handlers(),))
    tell(port=server.add_insecure_port("127.0.0.1:0"))
    server.start()
    sys.stdin.read()
    server.stop(0)


def call(target: str, secure: str) -> None:
    """Use every kind of call, and tell what came back."""
    if secure:
        with open(secure, "rb") as file:
            channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(file.read()))
    else:
        channel = grpc.insecure_channel(target)

    def unary(name: str) -> Any:
        return channel.unary_unary(f"/t.S/{name}", _same, _same)

    now = unary("Now")
    sizes = [0, 1, 1000, 16379, 70_000, 2_000_000]
    tell(unary=[len(now(b"x" * size, timeout=10)) for size in sizes])
    pending = [unary("Later").future(b"%d" % n) for n in range(300)]
    tell(many=sum(int(one.result()) for one in pending))
    tell(gzip=len(now(b"x" * 100_000, compression=grpc.Compression.Gzip)))
    echo = channel.stream_stream("/t.S/Echo", _same, _same)
    tell(echo=[len(one) for one in echo(iter([b"a", b"b" * 100_000, b""]))])
    count = channel.unary_stream("/t.S/Count", _same, _same)
    tell(count=sum(1 for _ in count(b"2000 1000")))
    total = channel.stream_unary("/t.S/Sum", _same, _same)
    tell(sum=int(total(b"%d" % n for n in range(1000))))
    for name, message in (("Fail", b"w\xc3\xb6rld"), ("None", b""), ("Now", b"x" * 3_000_000)):
        try:
            unary(name)(message)
        except grpc.RpcError as error:
            tell(code=error.code().name, details=error.details())
    try:
        unary("Hold")(b"", timeout=0.2)
    except grpc.RpcError as error:
        tell(code=error.code().name)
    held = unary("Hold").future(b"")
    echoing = echo(iter([b"1"]))
    next(echoing)
    echoing.cancel()
    held.cancel()
    metadata = [("token", "abc"), ("x-bin", b"\0\xff")]
    tell(metadata=len(now(b"", metadata=metadata)))
    channel.close()
    tell(end=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2:] == ["gzip"])
    else:
        call(sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else "")
