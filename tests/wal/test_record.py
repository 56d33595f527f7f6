"""Frames and records, against the layout and against bytes that etcd wrote."""

from __future__ import annotations

import pytest
import wal_layout
from google_crc32c import extend
from hypothesis import given, settings
from hypothesis import strategies as st

from kvorum.pb import walpb
from kvorum.wal.record import (
    RecordType,
    encode_frame,
    length_word,
    looks_torn,
    parse_record,
    split_length_word,
    varint,
)

METADATA = bytes.fromhex("08cab48bc0b99bb3f2fc0110bebef4faeda0fbd4d001")


def test_first_records_of_a_log_that_etcd_wrote() -> None:
    crc = extend(0, METADATA)
    assert crc == 0x23E02350
    assert encode_frame(RecordType.CRC, 0, None) == bytes.fromhex(
        "04 00 00 00 00 00 00 84  08 04 10 00  00 00 00 00"
    )
    frame = encode_frame(RecordType.METADATA, crc, METADATA)
    assert frame[:8] == (0x20).to_bytes(8, "little")
    assert len(frame) == 40
    crc = extend(crc, bytes.fromhex("08001000"))
    assert crc == 0x80FCAEC8
    frame = encode_frame(RecordType.SNAPSHOT, crc, bytes.fromhex("08001000"))
    assert int.from_bytes(frame[:8], "little") == 0x820000000000000E


def test_the_chain_goes_on_in_the_next_segment() -> None:
    assert encode_frame(RecordType.CRC, 0x23D78D2A, None)[:8] == (8).to_bytes(8, "little")
    assert extend(0x23D78D2A, METADATA) == 0x7893670F


def test_the_library_computes_the_checksum_of_the_layout() -> None:
    assert extend(0, b"123456789") == wal_layout.crc32c(0, b"123456789") == 0xE3069283


@pytest.mark.parametrize("length", [1, 7, 8, 9, 255, 256, (1 << 56) - 1])
def test_length_words(length: int) -> None:
    word = int.from_bytes(length_word(length), "little")
    assert split_length_word(word) == (length, -length % 8)
    assert word >> 63 == (length % 8 != 0)


def test_padding_counts_only_with_the_sign_bit() -> None:
    assert split_length_word(0x05 << 56 | 16) == (16, 0)
    assert split_length_word(0xFD << 56 | 16) == (16, 5)


@settings(deadline=None)
@given(st.integers(0, (1 << 64) - 1))
def test_varint_is_what_protobuf_writes(value: int) -> None:
    assert walpb.Snapshot(index=value).SerializeToString() == b"\x08" + varint(value)


@settings(deadline=None)
@given(st.sampled_from(RecordType), st.integers(0, (1 << 32) - 1), st.binary(max_size=300))
def test_frames_parse_back(kind: RecordType, crc: int, data: bytes) -> None:
    frame = encode_frame(kind, crc, data)
    assert len(frame) % 8 == 0
    length, padding = split_length_word(int.from_bytes(frame[:8], "little"))
    assert len(frame) == 8 + length + padding
    assert parse_record(frame[8 : 8 + length]) == (kind, crc, data)
    expected = walpb.Record(type=kind, crc=crc, data=data).SerializeToString()
    assert frame[8 : 8 + length] == expected


@settings(deadline=None)
@given(st.binary(max_size=64))
def test_parsing_agrees_with_protobuf(record: bytes) -> None:
    try:
        message = walpb.Record.FromString(record)
    except Exception:
        with pytest.raises(ValueError, match="not a record"):
            parse_record(record)
    else:
        assert parse_record(record) == (message.type, message.crc, message.data)


@pytest.mark.parametrize(
    "record",
    [
        pytest.param("10071a0161 0802", id="fields in another order"),
        pytest.param("080210 8780808000 1a0161", id="a longer checksum than needed"),
        pytest.param("08021007 1a8100 61", id="a longer length than needed"),
        pytest.param("08021007 1a0161 2801", id="an unknown field"),
    ],
)
def test_other_encodings_of_a_record(record: str) -> None:
    assert parse_record(bytes.fromhex(record)) == (2, 7, b"a")


def test_a_record_that_is_cut_short_is_none() -> None:
    whole = walpb.Record(type=2, crc=1 << 31, data=b"abc").SerializeToString()
    for end in range(3, len(whole)):
        if end == 8:
            continue  # type and checksum alone are a whole record
        with pytest.raises(ValueError, match="not a record"):
            parse_record(whole[:end])


def _torn_by_definition(frame: bytes, offset: int) -> bool:
    sectors: dict[int, list[int]] = {}
    for position, byte in enumerate(frame, offset):
        sectors.setdefault(position // 512, []).append(byte)
    return any(not any(sector) for sector in sectors.values())


@settings(deadline=None)
@given(st.integers(0, 2000), st.integers(0, 2000), st.integers(0, 2000), st.integers(0, 4096))
def test_torn_means_a_sector_of_zeros(before: int, zeros: int, after: int, offset: int) -> None:
    frame = b"x" * before + bytes(zeros) + b"y" * after
    assert looks_torn(frame, offset * 8) == _torn_by_definition(frame, offset * 8)
