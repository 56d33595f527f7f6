"""Opens a data directory: a new one, one of our own, or one that etcd left behind.

The result is everything that the server is built on: the log read, the backend opened, and the
raft storage filled from where the backend stands.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Protocol

from kvorum.backend import FILE_NAME, Backend
from kvorum.config import ServerConfig
from kvorum.log import get_logger
from kvorum.membership import Cluster, Member, cluster_id, member_id
from kvorum.pb import etcdserverpb as pb
from kvorum.raft.codec import encode_conf_change
from kvorum.raft.storage import MemoryStorage
from kvorum.raft.types import (
    NONE,
    ConfChange,
    ConfChangeType,
    ConfState,
    Entry,
    HardState,
    Snapshot,
    SnapshotMetadata,
)
from kvorum.server.errors import BadDataDirectory, BadInitialCluster
from kvorum.server.goimport import GO_FILE_NAME, import_go_database
from kvorum.server.meta import read_applied
from kvorum.snap import NoSnapshot
from kvorum.snap import Snapshotter as SnapFiles
from kvorum.types import Index, MemberID, Term
from kvorum.wal import (
    START,
    WAL,
    LogNotFound,
    ReadResult,
    SnapshotNotFound,
    SnapshotRecord,
    exists,
    latest_snapshot,
    open_log,
)

lg = get_logger()


@dataclass(slots=True)
class Booted:
    """A data directory, open. ``applied`` and ``term`` are those of the last entry that the backend
    covers; the entries after it are in ``storage`` and will be handed out again."""

    member: MemberID
    cluster: Cluster
    backend: Backend
    wal: WAL
    snapshots: SnapFiles
    storage: MemoryStorage
    applied: Index
    term: Term
    snapshot_index: Index
    remotes: list[Member] = field(default_factory=list)
    """The members to speak with before the member list has come with the log."""


class Requests(Protocol):
    """Requests to other members, over HTTP/1.1."""

    async def request(
        self,
        method: str,
        url: str,
        path: str,
        *,
        headers: Mapping[str, str] = ...,
        body: bytes = ...,
        timeout: float,  # noqa: ASYNC109
        max_body: int = ...,
    ) -> Reply: ...


class Reply(Protocol):
    """``headers`` have lower-case names."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def body(self) -> bytes: ...


async def bootstrap(
    config: ServerConfig, loop: asyncio.AbstractEventLoop, http: Requests | None
) -> Booted:
    """Open the data directory, and begin a new cluster if it is empty.

    Raises:
        BadDataDirectory, BadInitialCluster: it cannot be used, or not with this configuration.
        WALError, BackendError: a file cannot be opened, is damaged, or is in use.
    """
    snap = Path(config.snap_dir)
    wal = Path(config.wal_path)
    _make_directories(Path(config.data_dir), Path(config.member_dir), snap, wal.parent)
    if exists(wal):
        return _restart(config, loop, wal, snap)
    if (snap / GO_FILE_NAME).exists():
        raise _log_is_missing(snap / GO_FILE_NAME, wal)
    return _create(config, loop, wal, snap)


def _log_is_missing(database: Path, wal: Path) -> BadDataDirectory:
    return BadDataDirectory(
        f"{database} holds a database, but there is no log in {wal}: restore the log,"
        " name its directory with --wal-dir, or begin with an empty data directory"
    )


def _make_directories(*directories: Path) -> None:
    for directory in directories:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise BadDataDirectory(f"cannot make {directory}: {error.strerror}") from error
        if not os.access(directory, os.W_OK | os.X_OK):
            raise BadDataDirectory(f"cannot write to {directory}")


def _open_backend(config: ServerConfig, loop: asyncio.AbstractEventLoop, snap: Path) -> Backend:
    return Backend(
        snap / FILE_NAME,
        loop=loop,
        batch_interval=config.backend_batch_interval,
        batch_limit=config.backend_batch_limit,
    )


def _create(
    config: ServerConfig, loop: asyncio.AbstractEventLoop, wal_path: Path, snap: Path
) -> Booted:
    member, members = _first_members(config)
    cluster_number = cluster_id(m.id for m in members)
    metadata = pb.Metadata(NodeID=member, ClusterID=cluster_number)
    with ExitStack() as opened:
        # The backend first: a directory that has a log counts as begun.
        backend = _open_backend(config, loop, snap)
        opened.callback(backend.close)
        if read_applied(backend) != (0, 0):  # it is not what a start that was cut off left
            raise _log_is_missing(backend.path, wal_path)
        wal = WAL.create(
            wal_path, metadata.SerializeToString(), unsafe_no_fsync=config.unsafe_no_fsync
        )
        opened.callback(wal.close)
        storage = _begin_log(wal, members)
        opened.pop_all()
    lg.info(
        "starting a new cluster",
        local_member_id=f"{member:x}",
        cluster_id=f"{cluster_number:x}",
        initial_cluster=config.initial_cluster,
    )
    return Booted(
        member=member,
        cluster=Cluster(cluster_number, member, backend),
        backend=backend,
        wal=wal,
        snapshots=SnapFiles(snap),
        storage=storage,
        applied=Index(0),
        term=Term(0),
        snapshot_index=Index(0),
    )


def _begin_log(wal: WAL, members: list[Member]) -> MemoryStorage:
    """Log the entries that every member of a new cluster begins with, the same ones in the same
    order, and count them as committed."""
    entries: list[Entry] = []
    for member in members:
        change = ConfChange(ConfChangeType.ADD_NODE, member.id, member.to_json())
        entries.append(Entry(Term(1), Index(len(entries) + 1), *encode_conf_change(change)))
    state = HardState(Term(1), NONE, Index(len(entries)))
    wal.write(wal.encode(state, entries))
    storage = MemoryStorage()
    storage.set_hard_state(state)
    storage.append(entries)
    return storage


def _first_members(config: ServerConfig) -> tuple[MemberID, list[Member]]:
    """This member, and all members that begin the cluster with it, ascending by id."""
    named = config.initial_members
    if config.name not in named:
        raise BadInitialCluster(
            f'couldn\'t find local name "{config.name}" in the initial cluster configuration'
        )
    members = {}
    for name, urls in named.items():
        peer_urls = tuple(sorted(map(str, urls)))
        identity = member_id(peer_urls, config.initial_cluster_token)
        members[name] = Member(identity, peer_urls, name)
    return members[config.name].id, sorted(members.values(), key=attrgetter("id"))


def _restart(
    config: ServerConfig, loop: asyncio.AbstractEventLoop, wal_path: Path, snap: Path
) -> Booted:
    snapshots = SnapFiles(snap)
    no_fsync = config.unsafe_no_fsync
    with ExitStack() as opened:
        if (snap / FILE_NAME).exists():
            # First, as its lock keeps a second member away from the other files too.
            backend = _open_backend(config, loop, snap)
            opened.callback(backend.close)
            wal, log, start = _open_newest(wal_path, snapshots, no_fsync=no_fsync)
            opened.callback(wal.close)
        else:
            etcds = snap / GO_FILE_NAME
            known = snapshots if etcds.exists() else None
            wal, log, start = _open_newest(wal_path, known, no_fsync=no_fsync)
            opened.callback(wal.close)
            if known is not None:
                import_go_database(etcds, snap / FILE_NAME)
            backend = _open_backend(config, loop, snap)
            opened.callback(backend.close)
        snapshots.remove_temporary()
        cluster = _restore_cluster(log, backend)
        applied, term = read_applied(backend)
        _check_agreement(log, start, applied)
        _check_auth(backend)
        if applied or log.entries or start != START:
            storage = _fill_storage(log, start, cluster, applied)
        else:  # the first start was cut off between making the log and its first entry
            storage = _begin_log(wal, _begun_members(config, cluster))
        opened.pop_all()
    lg.info(
        "restarting local member",
        local_member_id=f"{cluster.local:x}",
        cluster_id=f"{cluster.id:x}",
        commit_index=log.hard_state.commit,
        applied_index=applied,
        snapshot_index=start.index,
    )
    return Booted(
        member=cluster.local,
        cluster=cluster,
        backend=backend,
        wal=wal,
        snapshots=snapshots,
        storage=storage,
        applied=applied,
        term=term,
        snapshot_index=start.index,
    )


def _restore_cluster(log: ReadResult, backend: Backend) -> Cluster:
    metadata = pb.Metadata.FromString(log.metadata)
    cluster = Cluster(metadata.ClusterID, MemberID(metadata.NodeID), backend)
    try:
        cluster.restore()
    except ValueError as error:
        raise BadDataDirectory(f"the member list in {backend.path} is damaged: {error}") from error
    return cluster


def _begun_members(config: ServerConfig, cluster: Cluster) -> list[Member]:
    member, members = _first_members(config)
    if (member, cluster_id(m.id for m in members)) != (cluster.local, cluster.id):
        raise BadDataDirectory(
            "the first start of this member was cut off, and the configuration has changed since:"
            " start it as before, or remove the data directory"
        )
    return members


def _open_newest(
    wal_path: Path, snapshots: SnapFiles | None, *, no_fsync: bool
) -> tuple[WAL, ReadResult, SnapshotRecord]:
    """The log from the newest snapshot on that it vouches for; without snapshots, from its start.

    The newest ``.snap`` file saves searching the log. If there is none, or its record never
    reached the log, or lies above what was committed, then the log itself is asked, as etcd does.
    """
    if snapshots is None:  # the database is lost: a log that is whole can make it again
        try:
            return *open_log(wal_path, START, unsafe_no_fsync=no_fsync), START
        except LogNotFound as error:
            raise BadDataDirectory(
                f"there is no database, and the log cannot replace it: {error}. Restore from a"
                " snapshot, or remove this member and add it again"
            ) from error
    with suppress(NoSnapshot, SnapshotNotFound):
        record = SnapshotRecord.of(snapshots.load_newest().metadata)
        wal, log = open_log(wal_path, record, unsafe_no_fsync=no_fsync)
        if record.index <= log.hard_state.commit:
            return wal, log, record
        wal.close()
    record = latest_snapshot(wal_path)
    wal, log = open_log(wal_path, record, unsafe_no_fsync=no_fsync)
    return wal, log, record


def _check_agreement(log: ReadResult, start: SnapshotRecord, applied: Index) -> None:
    """The backend never runs ahead of the log, nor falls behind the snapshot: every entry is
    synced before it is applied, and a snapshot is taken of what the backend has committed."""
    last = start.index + len(log.entries)
    if applied > last:
        raise BadDataDirectory(
            f"the log ends at entry {last}, but the database holds the result of entry {applied}:"
            " the log was truncated, or is not the log of this database. Restore from a snapshot,"
            " or remove this member and add it again"
        )
    if applied < start.index:
        raise BadDataDirectory(
            f"the database ends at entry {applied}, before the snapshot at entry {start.index}:"
            " it is not the database of this log"
        )


def _check_auth(backend: Backend) -> None:
    """What users must not see may not be shown because we know no users yet."""
    if backend.get("auth", b"authEnabled") == b"\x01":
        raise BadDataDirectory(
            "authentication is enabled in the database, and this version has none: disable it with"
            " etcd before the data directory is taken over"
        )


def _fill_storage(
    log: ReadResult, start: SnapshotRecord, cluster: Cluster, applied: Index
) -> MemoryStorage:
    """Raft's view of the log. The configuration is that of the member list, as of ``applied``."""
    storage = MemoryStorage()
    conf_state = ConfState(tuple(cluster.voters()), tuple(cluster.learners()))
    storage.apply_snapshot(Snapshot(metadata=SnapshotMetadata(conf_state, start.index, start.term)))
    storage.append(log.entries)
    state = log.hard_state
    # What was applied was committed, though the commit index need not have been synced.
    storage.set_hard_state(HardState(state.term, state.vote, max(state.commit, applied)))
    return storage
