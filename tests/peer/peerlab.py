"""Members that consist of nothing but a transport and its listener, on 127.0.0.1."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

from peersite import until
from support.ports import free_port

from kvorum.h2 import GrpcServer, Limits
from kvorum.log import DEBUG, Log, Logger
from kvorum.peer.context import Timing
from kvorum.peer.http_client import HttpClient
from kvorum.peer.interface import OutgoingSnapshot, RemovedMember, WrongMember
from kvorum.peer.rafthttp import Rafthttp
from kvorum.peer.service import PEER_LIMITS, PeerService, wants_source
from kvorum.raft.types import Entry, Message, MsgType, Snapshot, SnapshotMetadata
from kvorum.telemetry import Telemetry

CLUSTER = 0xC1C1
FAST = Timing(dial=1.0, idle=1.0, heartbeat=0.2, redial=0.02, probe=0.05)


class FakeHost:
    """Keeps what it is given, and reports nothing to anybody."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.got: list[Message] = []
        self.removed: set[int] = set()
        self.refuse: type[Exception] | Exception | None = None
        self.unreachable: list[int] = []
        self.snapshots: list[tuple[Message, Path]] = []
        self.reports: list[tuple[int, bool]] = []
        self.told = 0
        self.database: Iterable[bytes] = ()
        self.database_size = 0
        self.lends_images = False
        self.asked_for_images: list[bool] = []

    def receive(self, message: Message) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.got.append(message)

    async def receive_snapshot(self, message: Message, database: Path) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.snapshots.append((message, database))

    def snapshot_directory(self) -> Path:
        return self.folder

    @asynccontextmanager
    async def open_snapshot(
        self, message: Message, *, image: bool = False
    ) -> AsyncIterator[OutgoingSnapshot]:
        async def chunks() -> AsyncIterator[bytes]:
            for piece in self.database:
                yield piece

        self.asked_for_images.append(image)
        as_it_is = image and self.lends_images
        yield OutgoingSnapshot(message, self.database_size, chunks(), as_it_is)

    def is_removed(self, member: int) -> bool:
        return member in self.removed

    def report_unreachable(self, member: int) -> None:
        self.unreachable.append(member)

    def report_snapshot(self, member: int, ok: bool) -> None:
        self.reports.append((member, ok))

    def told_removed(self) -> None:
        self.told += 1


class Lines(Log):
    """A log that keeps its lines: (message, fields)."""

    def __init__(self) -> None:
        super().__init__()
        self.level = DEBUG
        self.lines: list[tuple[str, dict[str, object]]] = []

    def write(self, level: int, caller: str, msg: str, fields: Any) -> None:
        self.lines.append((msg, dict(fields)))

    def texts(self) -> list[str]:
        return [text for text, _ in self.lines]


class Node:
    """A transport, its fake host, and a listener that can be stopped and started again."""

    def __init__(
        self,
        member: int,
        folder: Path,
        *,
        cluster: int = CLUSTER,
        timing: Timing = FAST,
        limits: Limits = PEER_LIMITS,
        port: int | None = None,
    ) -> None:
        self.id = member
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.host = FakeHost(folder)
        self.telemetry = Telemetry()
        self.http = HttpClient()
        self.log = Lines()
        self.errors: list[BaseException] = []
        self.transport = Rafthttp(
            self.host,
            local=member,
            cluster_id=cluster,
            urls=[self.url],
            http=self.http,
            telemetry=self.telemetry,
            timing=timing,
            logger=Logger(self.log),
        )
        self.service = PeerService(self.transport)
        self._limits = limits
        self._server: GrpcServer | None = None

    async def listen(self) -> None:
        server = GrpcServer(
            {},
            self.service.handle,
            self._limits,
            report=self.errors.append,
            wants_source=wants_source,
        )
        await server.listen("127.0.0.1", self.port)
        self._server = server

    def deaf(self) -> None:
        """Stop listening and cut everybody off."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def close(self) -> None:
        await self.transport.close()
        await self.http.close()
        self.deaf()
        assert [repr(error) for error in self.errors] == []

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def knows(self, *others: Node) -> None:
        for other in others:
            self.transport.add_peer(other.id, [other.url])

    def streams_to(self, other: Node) -> bool:
        """Whether both streams to the other are open."""
        peer = self.transport.peers.get(other.id)
        return peer is not None and peer._appends.attached and peer._others.attached

    def message(self, to: Node, type: MsgType = MsgType.HEARTBEAT, **fields: Any) -> Message:
        return Message(type, to.id, self.id, 1, **fields)

    def append(self, to: Node, index: int, *sizes: int, term: int = 1) -> Message:
        """Entries of these sizes, after ``index``."""
        entries = [Entry(term, index + n, data=b"%d" % n * size) for n, size in enumerate(sizes, 1)]
        return Message(
            MsgType.APP, to.id, self.id, term, log_term=term, index=index, entries=entries
        )

    def snapshot(self, to: Node, index: int = 10) -> Message:
        return self.message(
            to, MsgType.SNAP, snapshot=Snapshot(b"v2", SnapshotMetadata(index=index, term=1))
        )


@contextlib.asynccontextmanager
async def nodes(count: int, folder: Path, **options: Any) -> AsyncIterator[list[Node]]:
    """Members that know each other, all streams open."""
    made = []
    async with contextlib.AsyncExitStack() as stack:
        for number in range(1, count + 1):
            home = folder / f"n{number}"
            home.mkdir(exist_ok=True)
            made.append(await stack.enter_async_context(Node(number, home, **options)))
        for node in made:
            node.knows(*(other for other in made if other is not node))
        for node, other in pairs(made):
            await until(lambda node=node, other=other: node.streams_to(other))
        yield made


def pairs(made: list[Node]) -> Iterator[tuple[Node, Node]]:
    return ((node, other) for node in made for other in made if node is not other)


async def settle() -> None:
    """A few turns of the loop."""
    for _ in range(5):
        await asyncio.sleep(0)


__all__ = ["CLUSTER", "FAST", "FakeHost", "Node", "RemovedMember", "WrongMember", "nodes"]
