from __future__ import annotations

import math
import random

import pytest

from bench.stats import Histogram, Summary, percentile, ratio, slope, summarize


def test_a_summary_is_smallest_middle_largest() -> None:
    assert summarize([5.0, 1.0, 9.0]) == Summary(1.0, 5.0, 9.0)
    assert summarize([2.0, 4.0]).middle == 3.0
    with pytest.raises(ValueError, match="nothing"):
        summarize([])


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1), (1, 1), (50, 50), (99, 99), (99.5, 100), (100, 100)]
)
def test_percentiles_are_nearest_ranks(percent: float, expected: int) -> None:
    assert percentile(range(1, 101), percent) == expected


def test_a_percentile_of_one_value_is_that_value() -> None:
    assert {percentile([7.0], percent) for percent in (0, 50, 99, 100)} == {7.0}


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], 101), ([1.0], -1)])
def test_senseless_percentiles_are_refused(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        percentile(values, percent)


def test_ratios() -> None:
    assert ratio(3.0, 2.0) == 1.5
    assert math.isnan(ratio(1.0, 0.0))


def test_the_slope_of_a_line_is_found_despite_outliers() -> None:
    points = [(float(x), 3.0 * x + 1.0) for x in range(30)]
    points[7] = (7.0, 900.0)
    points[20] = (20.0, -900.0)
    assert slope(points) == pytest.approx(3.0)


def test_no_slope_without_two_points() -> None:
    assert slope([]) == slope([(1.0, 5.0)]) == slope([(1.0, 5.0), (1.0, 9.0)]) == 0.0


def test_a_histogram_agrees_with_the_sorted_values() -> None:
    source = random.Random(3)
    values = sorted(source.lognormvariate(-6, 1) for _ in range(5_000))
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    for percent in (1, 50, 90, 99, 99.9, 100):
        exact = percentile(values, percent)
        assert exact <= histogram.percentile(percent) <= exact * 1.0201
    assert histogram.largest == values[-1]
    assert histogram.count == 5_000


def test_an_empty_histogram_and_zeros() -> None:
    histogram = Histogram()
    assert histogram.percentile(99) == 0.0
    histogram.add(0.0)
    assert histogram.percentile(99) == 0.0
