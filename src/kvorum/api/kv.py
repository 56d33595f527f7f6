"""etcdserverpb.KV."""

from __future__ import annotations

from typing import Final

from kvorum import errors, failpoint
from kvorum.api.unary import one_request, unary
from kvorum.api.validate import (
    RangeStreamFiltersUnsupported,
    RangeStreamUnsupported,
    check_delete,
    check_put,
    check_range,
    check_txn,
)
from kvorum.errors import EtcdError
from kvorum.h2 import Call, Method
from kvorum.pb import etcdserverpb as pb
from kvorum.pb.wire import delimited, int64_field
from kvorum.server.proposer import Caller, fail
from kvorum.server.quota import put_cost, txn_cost
from kvorum.server.ranges import execute_range, has_default_order, has_revision_filters
from kvorum.server.server import Server
from kvorum.server.txn import execute_read_txn, is_read_only, is_serializable

FIRST_CHUNK: Final = 10
"""Pairs in the first chunk of a RangeStream; later ones grow towards ``--max-request-bytes``."""
BACKLOG: Final = 4 * 1024 * 1024
"""Bytes a RangeStream may have unsent before it waits for the client."""


class KVService:
    """Range, RangeStream, Put, DeleteRange, Txn, Compact."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._store = server.store
        self._header = server.header
        self._quota = server.quota
        self._propose = server.proposer.propose
        self._read = server.reads.read
        self._max_txn_ops = server.config.max_txn_ops
        self._max_request_bytes = server.config.max_request_bytes

    def methods(self) -> dict[str, Method]:
        return {
            "/etcdserverpb.KV/Range": unary(pb.RangeRequest, self.range),
            "/etcdserverpb.KV/RangeStream": Method(self.range_stream, streaming=True),
            "/etcdserverpb.KV/Put": unary(pb.PutRequest, self.put),
            "/etcdserverpb.KV/DeleteRange": unary(pb.DeleteRangeRequest, self.delete_range),
            "/etcdserverpb.KV/Txn": unary(pb.TxnRequest, self.txn),
            "/etcdserverpb.KV/Compact": unary(pb.CompactionRequest, self.compact),
        }

    def range(self, call: Call, request: pb.RangeRequest, message: bytes) -> None:
        check_range(request)
        if request.serializable:
            self._run_range(request, call)
        else:
            self._read(self._run_range, request, call)

    def _run_range(self, request: pb.RangeRequest, caller: Caller) -> None:
        try:
            body, revision = execute_range(self._store, request)
        except EtcdError as error:
            fail(caller, error)
        else:
            caller.reply(self._header.field(revision) + body)

    def put(self, call: Call, request: pb.PutRequest, message: bytes) -> None:
        if not (self._quota.ample or self._quota.allows(put_cost(request))):
            self._server.raise_no_space()
            raise errors.NoSpace
        check_put(request)
        self._propose("put", message, request, call)

    def delete_range(self, call: Call, request: pb.DeleteRangeRequest, message: bytes) -> None:
        check_delete(request)
        self._propose("delete_range", message, request, call)

    def txn(self, call: Call, request: pb.TxnRequest, message: bytes) -> None:
        if not (self._quota.ample or self._quota.allows(txn_cost(request))):
            self._server.raise_no_space()
            raise errors.NoSpace
        check_txn(request, self._max_txn_ops)
        if not is_read_only(request):
            self._propose("txn", message, request, call)
        elif is_serializable(request):
            self._run_txn(request, call)
        else:
            self._read(self._run_txn, request, call)

    def _run_txn(self, request: pb.TxnRequest, caller: Caller) -> None:
        try:
            body = execute_read_txn(self._store, request)
        except EtcdError as error:
            fail(caller, error)
        else:
            caller.reply(self._header.field(self._store.rev) + body)

    def compact(self, call: Call, request: pb.CompactionRequest, message: bytes) -> None:
        caller = _PhysicalCompaction(call, self._server) if request.physical else call
        self._propose("compaction", message, request, caller)

    def range_stream(self, call: Call) -> None:
        one_request(call, pb.RangeRequest, lambda request: self._start_stream(call, request))

    def _start_stream(self, call: Call, request: pb.RangeRequest) -> None:
        check_range(request)
        if not has_default_order(request):
            raise RangeStreamUnsupported
        if has_revision_filters(request):
            raise RangeStreamFiltersUnsupported
        stream = _RangeStream(self, call, request)
        if request.serializable:
            stream.start()
        else:
            self._read(lambda _request, _caller: stream.start(), request, call)

    def next_chunk(self, request: pb.RangeRequest) -> tuple[pb.RangeResponse, int]:
        """One chunk, decoded, and its size."""
        body, revision = execute_range(self._store, request)
        response = pb.RangeResponse.FromString(body)
        response.header.revision = revision
        return response, len(body)

    def stream_header(self, revision: int) -> bytes:
        return self._header.field(revision)  # type: ignore[arg-type]

    def adjust_limit(self, limit: int, size: int) -> int:
        """Double or halve a chunk that is far from the size aimed at."""
        if size < self._max_request_bytes // 2:
            return limit * 2
        if size > self._max_request_bytes * 2:
            return max(1, limit // 2)
        return limit


class _PhysicalCompaction:
    """A caller that is answered only when the compaction has removed what it had to, on disk."""

    __slots__ = ("_call", "_server")

    def __init__(self, call: Call, server: Server) -> None:
        self._call = call
        self._server = server

    def reply(self, message: bytes) -> None:
        self._server.compactions.when_settled(lambda: self._call.reply(message))

    def fail(self, code: int, message: str) -> None:
        self._server.compactions.when_settled(lambda: self._call.fail(code, message))


class _RangeStream:
    """A range at one revision, sent in chunks, as fast as the client reads."""

    def __init__(self, service: KVService, call: Call, request: pb.RangeRequest) -> None:
        self._service = service
        self._call = call
        self._request = request
        self._total = request.limit if request.limit > 0 else 1 << 62
        self._sent = 0
        self._revision = 0

    def start(self) -> None:
        request = self._request
        if request.count_only:
            self._run(self._send_count)
            return
        request.limit = min(FIRST_CHUNK, self._total)
        self._call.on_writable = lambda: self._run(self._send_some)
        self._run(self._send_some)

    def _run(self, step: object) -> None:
        try:
            step()  # type: ignore[operator]
        except EtcdError as error:
            fail(self._call, error)

    def _send_count(self) -> None:
        response, _ = self._service.next_chunk(self._request)
        header = self._service.stream_header(response.header.revision)
        self._call.send(delimited(1, header + int64_field(4, response.count)))
        self._call.finish()

    def _send_some(self) -> None:
        while self._call.backlog < BACKLOG:
            if self._send_chunk():
                self._call.on_writable = None
                self._call.finish()
                return

    def _send_chunk(self) -> bool:
        """Send the next chunk; True if it was the last."""
        if failpoint.active:
            failpoint.hit("beforeRangeStreamChunk")
        request = self._request
        response, size = self._service.next_chunk(request)
        if not self._revision:
            self._revision = response.header.revision
            request.revision = request.revision or self._revision
        self._sent += len(response.kvs)
        header, more = b"", response.more
        last = not more or self._sent == self._total
        response.ClearField("header")
        response.ClearField("count")
        response.ClearField("more")
        if last:
            header = self._service.stream_header(self._revision)
            response.more = more
            response.count = self._sent
        if more:
            request.key = response.kvs[-1].key + b"\0"
        if last and more:
            response.count += self._count_rest()
        self._call.send(delimited(1, header + response.SerializeToString()))
        request.limit = self._service.adjust_limit(request.limit, size)
        request.limit = min(request.limit, self._total - self._sent)
        return last

    def _count_rest(self) -> int:
        rest = pb.RangeRequest()
        rest.CopyFrom(self._request)
        rest.count_only = True
        response, _ = self._service.next_chunk(rest)
        return response.count
