"""Bounded waiting for something that another process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class WaitTimeout(AssertionError):
    """The awaited thing did not come within its bound."""


def wait_for(
    probe: Callable[[], T | None], what: str, *, timeout: float = 20.0, every: float = 0.02
) -> T:
    """The first answer of ``probe`` that is neither None nor False.

    This is for states of another process that can only be asked for (a port, a log file); what
    can be awaited as an event is awaited as one.
    """
    end = time.monotonic() + timeout
    while True:
        answer = probe()
        if answer is not None and answer is not False:
            return answer
        if time.monotonic() > end:
            raise WaitTimeout(f"no {what} within {timeout:g} s")
        time.sleep(every)
