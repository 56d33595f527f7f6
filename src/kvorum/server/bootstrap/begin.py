"""The first records of a log: those of a cluster that begins, or none for one that runs already."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from kvorum.config import ServerConfig
from kvorum.log import get_logger
from kvorum.membership import Cluster, Member, changes
from kvorum.pb import etcdserverpb as pb
from kvorum.raft.codec import encode_conf_change
from kvorum.raft.storage import MemoryStorage
from kvorum.raft.types import NONE, Entry, HardState
from kvorum.server.bootstrap.booted import Booted, Identity, Places, log_is_missing, open_backend
from kvorum.server.meta import read_applied
from kvorum.snap import Snapshotter as SnapFiles
from kvorum.types import Index, Term
from kvorum.wal import WAL

lg = get_logger()


def begin(
    config: ServerConfig, loop: asyncio.AbstractEventLoop, places: Places, who: Identity
) -> Booted:
    """Make the files of a member that has none.

    Raises:
        BadDataDirectory: there is a database already.
        WALError, BackendError: a file cannot be made, or is in use.
    """
    metadata = pb.Metadata(NodeID=who.member, ClusterID=who.cluster)
    with ExitStack() as opened:
        # The backend first: a directory that has a log counts as begun.
        backend = open_backend(config, loop, places.snap)
        opened.callback(backend.close)
        if read_applied(backend) != (0, 0):  # it is not what a start that was cut off left
            raise log_is_missing(backend.path, places.wal)
        wal = WAL.create(
            places.wal, metadata.SerializeToString(), unsafe_no_fsync=config.unsafe_no_fsync
        )
        opened.callback(wal.close)
        storage = begin_log(wal, who.first)
        opened.pop_all()
    lg.info(
        "starting local member",
        local_member_id=f"{who.member:x}",
        cluster_id=f"{who.cluster:x}",
        initial_members=[f"{m.id:x}={','.join(m.peer_urls)}" for m in who.first],
        running_members=[f"{m.id:x}={','.join(m.peer_urls)}" for m in who.remotes],
    )
    return Booted(
        member=who.member,
        cluster=Cluster(who.cluster, who.member, backend, max_learners=config.max_learners),
        backend=backend,
        wal=wal,
        snapshots=SnapFiles(places.snap),
        storage=storage,
        applied=Index(0),
        term=Term(0),
        snapshot_index=Index(0),
        remotes=who.remotes,
    )


def begin_log(wal: WAL, first: list[Member]) -> MemoryStorage:
    """Log the entries that every member of a new cluster begins with, the same ones in the same
    order, and count them as committed. Without ``first`` the log stays empty: the leader fills it.
    """
    storage = MemoryStorage()
    if not first:
        return storage
    entries = [
        Entry(Term(1), Index(index), *encode_conf_change(changes.adding(member)))
        for index, member in enumerate(first, 1)
    ]
    state = HardState(Term(1), NONE, Index(len(entries)))
    wal.write(wal.encode(state, entries))
    storage.set_hard_state(state)
    storage.append(entries)
    return storage
