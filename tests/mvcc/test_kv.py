"""Records against protobuf's own encoding."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.mvcc import kv
from kvorum.pb import mvccpb

positive = st.one_of(
    st.integers(1, 300),
    st.integers(2**14 - 2, 2**14 + 2),
    st.integers(2**28 - 2, 2**28 + 2),
    st.integers(1, 2**63 - 1),
)
lengths = st.sampled_from([0, 1, 2, 127, 128, 129, 16383, 16384, 16385, 70000])
leases = st.one_of(st.just(0), st.integers(-(2**63), 2**63 - 1))


@given(lengths, positive, positive, positive, lengths, leases)
def test_a_record_is_what_protobuf_writes(
    key_length: int, create: int, mod: int, version: int, value_length: int, lease: int
) -> None:
    key, value = (
        b"k" * (key_length or 1),
        b"\x30v" * (value_length // 2) + b"0" * (value_length % 2),
    )
    expected = mvccpb.KeyValue(
        key=key,
        create_revision=create,
        mod_revision=mod,
        version=version,
        value=value,
        lease=lease,
    )
    record = kv.encode(key, create, mod, version, value, lease)
    assert record == expected.SerializeToString()
    assert kv.key_of(record) == key
    assert kv.value_of(record) == value
    assert kv.lease_of(record) == lease
    assert kv.create_and_version(record) == (create, version)
    assert kv.header_of(record)[:3] == (create, mod, version)
    expected.ClearField("value")
    expected.ClearField("lease")
    assert kv.without_value(record) == expected.SerializeToString()


@given(st.integers(0, 2**64 - 1))
def test_varint_there_and_back(number: int) -> None:
    assert kv.read_varint(b"x" + kv.varint(number) + b"x", 1) == (
        number,
        1 + len(kv.varint(number)),
    )


@pytest.mark.parametrize("length", [1, 127, 128, 20000])
def test_a_tombstone_has_the_key_alone(length: int) -> None:
    key = b"k" * length
    record = kv.encode_tombstone(key)
    assert record == mvccpb.KeyValue(key=key).SerializeToString()
    assert kv.key_of(record) == key
    assert kv.header_of(record)[:3] == (0, 0, 0)
    assert kv.without_value(record) == record
    assert (kv.lease_of(record), kv.value_of(record)) == (0, b"")


def test_an_empty_record_is_the_pair_with_the_empty_key() -> None:
    assert (kv.key_of(b""), kv.value_of(b""), kv.lease_of(b"")) == (b"", b"", 0)
    assert kv.header_of(b"") == (0, 0, 0, 0)
    assert kv.without_value(b"") == b""


@pytest.mark.parametrize("record", [b"", kv.encode_tombstone(b"key")])
def test_what_is_no_put_has_no_create_revision(record: bytes) -> None:
    with pytest.raises((IndexError, AssertionError)):
        kv.create_and_version(record)


def test_a_value_that_looks_like_a_lease_is_none() -> None:
    record = kv.encode(b"k", 2, 2, 1, b"\x30" + b"\x81" * 8 + b"\x01", 0)
    assert kv.lease_of(record) == 0
