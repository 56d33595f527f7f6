"""A snapshot for another member: the database as of now, and the MsgSnap that goes with it.

Raft asks for a snapshot of some index; what is sent is the newest state, whose index is at least
that (as with etcd). Index, term and members are read out of the very view that the file is made
from, so that they fit together whatever goes on meanwhile.

A follower that has taken a snapshot needs the entries after it next. The log in memory therefore
is not cut while one is on its way and for a while after, or it would come too late for the log and
need the next snapshot, for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from kvorum.backend import Backend, Bucket, ReadView
from kvorum.log import get_logger
from kvorum.membership import Cluster
from kvorum.peer.interface import OutgoingSnapshot
from kvorum.raft.types import ConfState, Message, MsgType, Snapshot, SnapshotMetadata
from kvorum.server.meta import read_applied
from kvorum.server.snapshotter import membership_of
from kvorum.snap import BoltWriter, build_store
from kvorum.types import MemberID

HOLD_SECONDS: Final = 30.0
"""How long the log is kept after a snapshot was delivered, as in etcd."""

MAX_HELD_BYTES: Final = 256 * 1024 * 1024
"""What may be written to the log before it is cut all the same: memory has an end."""

PIECE: Final = 256 * 1024

lg = get_logger()


class SnapshotSender:
    """``logged_bytes`` is to be raised by what is written to the log."""

    def __init__(
        self,
        *,
        member: MemberID,
        cluster_id: int,
        backend: Backend,
        directory: Path,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.logged_bytes = 0
        self._member = member
        self._cluster_id = cluster_id
        self._backend = backend
        self._directory = directory
        self._loop = loop
        self._holds = 0
        self._held_since = 0
        self._made = 0

    # Keeping the log

    @property
    def holds_log(self) -> bool:
        """Whether the log in memory must not be cut."""
        return self._holds > 0 and self.logged_bytes - self._held_since < MAX_HELD_BYTES

    def reported(self, member: MemberID, ok: bool) -> None:
        """A snapshot was delivered, or was not."""
        if ok:
            self._hold()
            self._loop.call_later(HOLD_SECONDS, self._release)

    def _hold(self) -> None:
        if not self._holds:
            self._held_since = self.logged_bytes
        self._holds += 1

    def _release(self) -> None:
        self._holds -= 1

    # Making one

    @asynccontextmanager
    async def open(self, message: Message) -> AsyncIterator[OutgoingSnapshot]:
        """The database for a MsgSnap. Raises BackendError, OSError."""
        self._hold()
        try:
            await self._backend.commit()
            with self._backend.read_view() as view:
                async with self._file(view) as path:
                    size = path.stat().st_size
                    about = {
                        "from": f"{self._member:x}",
                        "to": f"{message.to:x}",
                        "bytes": size,
                    }
                    started = self._loop.time()
                    lg.info("sending merged snapshot", **about)
                    complete = _complete(message, view, self._cluster_id, self._member)
                    yield OutgoingSnapshot(complete, size, self._pieces(path))
                    took = self._loop.time() - started
                    lg.info("sent merged snapshot", **about, took=f"{took:.3f}s")
        finally:
            self._loop.call_soon(self._release)

    @asynccontextmanager
    async def _file(self, view: ReadView) -> AsyncIterator[Path]:
        self._made += 1
        path = self._directory / f"tmp-{self._made}.out.db"
        try:
            await self._backend.in_thread(lambda: _write_file(view, path))
            yield path
        finally:
            await self._loop.run_in_executor(None, lambda: path.unlink(missing_ok=True))

    async def _pieces(self, path: Path) -> AsyncIterator[bytes]:
        total = 0
        with open(path, "rb") as file:  # noqa: ASYNC230 - opening is quick; reads are in a thread
            while piece := await self._backend.in_thread(lambda: file.read(PIECE)):
                total += len(piece)
                yield piece
        lg.info("sent database snapshot to writer", bytes=total)


def _write_file(view: ReadView, path: Path) -> None:
    with BoltWriter(path, sync=False) as writer:
        for bucket in Bucket:
            writer.add_bucket(bucket.value.encode(), view.items(bucket))


class _Buckets:
    """A view, as those take it who read their state from a backend."""

    def __init__(self, view: ReadView) -> None:
        self.get = view.get
        self._view = view

    def range(self, bucket: str, lo: bytes, hi: bytes | None) -> Iterable[tuple[bytes, bytes]]:
        return self._view.items(bucket, lo, hi)

    def put(self, bucket: str, key: bytes, value: bytes) -> None:
        raise NotImplementedError("a view cannot be written to")

    def delete(self, bucket: str, key: bytes) -> None:
        raise NotImplementedError("a view cannot be written to")


def _complete(message: Message, view: ReadView, cluster_id: int, member: MemberID) -> Message:
    """The message with the place and the members of the view in it."""
    buckets = _Buckets(view)
    index, term = read_applied(buckets)
    cluster = Cluster(cluster_id, member, buckets)
    cluster.restore()
    state = ConfState(tuple(cluster.voters()), tuple(cluster.learners()))
    assert message.snapshot is not None
    asked = message.snapshot.metadata.index
    assert index >= asked, f"the database ends at {index}, and a snapshot of {asked} is asked for"
    snapshot = Snapshot(build_store(membership_of(cluster)), SnapshotMetadata(state, index, term))
    return Message(MsgType.SNAP, message.to, message.from_, message.term, snapshot=snapshot)
