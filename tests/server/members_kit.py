"""A member's parts around a raft, a transport and an HTTP client that do as a test says."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple, ParamSpec

from kvorum.instruments import Registry
from kvorum.membership import Cluster, Member
from kvorum.raft.types import ConfChange
from kvorum.server.catchup import CatchUp
from kvorum.server.cluster.leadership import Leadership
from kvorum.server.cluster.members import MemberChanges
from kvorum.server.cluster.to_leader import ToLeader
from kvorum.server.proposer import Caller, Proposal, Proposer
from kvorum.server.reads import ReadGate
from kvorum.server.request import RequestIds
from kvorum.telemetry import ServerMetrics
from kvorum.types import Index, MemberID

ME, TWO, THREE = MemberID(0xA1), MemberID(0xB2), MemberID(0xC3)
CLUSTER = 0x77
NAMES = {ME: "one", TWO: "two", THREE: "three"}

P = ParamSpec("P")


def on_a_loop(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run an asynchronous test on a loop of its own."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(30):
                await test(*args, **kwargs)

        asyncio.run(bounded())

    return run


def url_of(member: MemberID) -> str:
    return f"http://{member:x}.test:2380"


def member(identity: MemberID, *, learner: bool = False, started: bool = True) -> Member:
    name = NAMES.get(identity, f"m{identity:x}") if started else ""
    return Member(identity, (url_of(identity),), name, is_learner=learner)


class DictBuckets:
    """The backend as a dict of dicts."""

    def __init__(self) -> None:
        self.data: dict[str, dict[bytes, bytes]] = {}

    def put(self, bucket: str, key: bytes, value: bytes) -> None:
        self.data.setdefault(bucket, {})[key] = value

    def delete(self, bucket: str, key: bytes) -> None:
        self.data.get(bucket, {}).pop(key, None)

    def get(self, bucket: str, key: bytes) -> bytes | None:
        return self.data.get(bucket, {}).get(key)

    def range(self, bucket: str, lo: bytes, hi: bytes | None) -> list[tuple[bytes, bytes]]:
        items = sorted(self.data.get(bucket, {}).items())
        return [(k, v) for k, v in items if k >= lo and (hi is None or k < hi)]


class Reply(NamedTuple):
    status: int
    body: bytes = b""


class Asked(NamedTuple):
    method: str
    url: str
    path: str
    headers: dict[str, str]
    body: bytes


class FakeHttp:
    """Gives what ``answer`` says; a request to a URL that it knows nothing of finds nobody."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answer: Callable[[Asked], Reply | Exception] = lambda asked: ConnectionRefusedError()

    async def request(
        self,
        method: str,
        url: str,
        path: str,
        *,
        headers: Mapping[str, str] = {},
        body: bytes = b"",
        timeout: float,  # noqa: ASYNC109
        max_body: int = 1 << 20,
    ) -> Reply:
        assert timeout > 0
        await asyncio.sleep(0)
        asked = Asked(method, url, path, dict(headers), body)
        self.asked.append(asked)
        reply = self.answer(asked)
        if isinstance(reply, Exception):
            raise reply
        assert len(reply.body) <= max_body
        return reply


class FakeRaft:
    def __init__(self) -> None:
        self.leader = ME
        self.handing_over = False
        self.committed = Index(0)
        self.match: dict[MemberID, int] = {}
        self.changes: list[tuple[ConfChange, Caller]] = []
        self.changed = asyncio.Event()
        self.transfers: list[MemberID] = []

    @property
    def is_leader(self) -> bool:
        return self.leader == ME

    def status(self) -> Any:
        progress = {
            identity: SimpleNamespace(match=match) for identity, match in self.match.items()
        }
        basic = SimpleNamespace(id=ME)
        return SimpleNamespace(basic=basic, progress=progress if self.is_leader else {})

    def propose_conf_change(self, change: ConfChange, caller: Caller) -> None:
        self.changes.append((change, caller))
        self.changed.set()

    def transfer_leader(self, target: MemberID) -> None:
        self.transfers.append(target)


class Bench:
    """All of it, wired as the server does. ``timeout`` is that of a request."""

    def __init__(
        self,
        members: Iterable[Member] = (member(ME),),
        *,
        strict: bool = True,
        timeout: float = 5.0,
    ) -> None:
        self.loop = loop = asyncio.get_running_loop()
        self.buckets = DictBuckets()
        self.cluster = Cluster(CLUSTER, ME, self.buckets)
        for one in members:
            self.cluster.add(one)
        self.raft = FakeRaft()
        self.applier = SimpleNamespace(index=Index(0))
        self.since: dict[MemberID, float] = {}
        self.http = FakeHttp()
        self.fresh = True
        self.proposer = Proposer(
            RequestIds(ME, 0), max_request_bytes=1 << 20, wake=lambda: None, clock=loop.time
        )
        self.reads = ReadGate(
            next_id=self.proposer.ids.next,
            ask=self._ask,
            wake=lambda: loop.call_soon(self._send_reads),
            clock=loop.time,
        )
        self.leadership = Leadership(
            raft=self.raft, cluster=self.cluster, reads=self.reads, tick=0.1, loop=loop
        )
        self.catch_up = CatchUp(self.raft, self.applier, loop)
        self.to_leader = ToLeader(
            local=ME, http=self.http, leadership=self.leadership, timeout=timeout, loop=loop
        )
        self.metrics = ServerMetrics(Registry())
        self.members = MemberChanges(
            cluster=self.cluster,
            raft=self.raft,
            transport=self,
            leadership=self.leadership,
            catch_up=self.catch_up,
            to_leader=self.to_leader,
            metrics=self.metrics,
            strict=strict,
            wall_clock=lambda: 1_700_000_000.7,
            loop=loop,
        )

    # The transport

    def active_since(self, member: MemberID) -> float | None:
        return self.since.get(member)

    def connect(self, *members: MemberID, seconds: float = 60.0) -> None:
        """These have been connected for so long."""
        self.since.update(dict.fromkeys(members, self.loop.time() - seconds))

    # Reads: answered at once, or never

    def _ask(self, context: bytes) -> None:
        if self.fresh:
            self.reads.confirm(context, Index(0))
            self.reads.release(Index(0))

    def _send_reads(self) -> None:
        self.reads.send()

    # Steps

    def led_by(self, leader: MemberID) -> None:
        self.raft.leader = leader
        self.leadership.changed()
        self.to_leader.leader_changed()

    def apply_to(self, index: int) -> None:
        self.applier.index = Index(index)
        self.catch_up.advanced()

    async def proposed(self) -> list[Proposal]:
        """What was proposed, as soon as there is something."""
        while True:
            entries = self.proposer.take_batch()
            if entries:
                return [self.proposer.done(e.local.id) for e in entries]  # type: ignore[attr-defined,misc]
            await asyncio.sleep(0)

    async def change(self) -> tuple[ConfChange, Caller]:
        """The next change of the members, as soon as it is proposed."""
        await self.raft.changed.wait()
        self.raft.changed.clear()
        return self.raft.changes.pop(0)
