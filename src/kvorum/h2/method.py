"""A method that a server offers, with its counters."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvorum.h2.call import Call

_CODES = 17


class Method:
    """``handler(call, message)`` once the request is complete, or, if ``streaming``,
    ``handler(call)`` at its head; that one sets the call's callbacks.

    Counters are plain ints, for an exporter to read: ``started`` calls, ``handled[code]`` ends by
    status, ``received`` and ``sent`` messages.
    """

    __slots__ = ("handled", "handler", "received", "sent", "started", "streaming")

    def __init__(self, handler: Callable[..., Any], streaming: bool = False) -> None:
        self.handler = handler
        self.streaming = streaming
        self.started = 0
        self.handled = [0] * _CODES
        self.received = 0
        self.sent = 0

    def __repr__(self) -> str:
        kind = "streaming" if self.streaming else "unary"
        return f"<Method {kind} started={self.started} handled={sum(self.handled)}>"


UnaryHandler = Callable[["Call", bytes], None]
StreamHandler = Callable[["Call"], None]
