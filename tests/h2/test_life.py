"""Keepalive, draining, and other ends of connections."""

from __future__ import annotations

from dataclasses import replace

from h2wire import Wire, answer, failure

from kvorum.h2 import frames
from kvorum.h2.frames import ErrorCode, Setting
from kvorum.h2.limits import Limits

LIMITS = Limits()
NOW, HOLD, STREAM = "/t.S/Now", "/t.S/Hold", "/t.S/Stream"


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
