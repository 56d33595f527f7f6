"""Unary calls with messages, for all that is not measured: filling, checking, maintenance."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final, TypeVar

from google.protobuf.message import Message

from bench.connection import Body, Failure
from bench.frames import request_headers, stateless_block
from bench.wire import LoadError, Loop, Wire
from kvorum.pb import etcdserverpb as pb

MessageType = TypeVar("MessageType", bound=Message)

RANGE: Final = "/etcdserverpb.KV/Range"
PUT: Final = "/etcdserverpb.KV/Put"
TXN: Final = "/etcdserverpb.KV/Txn"
COMPACT: Final = "/etcdserverpb.KV/Compact"
WATCH: Final = "/etcdserverpb.Watch/Watch"
LEASE_GRANT: Final = "/etcdserverpb.Lease/LeaseGrant"
LEASE_REVOKE: Final = "/etcdserverpb.Lease/LeaseRevoke"
LEASE_KEEPALIVE: Final = "/etcdserverpb.Lease/LeaseKeepAlive"
LEASE_LIST: Final = "/etcdserverpb.Lease/LeaseLeases"
STATUS: Final = "/etcdserverpb.Maintenance/Status"
DEFRAGMENT: Final = "/etcdserverpb.Maintenance/Defragment"

MAX_TXN_OPS: Final = 100
"""Below etcd's default --max-txn-ops of 128."""


class RpcError(Exception):
    """A reply with a gRPC status other than OK."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"code {failure.code}: {failure.message}")
        self.code = failure.code
        self.message = failure.message


class Call:
    """A unary call under way."""

    __slots__ = ("body", "ended", "failure", "started", "stream")

    def __init__(self, stream: int, body: Body) -> None:
        self.stream = stream
        self.body = body
        self.failure: Failure | None = None
        self.started = time.perf_counter()
        self.ended: float | None = None

    def result(self, reply: type[MessageType]) -> MessageType:
        """The one message of the reply; raises RpcError, or LoadError when it is not one."""
        if self.failure is not None:
            raise RpcError(self.failure)
        messages = self.body.messages()
        if len(messages) != 1:
            raise LoadError(f"{len(messages)} messages in the reply of a unary call")
        return reply.FromString(messages[0])


class Client:
    """Calls on one connection of its own, waiting for each (``call``) or in a Loop (``begin``)."""

    def __init__(self, port: int) -> None:
        self.wire = Wire(port)
        self._authority = f"127.0.0.1:{port}"
        self._calls: dict[int, Call] = {}
        self._loop: Loop | None = None

    def close(self) -> None:
        if self._loop is not None:
            self._loop.close()
        self.wire.close()

    def begin(self, path: str, request: Message) -> Call:
        """Queue a call; the owner of the wire's loop transmits it and calls ``settle``."""
        body = Body()
        block = stateless_block(request_headers(path, self._authority))
        stream = self.wire.connection.request(block, request.SerializeToString(), body)
        call = self._calls[stream] = Call(stream, body)
        return call

    def settle(self, done: Iterable[int]) -> None:
        """Note which calls have ended."""
        connection = self.wire.connection
        for stream in done:
            self._end(stream, None)
        for failure in connection.failures:
            self._end(failure.stream, failure)
        connection.failures.clear()

    def _end(self, stream: int, failure: Failure | None) -> None:
        call = self._calls.pop(stream, None)
        if call is not None:
            call.failure = failure
            call.ended = time.perf_counter()
            self.wire.connection.forget(stream)

    def call(
        self, path: str, request: Message, reply: type[MessageType], *, timeout: float = 60.0
    ) -> MessageType:
        """One call, waited for. Raises RpcError, or LoadError after ``timeout`` seconds."""
        if self._loop is None:
            self._loop = Loop()
            self._loop.add([self.wire])
        call = self.begin(path, request)
        self._loop.send(self.wire)
        deadline = call.started + timeout
        while call.ended is None:
            for wire, done in self._loop.turn(max(0.0, deadline - time.perf_counter())):
                self.settle(done)
                self._loop.send(wire)
            if call.ended is None and time.perf_counter() > deadline:
                raise LoadError(f"no reply to {path} within {timeout:.0f} s")
        return call.result(reply)

    def count(self, prefix: bytes) -> int:
        """How many keys begin with ``prefix``."""
        request = pb.RangeRequest(key=prefix, range_end=prefix_end(prefix), count_only=True)
        return int(self.call(RANGE, request, pb.RangeResponse).count)

    def status(self) -> pb.StatusResponse:
        return self.call(STATUS, pb.StatusRequest(), pb.StatusResponse)

    def fill(self, keys: Iterable[bytes], value: bytes) -> None:
        """Put all keys, many in a transaction."""
        batch: list[pb.RequestOp] = []
        for key in keys:
            batch.append(pb.RequestOp(request_put=pb.PutRequest(key=key, value=value)))
            if len(batch) == MAX_TXN_OPS:
                self.call(TXN, pb.TxnRequest(success=batch), pb.TxnResponse)
                batch.clear()
        if batch:
            self.call(TXN, pb.TxnRequest(success=batch), pb.TxnResponse)


def prefix_end(prefix: bytes) -> bytes:
    """The end of the range of all keys with a prefix, which must not end with 0xff."""
    if not prefix or prefix[-1] == 255:
        raise ValueError(f"a prefix without a simple end: {prefix!r}")
    return prefix[:-1] + bytes([prefix[-1] + 1])
