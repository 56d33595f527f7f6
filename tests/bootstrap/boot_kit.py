"""Data directories in every state, opened as a member opens them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvorum.config import ServerConfig, make, parse_urls
from kvorum.membership import Cluster, Member
from kvorum.peer.http_client import HttpClient
from kvorum.raft.types import ConfState, Entry, EntryType, HardState, Snapshot, SnapshotMetadata
from kvorum.server.bootstrap.names import Names
from kvorum.server.bootstrap.start import Booted, bootstrap
from kvorum.server.meta import write_applied
from kvorum.snap import Membership, build_store
from kvorum.types import Index, MemberID, Term
from kvorum.wal import SnapshotRecord

PEER = "http://127.0.0.1:22380"
ME = MemberID(0xFCE4CCDB9802DA4A)  # what etcd makes of this URL and token


def config_of(folder: Path, **settings: Any) -> ServerConfig:
    settings = {
        "name": "m",
        "data_dir": str(folder / "data"),
        "initial_advertise_peer_urls": parse_urls(PEER),
        "initial_cluster_token": "tok1",
        "unsafe_no_fsync": True,
        **settings,
    }
    return make(**settings)


async def _boot(
    config: ServerConfig, loop: asyncio.AbstractEventLoop, names: Names | None
) -> Booted:
    http = HttpClient()
    try:
        return await bootstrap(config, loop, http, names)
    finally:
        await http.close()


@contextmanager
def booting(config: ServerConfig, names: Names | None = None) -> Iterator[Booted]:
    loop = asyncio.new_event_loop()
    try:
        booted = loop.run_until_complete(_boot(config, loop, names))
        try:
            yield booted
        finally:
            booted.wal.close()
            booted.backend.close()
    finally:
        loop.close()


def refusal(config: ServerConfig, kind: type[Exception], names: Names | None = None) -> str:
    """The text of what a start raises. Twice, since a failed start must let go of all files."""
    texts = []
    for _ in range(2):
        with pytest.raises(kind) as caught, booting(config, names):
            raise AssertionError("it started")
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    return texts[0]


def snap_dir(config: ServerConfig) -> Path:
    return Path(config.snap_dir)


def wal_dir(config: ServerConfig) -> Path:
    return Path(config.wal_path)


def log_entries(booted: Booted, count: int, *, commit: int | None = None) -> None:
    first = booted.storage.last_index() + 1
    entries = [Entry(Term(1), Index(first + i), EntryType.NORMAL, b"") for i in range(count)]
    booted.storage.append(entries)
    last = booted.storage.last_index()
    state = HardState(Term(1), booted.member, Index(last if commit is None else commit))
    booted.wal.write(booted.wal.encode(state, entries))


def apply_to(booted: Booted, index: int) -> None:
    """Put into the database what applying the log that far leaves there."""
    cluster = Cluster(booted.cluster.id, booted.member, booted.backend)
    cluster.add(Member(booted.member, (PEER,), "m", ("http://c:1",)))
    write_applied(booted.backend, Index(index), Term(1))


def write_snapshot(booted: Booted, index: int, *, record: bool = True) -> None:
    metadata = SnapshotMetadata(ConfState((booted.member,)), Index(index), Term(1))
    booted.snapshots.save(Snapshot(build_store(Membership(())), metadata))
    if record:
        booted.wal.write(booted.wal.encode_snapshot(SnapshotRecord.of(metadata)))


def begin(config: ServerConfig, *, entries: int = 20, applied: int = 20, snapshot: int = 0) -> None:
    """A directory with a log of so many entries, applied so far."""
    with booting(config) as booted:
        log_entries(booted, entries - 1)
        if applied:
            apply_to(booted, applied)
        if snapshot:
            write_snapshot(booted, snapshot)
