"""Stories of calls: what the client sends, and every frame that comes back."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import replace

import pytest
from h2wire import OK_HEAD, OK_TAIL, Wire, answer, failure, grpc

from kvorum.errors import Code, EmptyKey
from kvorum.h2 import frames
from kvorum.h2.call import Call
from kvorum.h2.frames import ConnectionFault, ErrorCode, Setting
from kvorum.h2.limits import Limits
from kvorum.h2.method import Method

LIMITS = Limits()
NOW, HOLD, STREAM = "/t.S/Now", "/t.S/Hold", "/t.S/Stream"


def test_a_connection_begins_with_settings_and_a_window() -> None:
    wire = Wire(greet=False)
    assert wire.send(frames.PREFACE + frames.settings({})) == [
        "SETTINGS 0 MAX_FRAME_SIZE=16384 INITIAL_WINDOW_SIZE=1048576 MAX_HEADER_LIST_SIZE=65536",
        f"WINDOW_UPDATE 0 +{16 * 1024 * 1024 - 65535}",
        "SETTINGS 0 ACK",
    ]


def test_a_unary_call() -> None:
    wire = Wire()
    assert wire.send(wire.request(1, b"hello")) == [
        "HEADERS 1 :status=200 content-type=application/grpc",
        "DATA 1 '\\x00\\x00\\x00\\x00\\x05hello'",
        "HEADERS 1 END grpc-status=0",
    ]


def test_an_answer_given_later_wakes_the_connection_once() -> None:
    wire = Wire()
    assert wire.send(wire.request(1, path=HOLD) + wire.request(3, path=HOLD)) == []
    for call in wire.calls:
        call.reply(b"later")
    assert wire.woken == 1
    assert wire.flush() == [*answer(1, b"later"), *answer(3, b"later")]


def test_a_server_stream() -> None:
    wire = Wire()
    assert wire.send(wire.request(1, b"go", STREAM)) == []
    assert wire.seen == ["message b'go'", "end"]
    call = wire.calls[0]
    call.send(b"one")
    call.send(b"two")
    assert wire.flush() == [
        OK_HEAD.format(1),
        f"DATA 1 {grpc(b'one')!r}".replace(" b", " "),
        f"DATA 1 {grpc(b'two')!r}".replace(" b", " "),
    ]
    call.finish()
    assert wire.flush() == [OK_TAIL.format(1)]


def test_a_client_stream() -> None:
    wire = Wire()
    wire.send(wire.head(1, STREAM))
    wire.send(wire.data(1, grpc(b"a") + grpc(b"b") + grpc(b"long one")[:6]))
    assert wire.seen == ["message b'a'", "message b'b'"]
    wire.send(wire.data(1, grpc(b"long one")[6:]))
    wire.send(wire.data(1, b"", end=True))
    assert wire.seen[2:] == ["message b'long one'", "end"]
    wire.calls[0].reply(b"sum")
    assert wire.flush() == answer(1, b"sum")


def test_both_ways_at_once_and_the_server_ends_first() -> None:
    wire = Wire()
    wire.send(wire.head(1, STREAM) + wire.data(1, grpc(b"a")))
    call = wire.calls[0]
    call.send(b"A")
    assert wire.flush()[1:] == ["DATA 1 '\\x00\\x00\\x00\\x00\\x01A'"]
    call.fail(Code.ABORTED, "enough")
    assert wire.flush() == [
        "HEADERS 1 END grpc-status=10 grpc-message=enough",
        "RST_STREAM 1 NO_ERROR",
    ]
    # What was under way is ignored, and only costs window.
    assert wire.send(wire.data(1, grpc(b"b"), end=True)) == []
    assert wire.seen == ["message b'a'"]


def test_a_response_head_may_be_sent_early() -> None:
    wire = Wire()
    wire.send(wire.head(1, STREAM))
    wire.calls[0].start([(b"x-info", b"1")])
    assert wire.flush() == [OK_HEAD.format(1) + " x-info=1"]
    wire.calls[0].fail(5, "no")
    assert wire.flush()[0] == "HEADERS 1 END grpc-status=5 grpc-message=no"


def test_a_call_that_ended_ignores_what_its_handler_still_does() -> None:
    wire = Wire()
    wire.send(wire.request(1, path=HOLD))
    call = wire.calls[0]
    call.fail(5, "no")
    wire.flush()
    call.reply(b"x")
    call.send(b"x")
    call.finish()
    call.fail(5, "again")
    call.start()
    assert wire.flush() == []
    assert call.done


@pytest.mark.parametrize(
    ("message", "wire_text"),
    [
        ("plain text, as it is!", "plain text, as it is!"),
        ("50% of \n ü", "50%25 of %0A %C3%BC"),
        ("~\x7f\x00", "~%7F%00"),
        (" a b ", "%20a b%20"),
        (" ", "%20"),
    ],
)
def test_status_messages_are_escaped(message: str, wire_text: str) -> None:
    wire = Wire()
    wire.send(wire.request(1, path=HOLD))
    wire.calls[0].fail(3, message)
    assert wire.flush() == [failure(1, 3, wire_text)]


# --- errors from the head ------------------------------------------------------------------------


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


# --- ends ----------------------------------------------------------------------------------------


def test_a_cancelled_call_tells_its_handler() -> None:
    wire = Wire()
    wire.send(wire.head(1, STREAM) + wire.request(3, path=HOLD))
    wire.calls[1].on_cancel = lambda: wire.seen.append("unary cancelled")
    assert wire.send(frames.rst_stream(1, 8) + frames.rst_stream(3, 8)) == []
    assert wire.seen == ["cancel", "unary cancelled"]
    assert [call.done for call in wire.calls] == [True, True]
    wire.calls[1].reply(b"late")
    assert wire.flush() == []
    methods = wire.conn.service.methods
    assert methods[HOLD].handled[Code.CANCELLED] == 1
    assert methods[STREAM].handled[Code.CANCELLED] == 1


def test_a_lost_connection_cancels_its_calls() -> None:
    wire = Wire()
    wire.send(wire.head(1, STREAM) + wire.data(1, grpc(b"abc")[:4]))
    wire.conn.lost()
    assert wire.seen == ["cancel"]
    assert wire.conn.recv_backlog == 0
    wire.calls[0].send(b"x")
    assert wire.flush() == []


def test_a_connection_error_cancels_its_calls_and_keeps_what_was_answered() -> None:
    wire = Wire()
    wire.send(wire.head(1, STREAM))
    lines = wire.send(wire.request(3) + frames.window_update(0, 0))
    assert lines == [*answer(3, b"hello"), "GOAWAY 0 last=3 PROTOCOL_ERROR window update of 0"]
    assert wire.seen == ["cancel"]
    assert isinstance(wire.conn.fault, ConnectionFault)


def test_deadlines() -> None:
    wire = Wire()
    wire.send(wire.request(1, path=HOLD))
    head = wire.head(3, HOLD, ("grpc-timeout", "100m"))
    wire.send(head + wire.data(3, grpc(b"x"), end=True))
    head = wire.head(5, STREAM, ("grpc-timeout", "2S"))
    wire.send(head + wire.data(5, grpc(b"x")))
    unary, stream = wire.calls[1], wire.calls[2]
    assert unary.deadline == pytest.approx(wire.now + 0.1)
    unary.on_cancel = lambda: wire.seen.append("unary cancelled")
    assert wire.tick(0.09) == []
    assert wire.tick(0.02) == [failure(3, 4, "context deadline exceeded")]
    stream.send(b"y")
    wire.flush()
    assert wire.tick(2.0) == [
        "HEADERS 5 END grpc-status=4 grpc-message=context deadline exceeded",
        "RST_STREAM 5 NO_ERROR",
    ]
    assert wire.seen == ["message b'x'", "unary cancelled", "cancel"]
    assert not wire.calls[0].done
    assert list(wire.conn.streams) == [1]


def test_a_call_that_ends_leaves_nothing_with_the_deadlines() -> None:
    wire = Wire()
    timeout = ("grpc-timeout", "10S")
    for sid in range(1, 201, 2):
        wire.send(wire.head(sid, NOW, timeout) + wire.data(sid, grpc(b""), end=True))
    assert sum(len(slot) for slot in wire.deadlines._slots.values()) == 0
    assert len(wire.deadlines._slots) == 1


def test_handlers_that_raise() -> None:
    def broken(call: Call, message: bytes) -> None:
        raise KeyError("secret")

    def refusing(call: Call, message: bytes) -> None:
        raise EmptyKey

    def broken_stream(call: Call) -> None:
        raise KeyError("secret")

    wire = Wire(
        {
            "/t.S/Now": Method(broken),
            "/t.S/Hold": Method(refusing),
            "/t.S/Stream": Method(broken_stream, streaming=True),
        }
    )
    internal = "internal error: KeyError"
    assert wire.send(wire.request(1)) == [failure(1, 13, internal)]
    empty = "etcdserver: key is not provided"
    assert wire.send(wire.request(3, path=HOLD)) == [failure(3, 3, empty)]
    assert wire.send(wire.request(5, path=STREAM))[0] == failure(5, 13, internal)
    raw = wire.request(7)
    assert wire.send(raw[:-1]) + wire.send(raw[-1:]) == [failure(7, 13, internal)]
    assert [type(report) for report in wire.reports] == [KeyError] * 3


@pytest.mark.parametrize("event", ["on_message", "on_end", "on_cancel", "on_writable"])
def test_a_callback_that_raises_ends_its_call_alone(event: str) -> None:
    def broken(*args: bytes) -> None:
        raise KeyError("secret")

    wire = Wire()
    wire.send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 40_000}))
    wire.send(wire.head(1, STREAM))
    setattr(wire.calls[0], event, broken)
    lines = wire.send(wire.data(1, grpc(b"x"), end=event == "on_end"))
    if event == "on_writable":
        wire.calls[0].send(b"y" * 80_000)
        lines = wire.send(frames.window_update(1, 30_000) + frames.window_update(0, 30_000))
        lines += wire.send(frames.window_update(1, 30_000))
    if event == "on_cancel":
        assert wire.send(frames.rst_stream(1, 8)) == []
    else:
        assert any("grpc-status=13" in line for line in lines)
    assert [type(report) for report in wire.reports] == [KeyError]
    assert wire.send(wire.request(3)) == answer(3, b"hello")


def test_a_head_may_come_in_several_frames() -> None:
    wire = Wire()
    block = wire.block()
    lines = wire.raw(frames.HEADERS, 0, 1, block[:5])
    lines += wire.raw(frames.CONTINUATION, 0, 1, block[5:9])
    lines += wire.raw(frames.CONTINUATION, frames.END_HEADERS, 1, block[9:])
    assert lines == []
    assert wire.send(wire.data(1, grpc(b"x"), end=True)) == answer(1, b"x")


def test_trailers_may_end_a_request() -> None:
    wire = Wire()
    wire.send(wire.head(1, STREAM) + wire.data(1, grpc(b"x")))
    trailers = wire.encoder.encode([("x-checksum", "1")])
    assert wire.raw(frames.HEADERS, 5, 1, trailers) == []
    assert wire.seen == ["message b'x'", "end"]
    assert wire.send(wire.head(3) + wire.data(3, grpc(b"x"))) == []
    assert wire.raw(frames.HEADERS, 5, 3, trailers) == answer(3, b"x")


def test_a_client_stream_may_be_answered_before_its_end() -> None:
    wire = Wire()
    wire.send(wire.head(1, STREAM) + wire.data(1, grpc(b"x")))
    wire.calls[0].reply(b"enough")
    assert wire.flush() == [*answer(1, b"enough"), "RST_STREAM 1 NO_ERROR"]


def test_a_call_can_be_finished_without_a_message() -> None:
    wire = Wire()
    wire.send(wire.head(1, STREAM, end=True))
    wire.calls[0].finish()
    assert wire.flush() == [OK_HEAD.format(1), OK_TAIL.format(1)]
    assert repr(wire.calls[0]) == "<Call /t.S/Stream stream 1 done>"


def test_many_different_failures_are_all_told() -> None:
    """More than are remembered, and some too long to be."""
    wire = Wire()
    for number in range(600):
        sid = 2 * number + 1
        wire.send(wire.request(sid, path=HOLD))
        text = f"no {number}" + "x" * (600 if number % 7 == 0 else 0)
        wire.calls[-1].fail(3, text)
        assert wire.flush() == [failure(sid, 3, text)]


def test_heads_without_end_are_learnt_anew() -> None:
    """More different heads than the service remembers."""
    wire = Wire({"/t.S/Now": Method(lambda call, message: call.reply(message))})
    for number in range(1100):
        sid = 2 * number + 1
        lines = wire.send(
            wire.head(sid, NOW, ("x-n", str(number))) + wire.data(sid, grpc(b""), end=True)
        )
        assert lines == answer(sid, b"")
    assert len(wire.conn.service._heads) <= 1024


def test_a_head_larger_than_a_frame_in_one_read() -> None:
    wire = Wire()
    raw = frames.frame(frames.HEADERS, frames.END_HEADERS, 1, b"\x82" * 16385)
    lines = wire.send(raw + b"\0" * 9)
    assert lines[-1].split()[3] == "FRAME_SIZE_ERROR"


def test_a_priority_in_a_head_is_passed_over() -> None:
    wire = Wire()
    block = b"\0\0\0\0\x10" + wire.block()
    flags = frames.END_HEADERS | frames.PRIORITY_FLAG
    head = frames.frame(frames.HEADERS, flags, 1, block)
    priority = frames.frame(frames.PRIORITY, 0, 9, b"\0\0\0\1\x10")
    assert wire.send(priority + head + wire.data(1, grpc(b"x"), end=True)) == answer(1, b"x")


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_frame_size": 16383},
        {"max_frame_size": 2**24},
        {"stream_window": 0},
        {"stream_window": 2**31},
        {"connection_window": 65534},
    ],
)
def test_limits_that_cannot_be_announced(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)  # type: ignore[arg-type]


def test_a_window_smaller_than_a_frame_turns_the_short_path_off() -> None:
    wire = Wire(limits=replace(LIMITS, stream_window=10_000))
    assert not wire.conn.short
    assert wire.send(wire.request(1)) == answer(1, b"hello")
    assert wire.send(wire.head(3) + wire.data(3, grpc(b"x" * 12_000), end=True)) == [
        "RST_STREAM 3 FLOW_CONTROL_ERROR"
    ]


def test_metadata() -> None:
    wire = Wire()
    more = [("token", "abc"), ("x-bin", "AAEC/w"), ("x-bin", "YQ=="), ("grpc-timeout", "5S")]
    wire.send(wire.head(1, HOLD, *more) + wire.data(1, grpc(b""), end=True))
    assert wire.calls[0].metadata == [
        (":authority", "here:1"),
        ("content-type", "application/grpc"),
        ("token", "abc"),
        ("x-bin", "\x00\x01\x02\xff"),
        ("x-bin", "a"),
    ]
    assert wire.calls[0].path == HOLD


def test_counters() -> None:
    wire = Wire()
    for sid in (1, 3):
        wire.send(wire.request(sid))
    raw = wire.request(5)
    wire.send(raw[:20])
    wire.send(raw[20:])
    wire.send(wire.head(7, end=True))
    method = wire.conn.service.methods[NOW]
    assert (method.started, method.received, method.sent) == (4, 3, 3)
    assert {code: n for code, n in enumerate(method.handled) if n} == {0: 3, 13: 1}
    assert repr(method) == "<Method unary started=4 handled=4>"


# --- flow control --------------------------------------------------------------------------------


def body_of(lines: list[str], sid: int = 1) -> int:
    """DATA bytes among the lines."""
    sizes = [line.split() for line in lines if line.startswith(f"DATA {sid} ")]
    return sum(int(words[2]) if words[-1] == "bytes" else 0 for words in sizes)


def test_a_reply_waits_for_the_streams_window() -> None:
    wire = Wire()
    assert wire.send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 1000})) == ["SETTINGS 0 ACK"]
    lines = wire.send(wire.request(1, b"x" * 2995))
    assert lines == [OK_HEAD.format(1), "DATA 1 1000 bytes"]
    assert wire.send(frames.window_update(1, 500)) == ["DATA 1 500 bytes"]
    # Another stream is not held up by it.
    assert wire.send(wire.request(3)) == answer(3, b"hello")
    assert wire.send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 1100})) == [
        "SETTINGS 0 ACK",
        "DATA 1 100 bytes",
    ]
    # A window may become negative: 1500 of 1600 used, 600 taken away.
    assert wire.send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 500})) == ["SETTINGS 0 ACK"]
    assert wire.send(frames.window_update(1, 600)) == []
    assert wire.send(frames.window_update(1, 401)) == ["DATA 1 401 bytes"]
    assert wire.send(frames.window_update(1, 5000)) == ["DATA 1 999 bytes", OK_TAIL.format(1)]
    assert wire.conn.backlog == 0


def test_replies_share_the_connections_window() -> None:
    wire = Wire()
    wire.send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 1_000_000}))
    wire.send(wire.request(1, b"x", HOLD) + wire.request(3, b"x", HOLD))
    for call in wire.calls:
        call.reply(b"y" * 99_995)
    lines = wire.flush()
    assert body_of(lines, 1) + body_of(lines, 3) == 65535
    assert abs(body_of(lines, 1) - body_of(lines, 3)) <= 16384  # in turns
    lines += wire.send(frames.window_update(0, 200_000 - 65535))
    assert (body_of(lines, 1), body_of(lines, 3)) == (100_000, 100_000)
    assert wire.send(wire.request(5)) == [OK_HEAD.format(5)]
    assert wire.send(frames.window_update(0, 10)) == answer(5, b"hello")[1:]


def test_large_replies_are_cut_into_frames_the_peer_takes() -> None:
    wire = Wire()
    wire.send(wire.request(1, b"x", HOLD))
    wire.calls[0].reply(b"y" * 40_000)
    lines = wire.flush()
    assert [line for line in lines if line.startswith("DATA")] == [
        "DATA 1 16384 bytes",
        "DATA 1 16384 bytes",
        "DATA 1 7237 bytes",
    ]


def test_one_turn_hands_over_a_bounded_burst() -> None:
    wire = Wire(limits=replace(LIMITS, send_burst=100_000))
    grown = frames.settings({Setting.INITIAL_WINDOW_SIZE: 2**31 - 1})
    wire.send(grown + frames.window_update(0, 2**31 - 1 - 65535))
    wire.send(wire.request(1, b"", STREAM))
    call = wire.calls[0]
    for _ in range(30):
        call.send(b"y" * 9_995)
    assert call.backlog > 0
    sizes = []
    while not sizes or sizes[-1]:
        sizes.append(body_of(wire.flush()))
    assert sum(sizes) == 300_000
    assert max(sizes[1:]) == 100_000
    assert call.backlog == 0


def test_a_full_socket_keeps_data_back() -> None:
    wire = Wire()
    wire.send(wire.request(1, b"", STREAM))
    call = wire.calls[0]
    wire.conn.hold()
    call.send(b"y" * 50_000)
    assert call.backlog == 50_005
    assert wire.flush() == [OK_HEAD.format(1)]
    # Windows that come meanwhile are counted, but not used.
    assert wire.send(frames.window_update(0, 1000)) == []
    assert wire.send(wire.request(3)) == [OK_HEAD.format(3)]
    woken = wire.woken
    wire.conn.release()
    assert wire.woken == woken + 1
    lines = wire.flush()
    assert body_of(lines) == 50_005
    assert OK_TAIL.format(3) in lines
    assert call.backlog == 0
    assert wire.seen[-1] == "writable"


def test_writable_is_told_when_the_backlog_is_small() -> None:
    wire = Wire()
    wire.send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 0}))
    wire.send(wire.request(1, b"", STREAM))
    call = wire.calls[0]
    call.send(b"y" * 99_995)
    assert call.backlog == 100_000
    wire.send(frames.window_update(1, 60_000))
    assert "writable" not in wire.seen
    wire.send(frames.window_update(0, 100_000) + frames.window_update(1, 10_000))
    assert wire.seen.count("writable") == 1
    assert call.backlog == 30_000


def test_a_failed_call_sends_what_it_had_queued_first() -> None:
    wire = Wire()
    wire.send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 10}))
    wire.send(wire.request(1, b"", STREAM))
    wire.calls[0].send(b"0123456789")
    wire.calls[0].fail(8, "slow")
    assert wire.flush() == [OK_HEAD.format(1), "DATA 1 '\\x00\\x00\\x00\\x00\\n01234'"]
    assert wire.send(frames.window_update(1, 100)) == [
        "DATA 1 '56789'",
        "HEADERS 1 END grpc-status=8 grpc-message=slow",
    ]


def test_a_reset_stream_gives_its_backlog_back() -> None:
    wire = Wire()
    wire.send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 10}))
    wire.send(wire.request(1, b"x" * 10_000))
    assert wire.conn.backlog > 0
    wire.send(frames.rst_stream(1, 8))
    assert wire.conn.backlog == 0
    assert wire.send(wire.request(3, b"x")) == answer(3, b"x")


def test_a_handler_that_does_not_read_stops_the_client() -> None:
    limits = replace(LIMITS, stream_window=100_000)
    wire = Wire(limits=limits)
    wire.send(wire.head(1, STREAM))
    wire.calls[0].pause_reading()
    window = limits.stream_window
    message = grpc(b"m" * 9_995)
    while window >= len(message):
        window -= len(message)
        lines = wire.send(wire.data(1, message))
        assert not [line for line in lines if line.startswith("WINDOW_UPDATE 1")]
    assert wire.seen == []
    assert wire.conn.recv_backlog == limits.stream_window
    wire.calls[0].resume_reading()
    assert wire.seen == ["message of 9995"] * 10
    assert wire.flush() == ["WINDOW_UPDATE 1 +100000"]
    assert wire.conn.recv_backlog == 0


def test_a_handler_may_pause_within_a_message() -> None:
    wire = Wire()
    wire.send(wire.head(1, STREAM))
    call = wire.calls[0]
    told = call.on_message
    assert told is not None
    call.on_message = lambda message: (told(message), call.pause_reading())[0]
    wire.send(wire.data(1, grpc(b"1") + grpc(b"2") + grpc(b"3"), end=True))
    assert wire.seen == ["message b'1'"]
    call.resume_reading()
    call.resume_reading()
    assert wire.seen == ["message b'1'", "message b'2'", "message b'3'"]
    call.resume_reading()
    assert wire.seen[-1] == "end"


def test_the_connections_window_is_given_back_at_once() -> None:
    """A stream that is not read must not starve the others (as in grpc-go)."""
    limits = replace(LIMITS, connection_window=100_000, stream_window=90_000)
    wire = Wire(limits=limits)
    wire.send(wire.head(1, STREAM))
    wire.calls[0].pause_reading()
    lines = []
    for _ in range(5):
        lines += wire.send(wire.data(1, b"\0" * 16_000))
    credit = sum(int(line.split("+")[1]) for line in lines)
    assert all(line.startswith("WINDOW_UPDATE 0") for line in lines)
    assert credit >= 80_000 - 25_000


# --- keepalive and the end of connections --------------------------------------------------------

PING = frames.ping(b"12345678")
PONG = "PING 0 ACK 3132333435363738"


def test_pings_are_answered() -> None:
    wire = Wire()
    assert wire.send(PING) == [PONG]


def test_pings_without_a_call_are_strikes() -> None:
    """grpc-go: without a call even one in a minute is too many; the third strike is out."""
    wire = Wire()
    for _ in range(3):
        assert wire.send(PING) == [PONG]
        wire.now += 60
    assert wire.send(PING) == [PONG, "GOAWAY 0 last=0 ENHANCE_YOUR_CALM too_many_pings"]
    assert wire.conn.closed


def test_pings_during_a_call_may_come_every_five_seconds() -> None:
    wire = Wire()
    wire.send(wire.head(1, STREAM))
    for _ in range(20):
        assert wire.send(PING) == [PONG]
        wire.now += 5.1
    wire.now -= 5.1
    for _ in range(2):
        wire.now += 1
        assert wire.send(PING) == [PONG]
    wire.now += 1
    assert wire.send(PING)[-1] == "GOAWAY 0 last=1 ENHANCE_YOUR_CALM too_many_pings"


def test_answers_forgive_strikes() -> None:
    """Clients measure bandwidth with a ping for each burst of data; that is no abuse."""
    wire = Wire()
    for sid in range(1, 2001, 2):
        assert wire.send(wire.request(sid) + PING) == [*answer(sid, b"hello"), PONG]
    for sid in range(2001, 2021, 2):
        assert wire.send(wire.head(sid, "/t.S/Nope", end=True) + PING)[-1] == PONG


def test_pings_without_calls_can_be_permitted() -> None:
    wire = Wire(limits=replace(LIMITS, permit_without_stream=True))
    for _ in range(20):
        assert wire.send(PING) == [PONG]
        wire.now += 5.1


def test_the_server_pings_a_silent_client_and_then_cuts_it() -> None:
    wire = Wire(limits=replace(LIMITS, keepalive_interval=60.0, keepalive_timeout=20.0))
    wire.tick(30)
    wire.send(wire.request(1))
    assert wire.tick(59) == []
    lines = wire.tick(1.5)
    assert lines == [f"PING 0 {b'kvorum'.hex()}006b"]
    wire.send(frames.ping(b"kvorum\0k", ack=True))
    assert wire.tick(59) == []
    assert len(wire.tick(1.5)) == 1
    assert wire.tick(19) == []
    assert wire.tick(2) == ["GOAWAY 0 last=1 SETTINGS_TIMEOUT keepalive ping not answered"]
    assert wire.conn.closed


def test_draining_lets_calls_finish() -> None:
    wire = Wire()
    wire.send(wire.request(1, path=HOLD))
    wire.conn.drain(wire.now)
    wire.conn.drain(wire.now)
    lines = wire.flush()
    assert lines[0] == "GOAWAY 0 last=2147483647 NO_ERROR"
    assert lines[1].startswith("PING 0 ")
    assert len(lines) == 2
    # A call that crossed with it is still served.
    assert wire.send(wire.request(3)) == answer(3, b"hello")
    pong = frames.ping(bytes.fromhex(lines[1].split()[-1]), ack=True)
    assert wire.send(pong) == ["GOAWAY 0 last=3 NO_ERROR"]
    assert wire.send(wire.request(5)) == ["RST_STREAM 5 REFUSED_STREAM"]
    assert not wire.conn.closed
    wire.calls[0].reply(b"done")
    assert wire.flush() == answer(1, b"done")
    assert wire.conn.closed


def test_draining_does_not_wait_for_a_deaf_client() -> None:
    wire = Wire()
    wire.send(wire.request(1, path=HOLD))
    wire.conn.drain(wire.now)
    wire.flush()
    assert wire.tick(4.9) == []
    assert wire.tick(0.2) == ["GOAWAY 0 last=1 NO_ERROR"]


def test_an_idle_connection_is_drained_at_once() -> None:
    wire = Wire(greet=False)
    wire.conn.drain(wire.now)
    assert wire.flush()[-1] == "GOAWAY 0 last=0 NO_ERROR"
    assert wire.conn.closed


def test_a_status_larger_than_the_client_takes_resets_the_stream() -> None:
    wire = Wire()
    wire.send(frames.settings({Setting.MAX_HEADER_LIST_SIZE: 100}))
    wire.send(wire.request(1, path=HOLD))
    wire.calls[0].fail(3, "x" * 200)
    assert wire.flush() == ["RST_STREAM 1 INTERNAL_ERROR"]


def test_a_long_status_continues_in_more_frames() -> None:
    wire = Wire()
    wire.send(wire.request(1, path=HOLD))
    wire.calls[0].fail(3, "x" * 40_000)
    assert wire.flush() == [failure(1, 3, "x" * 40_000)]


def test_goaway_from_the_client_is_heard_in_silence() -> None:
    wire = Wire()
    assert wire.send(frames.goaway(0, ErrorCode.NO_ERROR)) == []
    assert wire.send(wire.request(1)) == answer(1, b"hello")
