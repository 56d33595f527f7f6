"""Snapshot files: ``.snap`` with the v2 store inside, and etcd's bolt database, read and written.

``snapshotter`` keeps a member's files, ``v2store`` is what they contain. ``bolt`` is the layout of
the database file, ``bolt_reader`` and ``bolt_writer`` are the ways in and out; ``bolt_export`` and
``convert`` lead from a backend to such a file and back.
"""

from kvorum.snap.bolt_export import BoltExport
from kvorum.snap.bolt_reader import BoltFile
from kvorum.snap.bolt_writer import BoltWriter
from kvorum.snap.convert import convert_bolt, remove_partial
from kvorum.snap.errors import (
    BadStore,
    BoltError,
    BoltLocked,
    BrokenSnapshot,
    NoSnapshot,
    SnapError,
)
from kvorum.snap.snapshotter import SaveTimes, Snapshotter, read_snapshot
from kvorum.snap.v2store import Membership, StoredMember, build_store, read_store

__all__ = [
    "BadStore",
    "BoltError",
    "BoltExport",
    "BoltFile",
    "BoltLocked",
    "BoltWriter",
    "BrokenSnapshot",
    "Membership",
    "NoSnapshot",
    "SaveTimes",
    "SnapError",
    "Snapshotter",
    "StoredMember",
    "build_store",
    "convert_bolt",
    "read_snapshot",
    "read_store",
    "remove_partial",
]
