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


class Histogram:
    """Counts of positive values in buckets 2 % wide: bounded memory however many values come."""

    __slots__ = ("_buckets", "count", "largest")

    _WIDTH = math.log(1.02)

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self.count = 0
        self.largest = 0.0

    def add(self, value: float) -> None:
        """Count a value; those below a nanosecond count as one."""
        bucket = math.ceil(math.log(max(value, 1e-9)) / self._WIDTH)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.count += 1
        self.largest = max(self.largest, value)

    def percentile(self, percent: float) -> float:
        """As the function ``percentile``, up to 2 % more; zero when there are no values."""
        needed = max(1, math.ceil(self.count * percent / 100))
        for bucket in sorted(self._buckets):
            needed -= self._buckets[bucket]
            if needed <= 0:
                return min(math.exp(bucket * self._WIDTH), self.largest)
        return 0.0
