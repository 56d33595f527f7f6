"""A cluster of members in one process, over a network in the test's hands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from support.wire import Wire, WireTransport
from support.wire_http import WireHttp

from kvorum.config import ServerConfig, make, parse_urls
from kvorum.errors import EtcdError
from kvorum.membership import Member
from kvorum.pb import etcdserverpb as pb
from kvorum.pb import mvccpb
from kvorum.peer.interface import Host
from kvorum.raft.types import ConfChange
from kvorum.server.bootstrap.start import bootstrap
from kvorum.server.server import Server
from kvorum.telemetry import Telemetry
from kvorum.types import MemberID

STORY_SECONDS = 50.0


class Refused(Exception):
    """What a caller was told instead of an answer."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Answer:
    """A caller that can be awaited."""

    def __init__(self) -> None:
        self.future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def reply(self, message: bytes) -> None:
        if not self.future.done():
            self.future.set_result(message)

    def fail(self, code: int, message: str) -> None:
        if not self.future.done():
            self.future.set_exception(Refused(code, message))


class Nobody:
    """An HTTP client to whom nobody answers."""

    async def request(self, *_: object, **__: object) -> Any:
        raise ConnectionRefusedError


class Node:
    """One member: its settings stay over restarts."""

    def __init__(self, config: ServerConfig, wire: Wire) -> None:
        self.config = config
        self.name = config.name
        self._wire = wire
        self._server: Server | None = None
        self.http: Any = Nobody()

    @property
    def server(self) -> Server:
        assert self._server is not None, f"{self.name} does not run"
        return self._server

    @property
    def id(self) -> MemberID:
        return self.server.id

    @property
    def running(self) -> bool:
        return self._server is not None

    async def start(self) -> Node:
        loop = asyncio.get_running_loop()
        booted = await bootstrap(self.config, loop, self.http)

        def connect(host: Host) -> WireTransport:
            return WireTransport(self._wire, booted.member, host)

        self._server = Server(
            self.config, Telemetry(), booted, make_transport=connect, http=self.http
        )
        self._server.start()
        return self

    async def stop(self) -> None:
        server, self._server = self.server, None
        await server.stop()

    async def kill(self) -> None:
        """End it with nothing put away: what is not on disk is lost."""
        server, self._server = self.server, None
        server.failed(RuntimeError("killed by the test"))
        await server.stop()

    # Requests

    async def put(self, key: str, value: str = "") -> None:
        request = pb.PutRequest(key=key.encode(), value=value.encode())
        await self.propose("put", request)

    async def propose(self, kind: str, request: Any) -> bytes:
        answer = Answer()
        self.server.proposer.propose(kind, request.SerializeToString(), request, answer)
        return await answer.future

    async def change(self, change: ConfChange) -> None:
        answer = Answer()
        self.server.raft.propose_conf_change(change, answer)
        await answer.future

    async def get(self, key: str) -> str | None:
        """A linearizable read."""
        answer = Answer()
        self.server.reads.read(lambda _request, caller: caller.reply(b""), None, answer)
        await answer.future
        return self.peek(key)

    def peek(self, key: str) -> str | None:
        """What this member has."""
        record = self.server.store.get(key.encode())
        return None if record is None else mvccpb.KeyValue.FromString(record).value.decode()

    async def hash(self, revision: int) -> int:
        """Of all up to a revision."""
        return (await self.server.store.hash_kv(revision))[0].hash


class TestCluster:
    __test__ = False

    def __init__(self, folder: Path, names: str, settings: dict[str, Any]) -> None:
        self.wire = Wire()
        self._folder = folder
        self._settings = settings
        self.peers = {name: f"http://127.0.0.1:{1 + i}" for i, name in enumerate(names)}
        self.nodes = {name: self._node(name, list(names)) for name in names}

    def _node(self, name: str, members: list[str], **settings: Any) -> Node:
        peer, client = self.peers[name], parse_urls("http://127.0.0.1:9")
        defaults: dict[str, Any] = {
            "name": name,
            "data_dir": str(self._folder / name),
            "listen_client_urls": client,
            "advertise_client_urls": client,
            "listen_peer_urls": parse_urls(peer),
            "initial_advertise_peer_urls": parse_urls(peer),
            "initial_cluster": ",".join(f"{n}={self.peers[n]}" for n in members),
            "unsafe_no_fsync": True,
            "heartbeat_interval": 20,
            "election_timeout": 200,
        }
        node = Node(make(**(defaults | self._settings | settings)), self.wire)
        node.http = WireHttp(self, name)
        return node

    async def join(self, name: str) -> Node:
        """Start a member that was added to the running cluster under the URL `peer_of` gives."""
        names = [node.name for node in self.running]
        self.nodes[name] = self._node(name, [*names, name], initial_cluster_state="existing")
        return await self.nodes[name].start()

    def peer_of(self, name: str) -> str:
        """The peer URL of a member that is there, or is to come."""
        return self.peers.setdefault(name, f"http://127.0.0.1:{1 + len(self.peers)}")

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    @property
    def running(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.running]

    async def start(self) -> None:
        for node in self.nodes.values():
            await node.start()

    async def stop(self) -> None:
        await self.wire.close()
        for node in self.running:
            server = node.server
            if not server.failure.done():
                server.failed(RuntimeError("the test is over"))
            await node.stop()

    # Waiting

    async def until(self, what: str, true: Callable[[], bool], seconds: float = 20.0) -> None:
        """Return when something has come true, looking at it now and then."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not true():
            assert loop.time() < end, f"not within {seconds} s: {what}\n{self.describe()}"
            await asyncio.sleep(0.005)

    def describe(self) -> str:
        lines = []
        for node in self.running:
            raft = node.server.raft
            failure = node.server.failure.result() if node.server.failure.done() else ""
            lines.append(
                f"{node.name} {node.id:x}: leader {raft.leader:x} term {raft.term} committed"
                f" {raft.committed} applied {node.server.applier.index} {failure!r}"
            )
        return "\n".join(lines)

    async def leader(self, *among: Node) -> Node:
        """The leader that all of these (else: all that run) agree on."""
        nodes = among or tuple(self.running)
        found: list[Node] = []

        def agreed() -> bool:
            leaders = {node.server.raft.leader for node in nodes}
            found[:] = [n for n in nodes if leaders == {n.id} and n.server.raft.is_leader]
            return bool(found)

        await self.until("a leader", agreed)
        return found[0]

    def followers(self, leader: Node) -> list[Node]:
        return [node for node in self.running if node is not leader]

    async def agree(self, *among: Node) -> None:
        """All members have the same state."""
        nodes = among or tuple(self.running)
        await self.until(
            "all have applied the same",
            lambda: (
                len({n.server.applier.index for n in nodes}) == 1
                and len({n.server.store.rev for n in nodes}) == 1
            ),
        )
        revision = nodes[0].server.store.rev  # after a restart there may be more to come
        hashes = {await node.hash(revision) for node in nodes}
        assert len(hashes) == 1, hashes


@asynccontextmanager
async def cluster_of(
    folder: Path, names: str = "abc", **settings: Any
) -> AsyncIterator[TestCluster]:
    """A cluster that runs, though it need not have a leader yet."""
    cluster = TestCluster(folder, names, settings)
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.stop()


def refusal(error: type[EtcdError]) -> str:
    return error.message


__all__ = ["Answer", "Member", "Node", "Refused", "TestCluster", "cluster_of", "refusal"]
