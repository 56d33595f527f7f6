"""Opens a data directory that has a log: our own, or one that etcd left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from kvorum.backend import FILE_NAME, Backend
from kvorum.config import ServerConfig
from kvorum.config.urls import strings
from kvorum.log import get_logger
from kvorum.membership import Cluster, FutureVersion, Member
from kvorum.pb import etcdserverpb as pb
from kvorum.raft.storage import MemoryStorage
from kvorum.raft.types import EMPTY_HARD_STATE, ConfState, HardState, Snapshot, SnapshotMetadata
from kvorum.server.bootstrap.begin import begin_log
from kvorum.server.bootstrap.booted import Booted, Identity, Places, open_backend
from kvorum.server.bootstrap.force_new import force_new_cluster
from kvorum.server.errors import TOO_MANY_LEARNERS, BadDataDirectory
from kvorum.server.goimport import GO_FILE_NAME, import_go_database, made_usable
from kvorum.server.meta import read_applied
from kvorum.snap import NoSnapshot
from kvorum.snap import Snapshotter as SnapFiles
from kvorum.snap.snapshotter import TEMPORARY_PREFIX
from kvorum.types import Index, MemberID
from kvorum.wal import (
    START,
    WAL,
    EntryGap,
    LogNotFound,
    ReadResult,
    SnapshotNotFound,
    SnapshotRecord,
    latest_snapshot,
    open_log,
)

Identify = Callable[[], Awaitable[Identity]]

lg = get_logger()


@dataclass(slots=True)
class _Found:
    """The files, open, and what is in the log after the snapshot that it is read from."""

    backend: Backend
    wal: WAL
    log: ReadResult
    start: SnapshotRecord
    snapshots: SnapFiles


async def restart(
    config: ServerConfig, loop: asyncio.AbstractEventLoop, places: Places, identify: Identify
) -> Booted:
    """Go on where the member in the directory stopped.

    Its ids are those in the log, its cluster's members those in the database: the flags that a
    member begins with mean nothing any more. ``identify`` is asked who we are only if the first
    start was cut off before the first entry.

    Raises:
        BadDataDirectory: the files do not fit together, or are those of somebody else.
        WALError, BackendError: a file cannot be opened, is damaged, or is in use.
    """
    with ExitStack() as opened:
        found = await _open(config, loop, places, opened)
        found.snapshots.remove_temporary()
        await _install_received(found)
        cluster = _restore_cluster(config, found)
        applied, term = read_applied(found.backend)
        _check_agreement(found, applied)
        _check_auth(found.backend)
        remotes: list[Member] = []
        if applied == 0 and found.start == START and found.log.hard_state == EMPTY_HARD_STATE:
            storage, remotes = await _begin_again(config, found.wal, cluster, identify)
        else:
            storage = _fill_storage(config, found, cluster, applied)
        opened.pop_all()
    lg.info(
        "restarting local member",
        local_member_id=f"{cluster.local:x}",
        cluster_id=f"{cluster.id:x}",
        commit_index=storage.initial_state()[0].commit,
        applied_index=applied,
        snapshot_index=found.start.index,
    )
    return Booted(
        member=cluster.local,
        cluster=cluster,
        backend=found.backend,
        wal=found.wal,
        snapshots=found.snapshots,
        storage=storage,
        applied=applied,
        term=term,
        snapshot_index=found.start.index,
        remotes=remotes,
    )


async def _open(
    config: ServerConfig, loop: asyncio.AbstractEventLoop, places: Places, opened: ExitStack
) -> _Found:
    snapshots = SnapFiles(places.snap)
    no_fsync = config.unsafe_no_fsync
    if (places.snap / FILE_NAME).exists():
        # First, as its lock keeps a second member away from the other files too.
        backend = open_backend(config, loop, places.snap)
        opened.callback(backend.close)
        wal, log, start = _open_newest(places.wal, snapshots, no_fsync=no_fsync)
        opened.callback(wal.close)
    else:
        etcds = places.snap / GO_FILE_NAME
        known = snapshots if etcds.exists() else None
        wal, log, start = _open_newest(places.wal, known, no_fsync=no_fsync)
        opened.callback(wal.close)
        if known is not None:
            await _in_thread(loop, lambda: import_go_database(etcds, places.snap / FILE_NAME))
        backend = open_backend(config, loop, places.snap)
        opened.callback(backend.close)
    return _Found(backend, wal, log, start, snapshots)


async def _in_thread(loop: asyncio.AbstractEventLoop, work: Callable[[], None]) -> None:
    """A start that is given up still waits for it: a second one may follow at once."""
    future = loop.run_in_executor(None, work)
    try:
        await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


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
        except (LogNotFound, EntryGap) as error:
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


async def _install_received(found: _Found) -> None:
    """Put a database into its place that a leader sent, and that was saved and logged, but not put
    there yet."""
    index = found.start.index
    if read_applied(found.backend)[0] >= index:
        return
    path = found.snapshots.db_path(index)
    if not path.exists():
        return  # and it will be said that the database is behind the snapshot
    lg.info("Recovering from snapshot backend", snapshot_index=index, path=str(path))
    converted = path.with_name(f"{TEMPORARY_PREFIX}-{FILE_NAME}")
    usable = await found.backend.in_thread(lambda: made_usable(path, converted))
    await found.backend.replace(usable)
    if read_applied(found.backend)[0] >= index:  # else it is not what its name says
        found.snapshots.release_dbs(index + 1)


def _restore_cluster(config: ServerConfig, found: _Found) -> Cluster:
    metadata = pb.Metadata.FromString(found.log.metadata)
    local = MemberID(metadata.NodeID)
    cluster = Cluster(metadata.ClusterID, local, found.backend, max_learners=config.max_learners)
    place = found.backend.path
    try:
        cluster.restore()
    except FutureVersion as error:
        raise BadDataDirectory(f"{place}: {error}") from error
    except ValueError as error:
        raise BadDataDirectory(f"the member list in {place} is damaged: {error}") from error
    if len(cluster.learners()) > config.max_learners:
        raise BadDataDirectory(
            f"{TOO_MANY_LEARNERS}: {len(cluster.learners())}, and --max-learners is"
            f" {config.max_learners}"
        )
    return cluster


def _check_agreement(found: _Found, applied: Index) -> None:
    """The backend never runs ahead of the log, nor falls behind the snapshot: every entry is
    synced before it is applied, and a snapshot is taken of what the backend has committed."""
    start = found.start.index
    last = start + len(found.log.entries)
    if applied > last:
        raise BadDataDirectory(
            f"the log ends at entry {last}, but the database holds the result of entry {applied}:"
            " the log was truncated, or is not the log of this database. Restore from a snapshot,"
            " or remove this member and add it again"
        )
    if applied < start:
        raise BadDataDirectory(
            f"the database ends at entry {applied}, before the snapshot at entry {start}:"
            " it is not the database of this log"
        )


def _check_auth(backend: Backend) -> None:
    """What users must not see may not be shown because we know no users yet."""
    if backend.get("auth", b"authEnabled") == b"\x01":
        raise BadDataDirectory(
            "authentication is enabled in the database, and this version has none: disable it with"
            " etcd before the data directory is taken over"
        )


async def _begin_again(
    config: ServerConfig, wal: WAL, cluster: Cluster, identify: Identify
) -> tuple[MemoryStorage, list[Member]]:
    """The first start made the log, and was cut off before anything was in it. Of a member that
    joins there is nothing in it until the leader speaks with it: it goes on waiting."""
    if not config.is_new_cluster:
        return MemoryStorage(), []
    who = await identify()
    if (who.member, who.cluster) != (cluster.local, cluster.id):
        raise BadDataDirectory(
            "the first start of this member was cut off, and the configuration has changed since:"
            " start it as before, or remove the data directory"
        )
    return begin_log(wal, who.first), who.remotes


def _fill_storage(
    config: ServerConfig, found: _Found, cluster: Cluster, applied: Index
) -> MemoryStorage:
    """Raft's view of the log. The configuration is that of the member list, as of ``applied``."""
    start = found.start
    # What was applied was committed, though the commit index need not have been synced.
    term, vote, commit = found.log.hard_state
    state = HardState(term, vote, max(commit, applied))
    entries = found.log.entries
    if entries and entries[0].term < start.term:
        # Logged before the snapshot came from a leader, which had nothing of the kind: terms never
        # decrease along a log. What came after the snapshot would have replaced them.
        entries = []
    if config.force_new_cluster:
        urls = tuple(strings(config.initial_advertise_peer_urls))
        state, kept, added = force_new_cluster(found.log, start, applied, cluster, urls)
        found.wal.write(found.wal.encode(state, added))
        entries = kept + added
    storage = MemoryStorage()
    conf_state = ConfState(tuple(cluster.voters()), tuple(cluster.learners()))
    storage.apply_snapshot(Snapshot(metadata=SnapshotMetadata(conf_state, start.index, start.term)))
    storage.append(entries)
    storage.set_hard_state(state)
    return storage
