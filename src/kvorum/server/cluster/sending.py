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
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

from kvorum.backend import Backend
from kvorum.log import get_logger
from kvorum.membership import Cluster
from kvorum.peer.interface import OutgoingSnapshot
from kvorum.raft.types import ConfState, Message, MsgType, Snapshot, SnapshotMetadata
from kvorum.server.dbsnapshot import OpenDatabase, SmallBuckets, open_database
from kvorum.server.snapshotter import membership_of
from kvorum.snap import build_store
from kvorum.types import MemberID

HOLD_SECONDS: Final = 30.0
"""How long the log is kept after a snapshot was delivered, as in etcd."""

MAX_HELD_BYTES: Final = 256 * 1024 * 1024
"""What may be written to the log before it is cut all the same: memory has an end."""

lg = get_logger()


class SnapshotSender:
    """``logged_bytes`` is to be raised by what is written to the log."""

    def __init__(
        self,
        *,
        member: MemberID,
        cluster_id: int,
        backend: Backend,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.logged_bytes = 0
        self._member = member
        self._cluster_id = cluster_id
        self._backend = backend
        self._loop = loop
        self._holds = 0
        self._held_since = 0

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
    async def open(
        self, message: Message, *, image: bool = False
    ) -> AsyncIterator[OutgoingSnapshot]:
        """The database for a MsgSnap; `image`: our own file will do. Raises BackendError, and out
        of the chunks what `open_database` says."""
        self._hold()
        try:
            async with open_database(self._backend, image=image) as database:
                complete = _complete(message, database, self._cluster_id, self._member)
                about = {
                    "from": f"{self._member:x}",
                    "to": f"{message.to:x}",
                    "snapshot_index": database.index,
                    "bytes": database.size,
                }
                started = self._loop.time()
                lg.info("sending merged snapshot", **about)
                yield OutgoingSnapshot(complete, database.size, _counted(database), database.image)
                took = timedelta(seconds=self._loop.time() - started)
                lg.info("sent merged snapshot", **about, took=took)
        finally:
            # Whether it was delivered is told afterwards, and may hold the log for longer.
            self._loop.call_later(1.0, self._release)


async def _counted(database: OpenDatabase) -> AsyncIterator[bytes]:
    async for chunk in database.chunks:
        yield chunk
    lg.info("sent database snapshot to writer", bytes=database.size)


class _Buckets:
    """What is sent, as those take it who read their state from a backend."""

    def __init__(self, content: SmallBuckets) -> None:
        self.get = content.get
        self.range = content.range

    def put(self, bucket: str, key: bytes, value: bytes) -> None:
        raise NotImplementedError("a snapshot cannot be written to")

    def delete(self, bucket: str, key: bytes) -> None:
        raise NotImplementedError("a snapshot cannot be written to")


def _complete(
    message: Message, database: OpenDatabase, cluster_id: int, member: MemberID
) -> Message:
    """The message with the place and the members of the database in it."""
    assert message.snapshot is not None
    asked, index = message.snapshot.metadata.index, database.index
    assert index >= asked, f"the database ends at {index}, and a snapshot of {asked} is asked for"
    cluster = Cluster(cluster_id, member, _Buckets(database.small))
    cluster.restore()
    state = ConfState(tuple(cluster.voters()), tuple(cluster.learners()))
    meta = SnapshotMetadata(state, index, database.term)
    snapshot = Snapshot(build_store(membership_of(cluster)), meta)
    return Message(MsgType.SNAP, message.to, message.from_, message.term, snapshot=snapshot)
