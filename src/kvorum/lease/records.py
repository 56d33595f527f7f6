"""The stored form of a lease: bucket ``lease``, the id in 8 bytes to a ``leasepb.Lease``."""

from __future__ import annotations

import struct
from typing import NamedTuple

from kvorum.pb import leasepb
from kvorum.pb.wire import int64_field, varint64
from kvorum.types import LeaseID

_KEY = struct.Struct(">q")


class LeaseRecord(NamedTuple):
    """What is kept of a lease; times in seconds. ``remaining`` 0: never checkpointed."""

    id: LeaseID
    ttl: int
    remaining: int


def record_key(id: LeaseID) -> bytes:
    """8 bytes, big endian, two's complement."""
    return _KEY.pack(id)


def encode_record(id: LeaseID, ttl: int, remaining: int) -> bytes:
    """The record of a lease. No lease has the id 0 or the time 0, which would be left out."""
    assert id, "a lease without an id"
    assert ttl, f"lease {id} without a time"
    record = b"\x08%b\x10%b" % (varint64(id), varint64(ttl))
    return record + int64_field(3, remaining) if remaining else record


def decode_record(value: bytes) -> LeaseRecord:
    """
    Raises:
        google.protobuf.message.DecodeError: these bytes are no lease.
    """
    lease = leasepb.Lease.FromString(value)
    return LeaseRecord(LeaseID(lease.ID), lease.TTL, lease.RemainingTTL)
