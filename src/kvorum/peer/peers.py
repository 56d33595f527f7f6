"""All that belongs to one member we speak with: a peer of our configuration, or a mere remote."""

from __future__ import annotations

from collections.abc import Iterable

from kvorum.h2.http import Answer
from kvorum.peer.context import Contact, Context
from kvorum.peer.handshake import StreamKind
from kvorum.peer.pipeline import Pipeline
from kvorum.peer.prober import Prober
from kvorum.peer.snapshot_sender import SnapshotSender
from kvorum.peer.stream_reader import StreamReader
from kvorum.peer.stream_writer import StreamWriter
from kvorum.raft.types import Message, MsgType
from kvorum.types import MemberID


class Peer:
    """A member of the configuration: streams both ways, a pipeline until they are there, snapshots
    beside them."""

    def __init__(self, ctx: Context, member: MemberID, urls: Iterable[str]) -> None:
        """Raises ValueError for a malformed URL, or if there is none."""
        self._ctx = ctx
        self.contact = contact = Contact(ctx, member, urls)
        ctx.lg.info("starting remote peer", remote_peer_id=contact.name)
        self._pipeline = Pipeline(ctx, contact)
        self._appends = StreamWriter(ctx, contact, StreamKind.MSGAPP)
        self._others = StreamWriter(ctx, contact, StreamKind.MESSAGE)
        self._snapshots = SnapshotSender(ctx, contact)
        self._readers = [StreamReader(ctx, contact, kind) for kind in StreamKind]
        self._prober = Prober(ctx, contact)
        ctx.lg.info("started remote peer", remote_peer_id=contact.name)

    def put(self, message: Message) -> None:
        """Queue a message, for the next `flush` to write. Appends have a stream of their own, so
        that no heartbeat waits behind them."""
        if message.type is MsgType.SNAP:
            self._snapshots.send(message)
            return
        if message.type is MsgType.APP and self._appends.attached:
            taken, where = self._appends.put(message), StreamKind.MSGAPP.label
        elif self._others.attached:
            taken, where = self._others.put(message), StreamKind.MESSAGE.label
        else:
            taken, where = self._pipeline.put(message), "pipeline"
        if not taken:
            self._drop(message, where)

    def flush(self) -> None:
        self._others.flush()
        self._appends.flush()

    def attach(self, kind: StreamKind, answer: Answer) -> None:
        """Write into a stream that the peer has opened."""
        writer = self._appends if kind is StreamKind.MSGAPP else self._others
        writer.attach(answer)

    def update(self, urls: Iterable[str]) -> None:
        """Raises ValueError for a malformed URL, or if there is none."""
        self.contact.picker.update(urls)

    def stop(self) -> None:
        lg, name = self._ctx.lg, self.contact.name
        lg.info("stopping remote peer", remote_peer_id=name)
        self.contact.status.stop()
        self._prober.stop()
        for reader in self._readers:
            reader.stop()
        self._appends.stop()
        self._others.stop()
        self._snapshots.stop()
        self._pipeline.stop()
        lg.info("stopped remote peer", remote_peer_id=name)

    def _drop(self, message: Message, where: str) -> None:
        self.contact.send_failures.value += 1
        self._ctx.report_unreachable(self.contact.member)
        _log_drop(self._ctx, self.contact, message, remote_peer_name=where)


class Remote:
    """A member that spoke to us and is not in our configuration: it is only answered."""

    def __init__(self, ctx: Context, member: MemberID, urls: Iterable[str]) -> None:
        """Raises ValueError for a malformed URL, or if there is none."""
        self._ctx = ctx
        self.contact = Contact(ctx, member, urls)
        self._pipeline = Pipeline(ctx, self.contact)

    def put(self, message: Message) -> None:
        if message.type is MsgType.SNAP:
            self._ctx.loop.call_soon(self._ctx.host.report_snapshot, message.to, False)
        elif not self._pipeline.put(message):
            self.contact.send_failures.value += 1
            _log_drop(self._ctx, self.contact, message)

    def stop(self) -> None:
        self.contact.status.stop()
        self._pipeline.stop()


def _log_drop(ctx: Context, contact: Contact, message: Message, **more: str) -> None:
    ctx.lg.warn(
        "dropped internal Raft message since sending buffer is full",
        message_type=str(message.type),
        local_member_id=ctx.local_name,
        **{"from": f"{message.from_:x}"},
        remote_peer_id=contact.name,
        **more,
        remote_peer_active=contact.status.active,
    )
