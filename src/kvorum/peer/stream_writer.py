"""Our end of a stream that a peer has opened: we write into the answer to its request."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from kvorum.h2.http import Answer
from kvorum.peer import message_codec, msgapp_codec
from kvorum.peer.context import Contact, Context
from kvorum.peer.handshake import StreamKind
from kvorum.peer.message_codec import MessageEncoder
from kvorum.peer.msgapp_codec import MsgAppEncoder
from kvorum.raft.types import Message

QUEUE: Final = 4096
"""Messages that may wait, as in etcd."""

BURST: Final = 64 * 1024
"""Bytes after which encoding goes on in the next turn, for a socket's refusal comes a turn or two
after what it refuses. Messages wait as raft made them, sharing their entries with the log."""

REST: Final = 48.0
"""Entries that are committed already are for a member that catches up, and in no hurry: after each
burst of them the loop is left alone for so many times as long as it took,"""
LEAD: Final = 2
"""as long as the member gets at least so many times as many as there are new ones meanwhile."""

BACKLOG: Final = 256 * 1024
"""Bytes that the socket does not take; more are not encoded."""

_HEARTBEATS: Final = {
    StreamKind.MESSAGE: message_codec.LINK_HEARTBEAT,
    StreamKind.MSGAPP: msgapp_codec.LINK_HEARTBEAT,
}


class StreamWriter:
    """Sends while a stream is attached. What waits when it is lost is lost with it, and raft is
    told so."""

    def __init__(self, ctx: Context, contact: Contact, kind: StreamKind) -> None:
        self._ctx = ctx
        self._contact = contact
        self._kind = kind
        self._answer: Answer | None = None
        self._encoder: MessageEncoder | MsgAppEncoder = MessageEncoder()
        self._queue: list[Message] = []
        self._resting = False
        self._next = self._committed = 0  # when the last burst ended
        self._timer: asyncio.TimerHandle | None = None

    @property
    def attached(self) -> bool:
        return self._answer is not None

    def attach(self, answer: Answer) -> None:
        """Take a new stream; the old one, if there is one, is ended."""
        if self._detach(end=True):
            self._log_end("closed TCP streaming connection with remote peer")
        self._answer = answer
        answer.on_cancel = partial(self._lost, answer)
        answer.on_writable = self._go_on
        msgapp = self._kind is StreamKind.MSGAPP
        self._encoder = MsgAppEncoder(self._ctx.runs) if msgapp else MessageEncoder()
        self._beat_later()
        self._contact.status.activate()
        names = {"from": self._ctx.local_name, "to": self._contact.name}
        self._ctx.lg.info("set message encoder", **names, stream_type=self._kind.label)
        self._ctx.lg.info(
            "established TCP streaming connection with remote peer", **self._log_fields()
        )

    def put(self, message: Message) -> bool:
        """Queue a message, to be written by the next `flush`; False if the queue is full."""
        if len(self._queue) >= QUEUE:
            return False
        self._queue.append(message)
        return True

    def flush(self) -> None:
        """Write what waits, in one piece, unless the peer is behind with reading."""
        answer = self._answer
        if not self._queue or answer is None or self._resting or answer.backlog > BACKLOG:
            return
        started = self._ctx.timer()
        out: list[bytes] = []
        encode = self._encoder.encode
        size = count = 0
        for message in self._queue:
            size += encode(message, out)
            count += 1
            if size >= BURST:
                break
        del self._queue[:count]
        self._contact.sent.value += size
        answer.write(b"".join(out))
        if self._queue:
            self._resting = True
            rest = REST if self._may_rest(self._queue[0]) else 0.0
            self._ctx.loop.call_later(rest * (self._ctx.timer() - started), self._go_on)

    def stop(self) -> None:
        if self._detach(end=True):
            self._log_end("closed TCP streaming connection with remote peer")

    def _may_rest(self, message: Message) -> bool:
        """Whether what comes next can wait: a quorum has its entries without the member that it is
        for, and that comes nearer all the same."""
        entries = message.entries
        if not entries or entries[-1].index > message.commit:
            return False
        gained, grown = entries[0].index - self._next, message.commit - self._committed
        self._next, self._committed = entries[0].index, message.commit
        return gained >= LEAD * grown

    def _go_on(self) -> None:
        self._resting = False
        self.flush()
        self._ctx.runs.forget()

    def _beat_later(self) -> None:
        self._timer = self._ctx.loop.call_later(self._ctx.timing.heartbeat, self._beat)

    def _beat(self) -> None:
        answer = self._answer
        assert answer is not None
        if answer.backlog <= BACKLOG and not self._ctx.paused:
            beat = _HEARTBEATS[self._kind]
            answer.write(beat)
            self._contact.sent.value += len(beat)
        self._beat_later()

    def _lost(self, answer: Answer) -> None:
        """The connection is gone."""
        if answer is not self._answer:
            return
        if self._queue:
            self._contact.send_failures.value += 1
        self._detach(end=False)
        self._contact.status.deactivate("write", self._kind.label, "connection closed by peer")
        self._log_end("lost TCP streaming connection with remote peer")

    def _detach(self, *, end: bool) -> bool:
        """Let go of the stream; whether there was one."""
        answer, self._answer = self._answer, None
        if answer is None:
            return False
        answer.on_cancel = answer.on_writable = None
        if self._timer is not None:
            self._timer.cancel()
        if end:
            answer.end()
        if self._queue:
            self._queue.clear()
            self._ctx.report_unreachable(self._contact.member)
        return True

    def _log_end(self, text: str) -> None:
        self._ctx.lg.warn(text, **self._log_fields())

    def _log_fields(self) -> dict[str, str]:
        return {
            "stream_writer_type": self._kind.label,
            "local_member_id": self._ctx.local_name,
            "remote_peer_id": self._contact.name,
        }
