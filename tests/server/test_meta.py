"""What the backend holds about itself has etcd's bytes."""

from __future__ import annotations

import pytest

from kvorum.raft.types import ConfState
from kvorum.server.meta import (
    read_applied,
    read_storage_version,
    write_applied,
    write_conf_state,
    write_storage_version,
)
from kvorum.types import Index, MemberID, Term


class Buckets:
    def __init__(self) -> None:
        self.meta: dict[bytes, bytes] = {}

    def put(self, bucket: str, key: bytes, value: bytes) -> None:
        assert bucket == "meta"
        self.meta[key] = value

    def get(self, bucket: str, key: bytes) -> bytes | None:
        assert bucket == "meta"
        return self.meta.get(key)


@pytest.fixture
def buckets() -> Buckets:
    return Buckets()


def test_a_new_database_has_applied_nothing(buckets: Buckets) -> None:
    assert read_applied(buckets) == (0, 0)
    assert read_storage_version(buckets) == ""


def test_index_and_term(buckets: Buckets) -> None:
    write_applied(buckets, Index(300), Term(7))
    assert buckets.meta == {
        b"consistent_index": b"\0\0\0\0\0\0\x01\x2c",
        b"term": b"\0\0\0\0\0\0\0\x07",
    }
    assert read_applied(buckets) == (300, 7)
    write_applied(buckets, Index(2**64 - 1), Term(2**63))
    assert read_applied(buckets) == (2**64 - 1, 2**63)


def test_a_term_of_nothing_is_not_written(buckets: Buckets) -> None:
    """A database of etcd before 3.5 has no term."""
    write_applied(buckets, Index(3), Term(0))
    assert list(buckets.meta) == [b"consistent_index"]
    assert read_applied(buckets) == (3, 0)


def test_nothing_was_applied_is_never_written(buckets: Buckets) -> None:
    with pytest.raises(AssertionError):
        write_applied(buckets, Index(0), Term(1))


def test_conf_state(buckets: Buckets) -> None:
    write_conf_state(buckets, ConfState((MemberID(2**64 - 1), MemberID(1))))
    assert buckets.meta[b"confState"] == b'{"voters":[18446744073709551615,1],"auto_leave":false}'
    joint = ConfState(
        voters=(MemberID(1),),
        learners=(MemberID(2),),
        voters_outgoing=(MemberID(3),),
        learners_next=(MemberID(4),),
        auto_leave=True,
    )
    write_conf_state(buckets, joint)
    assert buckets.meta[b"confState"] == (
        b'{"voters":[1],"learners":[2],"voters_outgoing":[3],"learners_next":[4],"auto_leave":true}'
    )
    write_conf_state(buckets, ConfState())
    assert buckets.meta[b"confState"] == b'{"auto_leave":false}'


def test_storage_version(buckets: Buckets) -> None:
    write_storage_version(buckets, "3.7.0")
    assert buckets.meta == {b"storageVersion": b"3.7.0"}
    assert read_storage_version(buckets) == "3.7.0"
