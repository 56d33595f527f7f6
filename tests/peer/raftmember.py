"""A whole raft member without a state machine: the transport, RawNode, and a log in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from peerlab import FakeHost, Lines
from support.ports import free_port

from kvorum.h2 import GrpcServer, HttpResponse
from kvorum.log import Logger
from kvorum.membership import Member, cluster_id, member_id
from kvorum.peer.http_client import HttpClient
from kvorum.peer.rafthttp import Rafthttp
from kvorum.peer.service import PEER_LIMITS, PeerService, wants_source
from kvorum.raft import (
    EMPTY_HARD_STATE,
    Config,
    EntryType,
    MemoryStorage,
    Message,
    Peer,
    ProposalDropped,
    RaftError,
    RawNode,
    StateType,
    codec,
)
from kvorum.telemetry import Telemetry

TICK = 0.1


class RaftMember(FakeHost):
    """Votes, acknowledges, leads; what is committed is only kept. Everything is driven at the end
    of the turn in which it came."""

    def __init__(
        self, folder: Path, name: str, urls: Mapping[str, str], token: str, *, campaigns: bool
    ) -> None:
        super().__init__(folder)
        ids = {n: member_id([url], token) for n, url in urls.items()}
        self.urls = dict(urls)
        self.ids = ids
        self.id = ids[name]
        self.committed: list[Any] = []
        self.changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self.storage = MemoryStorage()
        self.node = RawNode(
            Config(
                self.id,
                self.storage,
                election_tick=10 if campaigns else 1_000_000,
                check_quorum=True,
                pre_vote=True,
                max_inflight_msgs=512,
            )
        )
        names = sorted(urls, key=ids.__getitem__)
        members = [Member(ids[n], (urls[n],), n) for n in names]
        self.node.bootstrap([Peer(m.id, m.to_json()) for m in members])
        self.http = HttpClient()
        self.telemetry = Telemetry()
        self.log = Lines()
        self.transport = Rafthttp(
            self,
            local=self.id,
            cluster_id=cluster_id(ids.values()),
            urls=[urls[name]],
            http=self.http,
            telemetry=self.telemetry,
            logger=Logger(self.log),
        )
        self.service = PeerService(self.transport)
        self.errors: list[BaseException] = []

    @property
    def leading(self) -> bool:
        return self.node.raft.state is StateType.LEADER

    def receive(self, message: Message) -> None:
        self.got.append(message)
        try:
            self.node.step(message)
        except (ProposalDropped, RaftError):
            return
        self.wake()

    async def receive_snapshot(self, message: Message, database: Path) -> None:
        await super().receive_snapshot(message, database)
        self.receive(message)

    def report_unreachable(self, member: int) -> None:
        super().report_unreachable(member)
        self.node.report_unreachable(member)

    def wake(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._drive)

    def _drive(self) -> None:
        self._scheduled = False
        while self.node.has_ready():
            rd = self.node.ready()
            if rd.snapshot is not None:
                self.storage.apply_snapshot(rd.snapshot)
            if rd.hard_state != EMPTY_HARD_STATE:
                self.storage.set_hard_state(rd.hard_state)
            self.storage.append(rd.entries)
            self.transport.send(rd.messages)
            for entry in rd.committed_entries:
                if entry.type is EntryType.CONF_CHANGE:
                    self.node.apply_conf_change(codec.decode_conf_change(entry.data))
            self.committed += rd.committed_entries
            self.node.advance()
        self.changed.set()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK, self._tick)
        self.node.tick()
        self.wake()

    async def start(self, port: int) -> None:
        self._server = GrpcServer(
            {},
            self.service.handle,
            PEER_LIMITS,
            report=self.errors.append,
            wants_source=wants_source,
        )
        version = json.dumps({"etcdserver": "3.5.0", "etcdcluster": "3.5.0"}).encode()
        self.service.mount("/version", lambda _: HttpResponse(200, version))
        await self._server.listen("127.0.0.1", port)
        for name, member in self.ids.items():
            if member != self.id:
                self.transport.add_peer(member, [self.urls[name]])
        self._tick()

    async def stop(self) -> None:
        """May be called twice."""
        self._timer.cancel()
        await self.transport.close()
        await self.http.close()
        self._server.close()

    async def until(self, probe: Any) -> None:
        while not probe():
            self.changed.clear()
            await self.changed.wait()


@asynccontextmanager
async def raft_member(
    folder: Path, other: str, other_url: str, token: str, *, campaigns: bool, port: int = 0
) -> AsyncIterator[RaftMember]:
    """A member named ``kv`` in a cluster of two with ``other``; it listens, and wants to lead only
    if ``campaigns``, or if it is asked to."""
    port = port or free_port()
    urls = {"kv": f"http://127.0.0.1:{port}", other: other_url}
    member = RaftMember(folder, "kv", urls, token, campaigns=campaigns)
    await member.start(port)
    try:
        yield member
    finally:
        await member.stop()
