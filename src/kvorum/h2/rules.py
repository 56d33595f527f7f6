"""Which frame is allowed in which stream state: the receiving side of RFC 9113 section 5.1.

The table is the whole of it and does not care which side we are. A pair that is absent is allowed.
What "stream error" and "connection error" lead to is decided elsewhere.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

from kvorum.h2.frames import (
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ErrorCode,
)


class State(IntEnum):
    """A stream as its receiving side sees it."""

    ZERO = 0
    """Not a stream: identifier 0, the connection itself."""
    IDLE = 1
    """Not opened yet."""
    OPEN = 2
    """The peer may send: open, or half-closed (local)."""
    ENDED = 3
    """The peer has sent END_STREAM, we have not: half-closed (remote)."""
    LINGERING = 4
    """Closed by us while the peer had not finished; frames may still be under way."""
    CLOSED = 5


class Action(IntEnum):
    ACCEPT = 0
    IGNORE = 1
    STREAM_ERROR = 2
    CONNECTION_ERROR = 3


class Verdict(NamedTuple):
    action: Action
    code: ErrorCode
    section: str


ACCEPT: Final = Verdict(Action.ACCEPT, ErrorCode.NO_ERROR, "")

_PROTOCOL = ErrorCode.PROTOCOL_ERROR
_CLOSED = ErrorCode.STREAM_CLOSED


def _ignore(section: str) -> Verdict:
    return Verdict(Action.IGNORE, ErrorCode.NO_ERROR, section)


def _stream(code: ErrorCode, section: str) -> Verdict:
    return Verdict(Action.STREAM_ERROR, code, section)


def _connection(code: ErrorCode, section: str) -> Verdict:
    return Verdict(Action.CONNECTION_ERROR, code, section)


RULES: Final[dict[tuple[int, State], Verdict]] = {
    (DATA, State.ZERO): _connection(_PROTOCOL, "6.1: DATA belongs to a stream"),
    (DATA, State.IDLE): _connection(_PROTOCOL, "5.1: only HEADERS and PRIORITY while idle"),
    (DATA, State.ENDED): _stream(_CLOSED, "5.1: nothing after END_STREAM"),
    (DATA, State.LINGERING): _ignore("5.1: may have been sent before our RST_STREAM arrived"),
    (DATA, State.CLOSED): _stream(_CLOSED, "6.1: stream neither open nor half-closed"),
    (HEADERS, State.ZERO): _connection(_PROTOCOL, "6.2: HEADERS belongs to a stream"),
    (HEADERS, State.ENDED): _stream(_CLOSED, "5.1: nothing after END_STREAM"),
    (HEADERS, State.LINGERING): _ignore("5.1: may have been sent before our RST_STREAM arrived"),
    (HEADERS, State.CLOSED): _connection(_PROTOCOL, "5.1.1: a new stream needs a higher id"),
    (PRIORITY, State.ZERO): _connection(_PROTOCOL, "6.3: PRIORITY belongs to a stream"),
    (RST_STREAM, State.ZERO): _connection(_PROTOCOL, "6.4: RST_STREAM belongs to a stream"),
    (RST_STREAM, State.IDLE): _connection(_PROTOCOL, "6.4: not in state idle"),
    (RST_STREAM, State.LINGERING): _ignore("5.1: crossing with our own"),
    (RST_STREAM, State.CLOSED): _ignore("5.1: the peer may not know yet that it is closed"),
    (SETTINGS, State.IDLE): _connection(_PROTOCOL, "6.5: SETTINGS belongs to the connection"),
    (SETTINGS, State.OPEN): _connection(_PROTOCOL, "6.5: SETTINGS belongs to the connection"),
    (SETTINGS, State.ENDED): _connection(_PROTOCOL, "6.5: SETTINGS belongs to the connection"),
    (SETTINGS, State.LINGERING): _connection(_PROTOCOL, "6.5: SETTINGS belongs to the connection"),
    (SETTINGS, State.CLOSED): _connection(_PROTOCOL, "6.5: SETTINGS belongs to the connection"),
    (PUSH_PROMISE, State.ZERO): _connection(_PROTOCOL, "6.6: PUSH_PROMISE belongs to a stream"),
    (PUSH_PROMISE, State.IDLE): _connection(_PROTOCOL, "8.4: push is off"),
    (PUSH_PROMISE, State.OPEN): _connection(_PROTOCOL, "8.4: push is off"),
    (PUSH_PROMISE, State.ENDED): _connection(_PROTOCOL, "8.4: push is off"),
    (PUSH_PROMISE, State.LINGERING): _connection(_PROTOCOL, "8.4: push is off"),
    (PUSH_PROMISE, State.CLOSED): _connection(_PROTOCOL, "8.4: push is off"),
    (PING, State.IDLE): _connection(_PROTOCOL, "6.7: PING belongs to the connection"),
    (PING, State.OPEN): _connection(_PROTOCOL, "6.7: PING belongs to the connection"),
    (PING, State.ENDED): _connection(_PROTOCOL, "6.7: PING belongs to the connection"),
    (PING, State.LINGERING): _connection(_PROTOCOL, "6.7: PING belongs to the connection"),
    (PING, State.CLOSED): _connection(_PROTOCOL, "6.7: PING belongs to the connection"),
    (GOAWAY, State.IDLE): _connection(_PROTOCOL, "6.8: GOAWAY belongs to the connection"),
    (GOAWAY, State.OPEN): _connection(_PROTOCOL, "6.8: GOAWAY belongs to the connection"),
    (GOAWAY, State.ENDED): _connection(_PROTOCOL, "6.8: GOAWAY belongs to the connection"),
    (GOAWAY, State.LINGERING): _connection(_PROTOCOL, "6.8: GOAWAY belongs to the connection"),
    (GOAWAY, State.CLOSED): _connection(_PROTOCOL, "6.8: GOAWAY belongs to the connection"),
    (WINDOW_UPDATE, State.IDLE): _connection(
        _PROTOCOL, "5.1: only HEADERS and PRIORITY while idle"
    ),
    (WINDOW_UPDATE, State.LINGERING): _ignore("5.1: the peer may not know yet"),
    (WINDOW_UPDATE, State.CLOSED): _ignore("5.1: the peer may not know yet"),
    # A CONTINUATION that is due never gets here.
    (CONTINUATION, State.ZERO): _connection(_PROTOCOL, "6.10: no head to continue"),
    (CONTINUATION, State.IDLE): _connection(_PROTOCOL, "6.10: no head to continue"),
    (CONTINUATION, State.OPEN): _connection(_PROTOCOL, "6.10: no head to continue"),
    (CONTINUATION, State.ENDED): _connection(_PROTOCOL, "6.10: no head to continue"),
    (CONTINUATION, State.LINGERING): _connection(_PROTOCOL, "6.10: no head to continue"),
    (CONTINUATION, State.CLOSED): _connection(_PROTOCOL, "6.10: no head to continue"),
}

SIZES: Final[dict[int, int]] = {
    PRIORITY: 5,  # 6.3, a stream error where the others are connection errors
    RST_STREAM: 4,  # 6.4
    PING: 8,  # 6.7
    WINDOW_UPDATE: 4,  # 6.9
}
"""Frame types whose payload has one possible length; any other is a FRAME_SIZE_ERROR."""

STATE_BITS: Final = 3
_states: Final = {int(state): state for state in State}

VERDICTS: Final[tuple[Verdict, ...]] = tuple(
    RULES.get((kind, state), ACCEPT) if (state := _states.get(low)) is not None else ACCEPT
    for kind in range(CONTINUATION + 1)
    for low in range(1 << STATE_BITS)
)
"""The table again, for the frame loop: at ``kind << STATE_BITS | state``."""
