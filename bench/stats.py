"""The few statistics the reports need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Summary:
    """Smallest, middle and largest of a metric's values over the rounds."""

    low: float
    middle: float
    high: float


def summarize(values: Sequence[float]) -> Summary:
    """The summary of at least one value."""
    if not values:
        raise ValueError("nothing to summarize")
    return Summary(min(values), median(values), max(values))


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` % of the ascending values do not exceed."""
    if not ordered:
        raise ValueError("a percentile of nothing")
    if not 0 <= percent <= 100:
        raise ValueError(f"a percentile of {percent} %")
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def ratio(value: float, base: float) -> float:
    """``value / base``; not a number when the base is zero."""
    return value / base if base else math.nan


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The median of the slopes between all pairs of (x, y) points (Theil-Sen).

    Unlike least squares it is not moved by a few outliers, such as one garbage collection. Zero
    for fewer than two points.
    """
    slopes = [
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for index, earlier in enumerate(points)
        for later in points[index + 1 :]
        if later[0] != earlier[0]
    ]
    return median(slopes) if slopes else 0.0
