"""A data directory, open; and who the member in it is."""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from kvorum.backend import FILE_NAME, Backend
from kvorum.config import ServerConfig
from kvorum.membership import Cluster, Member
from kvorum.raft.storage import MemoryStorage
from kvorum.server.errors import BadDataDirectory
from kvorum.snap import Snapshotter as SnapFiles
from kvorum.types import Index, MemberID, Term
from kvorum.wal import WAL
from kvorum.wal.files import fsync_directory


@dataclass(slots=True)
class Booted:
    """Everything that the server is built on. ``applied`` and ``term`` are those of the last entry
    that the backend covers; the entries after it are in ``storage`` and will be handed out again.
    ``remotes`` are members to speak with before the member list has come with the log."""

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


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a member without a log is. ``first`` are the members that begin the cluster with it, in
    ascending order of id; none if the cluster runs already, and then ``remotes`` are its others."""

    member: MemberID
    cluster: int
    first: list[Member] = field(default_factory=list)
    remotes: list[Member] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Places:
    """The directories of a member, which exist and can be written to."""

    snap: Path
    wal: Path

    @classmethod
    def make(cls, config: ServerConfig) -> Places:
        """Raises BadDataDirectory."""
        snap, wal = Path(config.snap_dir), Path(config.wal_path)
        for directory in (Path(config.data_dir), Path(config.member_dir), snap, wal.parent):
            _make_directory(directory)
        return cls(snap, wal)


def _make_directory(directory: Path) -> None:
    """Each new name is synced: without that a power cut may take the data away with the directory,
    however well the files in it were synced."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        for path in reversed(missing):
            path.mkdir(mode=0o700, exist_ok=True)
            with suppress(PermissionError):  # a parent that we may enter and not read
                fsync_directory(path.parent)
        if not directory.is_dir():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    except OSError as error:
        raise BadDataDirectory(f"cannot make {directory}: {error.strerror}") from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise BadDataDirectory(f"cannot write to {directory}")


def open_backend(config: ServerConfig, loop: asyncio.AbstractEventLoop, snap: Path) -> Backend:
    return Backend(
        snap / FILE_NAME,
        loop=loop,
        batch_interval=config.backend_batch_interval,
        batch_limit=config.backend_batch_limit,
    )


def log_is_missing(database: Path, wal: Path) -> BadDataDirectory:
    return BadDataDirectory(
        f"{database} holds a database, but there is no log in {wal}: restore the log,"
        " name its directory with --wal-dir, or begin with an empty data directory"
    )
