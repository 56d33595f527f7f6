"""The other end of a stream: we dial the peer, and it writes its messages into the answer."""

from __future__ import annotations

import asyncio
from typing import Final

from kvorum.peer.context import Contact, Context
from kvorum.peer.framing import FrameDecoder
from kvorum.peer.handshake import (
    CLUSTER_ID,
    CLUSTER_ID_MISMATCH,
    INCOMPATIBLE_VERSION,
    StreamKind,
    supports_streams,
)
from kvorum.peer.http_connection import HttpConnection, connect, request_head
from kvorum.peer.message_codec import MessageDecoder
from kvorum.peer.msgapp_codec import MsgAppDecoder
from kvorum.raft.errors import DecodeError

_MAX_REFUSAL: Final = 4096
"""Bytes of an answer that is no stream."""
_GRACE: Final = 0.05
"""Seconds. If we were asleep ourselves, what came meanwhile is read before the link is judged."""


class _Refused(Exception):
    """The peer will not give us this stream."""


class _Unsupported(Exception):
    """The peer is so old that it has no streams."""


class _Ended(Exception):
    """The stream ended in order: the peer has closed it."""


class StreamReader:
    """Dials, reads until the stream breaks, and dials again, for as long as the peer is one."""

    def __init__(self, ctx: Context, contact: Contact, kind: StreamKind) -> None:
        self._ctx = ctx
        self._contact = contact
        self._kind = kind
        self._fields = {
            "stream_reader_type": kind.label,
            "local_member_id": ctx.local_name,
            "remote_peer_id": contact.name,
        }
        self._task = ctx.spawn(self._run())

    def stop(self) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        lg, loop = self._ctx.lg, self._ctx.loop
        lg.info("started stream reader with remote peer", **self._fields)
        try:
            while True:
                next_dial = loop.time() + self._ctx.timing.redial
                await self._once()
                await asyncio.sleep(max(0.0, next_dial - loop.time()))
        finally:
            lg.info("stopped stream reader with remote peer", **self._fields)

    async def _once(self) -> None:
        status, lg = self._contact.status, self._ctx.lg
        try:
            stream = await self._dial()
        except _Unsupported:
            return
        except (OSError, _Refused) as error:
            status.deactivate("dial", self._kind.label, str(error) or type(error).__name__)
            return
        status.activate()
        lg.info("established TCP streaming connection with remote peer", **self._fields)
        try:
            why = await asyncio.shield(stream.over)
        finally:
            stream.close()
        lg.warn("lost TCP streaming connection with remote peer", **self._fields, error=why)
        if not isinstance(why, _Ended):
            status.deactivate("read", self._kind.label, why)

    async def _dial(self) -> _Incoming:
        """A stream that has begun. Raises OSError, _Refused, _Unsupported."""
        ctx, contact = self._ctx, self._contact
        url = contact.picker.pick()
        path = f"/raft/stream/{self._kind.value}/{ctx.local_name}"
        ctx.lg.debug(
            "dial stream reader",
            **{"from": ctx.local_name, "to": contact.name, "address": f"{url}{path}"},
        )
        stream: _Incoming | None = None
        try:
            async with asyncio.timeout(ctx.timing.dial):
                conn = await connect(url, ctx.ssl, source=ctx.source)
            stream = _Incoming(ctx, contact, conn, self._decoder())
            headers = ctx.us.stream_headers(contact.member).items()
            conn.begin(stream, request_head("GET", url, path, headers, 0))
            await asyncio.shield(stream.begun)
            self._check(stream)
        except BaseException:
            contact.picker.unreachable(url)
            if stream is not None:
                stream.close()
            raise
        return stream

    def _decoder(self) -> FrameDecoder:
        if self._kind is StreamKind.MESSAGE:
            return MessageDecoder()
        return MsgAppDecoder(self._ctx.us.local, self._contact.member)

    def _check(self, stream: _Incoming) -> None:
        """Whether the answer is a stream."""
        name = self._contact.name
        if not supports_streams(self._ctx.us, stream.headers):
            raise _Unsupported
        if stream.status == 200:
            return
        if stream.status == 410:
            self._ctx.tell_removed()
            raise _Refused("the member has been permanently removed from the cluster")
        if stream.status == 404:
            raise _Refused(f"peer {name} failed to find local node {self._ctx.local_name}")
        if stream.status == 412:
            text = stream.text
            self._log_incompatible(text, stream.headers)
            known = text in (INCOMPATIBLE_VERSION, CLUSTER_ID_MISMATCH)
            raise _Refused(text if known else f'unhandled error "{text}" when precondition failed')
        raise _Refused(f"unhandled http status {stream.status}")

    def _log_incompatible(self, text: str, headers: dict[str, str]) -> None:
        us, lg = self._ctx.us, self._ctx.lg
        names = {"local_member_id": self._ctx.local_name, "remote_peer_id": self._contact.name}
        if text == INCOMPATIBLE_VERSION:
            lg.warn(
                "request sent was ignored by remote peer due to server version incompatibility",
                **names,
                error=text,
            )
        elif text == CLUSTER_ID_MISMATCH:
            lg.warn(
                "request sent was ignored by remote peer due to cluster ID mismatch",
                **names,
                remote_peer_cluster_id=headers.get(CLUSTER_ID.lower(), ""),
                local_member_cluster_id=us.cluster_text,
                error=text,
            )


class _Incoming:
    """One stream: an HTTP exchange whose answer does not end.

    ``begun`` is done when the answer's head is there, or all of it if it is no stream; ``over``
    gets the reason when the stream has ended. Both get it if nothing comes for too long.
    """

    def __init__(
        self, ctx: Context, contact: Contact, conn: HttpConnection, decoder: FrameDecoder
    ) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.begun: asyncio.Future[None] = ctx.loop.create_future()
        self.over: asyncio.Future[Exception] = ctx.loop.create_future()
        self._ctx = ctx
        self._contact = contact
        self._conn = conn
        self._decoder = decoder
        self._refusal = b""
        self._last = ctx.loop.time()
        self._timer = ctx.loop.call_later(ctx.timing.idle, self._check_idle, False)

    @property
    def text(self) -> str:
        """What an answer says that is no stream."""
        return self._refusal.decode("utf-8", "replace").rstrip("\n")

    def close(self) -> None:
        self._end(_Ended("closed here"))

    # --- the connection's calls -----------------------------------------------------------------

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.status = status
        self.headers = headers
        if status == 200 and not self.begun.done():
            self.begun.set_result(None)

    def data(self, piece: bytes) -> None:
        if self.over.done():
            return
        self._last = self._ctx.loop.time()
        if self.status != 200:
            self._refusal = (self._refusal + piece)[:_MAX_REFUSAL]
            return
        self._contact.received.value += len(piece)
        try:
            messages = self._decoder.feed(piece)
        except DecodeError as error:
            self._end(error)
            return
        if messages:
            self._ctx.deliver(messages)

    def done(self) -> None:
        if not self.begun.done():
            self.begun.set_result(None)
        self._end(_Ended("EOF"))

    def lost(self, error: OSError) -> None:
        self._end(error)

    # --- ends -----------------------------------------------------------------------------------

    def _check_idle(self, warned: bool) -> None:
        loop = self._ctx.loop
        due = self._last + self._ctx.timing.idle
        if due > loop.time():
            self._timer = loop.call_at(due, self._check_idle, False)
        elif not warned:
            self._timer = loop.call_later(_GRACE, self._check_idle, True)
        else:
            self._end(TimeoutError(f"nothing came for {self._ctx.timing.idle:g}s"))

    def _end(self, error: Exception) -> None:
        if self.over.done():
            return
        self._timer.cancel()
        self.over.set_result(error)
        if not self.begun.done():
            self.begun.set_exception(error)
            self.begun.exception()  # whoever waits gets it; nobody may be
        self._conn.abort()
