"""The same bytes mean the same, however they are cut, and whichever path they take."""

from __future__ import annotations

from dataclasses import replace

import pytest
from h2wire import Frame, Wire, answer, grpc
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvorum.h2 import frames
from kvorum.h2.frames import DATA, END_HEADERS, END_STREAM, HEADERS, PADDED, PREFACE, frame
from kvorum.h2.limits import Limits

LIMITS = replace(Limits(), max_receive_message=500, max_concurrent_streams=6)

MESSAGES = st.sampled_from([b"", b"a", b"hello", b"x" * 300, b"y" * 501])
PATHS = st.sampled_from(
    ["/t.S/Now", "/t.S/Now", "/t.S/Now", "/t.S/Hold", "/t.S/Stream", "/t.S/None", "bad"]
)
EXTRA = st.sampled_from(
    [
        (),
        (),
        (("x-a", "1"),),
        (("grpc-timeout", "5S"),),
        (("grpc-timeout", "17"),),
        (("grpc-timeout", "0n"),),
        (("content-length", "10"),),
        (("content-length", "11"),),
        (("grpc-encoding", "gzip"),),
        (("grpc-encoding", "snappy"),),
        (("X-Bad", "1"),),
        (("x-bin", "AAEC"),),
        (("x-bin", "?"),),
    ]
)
# What a request may look like on the wire; only the first two take the short path.
SHORT_SHAPES = ["plain", "plain", "late body", "late body"]
LONG_SHAPES = ["padded", "halves", "two", "late end", "flag", "no end", "short"]
SHAPES = st.sampled_from(SHORT_SHAPES + LONG_SHAPES)
REQUESTS = st.tuples(PATHS, EXTRA, MESSAGES, SHAPES)
OTHERS = st.sampled_from(["ping", "update", "reset", "settings", "priority", "unknown", "sid jump"])
SCRIPTS = st.lists(REQUESTS | OTHERS, max_size=12)


def build(wire: Wire, script: list[object]) -> bytes:
    sid = 1
    out = [PREFACE, frames.settings({})]
    late: list[bytes] = []
    for step in script:
        if isinstance(step, tuple):
            path, extra, message, shape = step
            out += [wire.head(sid, path, *extra), body(wire, sid, message, shape)]
            if shape == "late body":  # as clients do that send all heads first
                late.append(out.pop())
            sid += 2
        elif step == "sid jump":
            sid += 10
        else:
            out.append(other(str(step), max(1, sid - 2)))
    return b"".join(out + late)


def body(wire: Wire, sid: int, message: bytes, shape: str) -> bytes:
    data = grpc(message)
    half = len(data) // 2
    if shape == "padded":
        return frame(DATA, PADDED | END_STREAM, sid, b"\3" + data + b"\0\0\0")
    if shape == "halves":
        return wire.data(sid, data[:half]) + wire.data(sid, data[half:], end=True)
    if shape == "two":
        return wire.data(sid, data + data, end=True)
    if shape == "late end":
        return wire.data(sid, data) + wire.data(sid, b"", end=True)
    if shape == "flag":
        return wire.data(sid, grpc(message, 1), end=True)
    if shape == "short":
        return wire.data(sid, data[:-1], end=True)
    return wire.data(sid, data, end=shape != "no end")


def other(kind: str, sid: int) -> bytes:
    return {
        "ping": frames.ping(b"12345678"),
        "update": frames.window_update(0, 100),
        "reset": frames.rst_stream(sid, 8),
        "settings": frames.settings({frames.Setting.INITIAL_WINDOW_SIZE: 70_000}),
        "priority": frame(frames.PRIORITY, 0, sid, b"\0\0\0\0x"),
        "unknown": frame(0x55, 0xFF, sid, b"whatever"),
    }[kind]


def outcome(raw: bytes, cuts: list[int], *, short: bool = True) -> list[str]:
    """All frames that the server sends, what its handlers saw, and its counters."""
    wire = Wire(limits=LIMITS, greet=False)
    if not short:
        wire.conn.on_settled = lambda: None  # type: ignore[method-assign]
    sent: list[Frame] = []
    for at, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        wire.conn.receive(raw[at:end], wire.now)
        sent += wire.frames()
    conn = wire.conn
    counters = [
        f"{path} {method.started} {method.received} {method.sent} {method.handled}"
        for path, method in sorted(conn.service.methods.items())
    ]
    windows = [f"{conn.data_sent} {conn.recv_backlog} {conn.last_sid} {sorted(conn.streams)}"]
    return [*map(str, sent), *wire.seen, *counters, *windows]


@settings(max_examples=300, deadline=None)
@given(SCRIPTS, st.data())
@example([("/t.S/Now", (), b"hello", "plain"), "reset", "sid jump", "update"], None)
def test_any_cuts_give_the_same_outcome(script: list[object], data: st.DataObject | None) -> None:
    raw = build(Wire(greet=False), script)
    whole = outcome(raw, [])
    if data is not None:
        cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=10).map(sorted))
        assert outcome(raw, cuts) == whole
    assert outcome(raw, list(range(1, len(raw)))) == whole


@settings(max_examples=200, deadline=None)
@given(SCRIPTS)
@pytest.mark.plain
def test_the_short_path_does_what_the_general_path_does(script: list[object]) -> None:
    raw = build(Wire(greet=False), script)
    assert outcome(raw, []) == outcome(raw, [], short=False)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), SCRIPTS)
def test_noise_never_raises(noise: bytes, script: list[object]) -> None:
    wire = Wire(limits=LIMITS, greet=False)
    wire.send(build(wire, script) + noise)
    wire.tick(1.0)
    assert wire.conn.recv_backlog >= 0
    assert not wire.reports


@settings(max_examples=200, deadline=None)
@given(SCRIPTS, st.integers(0, 5000), st.integers(0, 255))
def test_a_flipped_byte_never_raises(script: list[object], at: int, byte: int) -> None:
    wire = Wire(limits=LIMITS, greet=False)
    raw = bytearray(build(wire, script))
    raw[at % len(raw)] = byte
    wire.conn.receive(bytes(raw), wire.now)
    wire.conn.take()
    wire.conn.lost()
    assert wire.conn.recv_backlog == 0
    assert wire.conn.backlog == 0
    assert not wire.reports


def test_requests_in_one_read_are_answered_in_one_write() -> None:
    wire = Wire()
    raw = b"".join(wire.request(sid, b"%d" % sid) for sid in range(1, 41, 2))
    lines = wire.send(raw)
    assert lines == [line for sid in range(1, 41, 2) for line in answer(sid, b"%d" % sid)]
    assert wire.woken == 0


@pytest.mark.plain
def test_the_short_path_is_taken() -> None:
    """Or the tests above would compare the general path with itself."""
    wire = Wire()
    general: list[int] = []
    frame_at = wire.conn._frame_at

    def counting(data: bytes, pos: int, end: int) -> int:
        general.append(pos)
        return frame_at(data, pos, end)

    wire.conn._frame_at = counting  # type: ignore[method-assign]
    wire.send(wire.request(1) + wire.request(3))
    wire.send(wire.head(5) + wire.head(7, "/t.S/Now", ("grpc-timeout", "7S")))
    wire.send(wire.data(7, grpc(b"x"), end=True) + wire.data(5, grpc(b"x"), end=True))
    assert general == []
    wire.conn.short = False
    assert wire.send(wire.request(9)) == answer(9, b"hello")
    assert len(general) == 2


def test_a_block_learnt_before_a_table_change_is_forgotten() -> None:
    """The same bytes mean another path after an insertion; the cache must not say otherwise."""
    wire = Wire()
    wire.send(wire.request(1) + wire.request(3))
    block = wire.block()  # now all indexed
    assert block in wire.conn._heads
    wire.send(wire.head(5, "/t.S/None", end=True))
    assert block not in wire.conn._heads
    renamed = frame(HEADERS, END_HEADERS, 7, block) + wire.data(7, grpc(b"?"), end=True)
    assert wire.send(renamed) != answer(7, b"?")
