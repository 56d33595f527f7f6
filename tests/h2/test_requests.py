"""What a request may be refused for: its head, and its messages."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import replace

import pytest
from h2wire import Wire, answer, failure, grpc

from kvorum.h2 import frames
from kvorum.h2.limits import Limits

LIMITS = Limits()
NOW, HOLD, STREAM = "/t.S/Now", "/t.S/Hold", "/t.S/Stream"


@pytest.mark.parametrize(
    ("path", "more", "expected"),
    [
        ("/t.S/Nope", [], failure(1, 12, "unknown method Nope for service t.S")),
        ("/x.Y/Z", [], failure(1, 12, "unknown service x.Y")),
        ("/a/b/c", [], failure(1, 12, "unknown service a/b")),
        ("/t.S", [], failure(1, 12, 'malformed method name: "/t.S"')),
        ("t.S/Now", [], failure(1, 12, 'malformed method name: "t.S/Now"')),
        (NOW, [("grpc-timeout", "0n")], failure(1, 4, "context deadline exceeded")),
        (
            NOW,
            [("grpc-timeout", "S")],
            failure(
                1,
                13,
                'malformed grpc-timeout: transport: timeout string is too short: "S"',
                http=400,
            ),
        ),
        (
            NOW,
            [("grpc-timeout", "123456789S")],
            failure(
                1,
                13,
                'malformed grpc-timeout: transport: timeout string is too long: "123456789S"',
                http=400,
            ),
        ),
        (
            NOW,
            [("grpc-timeout", "1x")],
            failure(
                1,
                13,
                'malformed grpc-timeout: transport: timeout unit is not recognized: "1x"',
                http=400,
            ),
        ),
        (
            NOW,
            [("grpc-timeout", "-1S")],
            failure(
                1,
                13,
                'malformed grpc-timeout: strconv.ParseUint: parsing "-1": invalid syntax',
                http=400,
            ),
        ),
        (
            NOW,
            [("grpc-encoding", "snappy")],
            failure(
                1,
                12,
                'grpc: Decompressor is not installed for grpc-encoding "snappy"',
                "grpc-accept-encoding=gzip",
            ),
        ),
    ],
)
def test_refusals_from_the_head(path: str, more: list[tuple[str, str]], expected: str) -> None:
    wire = Wire()
    assert wire.send(wire.head(1, path, *more, end=True)) == [expected]
    assert not wire.conn.streams
    # The same while the body is still to come, on a second stream with the remembered head.
    third = expected.replace("HEADERS 1", "HEADERS 3")
    assert wire.send(wire.head(3, path, *more)) == [third, "RST_STREAM 3 NO_ERROR"]


def head_with(wire: Wire, **changed: str) -> bytes:
    fields = [
        (name, changed.pop(name.strip(":").replace("-", "_"), value))
        for name, value in [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", NOW),
            ("content-type", "application/grpc"),
        ]
    ]
    return frames.frame(frames.HEADERS, 5, 1, wire.encoder.encode(fields))


def test_only_post() -> None:
    wire = Wire()
    text = 'Received a HEADERS frame with :method "GET" which should be POST'
    assert wire.send(head_with(wire, method="GET")) == [failure(1, 13, text, http=405)]


@pytest.mark.parametrize("kind", ["application/json", "application/grpcx", ""])
def test_only_grpc(kind: str) -> None:
    wire = Wire()
    text = f'invalid gRPC request content-type "{kind}"'
    assert wire.send(head_with(wire, content_type=kind)) == [failure(1, 3, text, http=415)]


@pytest.mark.parametrize("kind", ["application/grpc+proto", "application/grpc;x"])
def test_subtypes_are_grpc(kind: str) -> None:
    wire = Wire()
    lines = wire.send(head_with(wire, content_type=kind))
    assert lines == [failure(1, 13, "cardinality violation: received no request message")]


# --- messages ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        (b"", 13, "cardinality violation: received no request message"),
        (
            grpc(b"a") + grpc(b"b"),
            13,
            "cardinality violation: received multiple request messages",
        ),
        (grpc(b"abc")[:-1], 13, "unexpected EOF"),
        (b"\0\0", 13, "unexpected EOF"),
        (
            grpc(b"a", 1),
            13,
            "grpc: compressed flag set with identity or empty encoding",
        ),
        (grpc(b"a", 2), 13, "grpc: received unexpected payload format 2"),
        (
            b"\0\xff\xff\xff\xff",
            8,
            "grpc: received message larger than max (4294967295 vs. 2097152)",
        ),
    ],
)
@pytest.mark.parametrize("split", [False, True])
def test_bad_unary_requests(body: bytes, code: int, text: str, split: bool) -> None:
    wire = Wire()
    lines = wire.send(wire.head(1))
    at = len(body) // 2 if split else len(body)
    lines += wire.send(wire.data(1, body[:at], end=not split))
    if split:
        lines += wire.send(wire.data(1, body[at:], end=True))
    assert [line for line in lines if not line.startswith("RST")] == [failure(1, code, text)]
    assert wire.conn.recv_backlog == 0


def test_the_size_limit_is_exact() -> None:
    wire = Wire(limits=replace(LIMITS, max_receive_message=100))
    assert wire.send(wire.request(1, b"x" * 100)) == answer(1, b"x" * 100)
    text = "grpc: received message larger than max (101 vs. 100)"
    assert wire.send(wire.request(3, b"x" * 101)) == [failure(3, 8, text)]


def test_a_message_larger_than_the_window() -> None:
    """Credit is given as the message comes, so that it can come at all."""
    wire = Wire(limits=replace(LIMITS, stream_window=65535))
    message = b"x" * 200_000
    body = grpc(message)
    lines = wire.send(wire.head(1, HOLD))
    window = 65535
    for at in range(0, len(body), 16384):
        piece = body[at : at + 16384]
        window -= len(piece)
        assert window >= 0
        got = wire.send(wire.data(1, piece, end=at + 16384 >= len(body)))
        window += sum(int(line.split("+")[1]) for line in got if line.startswith("WINDOW_UPDATE 1"))
        lines += got
    assert len(wire.calls) == 1


GZIP = ("grpc-encoding", "gzip")


def test_gzip() -> None:
    wire = Wire()
    packed = gzip.compress(b"hello" * 1000)
    body = wire.data(1, grpc(packed, 1), end=True)
    assert wire.send(wire.head(1, NOW, GZIP) + body) == answer(1, b"hello" * 1000)
    two = gzip.compress(b"one ") + gzip.compress(b"two")
    assert wire.send(wire.head(3, NOW, GZIP) + wire.data(3, grpc(two, 1), end=True)) == answer(
        3, b"one two"
    )
    plain = wire.head(5, NOW, GZIP) + wire.data(5, grpc(b"not packed"), end=True)
    assert wire.send(plain) == answer(5, b"not packed")
    assert wire.send(
        wire.head(7, NOW, GZIP) + wire.data(7, grpc(gzip.compress(b""), 1), end=True)
    ) == answer(7, b"")


@pytest.mark.parametrize(
    ("packed", "code", "text"),
    [
        (
            gzip.compress(b"x" * 1_000_000),
            8,
            "grpc: received message after decompression larger than max 1000",
        ),
        (gzip.compress(b"abc")[:-4], 13, "unexpected EOF"),
        (b"not gzip", 13, "incorrect header check"),
        (b"", 13, "unexpected EOF"),
        (zlib.compress(b"abc"), 13, "incorrect header check"),
        (gzip.compress(b"x" * 600) * 2, 8, "larger than max 1000"),
    ],
)
def test_bad_gzip(packed: bytes, code: int, text: str) -> None:
    wire = Wire(limits=replace(LIMITS, max_receive_message=1000))
    if len(packed) > 1000:
        wire = Wire(limits=replace(LIMITS, max_receive_message=len(packed)))
        text = text.replace("1000", str(len(packed)))
    body = wire.data(1, grpc(packed, 1), end=True)
    lines = wire.send(wire.head(1, NOW, GZIP) + body)
    assert len(lines) == 1
    assert f"grpc-status={code}" in lines[0]
    assert text in lines[0]
