"""Go's notation for spans of time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum import durations


@pytest.mark.parametrize(
    ("text", "nanoseconds", "shown"),
    [
        ("0", 0, "0s"),
        ("-0", 0, "0s"),
        ("5s", 5_000_000_000, "5s"),
        ("+5s", 5_000_000_000, "5s"),
        ("1.5s", 1_500_000_000, "1.5s"),
        (".5s", 500_000_000, "500ms"),
        ("1.s", 1_000_000_000, "1s"),
        ("2h", 7_200_000_000_000, "2h0m0s"),
        ("1h15m30.918s", 4_530_918_000_000, "1h15m30.918s"),
        ("1m", 60_000_000_000, "1m0s"),
        ("-1m30s", -90_000_000_000, "-1m30s"),
        ("1us", 1000, "1µs"),
        ("1µs", 1000, "1µs"),
        ("1μs", 1000, "1µs"),
        ("1500ns", 1500, "1.5µs"),
        ("7ns", 7, "7ns"),
    ],
)
def test_reads_and_shows(text: str, nanoseconds: int, shown: str) -> None:
    assert durations.parse(text) == nanoseconds
    assert durations.render(nanoseconds) == shown


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", 'invalid duration ""'),
        ("-", 'invalid duration "-"'),
        ("3", "missing unit in duration"),
        ("1s2", "missing unit in duration"),
        ("s", "invalid duration"),
        (".s", "invalid duration"),
        ("1x", 'unknown unit "x"'),
        ("1 s", 'unknown unit " s"'),
        ("1d", 'unknown unit "d"'),
        ("3000000h", "longer than 292 years"),
    ],
)
def test_refuses(text: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        durations.parse(text)


@given(st.integers(-durations.MAX_NANOSECONDS, durations.MAX_NANOSECONDS))
def test_what_is_shown_reads_the_same(nanoseconds: int) -> None:
    assert durations.parse(durations.render(nanoseconds)) == nanoseconds
