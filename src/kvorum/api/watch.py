"""etcdserverpb.Watch."""

from __future__ import annotations

from typing import Final

from kvorum.api.unary import parse_stream_message
from kvorum.errors import EtcdError
from kvorum.h2 import Call, Method
from kvorum.pb import etcdserverpb as pb
from kvorum.server.proposer import fail
from kvorum.server.server import Server

BACKLOG: Final = 1024 * 1024
"""Bytes that a watch stream may have unsent before its watches read history instead: enough for a
burst, little enough that ten thousand slow clients fit into memory."""


class _Sink:
    """A call as the hub sees it."""

    __slots__ = ("_call", "send")

    def __init__(self, call: Call) -> None:
        self._call = call
        self.send = call.send

    def writable(self) -> bool:
        return self._call.backlog < BACKLOG


class WatchService:
    """Watch."""

    def __init__(self, server: Server) -> None:
        self._hub = server.hub

    def methods(self) -> dict[str, Method]:
        return {"/etcdserverpb.Watch/Watch": Method(self.watch, streaming=True)}

    def watch(self, call: Call) -> None:
        stream = self._hub.stream(_Sink(call))

        def handle(message: bytes) -> None:
            request = parse_stream_message(call, pb.WatchRequest, message)
            if request is None:
                stream.close()
                return
            try:
                stream.handle(request)
            except EtcdError as error:
                stream.close()
                fail(call, error)

        def end() -> None:
            stream.close()
            call.finish()

        call.on_message = handle
        call.on_writable = stream.on_writable
        call.on_cancel = stream.close
        call.on_end = end
