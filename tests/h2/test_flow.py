"""Flow control in both directions, and what waits for whom."""

from __future__ import annotations

from dataclasses import replace

from h2wire import OK_HEAD, OK_TAIL, Wire, answer, grpc

from kvorum.h2 import frames
from kvorum.h2.frames import Setting
from kvorum.h2.limits import Limits

LIMITS = Limits()
NOW, HOLD, STREAM = "/t.S/Now", "/t.S/Hold", "/t.S/Stream"


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
