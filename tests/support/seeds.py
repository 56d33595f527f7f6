"""Seeds for randomised tests: new with every run, printed, and repeatable when given."""

from __future__ import annotations

import random


def fresh_seed() -> int:
    return random.SystemRandom().randrange(1, 1_000_000)
