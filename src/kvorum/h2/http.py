"""Plain HTTP requests and responses, whichever version brought them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, Protocol

Headers = list[tuple[str, str]]
Certificate = Mapping[str, Any]


class BodySource:
    """A request body that is taken as it comes, for requests too large to be held.

    ``read`` gives what is here, empty if nothing is; ``ended`` tells that all has come, ``lost``
    that the rest never will. ``on_ready`` is called when any of these changes. ``held`` bytes wait
    to be read; the connection reads no more while they are too many.
    """

    __slots__ = ("_on_read", "_parts", "ended", "held", "lost", "on_ready")

    def __init__(self, on_read: Callable[[], None]) -> None:
        self.held = 0
        self.ended = False
        self.lost = False
        self.on_ready: Callable[[], None] | None = None
        self._on_read = on_read
        self._parts: list[bytes] = []

    def read(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        self.held = 0
        if data:
            self._on_read()
        return data

    def feed(self, data: bytes) -> None:
        self._parts.append(data)
        self.held += len(data)
        self._ready()

    def end(self) -> None:
        self.ended = True
        self._ready()

    def lose(self) -> None:
        self.lost = not self.ended
        self._ready()

    def _ready(self) -> None:
        if self.on_ready is not None:
            self.on_ready()


@dataclass(slots=True)
class HttpRequest:
    """A complete request. ``path`` is as sent (still percent-encoded), without the query;
    header names are lowercase; ``peer`` is the client's address as text."""

    method: str
    path: str
    query: str
    headers: Headers
    body: bytes
    version: str
    peer: str = ""
    secure: bool = False
    certificate: Certificate | None = None
    """What the client proved by TLS, as ``SSLSocket.getpeercert`` gives it."""
    source: BodySource | None = None
    """The body, where the server was told to hand it over as it comes; ``body`` is then empty."""

    def header(self, name: str, default: str = "") -> str:
        """The first value of the header (lowercase name)."""
        for key, value in self.headers:
            if key == name:
                return value
        return default


@dataclass(slots=True)
class HttpResponse:
    """``body`` is bytes, or an async iterator of chunks for an answer that grows, or a function
    that takes over the ``Answer``, whose head is sent, and writes to it for as long as it likes.
    Length and connection headers are added by the engine."""

    status: int = 200
    body: bytes | AsyncIterator[bytes] | Callable[[Answer], None] = b""
    headers: Headers = field(default_factory=list)


HttpHandler = Callable[[HttpRequest], HttpResponse | Awaitable[HttpResponse]]
WantsSource = Callable[[HttpRequest], bool]
"""Whether the body of this request (its head is there) is to come as a ``BodySource``."""


class Answer(Protocol):
    """Where a response goes. ``backlog`` bytes wait for the client; ``on_writable`` fires when
    they have become few, ``on_cancel`` when the client is gone. Calls after that do nothing."""

    backlog: int
    on_writable: Callable[[], None] | None
    on_cancel: Callable[[], None] | None

    def begin(self, status: int, headers: Headers, length: int | None) -> None:
        """The head; ``length`` of the body if known."""

    def write(self, data: bytes) -> None: ...

    def end(self) -> None: ...

    def abort(self) -> None:
        """The body cannot be completed; the client must be able to tell."""


def reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Status"


def split_target(target: str) -> tuple[str, str]:
    """Path and query of a request target; the absolute form loses its authority."""
    if not target.startswith(("/", "*")):
        _, _, rest = target.partition("://")
        target = "/" + rest.partition("/")[2]
    path, _, query = target.partition("?")
    return path, query


PLAIN_TEXT: Final = "text/plain; charset=utf-8"


def text_response(status: int, text: str) -> HttpResponse:
    """A plain error answer as Go's net/http gives it, newline included."""
    headers = [("content-type", PLAIN_TEXT), ("x-content-type-options", "nosniff")]
    return HttpResponse(status, text.encode() + b"\n", headers)
