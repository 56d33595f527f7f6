"""Raft snapshots: a mark, on disk, before which the log is not needed any more.

The state itself is in the backend; the ``.snap`` file only says up to which entry. A snapshot is
therefore taken at the entry that the last backend commit covers, when enough entries have passed
since the one before, and costs the write path nothing but a record in the log.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kvorum import failpoint
from kvorum.log import get_logger
from kvorum.membership import Cluster
from kvorum.raft.storage import MemoryStorage
from kvorum.raft.types import ConfState, Snapshot, SnapshotMetadata
from kvorum.server.diskthread import DiskThread
from kvorum.server.raftnode import RaftNode
from kvorum.snap import Membership, SaveTimes, StoredMember, build_store
from kvorum.snap import Snapshotter as SnapFiles
from kvorum.types import Index, Term
from kvorum.wal import WAL, SnapshotRecord

PURGE_INTERVAL: Final = 30.0

lg = get_logger()


class SnapshotTaker:
    """Takes snapshots and lets go of what they make superfluous.

    ``count`` is ``--snapshot-count``, ``keep`` is ``--snapshot-catchup-entries``: the entries that
    stay in memory for slow followers.
    """

    def __init__(
        self,
        *,
        files: SnapFiles,
        wal: WAL,
        disk: DiskThread,
        raft: RaftNode,
        storage: MemoryStorage,
        cluster: Cluster,
        count: int,
        keep: int,
        last: Index,
        failed: Callable[[BaseException], None],
    ) -> None:
        self.last = last
        self._files = files
        self._wal = wal
        self._disk = disk
        self._raft = raft
        self._storage = storage
        self._cluster = cluster
        self._count = count
        self._keep = keep
        self._failed = failed
        self._running = False

    def committed(self, index: Index, term: Term, conf_state: ConfState) -> None:
        """The backend has committed what was applied up to ``index``."""
        if self._running or index - self.last < self._count:
            return
        self._running = True
        lg.info(
            "triggering snapshot",
            local_member_applied_index=index,
            local_member_snapshot_index=self.last,
            local_member_snapshot_count=self._count,
        )
        data = build_store(self._membership())
        snapshot = Snapshot(data, SnapshotMetadata(conf_state, index, term))
        # The record is only valid in a log whose commit index has reached it.
        self._raft.log_state()
        self._disk.submit(
            lambda: self._save(snapshot), lambda result: self._saved(snapshot, result)
        )

    def _membership(self) -> Membership:
        cluster = self._cluster
        members = tuple(
            StoredMember(m.id, m.peer_urls, m.is_learner, m.name, m.client_urls)
            for m in cluster.sorted()
        )
        return Membership(members, tuple(sorted(cluster.removed)), cluster.version or None)

    def _save(self, snapshot: Snapshot) -> SaveTimes:
        if failpoint.active:
            failpoint.hit("raftBeforeSaveSnap")
        return self._files.save(snapshot)

    def _saved(self, snapshot: Snapshot, result: object) -> None:
        if isinstance(result, BaseException):
            self._failed(result)
            return
        if failpoint.active:
            failpoint.hit("raftBeforeWALSaveSnaphot")
        batch = self._wal.encode_snapshot(SnapshotRecord.of(snapshot.metadata))
        self._disk.submit(
            lambda: self._wal.write(batch), lambda result: self._recorded(snapshot, result)
        )

    def _recorded(self, snapshot: Snapshot, result: object) -> None:
        if isinstance(result, BaseException):
            self._failed(result)
            return
        if failpoint.active:
            failpoint.hit("raftAfterSaveSnap")
        meta = snapshot.metadata
        self._running = False
        self.last = meta.index
        self._storage.create_snapshot(meta.index, meta.conf_state)
        lg.info("saved snapshot", snapshot_index=meta.index)
        self._wal.release_to(meta.index)
        if failpoint.active:
            failpoint.hit("raftAfterWALRelease")
        if meta.index > self._keep and meta.index - self._keep >= self._storage.first_index():
            self._storage.compact(Index(meta.index - self._keep))

    def purge(self, max_snapshots: int, max_wals: int) -> None:
        """Remove files beyond the limits (0: none is removed), in the log's thread."""
        if max_snapshots:
            self._disk.submit(lambda: self._files.purge(max_snapshots), self._purged)
        if max_wals:
            self._disk.submit(lambda: self._wal.purge(max_wals), self._purged)

    def _purged(self, result: object) -> None:
        if isinstance(result, OSError):
            lg.warn("failed to purge files", error=str(result))
        elif isinstance(result, BaseException):
            self._failed(result)
        elif result:
            lg.info("purged files", paths=[str(path) for path in result])  # type: ignore[attr-defined]
