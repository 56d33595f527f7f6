"""A raw gRPC client: request bytes in, reply bytes or status out.

Messages are Kvorum's own ``kvorum.pb``; the transport is grpcio, an implementation that shares no
line with the server under test. Retries and proxies are off: a test must see what really happened.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grpc

from kvorum.pb import etcdserverpb as pb

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
]
CALL_SECONDS = 30.0
_HEALTH_PATH = "/grpc.health.v1.Health/Check"


class Reply(NamedTuple):
    """What one call gave: a message, or a status code with its text."""

    body: bytes
    code: str = "OK"
    details: str = ""

    @property
    def ok(self) -> bool:
        return self.code == "OK"


class Rpc(NamedTuple):
    """One unary method: where it is, and what its reply is."""

    path: str
    request: Any
    response: Any


def _rpc(service: str, name: str, request: str, response: str | None = None) -> Rpc:
    response = response or request.removesuffix("Request") + "Response"
    return Rpc(f"/etcdserverpb.{service}/{name}", getattr(pb, request), getattr(pb, response))


RANGE = _rpc("KV", "Range", "RangeRequest")
PUT = _rpc("KV", "Put", "PutRequest")
DELETE_RANGE = _rpc("KV", "DeleteRange", "DeleteRangeRequest")
TXN = _rpc("KV", "Txn", "TxnRequest")
COMPACT = _rpc("KV", "Compact", "CompactionRequest")
LEASE_GRANT = _rpc("Lease", "LeaseGrant", "LeaseGrantRequest")
LEASE_REVOKE = _rpc("Lease", "LeaseRevoke", "LeaseRevokeRequest")
LEASE_TTL = _rpc("Lease", "LeaseTimeToLive", "LeaseTimeToLiveRequest")
LEASE_LEASES = _rpc("Lease", "LeaseLeases", "LeaseLeasesRequest")
HASH_KV = _rpc("Maintenance", "HashKV", "HashKVRequest")
STATUS = _rpc("Maintenance", "Status", "StatusRequest")
DEFRAGMENT = _rpc("Maintenance", "Defragment", "DefragmentRequest")
ALARM = _rpc("Maintenance", "Alarm", "AlarmRequest")
MEMBER_LIST = _rpc("Cluster", "MemberList", "MemberListRequest")

BY_PATH = {
    rpc.path: rpc
    for rpc in (
        RANGE,
        PUT,
        DELETE_RANGE,
        TXN,
        COMPACT,
        LEASE_GRANT,
        LEASE_REVOKE,
        LEASE_TTL,
        LEASE_LEASES,
        HASH_KV,
        STATUS,
        DEFRAGMENT,
        ALARM,
        MEMBER_LIST,
    )
}
WATCH_PATH = "/etcdserverpb.Watch/Watch"
KEEP_ALIVE_PATH = "/etcdserverpb.Lease/LeaseKeepAlive"


class RpcFailed(Exception):
    """A call that the test expected to work gave this status."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(f"{reply.code}: {reply.details}")
        self.reply = reply


class Client:
    """One connection. Safe to use from several threads."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._channel = grpc.insecure_channel(endpoint, options=_OPTIONS)
        self._calls: dict[str, Callable[..., bytes]] = {}

    def wait_connected(self, timeout: float = 20.0) -> Client:
        """Any answer will do. (grpcio's own way leaves a thread that closing waits 0.2 s for.)"""
        check = self._channel.unary_unary(_HEALTH_PATH)
        try:
            check(b"", timeout=timeout, wait_for_ready=True)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise
        return self

    def raw(self, path: str, request: bytes, *, timeout: float = CALL_SECONDS) -> Reply:
        call = self._calls.get(path)
        if call is None:
            call = self._calls[path] = self._channel.unary_unary(path)
        try:
            return Reply(call(request, timeout=timeout))
        except grpc.RpcError as error:
            return Reply(b"", error.code().name, error.details() or "")

    def call(self, rpc: Rpc, *, timeout: float = CALL_SECONDS, **fields: Any) -> Any:
        """The parsed reply; RpcFailed on any other status than OK."""
        reply = self.raw(rpc.path, rpc.request(**fields).SerializeToString(), timeout=timeout)
        if not reply.ok:
            raise RpcFailed(reply)
        return rpc.response.FromString(reply.body)

    def collect(self, path: str, request: bytes, *, timeout: float = CALL_SECONDS) -> list[bytes]:
        """All messages of a server stream."""
        return list(self._channel.unary_stream(path)(request, timeout=timeout))

    def stream(self, path: str) -> Stream:
        return Stream(self._channel, path)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Stream:
    """One bidirectional stream; a thread hands each message to ``on_message``."""

    def __init__(self, channel: grpc.Channel, path: str) -> None:
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._call = channel.stream_stream(path)(self._outgoing())
        self._thread: threading.Thread | None = None
        self.status: Reply | None = None

    def _outgoing(self) -> Iterator[bytes]:
        while (request := self._requests.get()) is not None:
            yield request

    def start(self, on_message: Callable[[bytes], None], on_end: Callable[[Reply], None]) -> Stream:
        """Read in the background until the stream ends; both callbacks run on that thread."""
        self._thread = threading.Thread(target=self._read, args=(on_message, on_end), daemon=True)
        self._thread.start()
        return self

    def _read(self, on_message: Callable[[bytes], None], on_end: Callable[[Reply], None]) -> None:
        try:
            for message in self._call:
                on_message(message)
            self.status = Reply(b"")
        except grpc.RpcError as error:
            self.status = Reply(b"", error.code().name, error.details() or "")
        on_end(self.status)

    def send(self, request: bytes) -> None:
        self._requests.put(request)

    def half_close(self) -> None:
        """No more requests; the server ends the stream."""
        self._requests.put(None)

    def close(self, timeout: float = 10.0) -> None:
        self._call.cancel()
        self._requests.put(None)
        if self._thread is not None:
            self._thread.join(timeout)
