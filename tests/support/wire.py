"""A network between members of one process: it loses, delays and cuts what a test wants.

What goes over it is encoded and decoded as on a real one, so that nobody gets hold of what belongs
to another member.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path

from kvorum.peer.interface import Host, RemovedMember, WrongMember
from kvorum.raft import codec
from kvorum.raft.types import Message, MsgType
from kvorum.types import MemberID

IMAGES = False
"""Whether databases are sent as they are, instead of as bolt files."""


class Wire:
    """All that is between the members. ``cut`` has the pairs (from, to) between which nothing gets
    through, ``loss`` is the share of messages that get lost, ``delay`` in seconds."""

    def __init__(self, seed: int = 0) -> None:
        self.loop = asyncio.get_running_loop()
        self.hosts: dict[MemberID, Host] = {}
        self.cut: set[tuple[MemberID, MemberID]] = set()
        self.loss = 0.0
        self.delay = 0.0
        self.chance = random.Random(seed)
        self.sent: dict[MsgType, int] = {}
        self.snapshots: list[tuple[MemberID, int]] = []
        self.up_since: dict[MemberID, float] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    def isolate(self, member: MemberID) -> None:
        for other in self.hosts:
            if other != member:
                self.cut |= {(member, other), (other, member)}

    def heal(self) -> None:
        self.cut.clear()
        self.loss = self.delay = 0.0

    def passes(self, source: MemberID, target: MemberID) -> bool:
        return target in self.hosts and source in self.hosts and (source, target) not in self.cut

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


class WireTransport:
    """One member's end."""

    _numbers = count()

    def __init__(self, wire: Wire, member: MemberID, host: Host) -> None:
        self._wire = wire
        self._id = member
        self._host = host
        self._paused = False
        self.peers: dict[MemberID, tuple[str, ...]] = {}
        wire.hosts[member] = host
        wire.up_since[member] = wire.loop.time()

    def send(self, messages: Sequence[Message]) -> None:
        wire = self._wire
        for message in messages:
            wire.sent[message.type] = wire.sent.get(message.type, 0) + 1
            if message.to not in self.peers or self._paused:
                continue
            if message.type is MsgType.SNAP:
                task = wire.loop.create_task(self._send_snapshot(message))
                wire.tasks.add(task)
                task.add_done_callback(wire.tasks.discard)
            elif not wire.passes(self._id, message.to):
                wire.loop.call_soon(self._host.report_unreachable, message.to)
            elif wire.chance.random() >= wire.loss:
                assert all(entry.data is not None for entry in message.entries)
                data = codec.encode_message(message)
                wire.loop.call_later(wire.delay, self._deliver, message.to, data)

    def _deliver(self, target: MemberID, data: bytes) -> None:
        host = self._wire.hosts.get(target)
        if host is None or not self._wire.passes(self._id, target):
            return
        try:
            host.receive(codec.decode_message(data))
        except RemovedMember:
            self._host.told_removed()
        except WrongMember:
            raise AssertionError(f"a message for {target:x} went astray") from None

    async def _send_snapshot(self, message: Message) -> None:
        wire, ok = self._wire, False
        try:
            async with self._host.open_snapshot(message, image=IMAGES) as snapshot:
                if wire.passes(self._id, message.to):
                    host = wire.hosts[message.to]
                    path = host.snapshot_directory() / f"tmp-{next(self._numbers)}.in"
                    size = await _write(path, snapshot.chunks)
                    assert size == snapshot.size
                    received = codec.decode_message(codec.encode_message(snapshot.message))
                    assert received.snapshot is not None
                    if wire.passes(self._id, message.to):
                        await host.receive_snapshot(received, path)
                        wire.snapshots.append((message.to, received.snapshot.metadata.index))
                        ok = True
        finally:
            self._host.report_snapshot(message.to, ok)

    def add_peer(self, member: MemberID, urls: Iterable[str]) -> None:
        self.peers.setdefault(member, tuple(urls))

    def update_peer(self, member: MemberID, urls: Iterable[str]) -> None:
        assert member in self.peers
        self.peers[member] = tuple(urls)

    def remove_peer(self, member: MemberID) -> None:
        self.peers.pop(member, None)

    def active_since(self, member: MemberID) -> float | None:
        if member not in self.peers or not self._wire.passes(member, self._id):
            return None
        return max(self._wire.up_since[member], self._wire.up_since[self._id])

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False

    async def close(self) -> None:
        if self._wire.hosts.get(self._id) is self._host:
            del self._wire.hosts[self._id]


async def _write(path: Path, chunks: Iterable[bytes]) -> int:
    total = 0
    with path.open("wb") as file:
        async for chunk in chunks:  # type: ignore[attr-defined]
            file.write(chunk)
            total += len(chunk)
    return total
