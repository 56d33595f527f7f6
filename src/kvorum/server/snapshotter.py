"""Raft snapshots: a mark, on disk, before which the log is not needed any more.

The state itself is in the backend; the ``.snap`` file only says up to which entry. A snapshot is
therefore taken at the entry that the last backend commit covers, when enough entries have passed
since the one before, and costs the write path nothing but a record in the log.

The log in memory is cut more often, as it is there for slow followers only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kvorum import failpoint
from kvorum.log import get_logger
from kvorum.membership import Cluster
from kvorum.raft.storage import MemoryStorage
from kvorum.raft.types import NO_LIMIT, ConfState, Entry, Snapshot, SnapshotMetadata
from kvorum.server.diskthread import Disk
from kvorum.server.raftnode import RaftNode
from kvorum.snap import Membership, SaveTimes, StoredMember, build_store
from kvorum.snap import Snapshotter as SnapFiles
from kvorum.types import Index, Term
from kvorum.wal import WAL, SnapshotRecord

PURGE_INTERVAL: Final = 30.0
MEMORY_COUNT: Final = 100
"""Entries after which the log in memory is cut, as in etcd since 3.6."""

lg = get_logger()


class SnapshotTaker:
    """Takes snapshots and lets go of what they make superfluous.

    ``count`` is ``--snapshot-count``, ``keep`` is ``--snapshot-catchup-entries``: the entries that
    stay in memory for slow followers. While ``holding`` is true, all stay there.
    """

    def __init__(
        self,
        *,
        files: SnapFiles,
        wal: WAL,
        disk: Disk,
        raft: RaftNode,
        storage: MemoryStorage,
        cluster: Cluster,
        count: int,
        keep: int,
        last: Index,
        failed: Callable[[BaseException], None],
        holding: Callable[[], bool] = lambda: False,
    ) -> None:
        self.last = last
        self.files = files
        self._wal = wal
        self._disk = disk
        self._raft = raft
        self._storage = storage
        self._cluster = cluster
        self._count = count
        self._keep = keep
        self._failed = failed
        self._holding = holding
        self._running = False
        self._forced = False

    def force(self) -> None:
        """Take a snapshot after the next commit, however few entries it is after the last one."""
        self._forced = True

    def entries_since(self, storage: MemoryStorage) -> list[Entry] | None:
        """The entries after the last snapshot; None if they are not all in memory."""
        first, last = Index(self.last + 1), storage.last_index()
        if first < storage.first_index():
            return None
        return storage.entries(first, Index(last + 1), NO_LIMIT) if first <= last else []

    def received(self, index: Index) -> None:
        """A snapshot of the leader is in the log, or about to be."""
        self.last = max(self.last, index)

    def committed(self, index: Index, term: Term, conf_state: ConfState) -> None:
        """The backend has committed what was applied up to ``index``."""
        self._cut_memory(index, conf_state)
        wanted = 1 if self._forced else self._count
        if self._running or index - self.last < wanted:
            return
        self._running = True
        self._forced = False
        lg.info(
            "triggering snapshot",
            local_member_applied_index=index,
            local_member_snapshot_index=self.last,
            local_member_snapshot_count=self._count,
        )
        data = build_store(membership_of(self._cluster))
        snapshot = Snapshot(data, SnapshotMetadata(conf_state, index, term))
        # The record is only valid in a log whose commit index has reached it.
        self._raft.log_state()
        self._disk.submit(
            lambda: self._save(snapshot), lambda result: self._saved(snapshot, result)
        )

    def _save(self, snapshot: Snapshot) -> SaveTimes:
        if failpoint.active:
            failpoint.hit("raftBeforeSaveSnap")
        return self.files.save(snapshot)

    def _saved(self, snapshot: Snapshot, result: object) -> None:
        if isinstance(result, BaseException):
            self._failed(result)
            return
        if snapshot.metadata.index <= self.last:
            self._running = False  # a newer one came from the leader, and is in the log already
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
        self.received(meta.index)
        lg.info("saved snapshot", snapshot_index=meta.index)
        self._wal.release_to(meta.index)
        self._disk.submit(lambda: self.files.release_dbs(meta.index), self._purged)
        if failpoint.active:
            failpoint.hit("raftAfterWALRelease")

    def _cut_memory(self, index: Index, conf_state: ConfState) -> None:
        """Let the log in memory begin later. A follower that needs what is gone gets a snapshot,
        and raft has to know of one that reaches at least that far."""
        storage = self._storage
        if index - storage.snapshot().metadata.index < MEMORY_COUNT:
            return
        storage.create_snapshot(index, conf_state)
        if self._holding():
            lg.debug("skip compaction since there is an inflight snapshot")
            return
        cut = Index(index - self._keep)
        if cut >= storage.first_index():
            storage.compact(cut)

    def purge(self, max_snapshots: int, max_wals: int) -> None:
        """Remove files beyond the limits (0: none is removed), in the log's thread."""
        if max_snapshots:
            self._disk.submit(lambda: self.files.purge(max_snapshots), self._purged)
        if max_wals:
            self._disk.submit(lambda: self._wal.purge(max_wals), self._purged)

    def _purged(self, result: object) -> None:
        if isinstance(result, OSError):
            lg.warn("failed to purge files", error=str(result))
        elif isinstance(result, BaseException):
            self._failed(result)
        elif result:
            lg.info("purged files", paths=[str(path) for path in result])  # type: ignore[attr-defined]


def membership_of(cluster: Cluster) -> Membership:
    """The members as the ``.snap`` file, and a snapshot's message, have them."""
    members = tuple(
        StoredMember(m.id, m.peer_urls, m.is_learner, m.name, m.client_urls)
        for m in cluster.sorted()
    )
    return Membership(members, tuple(sorted(cluster.removed)), cluster.version or None)
