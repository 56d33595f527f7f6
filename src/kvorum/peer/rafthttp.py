"""The transport between members: etcd's rafthttp, wire compatible with 3.5 to 3.7.

Each member dials the streams on which it receives: two a pair and direction, one for appends and
one for everything else. What cannot go by a stream is posted. See `Transport` for the contract.
"""

from __future__ import annotations

import ssl as tls
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from kvorum.log import Logger, get_logger
from kvorum.peer.context import Context, Timing
from kvorum.peer.handshake import Identity
from kvorum.peer.http_client import HttpClient
from kvorum.peer.interface import Host
from kvorum.peer.peers import Peer, Remote
from kvorum.raft.types import NONE, Message, MsgType
from kvorum.telemetry import Telemetry
from kvorum.types import MemberID
from kvorum.version import ETCD_VERSION, MIN_CLUSTER_VERSION

MAX_REMOTES: Final = 64
"""Members that are not in the configuration, as far as they are answered; the oldest is forgotten.
Anybody who knows the cluster's id can claim to be one."""


class Rafthttp:
    """Implements `Transport` over HTTP/1.1. Made on a running loop.

    ``urls`` are our own peer URLs as others know them. ``http`` is for what is posted and stays
    the caller's; ``ssl`` and ``source`` (a local address) are for the streams that we dial.
    ``wall`` is the time of day in nanoseconds.
    """

    def __init__(
        self,
        host: Host,
        *,
        local: MemberID,
        cluster_id: int,
        urls: Iterable[str],
        http: HttpClient,
        telemetry: Telemetry,
        ssl: tls.SSLContext | None = None,
        source: str | None = None,
        version: str = ETCD_VERSION,
        min_cluster: str = MIN_CLUSTER_VERSION,
        timing: Timing | None = None,
        wall: Callable[[], int] = time.time_ns,
        logger: Logger | None = None,
    ) -> None:
        self.ctx = Context(
            host,
            Identity(local, cluster_id, tuple(urls), version, min_cluster),
            http,
            telemetry.peer,
            telemetry.transfer,
            telemetry.snap,
            ssl=ssl,
            source=source,
            timing=timing or Timing(),
            wall=wall,
            lg=logger or get_logger(),
        )
        self.peers: dict[MemberID, Peer] = {}
        self.remotes: dict[MemberID, Remote] = {}
        self.closed = False

    # --- messages -------------------------------------------------------------------------------

    def send(self, messages: Sequence[Message]) -> None:
        """As `Transport.send`. Everything for one peer is written in one piece."""
        if self.closed or self.ctx.paused:
            self._lose(messages)
            return
        for message in messages:
            target = self.peers.get(message.to) or self.remotes.get(message.to)
            if target is not None:
                target.put(message)
            elif message.to != NONE:
                self._ignore(message)
        for peer in self.peers.values():
            peer.flush()
        self.ctx.runs.forget()

    def _lose(self, messages: Sequence[Message]) -> None:
        """Silence, but for a snapshot: raft waits until it hears what became of that."""
        for message in messages:
            if message.type is MsgType.SNAP:
                self.ctx.loop.call_soon(self.ctx.host.report_snapshot, message.to, False)

    def _ignore(self, message: Message) -> None:
        self._lose((message,))
        self.ctx.lg.debug(
            "ignored message send request; unknown remote peer target",
            type=str(message.type),
            unknown_target_peer_id=f"{message.to:x}",
        )

    # --- members --------------------------------------------------------------------------------

    def add_peer(self, member: MemberID, urls: Iterable[str]) -> None:
        """Raises ValueError for a malformed URL, or if there is none."""
        if self.closed or member in self.peers or member == self.ctx.us.local:
            return
        urls = list(urls)
        peer = Peer(self.ctx, member, urls)
        self._drop_remote(member)
        self.peers[member] = peer
        self._log("added remote peer", remote_peer_id=peer.contact.name, remote_peer_urls=urls)

    def update_peer(self, member: MemberID, urls: Iterable[str]) -> None:
        """Raises ValueError for a malformed URL, or if there is none."""
        peer = self.peers.get(member)
        if peer is None:
            return
        urls = list(urls)
        peer.update(urls)
        self._log(
            "updated remote peer",
            updated_remote_peer_id=peer.contact.name,
            updated_remote_peer_urls=urls,
        )

    def remove_peer(self, member: MemberID) -> None:
        self._drop_remote(member)
        peer = self.peers.pop(member, None)
        name = f"{member:x}"
        if peer is None:
            self._warn("skipped removing already removed peer", removed_remote_peer_id=name)
            return
        peer.stop()
        self._log("removed remote peer", removed_remote_peer_id=name)

    def add_remote(self, member: MemberID, urls: Iterable[str]) -> None:
        """Answer a member that is not in the configuration, now or any more.

        Raises ValueError for a malformed URL, or if there is none.
        """
        known = member in self.peers or member in self.remotes or member == self.ctx.us.local
        if self.closed or known:
            return
        urls = list(urls)
        remote = Remote(self.ctx, member, urls)
        if len(self.remotes) >= MAX_REMOTES:
            self._drop_remote(next(iter(self.remotes)))
        self.remotes[member] = remote
        name = remote.contact.name
        self._log("added new remote peer", remote_peer_id=name, remote_peer_urls=urls)

    def _drop_remote(self, member: MemberID) -> None:
        remote = self.remotes.pop(member, None)
        if remote is not None:
            remote.stop()

    def _log(self, text: str, **fields: object) -> None:
        self.ctx.lg.info(text, local_member_id=self.ctx.local_name, **fields)

    def _warn(self, text: str, **fields: object) -> None:
        self.ctx.lg.warn(text, local_member_id=self.ctx.local_name, **fields)

    # --- state ----------------------------------------------------------------------------------

    def active_since(self, member: MemberID) -> float | None:
        peer = self.peers.get(member)
        return None if peer is None else peer.contact.status.since

    def pause(self) -> None:
        self.ctx.paused = True

    def resume(self) -> None:
        self.ctx.paused = False

    async def close(self) -> None:
        """Stop everything. Streams that peers have open here end in order, so a listener that is
        closed after this need not wait for them."""
        self.closed = True
        for peer in self.peers.values():
            peer.stop()
        for remote in self.remotes.values():
            remote.stop()
        self.peers.clear()
        self.remotes.clear()
        await self.ctx.stop_tasks()
