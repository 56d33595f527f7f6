"""``python -m sim``: runs seeds. ``--help`` tells the options."""

from __future__ import annotations

import argparse
import itertools
import os
import random
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import get_context
from threading import BoundedSemaphore
from typing import Final

from sim.run import Report, run

TOLD: Final = 5
"""Failures that are told in full."""
SPREAD: Final = 1_000_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; the exit code is 1 when anything was found."""
    options = parser().parse_args(arguments)
    if options.bugs is not None:
        from sim.hunt import hunt  # it patches what it imports

        return hunt(options.bugs, processes=options.processes)
    if options.seed is not None and options.seeds == 1 and options.minutes is None:
        return replay(options.seed, trace=options.trace)
    first = random.SystemRandom().randrange(SPREAD) if options.seed is None else options.seed
    if options.minutes is not None:
        seeds: Iterable[int] = within(options.minutes, first)
    else:
        seeds = range(first, first + options.seeds)
    return many(first, seeds, options.processes)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(prog="python -m sim", description="A cluster under one seed.")
    add = parse.add_argument
    add("--seeds", type=int, default=1, metavar="N", help="how many seeds to run (1)")
    add("--minutes", type=float, metavar="N", help="run seeds for so long instead")
    add("--seed", type=int, metavar="FIRST", help="the first one (a random one)")
    add("--trace", action="store_true", help="print what happens, for a single seed")
    add("--processes", type=int, default=os.cpu_count() or 1, help="how many to run at a time")
    add("--bugs", nargs="*", metavar="NAME", help="plant bugs, and tell how soon they are found")
    return parse


def replay(seed: int, *, trace: bool) -> int:
    """One seed, with all that can be told of it."""
    report = run(seed, listen=print if trace else None)
    print(summary(report))
    for wrong in report.wrong:
        print(wrong)
    return 0 if report.ok else 1


def within(minutes: float, first: int) -> Iterator[int]:
    """Seeds until the time is up."""
    until = time.monotonic() + minutes * 60
    return itertools.takewhile(lambda _: time.monotonic() < until, itertools.count(first))


def many(first: int, seeds: Iterable[int], processes: int) -> int:
    """Many seeds, on all cores; failures are told as they come."""
    print(f"from seed {first} on", flush=True)
    began = time.monotonic()
    failed, done, operations = [], 0, 0
    for report in run_all(seeds, processes):
        done += 1
        operations += report.operations
        if not report.ok:
            failed.append(report.seed)
            tell(report, briefly=len(failed) > TOLD)
        if done % 100 == 0:
            print(f"{done} seeds, {rate(done, began)}", flush=True)
    print(
        f"{done} seeds from {first}, {operations:,} operations, {rate(done, began)},"
        f" {len(failed)} failed{': ' + ' '.join(map(str, sorted(failed))) if failed else ''}"
    )
    return 1 if failed else 0


def run_all(seeds: Iterable[int], processes: int) -> Iterator[Report]:
    """The reports of all seeds, as they come. Each seed has a fresh process now and then, so that
    nothing piles up."""
    if processes <= 1:
        yield from map(run, seeds)
        return
    room = BoundedSemaphore(2 * processes)  # a pool would take in all seeds at once

    def one_by_one() -> Iterator[int]:
        for seed in seeds:
            room.acquire()
            yield seed

    with get_context("spawn").Pool(processes, maxtasksperchild=200) as pool:
        for report in pool.imap_unordered(run, one_by_one()):
            room.release()
            yield report


def tell(report: Report, *, briefly: bool) -> None:
    """What went wrong, and how to see it again."""
    print(summary(report))
    if not briefly:
        for wrong in report.wrong[:3]:
            print(wrong[:4000])
        print(f"replay it with: python -m sim --seed {report.seed} --trace", flush=True)


def summary(report: Report) -> str:
    """A line about a run."""
    verdict = "passed" if report.ok else "FAILED"
    return (
        f"seed {report.seed} {verdict}: {report.operations} operations ({report.unknown} of unknown"
        f" outcome), revision {report.revision}, {report.events} events, {report.seconds:.2f} s"
    )


def rate(done: int, began: float) -> str:
    return f"{done * 60 / (time.monotonic() - began):.0f} seeds a minute"


def same_hashes() -> None:
    """Start again with hashes that do not differ from run to run, as replaying needs them."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "sim", *sys.argv[1:]])


if __name__ == "__main__":
    same_hashes()
    sys.exit(main())
