"""The client's half of HTTP/2, fed by hand: what counts as a good reply, and what must not."""

from __future__ import annotations

from collections.abc import Callable

import hpack
import pytest

from bench import frames
from bench.connection import RECEIVE_WINDOW, Body, Connection, Failure, ProtocolError
from bench.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    envelope,
    frame,
)

OPENING = [(":status", "200"), ("content-type", "application/grpc")]
OK = [("grpc-status", "0"), ("grpc-message", "")]
BLOCK = b"\x83"


class Peer:
    """The server's half, as far as the tests need one."""

    def __init__(self) -> None:
        self.encoder = hpack.Encoder()

    def headers(self, stream: int, fields: list[tuple[str, str]], *, end: bool = False) -> bytes:
        flags = END_HEADERS | (END_STREAM if end else 0)
        return frame(HEADERS, flags, stream, self.encoder.encode(fields))

    def reply(self, stream: int, message: bytes = b"reply") -> bytes:
        return (
            self.headers(stream, OPENING)
            + frame(DATA, 0, stream, envelope(message))
            + self.headers(stream, OK, end=True)
        )


def sent_frames(connection: Connection) -> list[tuple[int, int, int, bytes]]:
    """The frames the connection wants to send: kind, flags, stream, payload."""
    data = connection.take().removeprefix(frames.PREFACE)
    out = []
    while data:
        head, flags, stream = frames.HEAD.unpack_from(data)
        out.append((head & 255, flags, stream, data[9 : 9 + (head >> 8)]))
        data = data[9 + (head >> 8) :]
    return out


def uploaded(connection: Connection) -> int:
    return sum(len(payload) for kind, _, _, payload in sent_frames(connection) if kind == DATA)


@pytest.fixture
def connection() -> Connection:
    connection = Connection()
    connection.take()
    return connection


@pytest.fixture
def peer() -> Peer:
    return Peer()


def test_good_replies_are_counted_though_the_table_makes_their_bytes_differ(
    connection: Connection, peer: Peer
) -> None:
    done = [connection.feed(peer.reply(stream)) for stream in (1, 3, 5)]
    assert done == [[1], [3], [5]]
    assert not connection.failures
    assert connection.received == 3 * len(envelope(b"reply"))


def test_replies_may_be_cut_anywhere(peer: Peer) -> None:
    data = peer.reply(1) + peer.reply(3, b"x" * 100)
    for cut in range(len(data)):
        connection = Connection()
        assert connection.feed(data[:cut]) + connection.feed(data[cut:]) == [1, 3]
        assert not connection.failures


def test_a_sampled_body_is_kept(connection: Connection, peer: Peer) -> None:
    body = Body()
    stream = connection.request(BLOCK, b"ask", body)
    assert connection.feed(peer.reply(stream, b"answer")) == [stream]
    assert body.messages() == [b"answer"]


def test_an_unfinished_message_in_a_body_is_an_error() -> None:
    body = Body()
    body.data(envelope(b"answer")[:-1])
    with pytest.raises(ValueError, match="after the last whole message"):
        body.messages()
    assert body.whole() == []


BAD_ENDINGS: dict[str, tuple[Callable[[Peer], bytes], Failure]] = {
    "error in the trailers": (
        lambda peer: (
            peer.headers(1, OPENING)
            + peer.headers(1, [("grpc-status", "8"), ("grpc-message", "too many")], end=True)
        ),
        Failure(1, 8, "too many"),
    ),
    "trailers only": (
        lambda peer: peer.headers(
            1, [*OPENING, ("grpc-status", "14"), ("grpc-message", "away")], end=True
        ),
        Failure(1, 14, "away"),
    ),
    "OK without any reply": (
        lambda peer: peer.headers(1, [*OPENING, ("grpc-status", "0")], end=True),
        Failure(1, 13, "grpc-status 0 without a reply"),
    ),
    "reset": (
        lambda peer: frame(RST_STREAM, 0, 1, b"\0\0\0\x07"),
        Failure(1, 2, "stream reset by the server, HTTP/2 error 7"),
    ),
    "end without trailers": (
        lambda peer: peer.headers(1, OPENING) + frame(DATA, END_STREAM, 1, envelope(b"")),
        Failure(1, 13, "the reply ended without trailers"),
    ),
    "HTTP error": (
        lambda peer: peer.headers(1, [(":status", "404")], end=True),
        Failure(1, 13, "HTTP status 404"),
    ),
    "not gRPC": (
        lambda peer: peer.headers(1, [(":status", "200"), ("content-type", "text/html")]),
        Failure(1, 13, "content-type 'text/html'"),
    ),
    "a second opening as trailers": (
        lambda peer: peer.headers(1, OPENING) + peer.headers(1, OPENING, end=True),
        Failure(1, 13, "trailers without grpc-status"),
    ),
    "a status that is no number": (
        lambda peer: peer.headers(1, [*OPENING, ("grpc-status", "fine")], end=True),
        Failure(1, 13, "grpc-status 'fine'"),
    ),
}


@pytest.mark.parametrize("name", BAD_ENDINGS)
@pytest.mark.parametrize("after_good_ones", [False, True])
def test_no_bad_ending_counts_as_good(
    connection: Connection, peer: Peer, name: str, after_good_ones: bool
) -> None:
    ending, expected = BAD_ENDINGS[name]
    if after_good_ones:
        assert connection.feed(peer.reply(3) + peer.reply(5)) == [3, 5]
    assert connection.feed(ending(peer)) == []
    assert connection.failures == [expected]


def test_the_same_bytes_may_mean_an_error_once_the_table_has_changed(
    connection: Connection,
) -> None:
    """Index 62 is grpc-status 0 until another field is put before it."""
    good = hpack.Encoder()
    opening = good.encode(OPENING)
    insert = good.encode([("grpc-status", "0")])
    newest = good.encode([("grpc-status", "0")])
    other = good.encode([("grpc-status", "5")])
    assert newest == good.encode([("grpc-status", "5")])
    for stream, trailers in ((1, insert), (3, newest), (5, newest)):
        start = frame(HEADERS, END_HEADERS, stream, opening if stream == 1 else b"\x88\xbf")
        ended = frame(HEADERS, END_HEADERS | END_STREAM, stream, trailers)
        assert connection.feed(start + ended) == [stream]
    connection.feed(frame(HEADERS, END_HEADERS | END_STREAM, 7, other))
    assert connection.feed(frame(HEADERS, END_HEADERS | END_STREAM, 9, newest)) == []
    assert [failure.code for failure in connection.failures] == [5, 5]


def test_padding_priority_and_continuation_are_understood(
    connection: Connection, peer: Peer
) -> None:
    opening = peer.encoder.encode(OPENING)
    padded = bytes([3]) + bytes(5) + opening + bytes(3)
    flags = END_HEADERS | frames.PADDED | frames.PRIORITIZED
    body = Body()
    stream = connection.request(BLOCK, b"", body)
    data = frame(HEADERS, flags, stream, padded)
    data += frame(DATA, frames.PADDED, stream, bytes([2]) + envelope(b"yes") + bytes(2))
    trailers = peer.encoder.encode(OK)
    data += frame(HEADERS, END_STREAM, stream, trailers[:3])
    data += frame(CONTINUATION, 0, stream, trailers[3:5])
    data += frame(CONTINUATION, END_HEADERS, stream, trailers[5:])
    assert connection.feed(data) == [stream]
    assert body.messages() == [b"yes"]


def test_pings_and_settings_are_acknowledged_and_acknowledgements_are_not(
    connection: Connection,
) -> None:
    connection.feed(frame(PING, 0, 0, b"12345678") + frame(PING, 1, 0, b"87654321"))
    connection.feed(frame(SETTINGS, 0, 0, b"") + frame(SETTINGS, 1, 0, b""))
    expected = [(PING, 1, 0, b"12345678"), (SETTINGS, 1, 0, b"")]
    assert sent_frames(connection) == expected


def test_uploads_wait_for_the_connections_credit(connection: Connection) -> None:
    stream = connection.request(BLOCK, b"x" * 100_000)
    assert uploaded(connection) == 65_535
    assert connection.unsent(stream) == 100_005 - 65_535
    connection.feed(frames.window_update(0, 1_000_000))
    assert uploaded(connection) == 0, "the stream's own credit is used up, too"
    connection.feed(frames.window_update(stream, 30_000))
    assert uploaded(connection) == 30_000
    connection.feed(frames.window_update(stream, 10_000))
    kinds = sent_frames(connection)
    assert sum(len(payload) for *_, payload in kinds) == 100_005 - 65_535 - 30_000
    assert kinds[-1][1] == END_STREAM
    assert connection.unsent(stream) == 0


def test_a_changed_initial_window_changes_open_streams(connection: Connection) -> None:
    connection.feed(frames.window_update(0, 1_000_000))
    first = connection.request(BLOCK, b"x" * 80_000)
    assert uploaded(connection) == 65_535
    connection.feed(frames.settings({frames.SETTINGS_INITIAL_WINDOW_SIZE: 1_000}))
    connection.feed(frames.window_update(first, 64_000))
    assert uploaded(connection) == 0, "64,535 below zero before the update"
    connection.feed(frames.settings({frames.SETTINGS_INITIAL_WINDOW_SIZE: 100_000}))
    assert uploaded(connection) == 80_005 - 65_535


def test_ready_frames_are_refused_without_credit(connection: Connection) -> None:
    stream = connection.start(BLOCK)
    data = frames.data_frames(stream, b"x" * 10_000, end=False)
    assert [connection.append(stream, data) for _ in range(7)] == [True] * 6 + [False]
    assert connection.window == 65_535 - 60_000


def test_a_stream_that_brings_much_gets_its_window_back(connection: Connection) -> None:
    stream = connection.start(BLOCK, Body())
    connection.take()
    piece = frame(DATA, 0, stream, b"x" * 16_384)
    pieces = RECEIVE_WINDOW // 2 // 16_384 + 1
    for _ in range(pieces):
        connection.feed(piece)
    credit = (pieces * 16_384).to_bytes(4, "big")
    assert sent_frames(connection) == [(frames.WINDOW_UPDATE, 0, stream, credit)]


def test_cancelling_resets_the_stream_and_forgets_it(connection: Connection) -> None:
    stream = connection.start(BLOCK, Body())
    connection.take()
    connection.cancel(stream)
    assert sent_frames(connection) == [(RST_STREAM, 0, stream, b"\0\0\0\x08")]
    assert stream not in connection.sinks


@pytest.mark.parametrize(
    "data",
    [
        frame(frames.PUSH_PROMISE, 0, 1, bytes(4)),
        frame(CONTINUATION, 0, 1, b""),
        frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\x7f"),
    ],
)
def test_what_is_no_http2_for_a_client_is_refused(connection: Connection, data: bytes) -> None:
    with pytest.raises(ProtocolError):
        connection.feed(data)


def test_goaway_is_remembered(connection: Connection) -> None:
    connection.feed(frame(frames.GOAWAY, 0, 0, bytes(4) + b"\0\0\0\x0b" + b"too_many_pings"))
    assert connection.goaway == "GOAWAY, HTTP/2 error 11 b'too_many_pings'"
