"""Counters, gauges and histograms, as the parts of the server use them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.instruments import Counter, Gauge, Histogram, Registry, exponential


def test_bounds_are_inclusive() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.0, 1.0, 1.5, 2.0, 2.1):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1]
    assert (histogram.count, histogram.sum) == (5, 6.6)


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 50))))
def test_a_batch_counts_as_its_members(batches: list[tuple[float, int]]) -> None:
    together, singly = Histogram(exponential(0.001, 2, 14)), Histogram(exponential(0.001, 2, 14))
    for value, n in batches:
        together.observe_n(value, n)
        for _ in range(n):
            singly.observe(value)
    assert together.counts == singly.counts
    assert together.sum == pytest.approx(singly.sum)


def test_bounds_must_increase() -> None:
    with pytest.raises(AssertionError, match="must increase"):
        Histogram((1.0, 1.0))


@pytest.mark.parametrize("kind", [Counter, Gauge])
def test_a_follower_overrides_its_own_value(kind: type[Counter]) -> None:
    instrument = kind()
    instrument.value += 3
    assert instrument.read() == 3
    instrument.follow(lambda: 7)
    assert instrument.read() == 7


def test_children_are_kept() -> None:
    family = Registry().counters("a_total", "A.", "x")
    assert family.with_labels("1") is family.with_labels("1")
    assert family.with_labels("1") is not family.with_labels("2")


def test_a_histogram_family_follows_nothing() -> None:
    family = Registry().histograms("a", "A.", (1.0,), "x")
    family.follow(lambda: {("1",): 1})
    with pytest.raises(AssertionError, match="holds no plain values"):
        family.refresh()
