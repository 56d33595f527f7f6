"""The version of what is on disk: it follows the cluster's, so that an older release could read it.

Since 3.6 the file names its version. What changed from 3.5 to 3.6 is that name; from 3.6 to 3.7,
nothing but its value.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from kvorum.membership.version import LOWEST, OWN, Version, parse_version
from kvorum.raft.types import Entry, EntryType
from kvorum.server.meta import (
    Buckets,
    delete_storage_version,
    read_storage_version,
    write_storage_version,
)
from kvorum.server.request import decode_request
from kvorum.server.v2request import is_v2_request
from kvorum.types import Term

FIRST_NAMED: Final = Version(3, 6)
"""The first version whose files name it."""
OLDEST: Final = FIRST_NAMED.below()
"""The oldest version that a file can be brought to or from."""

_TEST: Final = "downgrade_version_test"


class CannotMigrate(Exception):
    """The file stays at the version it has; the text says why."""


def storage_version(backend: Buckets, term: Term) -> Version | None:
    """The version of the file, given the term of the last entry in it; None if it cannot be told:
    before 3.5 no term was stored."""
    named = parse_version(read_storage_version(backend))
    if named is not None:
        return named
    return OLDEST if term else None


def wanted_version(cluster: Version | None) -> Version | None:
    """What the file's version should be; None while the cluster has decided on nothing."""
    return None if cluster is None or cluster == LOWEST else cluster


def migrate(
    backend: Buckets, current: Version | None, target: Version, log: Iterable[Entry]
) -> list[Version]:
    """Bring the file from one version to another, and return the steps that were taken.

    ``log`` are the entries since the last snapshot, which whoever reads the file has to read too.

    Raises:
        CannotMigrate: there is no way, or the log holds what the target does not know.
    """
    if current is None:
        raise CannotMigrate("cannot detect storage schema version: missing term information")
    if current.major != target.major:
        raise CannotMigrate("changing major storage version is not supported")
    for version in (current, target):
        if not OLDEST <= version <= OWN:
            raise CannotMigrate(f'version "{version}" is not supported')
    if target < current:
        _check_log(log, target)
    steps = list(_steps(current, target))
    for step in steps:
        if step < FIRST_NAMED:
            delete_storage_version(backend)
        else:
            write_storage_version(backend, str(step))
    return steps


def _steps(current: Version, target: Version) -> Iterable[Version]:
    up = 1 if target > current else -1
    for minor in range(current.minor + up, target.minor + up, up):
        yield Version(current.major, minor)


def _check_log(log: Iterable[Entry], target: Version) -> None:
    needed = max((_needs(entry) for entry in log), default=OLDEST)
    if target < needed:
        raise CannotMigrate(
            "cannot downgrade storage, WAL contains newer entries, as the target version"
            f" ({target}) is lower than the version ({needed}) detected from WAL logs"
        )


def _needs(entry: Entry) -> Version:
    """The oldest version that can read an entry. Nothing that is logged is newer than 3.5, but for
    etcd's test of just this, which names a version."""
    if entry.type is not EntryType.NORMAL or not entry.data or is_v2_request(entry.data):
        return OLDEST
    _, kind, request = decode_request(entry.data)
    if kind != _TEST:
        return OLDEST
    return max(FIRST_NAMED, parse_version(request.ver) or FIRST_NAMED)
