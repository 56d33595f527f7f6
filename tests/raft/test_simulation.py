"""Random runs of a cluster under trouble; each is decided by its seed alone."""

from __future__ import annotations

import random

import pytest
from raftlab.simulation import Simulation

STEPS = 8000


def run(seed: int, steps: int = STEPS) -> Simulation:
    simulation = Simulation(seed)
    try:
        simulation.run(steps)
    except Exception as error:
        raise AssertionError(f"seed {seed}, {simulation.options}") from error
    return simulation


@pytest.mark.parametrize("seed", range(40))
def test_safety_and_recovery(seed: int) -> None:
    run(seed)


def test_safety_and_recovery_of_seeds_nobody_has_tried() -> None:
    for _ in range(15):
        run(random.SystemRandom().randrange(1 << 32))


def test_runs_get_something_done() -> None:
    runs = [run(seed) for seed in range(100, 120)]
    assert sum(len(one.leaders) for one in runs) > 2 * len(runs)
    assert sum(len(one.history) for one in runs) > 20 * len(runs)
    assert sum(one.answered for one in runs) > 2 * len(runs)


def test_a_seed_decides_everything() -> None:
    one, other = run(7), run(7)
    assert (one.history, one.leaders, one.votes) == (other.history, other.leaders, other.votes)
