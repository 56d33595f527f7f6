"""gRPC's words on the wire: status and message, timeouts, binary metadata, content types."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final
from urllib.parse import unquote_to_bytes

from kvorum.errors import Code

_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}

# The message may hold printable ASCII except the percent sign; the rest is escaped byte by byte.
# So is a space at either end, where a field value must not have one (RFC 9113 section 8.2.1).
_ESCAPED: Final = re.compile(rb"[^ -$&-~]|\A | \Z")


class RpcError(Exception):
    """A call ended with a status other than OK. ``code`` and ``message`` are the peer's, or ours
    if it never answered; ``trailers`` are (name, value) pairs."""

    def __init__(
        self, code: int, message: str, trailers: list[tuple[str, str]] | None = None
    ) -> None:
        super().__init__(code, message)
        self.code: int = code
        self.message = message
        self.trailers = trailers or []

    def __str__(self) -> str:
        name = Code(self.code).name if self.code in _CODES else str(self.code)
        return f"{name}: {self.message}"


_CODES: Final = frozenset(int(code) for code in Code)


def encode_message(message: str) -> bytes:
    """grpc-message: percent-encoded UTF-8."""
    raw = message.encode("utf-8", "replace")
    return _ESCAPED.sub(lambda found: b"%%%02X" % ord(found[0]), raw)


def decode_message(raw: bytes) -> str:
    return unquote_to_bytes(raw).decode("utf-8", "replace")


def decode_timeout(raw: bytes) -> float | None:
    """grpc-timeout in seconds; None if it is malformed."""
    unit = _UNITS.get(raw[-1:])
    digits = raw[:-1]
    if unit is None or not digits.isdigit() or len(digits) > 8:
        return None
    return int(digits) * unit


def timeout_problem(raw: bytes) -> str:
    """What is wrong with a malformed timeout, in grpc-go's words."""
    quoted = go_quote(raw.decode("utf-8", "replace"))
    if len(raw) < 2:
        return f"transport: timeout string is too short: {quoted}"
    if len(raw) > 9:
        return f"transport: timeout string is too long: {quoted}"
    if raw[-1:] not in _UNITS:
        return f"transport: timeout unit is not recognized: {quoted}"
    digits = go_quote(raw[:-1].decode("utf-8", "replace"))
    return f"strconv.ParseUint: parsing {digits}: invalid syntax"


_MAX_TIMEOUT_DIGITS: Final = 99_999_999


def encode_timeout(seconds: float) -> bytes:
    """grpc-timeout for what is left, at least a nanosecond, in the finest unit that fits."""
    left = max(seconds, 1e-9)
    for unit, scale in (("n", 1e9), ("u", 1e6), ("m", 1e3), ("S", 1.0), ("M", 1 / 60)):
        value = int(left * scale)
        if value <= _MAX_TIMEOUT_DIGITS:
            return f"{max(value, 1)}{unit}".encode()
    return b"%dH" % min(int(left / 3600), _MAX_TIMEOUT_DIGITS)


def decode_binary(raw: bytes) -> bytes:
    """A -bin value: base64, padded or not; ValueError otherwise."""
    try:
        return base64.b64decode(raw + b"=" * (-len(raw) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None


def encode_metadata(name: str, value: str | bytes) -> tuple[bytes, bytes]:
    """A metadata pair as header field: the name lowercase, -bin values in base64."""
    raw = (
        value.encode("latin-1" if name.endswith("-bin") else "utf-8")
        if isinstance(value, str)
        else value
    )
    key = name.lower().encode("ascii")
    if key.endswith(b"-bin"):
        return key, base64.b64encode(raw).rstrip(b"=")
    return key, raw


def is_grpc(content_type: bytes) -> bool:
    """application/grpc, alone or with a subtype after ``+`` or ``;``."""
    return content_type.startswith(b"application/grpc") and content_type[16:17] in (b"", b"+", b";")


_GO_ESCAPES: Final = {
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
    "\\": "\\\\",
    '"': '\\"',
}


def go_quote(text: str) -> str:
    """The text as Go's %q prints it; clients see such messages."""
    out = []
    for char in text:
        if char in _GO_ESCAPES:
            out.append(_GO_ESCAPES[char])
        elif char.isprintable():
            out.append(char)
        elif ord(char) < 0x80:
            out.append(f"\\x{ord(char):02x}")
        else:
            out.append(f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}")
    return '"' + "".join(out) + '"'
