"""Sizes as log lines have them."""

from __future__ import annotations

from typing import Final

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def humane_size(size: int) -> str:
    """Bytes in the largest unit (powers of 1000) that leaves at least 1: ``25 kB``, ``1.5 MB``."""
    value, unit = float(size), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value /= 1000
        unit += 1
    return f"{value:.1f} {_UNITS[unit]}" if unit and value < 9.95 else f"{value:.0f} {_UNITS[unit]}"
