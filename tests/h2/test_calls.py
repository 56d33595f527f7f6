"""Stories of calls: what the client sends, and every frame that comes back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from h2wire import OK_HEAD, OK_TAIL, Wire, answer, failure, grpc

from kvorum.errors import Code, EmptyKey
from kvorum.h2 import frames
from kvorum.h2.call import Call
from kvorum.h2.frames import ConnectionFault, Setting
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
