"""HPACK: RFC 7541's own examples, and agreement with the hpack library."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.h2.frames import ConnectionFault, ErrorCode
from kvorum.h2.hpack import FIRST_DYNAMIC, Decoder, encode

LIMIT = 65536

REQUESTS = [
    [
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":path", b"/"),
        (b":authority", b"www.example.com"),
    ],
    [
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":path", b"/"),
        (b":authority", b"www.example.com"),
        (b"cache-control", b"no-cache"),
    ],
    [
        (b":method", b"GET"),
        (b":scheme", b"https"),
        (b":path", b"/index.html"),
        (b":authority", b"www.example.com"),
        (b"custom-key", b"custom-value"),
    ],
]


@pytest.mark.parametrize(
    "blocks",
    [
        pytest.param(
            [
                "828684410f7777772e6578616d706c652e636f6d",
                "828684be58086e6f2d6361636865",
                "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
            ],
            id="C.3 without Huffman coding",
        ),
        pytest.param(
            [
                "828684418cf1e3c2e5f23a6ba0ab90f4ff",
                "828684be5886a8eb10649cbf",
                "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
            ],
            id="C.4 with Huffman coding",
        ),
    ],
)
def test_request_examples_of_the_rfc(blocks: list[str]) -> None:
    decoder = Decoder()
    assert [decoder.decode(bytes.fromhex(block), LIMIT) for block in blocks] == REQUESTS


def test_response_examples_with_eviction() -> None:
    """C.5: a table of 256 bytes, in which entries push each other out."""
    decoder = Decoder()
    blocks = [
        # The table's size comes from SETTINGS there; here the encoder says it.
        "3fe101" + "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a"
        "323120474d546e1768747470733a2f2f7777772e6578616d706c652e636f6d",
        "4803333037c1c0bf",
        "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f"
        "3d4153444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076"
        "657273696f6e3d31",
    ]
    heads = [decoder.decode(bytes.fromhex(block), LIMIT) for block in blocks]
    assert heads[1] == [
        (b":status", b"307"),
        (b"cache-control", b"private"),
        (b"date", b"Mon, 21 Oct 2013 20:13:21 GMT"),
        (b"location", b"https://www.example.com"),
    ]
    assert heads[2] is not None
    assert heads[2][-1] == (
        b"set-cookie",
        b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
    )


FIELDS = st.lists(
    st.tuples(
        st.sampled_from([b":path", b"te", b"x-a", b"x-b", b"grpc-timeout", b"user-agent"])
        | st.binary(min_size=1, max_size=20),
        st.binary(max_size=60) | st.sampled_from([b"", b"trailers", b"1" * 3000]),
        st.booleans(),
    ),
    max_size=12,
)
SIZES = st.none() | st.integers(0, 4096)


@given(st.lists(st.tuples(FIELDS, SIZES, st.booleans()), max_size=8))
def test_decodes_what_the_library_encodes(blocks: list[tuple[list, int | None, bool]]) -> None:  # type: ignore[type-arg]
    encoder, ours, theirs = hpack.Encoder(), Decoder(), hpack.Decoder()
    for fields, size, huffman in blocks:
        if size is not None:
            encoder.header_table_size = size
        block = encoder.encode(fields, huffman=huffman)
        before = ours.generation
        expected = [tuple(one) for one in theirs.decode(block, raw=True)]
        assert ours.decode(block, LIMIT) == expected
        if ours.generation == before:
            assert ours.decode(block, LIMIT) == expected


@given(st.binary(max_size=80))
def test_decodes_or_refuses_like_the_library(block: bytes) -> None:
    theirs = hpack.Decoder()
    try:
        expected = [tuple(one) for one in theirs.decode(block, raw=True)]
    except hpack.HPACKError:
        with pytest.raises(ConnectionFault) as caught:
            Decoder().decode(block, LIMIT)
        assert caught.value.code is ErrorCode.COMPRESSION_ERROR
    else:
        assert Decoder().decode(block, LIMIT) == expected


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.binary(max_size=300)), max_size=6)
)
def test_encodes_blocks_that_leave_the_table_alone(fields: list[tuple[bytes, bytes]]) -> None:
    theirs, ours = hpack.Decoder(), Decoder()
    block = encode(fields)
    assert [tuple(one) for one in theirs.decode(block, raw=True)] == fields
    assert ours.decode(block, LIMIT) == fields
    assert ours.generation == 0
    assert not theirs.header_table.dynamic_entries


@pytest.mark.parametrize(
    ("block", "why"),
    [
        ("80", "index 0"),
        ("be", "index beyond both tables"),
        ("ff", "integer cut short"),
        ("ffffffffffff7f", "integer too long"),
        ("41", "literal without its value"),
        ("4105777777", "value cut short"),
        ("400a6b", "name cut short"),
        ("3fe2ff03", "table larger than announced"),
        ("8220", "table size update after a field"),
        ("4182ffff", "Huffman padding of more than seven bits"),
        ("4184ffffffff", "Huffman EOS"),
        ("418118", "Huffman padding of zeros"),
    ],
)
def test_breaches_are_compression_errors(block: str, why: str) -> None:
    with pytest.raises(ConnectionFault) as caught:
        Decoder().decode(bytes.fromhex(block), LIMIT)
    assert caught.value.code is ErrorCode.COMPRESSION_ERROR, why


def test_a_list_too_large_is_refused_but_its_table_changes_are_kept() -> None:
    encoder, decoder = hpack.Encoder(), Decoder()
    bomb = encoder.encode([("x-big", "v" * 3000)], huffman=False)
    assert decoder.decode(bomb, LIMIT) is not None
    # One byte for each of 100 fields of 3 kB.
    assert decoder.decode(bytes((0x80 | FIRST_DYNAMIC,)) * 100, LIMIT) is None
    after = encoder.encode([("x-next", "1"), ("x-big", "v" * 3000)])
    assert decoder.decode(after, LIMIT) == [(b"x-next", b"1"), (b"x-big", b"v" * 3000)]


def test_the_generation_tells_when_blocks_may_mean_something_else() -> None:
    encoder, decoder = hpack.Encoder(), Decoder()
    first = encoder.encode([("x-a", "1")])
    decoder.decode(first, LIMIT)
    assert decoder.generation == 1
    again = encoder.encode([("x-a", "1")])
    decoder.decode(again, LIMIT)
    assert decoder.generation == 1
    encoder.header_table_size = 0
    decoder.decode(encoder.encode([]), LIMIT)
    assert decoder.generation == 2
    with pytest.raises(ConnectionFault):
        decoder.decode(again, LIMIT)
