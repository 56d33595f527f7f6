"""The network between members: it loses, delays, repeats and reorders, and can be cut anywhere.

Messages travel as bytes, encoded and decoded by the real codec. Cuts are one-way: a partition is a
set of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Final

from kvorum.backend import BackendError
from kvorum.peer.interface import Host, OutgoingSnapshot, RemovedMember, WrongMember
from kvorum.raft.codec import decode_message, encode_message
from kvorum.raft.types import Message, MsgType
from kvorum.snap.errors import SnapError
from kvorum.types import MemberID
from sim.world import World

if TYPE_CHECKING:
    from sim.http import Site
    from sim.process import Process
    from sim.system import System

CHUNK_TIME: Final = 0.004
"""Seconds that a piece of a snapshot travels."""
MOST_HELD: Final = 100
"""Messages that wait for a link."""
IMAGES: Final = 0.7
"""The share of snapshots that are sent as the database file is; the others are bbolt files."""
SILENCE: Final = 5.0
"""Seconds without a message after which a peer counts as not connected."""


@dataclass(slots=True)
class Weather:
    """How all links are: seconds, and shares of messages."""

    delay: float = 0.002
    jitter: float = 0.003
    loss: float = 0.0
    repeats: float = 0.0
    in_order: bool = True
    """As over one connection; else each message goes its own way."""
    holds: bool = False
    """What is sent into a cut arrives when it heals, as what TCP sends again; else it is lost."""


@dataclass(slots=True)
class Link:
    """One direction between two members."""

    extra_delay: float = 0.0
    last_arrival: float = 0.0
    heard: float | None = None
    heard_since: float | None = None
    held: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class Network:
    """All members by id, and who cannot hear whom."""

    world: World
    random: Random
    weather: Weather = field(default_factory=Weather)
    cuts: set[tuple[MemberID, MemberID]] = field(default_factory=set)
    sent: int = 0
    lost: int = 0
    transports: dict[MemberID, SimTransport] = field(default_factory=dict)
    links: dict[tuple[MemberID, MemberID], Link] = field(default_factory=dict)
    sites: dict[str, Site] = field(default_factory=dict)
    watch: Callable[[Message], None] = lambda message: None
    """Told of every message that leaves."""
    trap: Callable[[Message], None] | None = None
    """Told too, of those that are meant for the network."""
    note: Callable[[str], None] = lambda line: None
    """Takes a line for the trace."""

    def link(self, source: MemberID, target: MemberID) -> Link:
        pair = (source, target)
        link = self.links.get(pair)
        if link is None:
            link = self.links[pair] = Link()
        return link

    def cut(self, sources: Iterable[MemberID], targets: Iterable[MemberID]) -> None:
        """Let nothing through from some to others."""
        targets = list(targets)
        self.cuts |= {(a, b) for a in sources for b in targets if a != b}

    def join(self, cuts: Iterable[tuple[MemberID, MemberID]]) -> None:
        """Let everything through again that some cuts had stopped."""
        for source, target in sorted(cuts):
            self.cuts.discard((source, target))
            link = self.link(source, target)
            for data in link.held:
                delay = self.delay(source, target)
                self.world.after(delay, self._arrive, source, target, data)
            link.held.clear()

    def heal(self) -> None:
        self.join(self.cuts)
        for link in self.links.values():
            link.extra_delay = 0.0

    def reaches(self, source: MemberID, target: MemberID) -> bool:
        return (source, target) not in self.cuts

    def delay(self, source: MemberID, target: MemberID) -> float:
        """Seconds that the next message travels."""
        weather, random = self.weather, self.random
        link = self.link(source, target)
        delay = weather.delay + random.expovariate(1 / weather.jitter) + link.extra_delay
        if weather.in_order:
            arrival = max(link.last_arrival + 1e-6, self.world.now + delay)
            link.last_arrival = arrival
            delay = arrival - self.world.now
        return delay

    def latency(self) -> float:
        """Seconds that something travels that is not raft's."""
        return self.weather.delay + self.random.expovariate(1 / self.weather.jitter)

    def id_of(self, process: Process) -> MemberID | None:
        """The member that a process is, once it knows."""
        for member, transport in self.transports.items():
            if transport.process is process:
                return member
        return None

    def transmit(
        self, source: MemberID, target: MemberID, data: bytes, *, once: bool = False
    ) -> bool:
        """Send bytes on their way; False if it is plain to see that they will not arrive.

        ``once``: they are not repeated. Raft bears any repetition but that of a proposal, which
        would be carried out twice; as with etcd, the transport has to see to that.
        """
        self.sent += 1
        weather, random = self.weather, self.random
        if not self.reaches(source, target):
            held = self.link(source, target).held
            if weather.holds and len(held) < MOST_HELD:
                held.append(data)
            self.lost += 1
            return False
        if random.random() < weather.loss:
            self.lost += 1
            return True
        for _ in range(2 if random.random() < weather.repeats and not once else 1):
            delay = self.delay(source, target)
            self.world.after(delay, self._arrive, source, target, data)
        return True

    def _arrive(self, source: MemberID, target: MemberID, data: bytes) -> None:
        transport = self.transports.get(target)
        if transport is None or not transport.process.alive or transport.paused:
            self.lost += 1
            return
        if not self.reaches(source, target):
            self.lost += 1
            return
        self._hear(source, target)
        transport.process.run_event(lambda: transport.receive(source, decode_message(data)))

    def _hear(self, source: MemberID, target: MemberID) -> None:
        link, now = self.link(source, target), self.world.now
        if link.heard is None or now - link.heard > SILENCE:
            link.heard_since = now
        link.heard = now

    def connected_since(self, source: MemberID, target: MemberID) -> float | None:
        link = self.link(source, target)
        if link.heard is None or self.world.now - link.heard > SILENCE:
            return None
        return link.heard_since


class SimTransport:
    """`kvorum.peer.interface.Transport` of one process."""

    def __init__(
        self, network: Network, process: Process, system: System, member: MemberID, host: Host
    ) -> None:
        self.process = process
        self.paused = False
        self._network = network
        self._system = system
        self._member = member
        self._host = host
        self._peers: set[MemberID] = set()
        self._remotes: set[MemberID] = set()
        self._received = 0
        network.transports[member] = self

    def send(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self._network.watch(message)
            if self._network.trap is not None:
                self._network.trap(message)
            known = message.to in self._peers or message.to in self._remotes
            if not known or self.paused:
                continue
            if message.type is MsgType.SNAP:
                self.process.loop.create_task(self._send_snapshot(message))
            elif not self._transmit(message):
                self._report_unreachable(message.to)

    def _transmit(self, message: Message) -> bool:
        once = message.type is MsgType.PROP
        data = encode_message(message)
        return self._network.transmit(self._member, message.to, data, once=once)

    def _report_unreachable(self, target: MemberID) -> None:
        """A broken connection is noticed later, and not always."""
        random = self._network.random
        if random.random() < 0.3:
            delay = random.expovariate(1 / 0.05)
            host = self._host
            self.process.loop.call_later(delay, lambda: host.report_unreachable(target))

    async def _send_snapshot(self, message: Message) -> None:
        target = message.to
        try:
            image = self._network.random.random() < IMAGES
            async with self._host.open_snapshot(message, image=image) as outgoing:
                ok = await self._transfer(outgoing, target)
        except (BackendError, TimeoutError) as error:
            self._network.note(f"no snapshot to {target:x}: {error!r}")
            ok = False
        self._host.report_snapshot(target, ok)

    async def _transfer(self, outgoing: OutgoingSnapshot, target: MemberID) -> bool:
        """Piece by piece: a cut at any moment ends it."""
        network, size, pieces = self._network, 0, []
        async for piece in outgoing.chunks:
            await asyncio.sleep(CHUNK_TIME)
            if not network.reaches(self._member, target):
                return False
            pieces.append(piece)
            size += len(piece)
        assert size == outgoing.size, f"{size} bytes of a snapshot of {outgoing.size}"
        arrived = self.process.loop.create_future()
        data = encode_message(outgoing.message)
        delay = network.delay(self._member, target)
        network.world.after(delay, self._deliver_snapshot, target, data, pieces, arrived)
        return await asyncio.wait_for(arrived, timeout=10.0)

    def _deliver_snapshot(
        self, target: MemberID, data: bytes, pieces: list[bytes], arrived: asyncio.Future[bool]
    ) -> None:
        network = self._network
        other = network.transports.get(target)
        if other is None or not other.process.alive or not network.reaches(self._member, target):
            return  # the sender waits in vain

        def answer(ok: bool) -> None:
            back = network.delay(target, self._member)
            network.world.after(back, self._answer, arrived, ok, process=self.process)

        work = other.receive_snapshot(decode_message(data), pieces, answer)
        other.process.spawn(work)

    def _answer(self, arrived: asyncio.Future[bool], ok: bool) -> None:
        if not arrived.done():
            arrived.set_result(ok)

    async def receive_snapshot(
        self, message: Message, pieces: list[bytes], answer: Callable[[bool], None]
    ) -> None:
        directory = self._host.snapshot_directory()
        self._received += 1
        path = directory / f"tmp-received-{self._received}"
        try:
            path.write_bytes(b"".join(pieces))
            fd = self._system.os.open(path, self._system.os.O_RDONLY)
            self._system.os.fsync(fd)
            self._system.os.close(fd)
            await self._host.receive_snapshot(message, path)
        except (RemovedMember, WrongMember, SnapError, OSError):
            answer(False)
        else:
            answer(True)

    def receive(self, source: MemberID, message: Message) -> None:
        try:
            self._host.receive(message)
            # Who speaks with us can be answered, in the member list or not, as with rafthttp.
            self._remotes.add(source)
        except RemovedMember:
            # That is about who wrote it; who only passed it on to a new leader may be a member.
            sender = self._network.transports.get(source) if message.from_ == source else None
            if sender is not None and sender.process.alive:
                sender.process.run_event(sender._host.told_removed)
        except WrongMember:
            pass

    def add_peer(self, member: MemberID, urls: Iterable[str]) -> None:
        self._peers.add(member)

    def update_peer(self, member: MemberID, urls: Iterable[str]) -> None:
        pass

    def remove_peer(self, member: MemberID) -> None:
        self._peers.discard(member)
        self._remotes.discard(member)

    def active_since(self, member: MemberID) -> float | None:
        since = self._network.connected_since(member, self._member)
        return None if since is None else self.process.local(since)

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    async def close(self) -> None:
        self.paused = True


async def whole(data: bytes, size: int) -> AsyncIterator[bytes]:
    """Bytes in pieces."""
    for start in range(0, len(data), size):
        yield data[start : start + size]
