"""The path of a unary call must stay short: a bound far above what it takes, to notice a slip."""

from __future__ import annotations

import sys

import h2_bench
import pytest

pytestmark = pytest.mark.skipif(
    sys.gettrace() is not None, reason="a tracer (coverage, a debugger) slows every line"
)


def test_a_unary_call_takes_few_microseconds() -> None:
    """2 us where it was written; general path: 10 us."""
    assert h2_bench.best(3000, 30, timeouts=False, rounds=5) < 7.0


def test_a_deadline_costs_no_cached_head() -> None:
    """7 us where it was written; without the cache by fields: 20 us."""
    assert h2_bench.best(3000, 30, timeouts=True, rounds=5) < 18.0
