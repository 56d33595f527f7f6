"""From the fields of a request to what the server needs to know of it, decided once.

Clients repeat themselves: a head is checked and resolved when it is first seen, and found again by
its raw bytes or by its fields. A ``RequestHead`` never changes after it was built.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from kvorum.errors import Code
from kvorum.h2.frames import ErrorCode, StreamFault
from kvorum.h2.hpack import Field, encode
from kvorum.h2.method import Method
from kvorum.h2.status import (
    decode_binary,
    decode_timeout,
    encode_message,
    go_quote,
    is_grpc,
    timeout_problem,
)

# RFC 9113 section 8.2.1, with the token characters of RFC 9110 section 5.6.2 in lower case.
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_BAD_VALUE: Final = re.compile(rb"[\x00\r\n]|\A[ \t]|[ \t]\Z")
_PSEUDO: Final = frozenset((b":method", b":scheme", b":path", b":authority"))
# Section 8.2.2: fields of an HTTP/1.1 connection.
_CONNECTION_FIELDS: Final = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
)
# Not metadata: gRPC's own, as in grpc-go.
_RESERVED: Final = frozenset(
    (
        b"grpc-message-type",
        b"grpc-encoding",
        b"grpc-message",
        b"grpc-status",
        b"grpc-timeout",
        b"te",
    )
)

GRPC_ACCEPT_ENCODING: Final = (b"grpc-accept-encoding", b"gzip")
_GRPC_TYPE: Final = (b"content-type", b"application/grpc")


class Refusal:
    """An answer that is clear from the head alone, as a ready trailers-only block."""

    __slots__ = ("block", "code", "message")

    def __init__(
        self, code: Code, message: str, *, http: int = 200, extra: tuple[Field, ...] = ()
    ) -> None:
        self.code = code
        self.message = message
        self.block = refusal_block(code, message, http=http, extra=extra)


def refusal_block(
    code: int, message: str, *, http: int = 200, extra: tuple[Field, ...] = ()
) -> bytes:
    """The head of a trailers-only answer."""
    return encode(
        [
            (b":status", b"%d" % http),
            _GRPC_TYPE,
            (b"grpc-status", b"%d" % code),
            (b"grpc-message", encode_message(message)),
            *extra,
        ]
    )


class RequestHead:
    """One request head.

    ``method`` is None unless it is a gRPC call that can go on; ``refusal`` says why not, and is
    None for plain HTTP. ``fast`` is the method if it is unary, so that a call may take the short
    path.
    """

    __slots__ = (
        "_base",
        "_metadata",
        "content_length",
        "fast",
        "fields",
        "gzip",
        "method",
        "path",
        "refusal",
        "timeout",
    )

    def __init__(self, fields: tuple[Field, ...], path: str) -> None:
        self.fields = fields
        self.path = path
        self.method: Method | None = None
        self.refusal: Refusal | None = None
        self.fast: Method | None = None
        self.timeout: float | None = None
        self.gzip = False
        self.content_length: int | None = None
        self._base: RequestHead | None = None
        self._metadata: list[tuple[str, str]] | None = None

    def with_timeout(self, timeout: float) -> RequestHead:
        """The same head with another timeout."""
        twin = RequestHead(self.fields, self.path)
        twin.method = self.method
        twin.refusal = self.refusal
        twin.fast = self.fast
        twin.timeout = timeout
        twin.gzip = self.gzip
        twin.content_length = self.content_length
        twin._base = self
        return twin

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """What the client said beyond gRPC's own fields. Shared by calls: do not change it.

        -bin values are decoded; their bytes are the str's characters (latin-1).
        """
        if self._base is not None:
            return self._base.metadata
        found = self._metadata
        if found is None:
            found = self._metadata = [_metadata_pair(f) for f in self.fields if _is_metadata(f[0])]
        return found

    def get(self, name: bytes) -> bytes:
        """The value of the field, or empty."""
        for key, value in self.fields:
            if key == name:
                return value
        return b""


def _is_metadata(name: bytes) -> bool:
    if name[:1] == b":":
        return name == b":authority"
    return name not in _RESERVED


def _metadata_pair(field: Field) -> tuple[str, str]:
    name, value = field
    if name.endswith(b"-bin"):
        return name.decode("ascii"), decode_binary(value).decode("latin-1")
    return name.decode("ascii"), value.decode("utf-8", "surrogateescape")


def _malformed(sid: int, reason: str) -> StreamFault:
    return StreamFault(sid, ErrorCode.PROTOCOL_ERROR, f"malformed request: {reason}")


def check_fields(sid: int, fields: list[Field], allowed: frozenset[bytes]) -> dict[bytes, bytes]:
    """The pseudo-header fields of a head that obeys RFC 9113 section 8.2 and 8.3."""
    pseudo: dict[bytes, bytes] = {}
    regular = False
    for name, value in fields:
        if name[:1] == b":":
            if regular or name not in allowed or name in pseudo:
                raise _malformed(sid, f"unexpected {name.decode('latin-1')}")
            pseudo[name] = value
        else:
            regular = True
            if not _NAME.fullmatch(name) or name in _CONNECTION_FIELDS:
                raise _malformed(sid, "field name")
            if name == b"te" and value != b"trailers":
                raise _malformed(sid, "te")
        if _BAD_VALUE.search(value):
            raise _malformed(sid, "field value")
    return pseudo


def check_trailers(sid: int, fields: list[Field] | None, end: bool) -> None:
    """Trailers of a request: section 8.1, they end the stream and have no pseudo-header fields."""
    if fields is None:
        raise StreamFault(sid, ErrorCode.FRAME_SIZE_ERROR, "trailers too large")
    if not end:
        raise _malformed(sid, "second head without END_STREAM")
    check_fields(sid, fields, frozenset())


def build_head(
    sid: int, fields: list[Field], methods: Mapping[str, Method], *, http: bool
) -> RequestHead:
    """Check and resolve a head; StreamFault if it breaks RFC 9113 section 8.3.1."""
    pseudo = check_fields(sid, fields, _PSEUDO)
    verb = pseudo.get(b":method")
    path = pseudo.get(b":path")
    if not verb or not path or b":scheme" not in pseudo:
        raise _malformed(sid, "pseudo-header field missing")
    head = RequestHead(tuple(fields), path.decode("utf-8", "surrogateescape"))
    head.content_length = _content_length(sid, fields)
    if not is_grpc(head.get(b"content-type")):
        if not http or head.path in methods:
            head.refusal = _not_grpc(head)
        return head
    head.refusal = _refusal(head, verb, methods)
    if head.refusal is None:
        head.method = methods[head.path]
        if not head.method.streaming:
            head.fast = head.method
    return head


def _content_length(sid: int, fields: list[Field]) -> int | None:
    values = {value for name, value in fields if name == b"content-length"}
    if not values:
        return None
    text = values.pop()
    if values or not text.isdigit() or len(text) > 18:
        raise _malformed(sid, "content-length")
    return int(text)


def _not_grpc(head: RequestHead) -> Refusal:
    kind = go_quote(head.get(b"content-type").decode("utf-8", "replace"))
    return Refusal(Code.INVALID_ARGUMENT, f"invalid gRPC request content-type {kind}", http=415)


def _refusal(head: RequestHead, verb: bytes, methods: Mapping[str, Method]) -> Refusal | None:
    """grpc-go's checks in grpc-go's order and words."""
    problem = _bad_field(head)
    if problem:
        return Refusal(Code.INTERNAL, problem, http=400)
    if verb != b"POST":
        name = go_quote(verb.decode("latin-1"))
        text = f"Received a HEADERS frame with :method {name} which should be POST"
        return Refusal(Code.INTERNAL, text, http=405)
    if head.timeout is not None and head.timeout <= 0:
        return Refusal(Code.DEADLINE_EXCEEDED, "context deadline exceeded")
    if head.path not in methods:
        return Refusal(Code.UNIMPLEMENTED, _unknown(head.path, methods))
    encoding = head.get(b"grpc-encoding")
    head.gzip = encoding == b"gzip"
    if encoding not in (b"", b"identity", b"gzip"):
        name = go_quote(encoding.decode("utf-8", "replace"))
        text = f"grpc: Decompressor is not installed for grpc-encoding {name}"
        return Refusal(Code.UNIMPLEMENTED, text, extra=(GRPC_ACCEPT_ENCODING,))
    return None


def _bad_field(head: RequestHead) -> str:
    for name, value in head.fields:
        if name == b"grpc-timeout":
            head.timeout = decode_timeout(value)
            if head.timeout is None:
                return f"malformed grpc-timeout: {timeout_problem(value)}"
        elif name.endswith(b"-bin") and name not in _RESERVED:
            try:
                decode_binary(value)
            except ValueError as error:
                text, key = (go_quote(raw.decode("utf-8", "replace")) for raw in (value, name))
                return f"malformed binary metadata {text} in header {key}: {error}"
    return ""


def _unknown(path: str, methods: Mapping[str, Method]) -> str:
    """Why there is no such method, in grpc-go's words."""
    service, slash, method = path[1:].rpartition("/")
    if path[0] != "/" or not slash:
        return f"malformed method name: {go_quote(path)}"
    if any(known.startswith(f"/{service}/") for known in methods):
        return f"unknown method {method} for service {service}"
    return f"unknown service {service}"
