"""Makes a failing sequence short: pure search, the caller says whether a candidate still fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def shrink(steps: Sequence[T], fails: Callable[[list[T]], bool], budget: int = 40) -> list[T]:
    """A shorter sequence that still fails, after at most ``budget`` tries.

    The last step is the one that showed the failure and always stays. First ever longer tails of
    the sequence are tried, then ever smaller pieces are left out.
    """
    tries = _Budget(fails, budget)
    kept = _shortest_tail(list(steps), tries)
    size = len(kept) // 2
    while size >= 1 and tries.left > 0:
        kept = _without_pieces(kept, size, tries)
        size //= 2
    return kept


class _Budget:
    """Counts the tries; out of budget, nothing fails any more."""

    def __init__(self, fails: Callable[[list[T]], bool], left: int) -> None:
        self._fails = fails
        self.left = left

    def __call__(self, candidate: list[T]) -> bool:
        if self.left <= 0:
            return False
        self.left -= 1
        return self._fails(candidate)


def _shortest_tail(steps: list[T], fails: _Budget) -> list[T]:
    length = 1
    while length < len(steps):
        if fails(steps[-length:]):
            return steps[-length:]
        length *= 8
    return steps


def _without_pieces(steps: list[T], size: int, fails: _Budget) -> list[T]:
    start = 0
    while start < len(steps) - 1:
        end = min(start + size, len(steps) - 1)
        candidate = steps[:start] + steps[end:]
        if fails(candidate):
            steps = candidate
        else:
            start = end
    return steps
