"""How soon planted bugs are found."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context

from sim.bugs import BUGS
from sim.run import run


@dataclass(frozen=True, slots=True)
class Catch:
    """``seeds``: how many were needed; 0: it got away. ``how`` is what gave it away."""

    name: str
    seeds: int
    how: str


def search(name: str) -> Catch:
    """Run seeds with a bug until it is found, or until it should have been."""
    bug = BUGS[name]
    with bug.planted():
        for seed in range(1, bug.within + 1):
            report = run(seed)
            if not report.ok:
                return Catch(name, seed, _head(report.wrong[0]))
    return Catch(name, 0, "")


def hunt(names: Sequence[str], *, processes: int) -> int:
    """Search for some bugs, or all, and print the table; the exit code is 1 if one got away."""
    unknown = [name for name in names if name not in BUGS]
    if unknown:
        print(f"no such bugs: {', '.join(unknown)}; there are {', '.join(BUGS)}", file=sys.stderr)
        return 2
    chosen = names or list(BUGS)
    print(f"{'bug':28} {'seeds':>5} {'at most':>7}  found by")
    away = 0
    with get_context("spawn").Pool(processes) as pool:
        for catch in pool.imap(search, chosen):
            away += not catch.seeds
            found = str(catch.seeds) if catch.seeds else "-"
            print(f"{catch.name:28} {found:>5} {BUGS[catch.name].within:>7}  {catch.how}")
            sys.stdout.flush()
    print(f"{len(chosen) - away} of {len(chosen)} found")
    return 1 if away else 0


def _head(wrong: str) -> str:
    """The first line of a complaint, or of an exception its last."""
    lines = wrong.strip().splitlines()
    text = f"{lines[0]} {lines[-1]}" if "Traceback" in wrong else lines[0]
    return text if len(text) <= 110 else text[:107] + "..."
