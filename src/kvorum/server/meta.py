"""What the backend holds about itself: how far into the log its contents reach."""

from __future__ import annotations

import json
from typing import Protocol

from kvorum.raft.types import ConfState
from kvorum.types import Index, Term


class Readable(Protocol):
    def get(self, bucket: str, key: bytes) -> bytes | None: ...


class Buckets(Readable, Protocol):
    def put(self, bucket: str, key: bytes, value: bytes) -> None: ...
    def delete(self, bucket: str, key: bytes) -> None: ...


def read_applied(backend: Readable) -> tuple[Index, Term]:
    """Index and term of the last entry whose result the backend holds; 0, 0 in a new one."""
    index = backend.get("meta", b"consistent_index") or b""
    term = backend.get("meta", b"term") or b""
    return Index(int.from_bytes(index, "big")), Term(int.from_bytes(term, "big"))


def write_applied(backend: Buckets, index: Index, term: Term) -> None:
    """Record the last applied entry; to be in the same transaction as its result."""
    assert index > 0, index
    backend.put("meta", b"consistent_index", index.to_bytes(8, "big"))
    if term > 0:
        backend.put("meta", b"term", term.to_bytes(8, "big"))


def write_conf_state(backend: Buckets, state: ConfState) -> None:
    """Record raft's configuration, in etcd's JSON."""
    fields: dict[str, object] = {}
    for name in ("voters", "learners", "voters_outgoing", "learners_next"):
        ids = list(getattr(state, name))
        if ids:
            fields[name] = ids
    fields["auto_leave"] = state.auto_leave
    backend.put("meta", b"confState", json.dumps(fields, separators=(",", ":")).encode())


def read_storage_version(backend: Readable) -> str:
    """The storage version, "" in a database that predates 3.6 or is new."""
    return (backend.get("meta", b"storageVersion") or b"").decode()


def write_storage_version(backend: Buckets, version: str) -> None:
    backend.put("meta", b"storageVersion", version.encode())


def delete_storage_version(backend: Buckets) -> None:
    """A database that an older etcd is to open names no version."""
    backend.delete("meta", b"storageVersion")
