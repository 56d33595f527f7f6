"""Lease records, as etcd stores them."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError

from kvorum.lease.records import decode_record, encode_record, record_key
from kvorum.pb import leasepb
from kvorum.types import LeaseID

RECORDED = LeaseID(0x5A4AA206751F080E)


def test_a_record_that_etcd_wrote() -> None:
    assert record_key(RECORDED).hex() == "5a4aa206751f080e"
    assert encode_record(RECORDED, 1000, 0).hex() == "088e90fca8e7c0a8a55a10e807"


@pytest.mark.parametrize("id", [1, 127, 128, (1 << 63) - 1, -1, -(1 << 63)])
@pytest.mark.parametrize("ttl", [1, 2, 300, 9_000_000_000])
@pytest.mark.parametrize("remaining", [0, 1, 299, -5])
def test_records_are_as_protobuf_writes_them(id: int, ttl: int, remaining: int) -> None:
    record = encode_record(LeaseID(id), ttl, remaining)
    message = leasepb.Lease(ID=id, TTL=ttl, RemainingTTL=remaining)
    assert record == message.SerializeToString()
    assert decode_record(record) == (id, ttl, remaining)


def test_keys_are_two_complements() -> None:
    assert record_key(LeaseID(-2)) == b"\xff" * 7 + b"\xfe"


@pytest.mark.parametrize(("id", "ttl"), [(0, 5), (5, 0)])
def test_no_record_without_id_or_time(id: int, ttl: int) -> None:
    with pytest.raises(AssertionError, match="without"):
        encode_record(LeaseID(id), ttl, 0)


def test_junk_is_refused() -> None:
    with pytest.raises(DecodeError):
        decode_record(b"\xff\xff")
