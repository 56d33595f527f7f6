"""Messages sent one by one, each in a request of its own: while no stream is there."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from kvorum.peer.context import Contact, Context
from kvorum.peer.posting import PostError, check_posted
from kvorum.raft.codec import encode_message
from kvorum.raft.types import Message

QUEUE: Final = 64
WORKERS: Final = 4
"""As in etcd. Order is not kept between them."""

PATH: Final = "/raft"


class Pipeline:
    """Workers come with the first message and go when none is left."""

    def __init__(self, ctx: Context, contact: Contact) -> None:
        self._ctx = ctx
        self._contact = contact
        self._queue: deque[Message] = deque()
        self._workers: set[asyncio.Task[None]] = set()
        ctx.lg.info("started HTTP pipelining with remote peer", **self._log_fields())

    def put(self, message: Message) -> bool:
        """Send a message as soon as a worker is free; False if too many wait already."""
        if len(self._queue) >= QUEUE:
            return False
        self._queue.append(message)
        if len(self._workers) < WORKERS:
            worker = self._ctx.spawn(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        return True

    def stop(self) -> None:
        self._queue.clear()
        for worker in self._workers:
            worker.cancel()
        self._ctx.lg.info("stopped HTTP pipelining with remote peer", **self._log_fields())

    def _log_fields(self) -> dict[str, str]:
        return {"local_member_id": self._ctx.local_name, "remote_peer_id": self._contact.name}

    async def _work(self) -> None:
        while self._queue:
            await self._post(self._queue.popleft())

    async def _post(self, message: Message) -> None:
        ctx, contact = self._ctx, self._contact
        url = contact.picker.pick()
        body = encode_message(message)
        headers = {"Content-Type": "application/protobuf", **ctx.us.request_headers()}
        try:
            reply = await ctx.http.request(
                "POST", str(url), PATH, headers=headers, body=body, timeout=ctx.timing.post
            )
            check_posted(ctx, contact, reply, f"{url}{PATH}")
        except (OSError, PostError) as error:
            contact.picker.unreachable(url)
            contact.status.deactivate("write", "pipeline", str(error) or type(error).__name__)
            contact.send_failures.value += 1
            ctx.report_unreachable(contact.member)
            return
        contact.status.activate()
        contact.sent.value += len(body)
