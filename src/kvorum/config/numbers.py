"""Numbers and booleans, written as Go's flag package reads them."""

from __future__ import annotations

import re
from typing import Final

_TRUE: Final = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "false", "FALSE", "False"})
_INT: Final = re.compile(r"([+-]?)(0[xX]|0[bB]|0[oO]|0(?=[0-9_]))?([0-9a-fA-F]+(?:_[0-9a-fA-F]+)*)")
_BASES: Final = {"": 10, "0x": 16, "0b": 2, "0o": 8, "0": 8}


def parse_bool(text: str) -> bool:
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError("parse error (true or false is wanted)")


def parse_int(text: str, low: int, high: int) -> int:
    """A whole number, also as 0x10, 0o17, 017, 0b1 or 1_000, from `low` to `high`."""
    match = _INT.fullmatch(text)
    if match is None or (match.group(1) and low >= 0):
        raise ValueError("parse error (a whole number is wanted)")
    try:
        value = int(match.group(3).replace("_", ""), _BASES[(match.group(2) or "").lower()])
    except ValueError:
        raise ValueError("parse error (a whole number is wanted)") from None
    if match.group(1) == "-":
        value = -value
    if not low <= value <= high:
        raise ValueError(f"value out of range ({low} to {high})")
    return value
