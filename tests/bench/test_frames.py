from __future__ import annotations

import hpack
import pytest

from bench import frames
from bench.frames import HeaderBlocks, envelope, request_headers, split_messages, stateless_block

PATH = "/etcdserverpb.KV/Put"


def decoded(decoder: hpack.Decoder, block: bytes) -> list[tuple[str, str]]:
    return [(str(name), str(value)) for name, value in decoder.decode(block)]


@pytest.mark.parametrize("path", ["/a", PATH, "/" + "long" * 100])
def test_a_stateless_block_says_the_headers_and_leaves_the_table_alone(path: str) -> None:
    headers = request_headers(path, "127.0.0.1:2379")
    decoder = hpack.Decoder()
    block = stateless_block(headers)
    assert decoded(decoder, block) == headers
    assert decoded(decoder, block) == headers
    assert not decoder.header_table.dynamic_entries


def test_indexed_blocks_are_short_after_the_first_and_say_the_same() -> None:
    paths = [PATH, "/etcdserverpb.KV/Range"]
    blocks = HeaderBlocks(paths, "127.0.0.1:2379", indexed=True)
    decoder = hpack.Decoder()
    for path in paths:
        assert decoded(decoder, blocks.first[path]) == request_headers(path, "127.0.0.1:2379")
    for path in [*paths, *reversed(paths)]:
        assert decoded(decoder, blocks.steady[path]) == request_headers(path, "127.0.0.1:2379")
        assert len(blocks.steady[path]) <= 8


def test_messages_are_split_wherever_the_bytes_are_cut() -> None:
    messages = [b"", b"one", b"x" * 300]
    whole = b"".join(envelope(message) for message in messages)
    for cut in range(len(whole) + 1):
        first, rest = split_messages(whole[:cut])
        second, left = split_messages(rest + whole[cut:])
        assert first + second == messages
        assert left == b""


def test_a_compressed_message_is_refused() -> None:
    with pytest.raises(ValueError, match="compressed"):
        split_messages(b"\x01\0\0\0\1x")


def test_a_request_too_long_for_one_frame_is_refused() -> None:
    frames.request_parts(b"block", frames.MAX_FRAME - 5)
    with pytest.raises(ValueError, match="does not fit"):
        frames.request_parts(b"block", frames.MAX_FRAME - 4)


def test_a_long_payload_becomes_several_frames_of_which_the_last_ends_the_stream() -> None:
    payload = bytes(range(256)) * 200
    data = frames.data_frames(7, payload, end=True)
    seen, flags = b"", []
    while data:
        head, flag, stream = frames.HEAD.unpack_from(data)
        assert (head & 255, stream) == (frames.DATA, 7)
        seen += data[9 : 9 + (head >> 8)]
        flags.append(flag)
        data = data[9 + (head >> 8) :]
    assert seen == payload
    assert flags == [0, 0, 0, frames.END_STREAM]
