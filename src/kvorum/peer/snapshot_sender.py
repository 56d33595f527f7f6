"""A database on its way to a peer: the MsgSnap and the whole file in one request.

That is a bbolt file, as between members of etcd. A member of our kind, which says so when it asks
for its streams, gets our own file as it is, at a path that etcd does not serve; a CRC-32C (4 bytes
LE) follows it, as nothing in the file itself shows whether it is what was sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from google_crc32c import extend as crc32c_extend

from kvorum.backend.image import FORMAT
from kvorum.peer.context import Contact, Context
from kvorum.peer.handshake import IMAGES
from kvorum.peer.http_client import HttpReply
from kvorum.peer.interface import OutgoingSnapshot
from kvorum.peer.message_codec import encode_framed
from kvorum.peer.posting import check_posted
from kvorum.peer.sizes import humane_size
from kvorum.raft.types import Message

PATH: Final = "/raft/snapshot"
IMAGE_PATH: Final = "/raft/snapshot/image"

_ANSWER: Final = 30.0
_SLOW_DISK: Final = 10e6
"""Seconds and bytes a second: how long a peer may take to sync what it was sent and to answer."""


class _Upload:
    """The request's body. It moves the request's deadline: what counts is that the peer takes
    piece after piece; reading the database here may take its time."""

    def __init__(
        self,
        snapshot: OutgoingSnapshot,
        loop: asyncio.AbstractEventLoop,
        deadline: asyncio.Timeout,
        idle: float,
    ) -> None:
        self._snapshot = snapshot
        self._loop = loop
        self._deadline = deadline
        self._idle = idle

    async def pieces(self) -> AsyncIterator[bytes]:
        self._wait(self._idle)
        yield encode_framed(self._snapshot.message)
        self._wait(None)
        summed = 0
        async for piece in self._snapshot.chunks:
            self._wait(self._idle)
            if self._snapshot.image:
                summed = crc32c_extend(summed, piece)
            yield piece
            self._wait(None)
        if self._snapshot.image:
            yield summed.to_bytes(4, "little")
        self._wait(_ANSWER + self._snapshot.size / _SLOW_DISK)

    def _wait(self, seconds: float | None) -> None:
        """The peer has so long for its next step."""
        if not self._deadline.expired():
            self._deadline.reschedule(None if seconds is None else self._loop.time() + seconds)


class SnapshotSender:
    """Sends at most one snapshot at a time to its peer."""

    def __init__(self, ctx: Context, contact: Contact) -> None:
        self._ctx = ctx
        self._contact = contact
        self._task: asyncio.Task[None] | None = None
        transfer = ctx.transfer
        self._sending = transfer.sending.with_labels(contact.name)
        self._sent = transfer.sent.with_labels(contact.name)
        self._failures = transfer.send_failures.with_labels(contact.name)

    def send(self, message: Message) -> None:
        """Send a MsgSnap with the database that the host gives; the host is told how it went."""
        if self._task is not None and not self._task.done():
            self._failed("another snapshot is being sent")
            return
        self._task = self._ctx.spawn(self._send(message))

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _send(self, message: Message) -> None:
        ctx, contact = self._ctx, self._contact
        started = ctx.loop.time()
        url = contact.picker.pick()
        self._sending.value += 1
        try:
            images = contact.takes_images
            async with ctx.host.open_snapshot(message, image=images) as snapshot:
                fields = self._log_fields(snapshot)
                ctx.lg.info("sending database snapshot", **fields)
                path = IMAGE_PATH if snapshot.image else PATH
                reply = await self._post(str(url), path, snapshot)
            check_posted(ctx, contact, reply, f"{url}{path}")
        except asyncio.CancelledError:
            self._tell(ok=False)
            raise
        except Exception as error:  # reading the database may fail in any way; raft must be told
            contact.picker.unreachable(url)
            contact.status.deactivate("post", "sendMsgSnap", str(error) or type(error).__name__)
            self._failed(str(error) or type(error).__name__)
            return
        finally:
            self._sending.value -= 1
        contact.status.activate()
        self._tell(ok=True)
        ctx.lg.info("sent database snapshot", **fields)
        contact.sent.value += snapshot.size
        self._sent.value += 1
        seconds = ctx.transfer.send_seconds.with_labels(contact.name)
        seconds.observe(ctx.loop.time() - started)

    async def _post(self, url: str, path: str, snapshot: OutgoingSnapshot) -> HttpReply:
        """The answer. Raises OSError; TimeoutError if the peer stands still."""
        ctx = self._ctx
        headers = {"Content-Type": "application/octet-stream", **ctx.us.request_headers()}
        if snapshot.image:
            headers[IMAGES] = FORMAT
        async with asyncio.timeout(ctx.timing.dial) as deadline:
            upload = _Upload(snapshot, ctx.loop, deadline, ctx.timing.idle)
            return await ctx.http.request(
                "POST", url, path, headers=headers, body=upload.pieces(), timeout=None
            )

    def _failed(self, error: object) -> None:
        ctx, contact = self._ctx, self._contact
        ctx.lg.warn("failed to send database snapshot", remote_peer_id=contact.name, error=error)
        contact.send_failures.value += 1
        self._failures.value += 1
        ctx.report_unreachable(contact.member)
        self._tell(ok=False)

    def _tell(self, *, ok: bool) -> None:
        """In the next turn: the host may be in the middle of sending."""
        self._ctx.loop.call_soon(self._ctx.host.report_snapshot, self._contact.member, ok)

    def _log_fields(self, snapshot: OutgoingSnapshot) -> dict[str, object]:
        metadata = snapshot.message.snapshot.metadata if snapshot.message.snapshot else None
        return {
            "snapshot_index": metadata.index if metadata else 0,
            "remote_peer_id": self._contact.name,
            "bytes": snapshot.size,
            "size": humane_size(snapshot.size),
        }
