"""Go's notation for a span of time ("1h0m0.5s"), which etcd uses in flags, logs and failpoints.

Spans are integer nanoseconds here, as in Go, so that nothing is lost on the way in or out.
"""

from __future__ import annotations

import re
from typing import Final

NANOSECOND: Final = 1
MICROSECOND: Final = 1_000
MILLISECOND: Final = 1_000_000
SECOND: Final = 1_000_000_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE

MAX_NANOSECONDS: Final = (1 << 63) - 1
"""Go keeps a duration in a signed 64-bit integer, about 292 years."""

_UNITS: Final = {
    "ns": NANOSECOND,
    "us": MICROSECOND,
    "µs": MICROSECOND,  # U+00B5, micro sign
    "μs": MICROSECOND,  # U+03BC, Greek letter mu (Go accepts both)
    "ms": MILLISECOND,
    "s": SECOND,
    "m": MINUTE,
    "h": HOUR,
}
_PART: Final = re.compile(r"([0-9]*)(?:\.([0-9]*))?([^0-9.]+)")


def parse(text: str) -> int:
    """Nanoseconds of `text`: an optional sign, then numbers each with a unit, or a bare 0.

    Raises ValueError with a text that names what is missing or unknown.
    """
    unsigned = text[1:] if text[:1] in ("+", "-") else text
    if unsigned == "0":
        return 0
    if not unsigned:
        raise ValueError(f'invalid duration "{text}"')
    total = sum(_parts(text, unsigned))
    if total > MAX_NANOSECONDS:
        raise ValueError(f'invalid duration "{text}": longer than 292 years')
    return -total if text[0] == "-" else total


def _parts(text: str, unsigned: str) -> list[int]:
    parts, at = [], 0
    while at < len(unsigned):
        match = _PART.match(unsigned, at)
        if match is None:
            raise ValueError(f'missing unit in duration "{text}" (ns, us, ms, s, m or h)')
        whole, fraction, unit = match.group(1), match.group(2) or "", match.group(3)
        if not (whole or fraction):
            raise ValueError(f'invalid duration "{text}"')
        scale = _UNITS.get(unit)
        if scale is None:
            raise ValueError(f'unknown unit "{unit}" in duration "{text}" (ns, us, ms, s, m or h)')
        parts.append(
            int(whole or "0") * scale + int(fraction or "0") * scale // 10 ** len(fraction)
        )
        at = match.end()
    return parts


def render(nanoseconds: int) -> str:
    """The shortest exact form, as Go prints it: 0s, 1.5µs, 100ms, 2h0m0s."""
    if nanoseconds < 0:
        return "-" + render(-nanoseconds)
    if nanoseconds < SECOND:
        return _small(nanoseconds)
    minutes, rest = divmod(nanoseconds, MINUTE)
    hours, minutes = divmod(minutes, 60)
    seconds = _decimal(rest, SECOND) + "s"
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds


def _small(nanoseconds: int) -> str:
    if nanoseconds == 0:
        return "0s"
    if nanoseconds < MICROSECOND:
        return f"{nanoseconds}ns"
    if nanoseconds < MILLISECOND:
        return _decimal(nanoseconds, MICROSECOND) + "µs"
    return _decimal(nanoseconds, MILLISECOND) + "ms"


def _decimal(value: int, scale: int) -> str:
    whole, rest = divmod(value, scale)
    if not rest:
        return str(whole)
    return f"{whole}.{str(rest + scale)[1:].rstrip('0')}"
