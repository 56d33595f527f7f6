"""What the parts of one transport share, and what those share that speak with the same peer."""

from __future__ import annotations

import asyncio
import ssl as tls
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from kvorum.log import Logger, get_logger
from kvorum.peer.handshake import Identity
from kvorum.peer.http_client import HttpClient
from kvorum.peer.interface import Host, RemovedMember, WrongMember
from kvorum.peer.msgapp_codec import Runs
from kvorum.peer.status import PeerStatus
from kvorum.peer.urls import URLPicker
from kvorum.raft.types import LOCAL_MSGS, Message, MsgType
from kvorum.telemetry import PeerMetrics, SnapMetrics, SnapshotTransferMetrics
from kvorum.types import MemberID

NOT_FROM_STREAMS: Final = LOCAL_MSGS | {MsgType.SNAP}
"""Messages that a peer cannot send: those to oneself, and a snapshot without its database."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds; the defaults are etcd's."""

    dial: float = 2.0
    """To connect, TLS included: 1 s and the election timeout."""
    idle: float = 5.0
    """A connection without a byte for so long is dropped."""
    heartbeat: float = 5.0 / 3.0
    """Between the heartbeats of a stream."""
    redial: float = 0.1
    """At least so long from one attempt to the next, a stream."""
    post: float = 5.0
    """For a message that is sent alone, and its answer."""
    probe: float = 4.0
    """Between two probes of a URL; less than ``idle``, which keeps the connection."""


@dataclass(slots=True)
class Context:
    """``ssl`` and ``source`` (a local address) are for the streams that we dial; ``http`` has its
    own. ``wall`` is the time of day in nanoseconds; ``timer`` counts seconds more finely than the
    loop's clock, which stands still within a turn."""

    host: Host
    us: Identity
    http: HttpClient
    metrics: PeerMetrics
    transfer: SnapshotTransferMetrics
    snap: SnapMetrics
    ssl: tls.SSLContext | None = None
    source: str | None = None
    timing: Timing = Timing()
    wall: Callable[[], int] = time.time_ns
    timer: Callable[[], float] = time.perf_counter
    lg: Logger = field(default_factory=get_logger)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    runs: Runs = field(default_factory=Runs)
    paused: bool = False
    _told_removed: bool = False
    _unreachable: set[MemberID] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def local_name(self) -> str:
        return f"{self.us.local:x}"

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that lives until it ends or the transport is closed."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            report = {"message": "a task of the transport failed", "exception": error, "task": task}
            self.loop.call_exception_handler(report)

    async def stop_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def deliver(self, messages: Iterable[Message]) -> None:
        """Hand over what came on a stream, unless it is nothing that comes there."""
        if self.paused:
            return
        for message in messages:
            if message.type in NOT_FROM_STREAMS:
                continue
            try:
                self.host.receive(message)
            except (RemovedMember, WrongMember) as error:
                self.lg.warn(
                    "failed to process Raft message",
                    local_member_id=self.local_name,
                    error=str(error) or type(error).__name__,
                )

    def tell_removed(self) -> None:
        """A peer says that we were removed; the host is told once."""
        if not self._told_removed:
            self._told_removed = True
            self.host.told_removed()

    def report_unreachable(self, member: MemberID) -> None:
        """In the next turn, and once however often: the host may be in the middle of sending."""
        if not self._unreachable:
            self.loop.call_soon(self._report)
        self._unreachable.add(member)

    def _report(self) -> None:
        members = sorted(self._unreachable)
        self._unreachable.clear()
        for member in members:
            self.host.report_unreachable(member)


class Contact:
    """One member that we speak with: its URLs, whether it is there, what is counted of it."""

    def __init__(self, ctx: Context, member: MemberID, urls: Iterable[str]) -> None:
        """Raises ValueError for a malformed URL, or if there is none."""
        self.member = member
        self.name = f"{member:x}"
        self.picker = URLPicker(urls)
        self.takes_images = False
        """Whether it can use a database file of ours, as its last stream said."""
        metrics = ctx.metrics
        self.status = PeerStatus(ctx.us.local, member, metrics, ctx.loop.time, ctx.lg)
        self.sent = metrics.sent_bytes.with_labels(self.name)
        self.send_failures = metrics.sent_failures.with_labels(self.name)
        self.received = metrics.received_bytes.with_labels(self.name)
