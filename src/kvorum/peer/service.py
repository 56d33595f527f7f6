"""What other members may ask at the peer port."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Final

from kvorum.backend.image import FORMAT
from kvorum.h2 import Limits
from kvorum.h2.http import (
    PLAIN_TEXT,
    Answer,
    HttpHandler,
    HttpRequest,
    HttpResponse,
    text_response,
)
from kvorum.h2.responder import chunks
from kvorum.peer import handshake
from kvorum.peer.handshake import CLUSTER_ID, SERVER_VERSION, StreamKind
from kvorum.peer.interface import RemovedMember, WrongMember
from kvorum.peer.rafthttp import Rafthttp
from kvorum.peer.snapshot_receiver import SnapshotReceiver
from kvorum.peer.snapshot_sender import IMAGE_PATH
from kvorum.raft.codec import decode_message
from kvorum.raft.errors import DecodeError
from kvorum.raft.types import LOCAL_MSGS, MsgType
from kvorum.types import MemberID

PEER_LIMITS: Final = Limits(
    max_http_body=64 * 1024 * 1024,  # a message that is posted; a snapshot comes as a stream
    header_timeout=5.0,
    http_idle_timeout=5.0,
    write_stall_timeout=5.0,
    handshake_timeout=10.0,
)
"""Of a peer's listener. etcd drops a connection that reads or writes nothing for 5 s."""

_PIPELINE: Final = "/raft"
_STREAMS: Final = "/raft/stream/"
_SNAPSHOT: Final = "/raft/snapshot"
_PROBING: Final = "/raft/probing"

Result = HttpResponse | Awaitable[HttpResponse]


def wants_source(request: HttpRequest) -> bool:
    """For the listener: which bodies are to come as streams."""
    return request.path in (_SNAPSHOT, IMAGE_PATH) and request.method == "POST"


class PeerService:
    """The HTTP handler of the peer port: `handle` serves the transport's own paths, and what
    others `mount`. Its listener should have `PEER_LIMITS` and `wants_source`."""

    def __init__(self, transport: Rafthttp) -> None:
        self._transport = transport
        self._ctx = transport.ctx
        self._receiver = SnapshotReceiver(self._ctx)
        self._exact: dict[str, HttpHandler] = {
            _PIPELINE: self._post,
            _SNAPSHOT: self._snapshot,
            IMAGE_PATH: self._snapshot,
            _PROBING: self._probe,
        }
        self._below: dict[str, HttpHandler] = {_STREAMS: self._stream}

    def mount(self, path: str, handler: HttpHandler) -> None:
        """Let ``handler`` serve a path, and all below it if it ends with a slash."""
        table = self._below if path.endswith("/") else self._exact
        assert path not in table, f"{path} is served already"
        table[path] = handler

    def handle(self, request: HttpRequest) -> Result:
        handler = self._exact.get(request.path) or self._longest(request.path)
        return text_response(404, "404 page not found") if handler is None else handler(request)

    def _longest(self, path: str) -> HttpHandler | None:
        fitting = [prefix for prefix in self._below if path.startswith(prefix)]
        return self._below[max(fitting, key=len)] if fitting else None

    # --- what all have in common ----------------------------------------------------------------

    def _named(self, response: HttpResponse) -> HttpResponse:
        response.headers.append((CLUSTER_ID, self._ctx.us.cluster_text))
        return response

    def _check(self, headers: Mapping[str, str]) -> HttpResponse | None:
        """The refusal of a member that we cannot work with."""
        us = self._ctx.us
        refusal = handshake.check_compatibility(us, headers)
        if refusal is None:
            return None
        mismatch = refusal.text == handshake.CLUSTER_ID_MISMATCH
        self._ctx.lg.warn(
            "request cluster ID mismatch" if mismatch else "failed version compatibility check",
            local_member_id=self._ctx.local_name,
            local_member_cluster_id=us.cluster_text,
            local_member_server_version=us.version,
            local_member_server_minimum_cluster_version=us.min_cluster,
            remote_peer_server_name=headers.get("x-server-from", ""),
            remote_peer_server_version=headers.get("x-server-version", ""),
            remote_peer_server_minimum_cluster_version=headers.get("x-min-cluster-version", ""),
            remote_peer_cluster_id=headers.get("x-etcd-cluster-id", ""),
            error=refusal.reason,
        )
        return text_response(412, refusal.text)

    def _meet(self, headers: Mapping[str, str]) -> None:
        """Remember the sender as a remote, so that it can be answered, if it is no peer."""
        found = handshake.sender_of(headers)
        if found is None or self._ctx.host.is_removed(found[0]):
            return
        try:
            self._transport.add_remote(*found)
        except ValueError as error:
            self._ctx.lg.warn(
                "ignored malformed peer URLs", remote_peer_id=f"{found[0]:x}", error=error
            )

    # --- one message ----------------------------------------------------------------------------

    def _post(self, request: HttpRequest) -> HttpResponse:
        if request.method != "POST":
            return _not_allowed("POST")
        headers = dict(request.headers)
        refusal = self._check(headers)
        if refusal is not None:
            return self._named(refusal)
        self._meet(headers)
        return self._named(self._take(request))

    def _take(self, request: HttpRequest) -> HttpResponse:
        ctx = self._ctx
        try:
            message = decode_message(request.body)
        except DecodeError as error:
            ctx.metrics.received_failures.with_labels(request.peer).value += 1
            self._warn("failed to unmarshal Raft message", error=error)
            return text_response(400, "error unmarshalling raft message")
        if message.type is MsgType.SNAP:
            return text_response(400, "wrong raft message type")
        received = ctx.metrics.received_bytes.with_labels(f"{message.from_:x}")
        received.value += len(request.body)
        if ctx.paused or message.type in LOCAL_MSGS:
            return HttpResponse(204)
        try:
            ctx.host.receive(message)
        except (RemovedMember, WrongMember) as error:
            self._warn("failed to process Raft message", error=str(error) or type(error).__name__)
            # Not 403: an etcd that gets one takes it that itself was removed, and stops.
            response = text_response(500, "error processing raft message")
            response.headers.append(("connection", "close"))
            return response
        return HttpResponse(204)

    def _warn(self, text: str, **fields: object) -> None:
        self._ctx.lg.warn(text, local_member_id=self._ctx.local_name, **fields)

    # --- snapshots ------------------------------------------------------------------------------

    def _snapshot(self, request: HttpRequest) -> Result:
        if request.method != "POST":
            self._receiver.refused()
            return _not_allowed("POST")
        headers = dict(request.headers)
        refusal = self._check(headers)
        if refusal is not None:
            self._receiver.refused()
            return self._named(refusal)
        image = request.path == IMAGE_PATH
        if image and headers.get(handshake.IMAGES.lower()) != FORMAT:
            self._receiver.refused()
            return self._named(text_response(400, "a database file for other machines"))
        self._meet(headers)
        return self._receive(request, image)

    async def _receive(self, request: HttpRequest, image: bool) -> HttpResponse:
        source = request.source
        pieces = _whole(request.body) if source is None else chunks(source)
        return self._named(await self._receiver.receive(pieces, request.peer, image=image))

    # --- streams --------------------------------------------------------------------------------

    def _stream(self, request: HttpRequest) -> HttpResponse:
        if request.method != "GET":
            return _not_allowed("GET")
        headers = dict(request.headers)
        response = self._check(headers) or self._open(request.path, headers)
        response.headers.append((SERVER_VERSION, self._ctx.us.version))
        return self._named(response)

    def _open(self, path: str, headers: Mapping[str, str]) -> HttpResponse:
        """The checks of a stream in etcd's order, then the stream."""
        folder, _, last = path.rpartition("/")
        kind = _KINDS.get(folder)
        if kind is None:
            return text_response(404, "invalid path")
        sender = handshake.parse_id(last)
        if sender is None:
            self._reject("failed to parse path into ID", path=last)
            return text_response(404, "invalid from")
        name = {"remote_peer_id_from": f"{sender:x}"}
        if self._ctx.host.is_removed(sender):
            self._reject("rejected stream from remote peer because it was removed", **name)
            return text_response(410, "removed member")
        peer = self._transport.peers.get(sender)
        cluster = {"cluster_id": self._ctx.us.cluster_text}
        if peer is None:
            self._meet({**headers, "x-server-from": last})
            self._reject("failed to find remote peer in cluster", **name, **cluster)
            return text_response(404, "error sender not found")
        meant = headers.get("x-raft-to", "")
        if meant != self._ctx.local_name:
            self._reject(
                "ignored streaming request; ID mismatch",
                remote_peer_id_header=meant,
                **name,
                **cluster,
            )
            return text_response(412, "to field mismatch")
        images = headers.get(handshake.IMAGES.lower()) == FORMAT
        return HttpResponse(200, partial(self._attach, sender, kind, images))

    def _attach(self, sender: MemberID, kind: StreamKind, images: bool, answer: Answer) -> None:
        peer = self._transport.peers.get(sender)
        if peer is None:
            answer.end()
        else:
            peer.contact.takes_images = images
            peer.attach(kind, answer)

    def _reject(self, text: str, **fields: str) -> None:
        local = self._ctx.local_name
        self._ctx.lg.warn(
            text, local_member_id=local, remote_peer_id_stream_handler=local, **fields
        )

    # --- probing --------------------------------------------------------------------------------

    def _probe(self, request: HttpRequest) -> HttpResponse:
        del request
        seconds, nanos = divmod(self._ctx.wall(), 1_000_000_000)
        clock = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        body = json.dumps({"OK": True, "Now": f"{clock}.{nanos:09d}Z"}, separators=(",", ":"))
        return HttpResponse(200, body.encode() + b"\n", [("Content-Type", PLAIN_TEXT)])


_KINDS: Final = {f"{_STREAMS}{kind.value}": kind for kind in StreamKind}


def _not_allowed(method: str) -> HttpResponse:
    response = text_response(405, "Method Not Allowed")
    response.headers.append(("Allow", method))
    return response


async def _whole(body: bytes) -> AsyncIterator[bytes]:
    yield body
