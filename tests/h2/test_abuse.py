"""Hostile peers: one table of what they do and what they get (RFC 9113, RFC 7541).

A stream error costs the stream: the next request on the same connection is served. A connection
error costs the connection, after GOAWAY with the code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from h2wire import Wire, answer, failure, grpc

from kvorum.h2 import frames
from kvorum.h2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PRIORITY_FLAG,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Setting,
    frame,
)
from kvorum.h2.limits import Limits
from kvorum.h2.rules import RULES, SIZES, Action, State

LIMITS = Limits()
PROBE = 99  # the stream that must still be served


@dataclass
class Case:
    name: str
    send: Callable[[Wire], bytes]
    code: str
    sid: int | None = None
    """The stream that is reset; None where the connection ends."""
    limits: Limits = LIMITS
    at_once: bool = False
    """Whether it must come in one read: the connection's window is given back at its end."""


def hold(wire: Wire, sid: int = 1) -> bytes:
    """Open a stream, whose request is not complete."""
    return wire.head(sid, "/t.S/Hold")


def u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def fields_head(*fields: tuple[str, str], end: bool = True) -> Callable[[Wire], bytes]:
    def build(wire: Wire) -> bytes:
        flags = END_HEADERS | (END_STREAM if end else 0)
        return frame(HEADERS, flags, 1, wire.encoder.encode(list(fields)))

    return build


GOOD = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/t.S/Now"),
    ("content-type", "application/grpc"),
)

FRAMES = [
    Case(
        "a frame larger than announced, before its payload",
        lambda w: frame(DATA, 0, 1, b"x" * 16385)[:9],
        "FRAME_SIZE_ERROR",
    ),
    Case("SETTINGS of 5 bytes", lambda w: frame(SETTINGS, 0, 0, b"x" * 5), "FRAME_SIZE_ERROR"),
    Case(
        "SETTINGS ACK with payload", lambda w: frame(SETTINGS, ACK, 0, b"x" * 6), "FRAME_SIZE_ERROR"
    ),
    Case("PING of 7 bytes", lambda w: frame(PING, 0, 0, b"x" * 7), "FRAME_SIZE_ERROR"),
    Case(
        "RST_STREAM of 3 bytes",
        lambda w: hold(w) + frame(RST_STREAM, 0, 1, b"xxx"),
        "FRAME_SIZE_ERROR",
    ),
    Case(
        "WINDOW_UPDATE of 3 bytes", lambda w: frame(WINDOW_UPDATE, 0, 0, b"xxx"), "FRAME_SIZE_ERROR"
    ),
    Case("GOAWAY of 7 bytes", lambda w: frame(GOAWAY, 0, 0, b"x" * 7), "FRAME_SIZE_ERROR"),
    Case(
        "PRIORITY of 4 bytes",
        lambda w: hold(w) + frame(PRIORITY, 0, 1, b"xxxx"),
        "FRAME_SIZE_ERROR",
        1,
    ),
    Case("ENABLE_PUSH 2", lambda w: frames.settings({Setting.ENABLE_PUSH: 2}), "PROTOCOL_ERROR"),
    Case(
        "MAX_FRAME_SIZE 16383",
        lambda w: frames.settings({Setting.MAX_FRAME_SIZE: 16383}),
        "PROTOCOL_ERROR",
    ),
    Case(
        "MAX_FRAME_SIZE 2^24",
        lambda w: frames.settings({Setting.MAX_FRAME_SIZE: 2**24}),
        "PROTOCOL_ERROR",
    ),
    Case(
        "INITIAL_WINDOW_SIZE 2^31",
        lambda w: frames.settings({Setting.INITIAL_WINDOW_SIZE: 2**31}),
        "FLOW_CONTROL_ERROR",
    ),
    Case("PUSH_PROMISE", lambda w: hold(w) + frame(PUSH_PROMISE, 4, 1, u32(2)), "PROTOCOL_ERROR"),
]

PADDING = [
    Case(
        "DATA, pad length as large as the frame",
        lambda w: hold(w) + frame(DATA, PADDED, 1, b"\5xxxx"),
        "PROTOCOL_ERROR",
    ),
    Case(
        "DATA padded, but empty",
        lambda w: hold(w) + frame(DATA, PADDED, 1, b""),
        "FRAME_SIZE_ERROR",
    ),
    Case(
        "HEADERS, pad length too large",
        lambda w: frame(HEADERS, PADDED | END_HEADERS, 1, b"\3x"),
        "PROTOCOL_ERROR",
    ),
    Case(
        "HEADERS without room for priority",
        lambda w: frame(HEADERS, PRIORITY_FLAG | END_HEADERS, 1, b"xxx"),
        "FRAME_SIZE_ERROR",
    ),
]

PRIORITIES = [
    Case(
        "a stream that depends on itself",
        lambda w: hold(w) + frame(PRIORITY, 0, 1, u32(1) + b"x"),
        "PROTOCOL_ERROR",
        1,
    ),
    Case(
        "a head that depends on itself",
        lambda w: frame(HEADERS, PRIORITY_FLAG | END_HEADERS, 1, u32(1) + b"x" + w.block()),
        "PROTOCOL_ERROR",
    ),
]

STREAM_IDS = [
    Case("an even stream id", lambda w: w.head(2), "PROTOCOL_ERROR"),
    Case("a lower stream id", lambda w: w.head(5) + w.head(3), "PROTOCOL_ERROR"),
    Case("a stream id used before", lambda w: w.request(1) + w.head(1), "PROTOCOL_ERROR"),
    Case("DATA on an idle stream", lambda w: frame(DATA, 0, 1, b"x"), "PROTOCOL_ERROR"),
    Case(
        "RST_STREAM on an idle stream", lambda w: frame(RST_STREAM, 0, 1, u32(8)), "PROTOCOL_ERROR"
    ),
    Case(
        "WINDOW_UPDATE on an idle stream",
        lambda w: frame(WINDOW_UPDATE, 0, 1, u32(8)),
        "PROTOCOL_ERROR",
    ),
    Case("DATA on the server's stream", lambda w: frame(DATA, 0, 2, b"x"), "PROTOCOL_ERROR"),
    Case(
        "DATA after END_STREAM",
        lambda w: w.request(1, path="/t.S/Hold") + w.data(1, b"x"),
        "STREAM_CLOSED",
        1,
    ),
    Case(
        "HEADERS after END_STREAM",
        lambda w: w.request(1, path="/t.S/Hold") + w.head(1),
        "STREAM_CLOSED",
        1,
    ),
    Case("DATA on a closed stream", lambda w: w.request(1) + w.data(1, b"x"), "STREAM_CLOSED", 1),
    Case("DATA on stream 0", lambda w: frame(DATA, 0, 0, b"x"), "PROTOCOL_ERROR"),
    Case("HEADERS on stream 0", lambda w: frame(HEADERS, 4, 0, w.block()), "PROTOCOL_ERROR"),
    Case("PRIORITY on stream 0", lambda w: frame(PRIORITY, 0, 0, b"xxxxx"), "PROTOCOL_ERROR"),
    Case("RST_STREAM on stream 0", lambda w: frame(RST_STREAM, 0, 0, u32(8)), "PROTOCOL_ERROR"),
    Case("SETTINGS on a stream", lambda w: hold(w) + frame(SETTINGS, 0, 1, b""), "PROTOCOL_ERROR"),
    Case("PING on a stream", lambda w: hold(w) + frame(PING, 0, 1, b"x" * 8), "PROTOCOL_ERROR"),
    Case("GOAWAY on a stream", lambda w: hold(w) + frame(GOAWAY, 0, 1, b"x" * 8), "PROTOCOL_ERROR"),
]

WINDOWS = [
    Case("a window increment of 0", lambda w: frame(WINDOW_UPDATE, 0, 0, u32(0)), "PROTOCOL_ERROR"),
    Case(
        "a window increment of 0 on a stream",
        lambda w: hold(w) + frame(WINDOW_UPDATE, 0, 1, u32(0)),
        "PROTOCOL_ERROR",
        1,
    ),
    Case(
        "connection window above 2^31-1",
        lambda w: frame(WINDOW_UPDATE, 0, 0, u32(2**31 - 1)),
        "FLOW_CONTROL_ERROR",
    ),
    Case(
        "stream window above 2^31-1",
        lambda w: hold(w) + frame(WINDOW_UPDATE, 0, 1, u32(2**31 - 1)),
        "FLOW_CONTROL_ERROR",
        1,
    ),
    Case(
        "stream window above 2^31-1 by way of SETTINGS",
        lambda w: (
            hold(w)
            + frame(WINDOW_UPDATE, 0, 1, u32(2**31 - 1 - 65535))
            + frames.settings({Setting.INITIAL_WINDOW_SIZE: 65536})
        ),
        "FLOW_CONTROL_ERROR",
    ),
    Case(
        "more than the connection's window",
        lambda w: b"".join(hold(w, sid) + w.data(sid, b"x" * 16384) for sid in (1, 3, 5, 7, 9)),
        "FLOW_CONTROL_ERROR",
        limits=replace(LIMITS, connection_window=65535),
        at_once=True,
    ),
    Case(
        "more than the stream's window",
        lambda w: (
            w.head(1, "/t.S/Stream")
            + w.data(1, grpc(b"x" * 60000)[:9000])
            + w.data(1, b"x" * 16384)
        ),
        "FLOW_CONTROL_ERROR",
        1,
        limits=replace(LIMITS, stream_window=20000),
    ),
]

HEADS = [
    Case("CONTINUATION without a head", lambda w: frame(CONTINUATION, 4, 1, b""), "PROTOCOL_ERROR"),
    Case(
        "another frame within a head",
        lambda w: frame(HEADERS, 0, 1, w.block()) + frames.ping(b"x" * 8),
        "PROTOCOL_ERROR",
    ),
    Case(
        "a CONTINUATION of another stream",
        lambda w: frame(HEADERS, 0, 1, w.block()) + frame(CONTINUATION, 4, 3, b""),
        "PROTOCOL_ERROR",
    ),
    Case(
        "a flood of empty CONTINUATION frames",
        lambda w: frame(HEADERS, 0, 1, w.block()) + frame(CONTINUATION, 0, 1, b"") * 9,
        "ENHANCE_YOUR_CALM",
    ),
    Case(
        "a header block without end",
        lambda w: frame(HEADERS, 0, 1, w.block()) + frame(CONTINUATION, 0, 1, b"\0" * 16384) * 4,
        "ENHANCE_YOUR_CALM",
    ),
    Case(
        "an index beyond the tables", lambda w: frame(HEADERS, 4, 1, b"\xfe"), "COMPRESSION_ERROR"
    ),
    Case("a block cut short", lambda w: frame(HEADERS, 4, 1, w.block()[:-1]), "COMPRESSION_ERROR"),
    Case(
        "an HPACK bomb: one byte for each field of 4 kB",
        lambda w: frame(HEADERS, 4, 1, w.encoder.encode([("x-big", "v" * 4000)]) + b"\xbe" * 9000),
        "FRAME_SIZE_ERROR",
        1,
    ),
]

NUMBER = ("content-length", "7")
MALFORMED = [
    Case(f"malformed head: {name}", build, "PROTOCOL_ERROR", 1)
    for name, build in {
        "uppercase name": fields_head(*GOOD, ("X-A", "1")),
        "space in a name": fields_head(*GOOD, ("x a", "1")),
        "empty name": fields_head(*GOOD, ("", "1")),
        "line break in a value": fields_head(*GOOD, ("x-a", "1\r\nx: 2")),
        "zero byte in a value": fields_head(*GOOD, ("x-a", "1\0")),
        "space around a value": fields_head(*GOOD, ("x-a", " 1")),
        "connection": fields_head(*GOOD, ("connection", "close")),
        "transfer-encoding": fields_head(*GOOD, ("transfer-encoding", "chunked")),
        "te other than trailers": fields_head(*GOOD, ("te", "gzip")),
        "no :method": fields_head(*GOOD[1:]),
        "no :scheme": fields_head(GOOD[0], *GOOD[2:]),
        "no :path": fields_head(*GOOD[:2], GOOD[3]),
        "empty :path": fields_head(*GOOD[:2], (":path", ""), GOOD[3]),
        ":path twice": fields_head(*GOOD[:3], (":path", "/"), GOOD[3]),
        "unknown pseudo field": fields_head((":x", "1"), *GOOD),
        "response's pseudo field": fields_head((":status", "200"), *GOOD),
        "pseudo field after others": fields_head(*GOOD, (":authority", "x")),
        "pseudo field after the timeout": fields_head(
            *GOOD, ("grpc-timeout", "5S"), (":authority", "x")
        ),
        "content-length not a number": fields_head(*GOOD, ("content-length", "-1")),
        "content-length twice": fields_head(*GOOD, NUMBER, ("content-length", "8")),
        "body shorter than content-length": fields_head(*GOOD, NUMBER),
    }.items()
] + [
    Case(
        "body longer than content-length",
        lambda w: w.head(1, "/t.S/Now", NUMBER) + w.data(1, grpc(b"abc")),
        "PROTOCOL_ERROR",
        1,
    ),
    Case(
        "body shorter than content-length, at last",
        lambda w: w.head(1, "/t.S/Now", NUMBER) + w.data(1, grpc(b"a"), end=True),
        "PROTOCOL_ERROR",
        1,
    ),
    Case(
        "a second head that does not end the stream",
        lambda w: hold(w) + w.head(1),
        "PROTOCOL_ERROR",
        1,
    ),
    Case(
        "trailers with a pseudo field",
        lambda w: hold(w) + frame(HEADERS, 5, 1, w.encoder.encode([(":path", "/")])),
        "PROTOCOL_ERROR",
        1,
    ),
]

SMALL = replace(LIMITS, nuisance_burst=10, nuisance_rate=1.0, reset_burst=10, reset_rate=1.0)


def rapid_reset(wire: Wire) -> bytes:
    """CVE-2023-44487."""
    return b"".join(
        wire.request(sid, path="/t.S/Hold") + frames.rst_stream(sid, 8) for sid in range(1, 25, 2)
    )


def made_you_reset(wire: Wire) -> bytes:
    """CVE-2025-8671: the peer has us do the resetting."""
    return b"".join(
        wire.request(sid, path="/t.S/Hold") + frames.window_update(sid, 0)
        for sid in range(1, 25, 2)
    )


FLOODS = [
    Case("SETTINGS", lambda w: frames.settings({}) * 12, "ENHANCE_YOUR_CALM", limits=SMALL),
    Case(
        "PRIORITY",
        lambda w: hold(w) + frame(PRIORITY, 0, 1, b"\0\0\0\0x") * 12,
        "ENHANCE_YOUR_CALM",
        limits=SMALL,
    ),
    Case(
        "unknown frames", lambda w: frame(0x77, 0, 0, b"") * 12, "ENHANCE_YOUR_CALM", limits=SMALL
    ),
    Case(
        "empty DATA",
        lambda w: hold(w) + frame(DATA, 0, 1, b"") * 12,
        "ENHANCE_YOUR_CALM",
        limits=SMALL,
    ),
    Case(
        "padding only",
        lambda w: hold(w) + frame(DATA, PADDED, 1, b"\2xx") * 12,
        "ENHANCE_YOUR_CALM",
        limits=SMALL,
    ),
    Case("rapid reset", rapid_reset, "ENHANCE_YOUR_CALM", limits=SMALL),
    Case("made-you-reset", made_you_reset, "ENHANCE_YOUR_CALM", limits=SMALL),
    Case(
        "DATA on closed streams",
        lambda w: b"".join(w.request(sid) + w.data(sid, b"x") for sid in range(1, 25, 2)),
        "ENHANCE_YOUR_CALM",
        limits=SMALL,
    ),
    Case(
        "heads on closed streams",
        lambda w: w.head(1, "/t.S/Nope") + w.head(1, "/t.S/Nope") * 12,
        "ENHANCE_YOUR_CALM",
        limits=SMALL,
    ),
    Case(
        "resets of closed streams",
        lambda w: w.request(1) + frames.rst_stream(1, 8) * 12,
        "ENHANCE_YOUR_CALM",
        limits=SMALL,
    ),
    Case("PING", lambda w: frames.ping(b"x" * 8) * 4, "ENHANCE_YOUR_CALM"),
]

CASES = [
    *FRAMES,
    *PADDING,
    *PRIORITIES,
    *STREAM_IDS,
    *WINDOWS,
    *HEADS,
    *MALFORMED,
    *FLOODS,
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("bytewise", [False, True], ids=["at once", "byte by byte"])
def test_what_a_hostile_peer_gets(case: Case, bytewise: bool) -> None:
    wire = Wire(limits=case.limits)
    raw = case.send(wire)
    step = len(raw)
    if bytewise and not case.at_once:
        step = 1 if len(raw) < 3000 else 500
    lines: list[str] = []
    for at in range(0, len(raw), step):
        lines += wire.send(raw[at : at + step])
    if case.sid is not None:
        assert f"RST_STREAM {case.sid} {case.code}" in lines
        assert not wire.conn.closed
        wire.encoder = type(wire.encoder)()  # a table of its own may be behind; literals will do
        wire.encoder.header_table_size = 0
        assert wire.send(wire.request(PROBE)) == answer(PROBE, b"hello")
    else:
        assert wire.conn.closed
        assert lines[-1].split()[0] == "GOAWAY"
        assert lines[-1].split()[3] == case.code
        assert wire.send(wire.request(PROBE)) == []
        assert not wire.conn.streams


def test_every_rule_is_what_the_connection_does() -> None:
    """The table against a live connection: each frame type in each state."""
    for (kind, state), verdict in sorted(RULES.items()):
        if kind == CONTINUATION and state is State.ZERO:
            continue  # no different from the others
        wire = Wire()
        sid = _reach(wire, state)
        payload = {HEADERS: wire.block("/t.S/Hold")}.get(kind, b"\1" * SIZES.get(kind, 8))
        flags = END_HEADERS | END_STREAM if kind == HEADERS else 0
        lines = wire.raw(kind, flags, sid, b"" if kind == SETTINGS else payload)
        where = f"{frames.FRAME_NAMES[kind]} in {state.name}"
        if verdict.action is Action.CONNECTION_ERROR:
            assert lines[-1].startswith("GOAWAY"), where
            assert verdict.code.name in lines[-1], where
        elif verdict.action is Action.STREAM_ERROR:
            assert lines == [f"RST_STREAM {sid} {verdict.code.name}"], where
        else:
            assert lines == [], where
            assert not wire.conn.closed, where


def _reach(wire: Wire, state: State) -> int:
    """A stream in that state; its id."""
    if state is State.OPEN:
        wire.send(hold(wire))
    elif state is State.ENDED:
        wire.send(wire.request(1, path="/t.S/Hold"))
    elif state is State.CLOSED:
        wire.send(wire.request(1))
    elif state is State.LINGERING:
        wire.send(wire.head(1, "/t.S/Nope"))
    assert state in (State.ZERO, State.IDLE) or wire.conn.state(1) is state
    return 0 if state is State.ZERO else 1


# --- what is not in the table, since it takes time or a sequence ---------------------------------


def test_floods_are_counted_by_time() -> None:
    wire = Wire(limits=SMALL)
    for _ in range(30):
        wire.now += 1.0
        assert wire.send(frames.settings({})) == ["SETTINGS 0 ACK"]
    assert not wire.conn.closed


def test_a_client_that_calls_what_is_not_there_is_no_attacker() -> None:
    """Its bodies come after the answer, and are passed over."""
    wire = Wire(limits=SMALL)
    for sid in range(1, 2001, 2):
        assert len(wire.send(wire.request(sid, path="/t.S/Nope"))) == 2
    assert not wire.conn.closed
    assert not wire.conn._lingering


def test_resets_within_bounds_cost_nothing() -> None:
    wire = Wire(limits=SMALL)
    for sid in range(1, 41, 2):
        wire.now += 1.0
        assert wire.send(wire.request(sid, path="/t.S/Hold") + frames.rst_stream(sid, 8)) == []
    assert wire.send(wire.request(PROBE)) == answer(PROBE, b"hello")


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nXX", id="another preface"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="HTTP/1.1"),
        pytest.param(PREFACE + frames.ping(b"x" * 8), id="not SETTINGS first"),
        pytest.param(PREFACE + frame(SETTINGS, ACK, 0, b""), id="an ACK of SETTINGS first"),
    ],
)
def test_a_wrong_beginning(start: bytes) -> None:
    wire = Wire(greet=False)
    lines = wire.send(start)
    assert lines[-1].startswith("GOAWAY 0 last=0 PROTOCOL_ERROR")
    assert wire.conn.closed


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(PREFACE[:10], id="half a preface"),
        pytest.param(PREFACE, id="no SETTINGS"),
        pytest.param(PREFACE + frames.settings({})[:5], id="half of SETTINGS"),
    ],
)
def test_a_slow_beginning_ends(sent: bytes) -> None:
    wire = Wire(greet=False)
    wire.send(sent)
    wire.tick(LIMITS.handshake_timeout - 0.5)
    assert not wire.conn.closed
    assert wire.tick(1.0) == ["GOAWAY 0 last=0 SETTINGS_TIMEOUT no preface and SETTINGS"]
    assert wire.conn.closed


@pytest.mark.parametrize("whole", [True, False], ids=["in CONTINUATION", "within a frame"])
def test_a_head_that_drips_ends(whole: bool) -> None:
    wire = Wire()
    raw = frame(HEADERS, 0, 1, wire.block())
    wire.send(raw if whole else raw[:-3])
    for byte in range(2):
        wire.tick(LIMITS.header_timeout / 2 - 1)
        wire.send(frame(CONTINUATION, 0, 1, b"") if whole else raw[-3 + byte :][:1])
        assert not wire.conn.closed
    lines = wire.tick(3.0)
    assert lines[-1].startswith("GOAWAY 0 last=0 ENHANCE_YOUR_CALM")


def test_more_streams_than_allowed_are_refused() -> None:
    wire = Wire(limits=replace(LIMITS, max_concurrent_streams=2), greet=False)
    lines = wire.send(PREFACE + frames.settings({}))
    assert "MAX_CONCURRENT_STREAMS=2" in lines[0]
    for sid in (1, 3):
        assert wire.send(wire.request(sid, path="/t.S/Hold")) == []
    assert wire.send(wire.request(5)) == ["RST_STREAM 5 REFUSED_STREAM"]
    wire.calls[0].reply(b"done")
    assert wire.flush() == answer(1, b"done")
    assert wire.send(wire.request(7)) == answer(7, b"hello")


def test_what_lingers_is_bounded() -> None:
    wire = Wire()
    for sid in range(1, 2001, 2):
        wire.send(wire.head(sid, "/t.S/Nope"))
    assert len(wire.conn._lingering) == LIMITS.max_lingering


def test_unfinished_requests_are_bounded_in_sum() -> None:
    limits = replace(LIMITS, max_receive_backlog=100_000)
    wire = Wire(limits=limits)
    part = grpc(b"x" * 50_000)[:16_000]
    lines = []
    for sid in range(1, 41, 2):
        lines += wire.send(wire.head(sid, "/t.S/Hold") + wire.data(sid, part))
        assert wire.conn.recv_backlog <= limits.max_receive_backlog
    failed = [line for line in lines if "too many request bytes are waiting" in line]
    assert len(failed) == 20 - 6
    assert failed[0] == failure(13, 8, "grpc: too many request bytes are waiting")
    for sid in range(1, 13, 2):
        wire.send(frames.rst_stream(sid, 8))
    assert wire.conn.recv_backlog == 0


def test_a_peer_that_reads_nothing_is_cut() -> None:
    """Replies wait for its window until they are too many."""
    limits = replace(LIMITS, max_send_backlog=100_000)
    wire = Wire(limits=limits)
    lines = wire.send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 0}))
    for sid in range(1, 21, 2):
        lines += wire.send(wire.request(sid, b"x" * 15_000))
        assert wire.conn.backlog <= limits.max_send_backlog
    assert lines[-1] == "GOAWAY 0 last=13 ENHANCE_YOUR_CALM replies are not being read"
    assert wire.conn.closed
    assert wire.conn.backlog == 0


def test_a_peer_whose_windows_do_not_move_is_cut_in_the_end() -> None:
    wire = Wire(limits=replace(LIMITS, stop_reading=10_000))
    wire.send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 0}))
    wire.send(wire.request(1, b"x" * 15_000))
    patience = LIMITS.write_stall_timeout
    assert wire.tick(patience - 1) == []
    # Any progress is enough.
    assert wire.send(frames.window_update(1, 1))[0].startswith("DATA 1")
    assert wire.tick(2) == []
    assert wire.tick(patience - 3) == []
    assert not wire.conn.closed
    assert wire.tick(2) == []
    assert wire.tick(patience)[-1].endswith("ENHANCE_YOUR_CALM replies are not being read")


def test_a_small_backlog_may_wait_for_ever() -> None:
    wire = Wire(limits=replace(LIMITS, stop_reading=10_000))
    wire.send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 0}))
    wire.send(wire.request(1, b"x" * 9_000) + wire.request(3, b"x" * 9_000))
    wire.send(frames.window_update(1, 10_000))
    assert wire.conn.backlog < 10_000
    for _ in range(20):
        assert wire.tick(LIMITS.write_stall_timeout / 2) == []
    assert not wire.conn.closed


def test_one_large_reply_may_exceed_the_backlog() -> None:
    wire = Wire(limits=replace(LIMITS, max_send_backlog=1000))
    wire.send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 0}))
    wire.send(wire.request(1, b"x" * 15_000))
    assert not wire.conn.closed
    lines = wire.send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 65535}))
    assert lines[-1].startswith("HEADERS 1 END grpc-status=0")


def test_the_cache_of_heads_is_bounded() -> None:
    wire = Wire()
    wire.encoder.header_table_size = 0
    for sid in range(1, 1001, 2):
        wire.send(wire.head(sid, "/t.S/Now", ("x-number", str(sid)), end=True))
    assert len(wire.conn._heads) <= LIMITS.head_cache_entries


def test_others_are_served_while_one_misbehaves() -> None:
    """Connections share nothing that an attack could break: a service of its own methods."""
    methods = Wire().usual_methods()
    bad, good = Wire(methods), Wire(methods)
    sid = 1
    for case in CASES:
        if case.limits is LIMITS:
            bad = Wire(methods)
            bad.send(case.send(bad))
            assert good.send(good.request(sid)) == answer(sid, b"hello")
            sid += 2
