"""Runs a workload on both servers in turn, and keeps what came out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.client import RpcError
from bench.measure import Sample
from bench.members import Member, Program, Server
from bench.stats import Summary, ratio, summarize
from bench.wire import LoadError
from bench.workloads import Offered, Settings, Unary, Workload

Say = Callable[[str], None]

EXPECTED: Final = (LoadError, RpcError, OSError, ValueError)
"""What a server that misbehaves or is missing raises; anything else is a fault of ours."""


@dataclass(slots=True)
class Outcome:
    """A workload's samples by server label, and why a server has none or too few."""

    name: str
    title: str
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def summary(self, label: str) -> dict[str, Summary]:
        """Every metric's summary over the rounds."""
        samples = self.samples.get(label, [])
        names = {name: None for sample in samples for name in sample}
        return {
            name: summarize([sample[name] for sample in samples if name in sample])
            for name in names
        }

    def ratios(self, labels: Sequence[str]) -> dict[str, float]:
        """The second server's median over the first's, for what both have."""
        first, second = (self.summary(label) for label in labels)
        return {
            name: ratio(second[name].middle, first[name].middle) for name in first if name in second
        }


def order(round_number: int) -> tuple[int, int]:
    """Who goes first: A B, B A, A B ... so that neither has the better place."""
    return (0, 1) if round_number % 2 == 0 else (1, 0)


Make = Callable[[Program, Path, Workload], Server]


def one_member(program: Program, root: Path, workload: Workload) -> Server:
    """A cluster of one."""
    return Member(program, root)


class Runner:
    """Compares two programs. ``root`` is where data directories are made, and deleted again;
    ``make`` makes what is measured."""

    def __init__(
        self,
        programs: Sequence[Program],
        root: Path,
        settings: Settings,
        say: Say,
        make: Make = one_member,
    ) -> None:
        self.programs = programs
        self.settings = settings
        self._root = root
        self._say = say
        self._make = make
        self._reached: dict[str, float] = {}

    def run(self, workload: Workload) -> Outcome:
        """All rounds of one workload, each server on a fresh data directory."""
        began = time.perf_counter()
        if isinstance(workload, Offered):
            workload.rate = workload.share * self._capacity()
        outcome = Outcome(workload.name, workload.title)
        members: list[Server] = [
            self._make(program, self._root / workload.name / str(number), workload)
            for number, program in enumerate(self.programs)
        ]
        try:
            self._rounds(workload, members, outcome)
        finally:
            for member in members:
                member.discard()
        self._note(outcome)
        self._say(f"{workload.name}: {time.perf_counter() - began:.1f} s")
        return outcome

    def _rounds(self, workload: Workload, members: list[Server], outcome: Outcome) -> None:
        for member in members:
            self._try(member, outcome, lambda m: self._begin(workload, m))
        for number in range(self.settings.rounds):
            for index in order(number):
                self._try(members[index], outcome, lambda m: self._one(workload, m, outcome))
        for member in members:
            self._try(member, outcome, lambda m: self._memory(m, outcome))

    def _try(self, member: Server, outcome: Outcome, step: Callable[[Server], None]) -> None:
        """One step on one server; after its first error a server is left out."""
        label = member.program.label
        if label in outcome.errors:
            return
        try:
            step(member)
        except EXPECTED as error:
            outcome.errors[label] = str(error) or repr(error)
            self._say(f"{outcome.name}: {label} FAILED: {outcome.errors[label]}")
            member.stop()

    def _begin(self, workload: Workload, member: Server) -> None:
        member.start()
        workload.prepare(member)

    def _one(self, workload: Workload, member: Server, outcome: Outcome) -> None:
        samples = outcome.samples.setdefault(member.program.label, [])
        member.settle()
        samples.append(workload.round(member, len(samples), self.settings))

    def _memory(self, member: Server, outcome: Outcome) -> None:
        memory = member.memory()
        for sample in outcome.samples.get(member.program.label, []):
            sample["peak_mib"] = memory.peak
            sample["anonymous_mib"] = memory.anonymous

    def _note(self, outcome: Outcome) -> None:
        first = self.programs[0].label
        if outcome.name == "put-10x10" and outcome.samples.get(first):
            self._reached[first] = outcome.summary(first)["rate"].middle

    def _capacity(self) -> float:
        """Puts/s of the first server, 10 x 10; measured now if that workload was left out."""
        program = self.programs[0]
        if program.label not in self._reached:
            from bench.workloads import standard

            probe = next(work for work in standard() if work.name == "put-10x10")
            assert isinstance(probe, Unary)
            member = Member(program, self._root / "capacity")
            try:
                member.start()
                self._reached[program.label] = probe.round(member, 0, self.settings)["rate"]
            finally:
                member.discard()
        return self._reached[program.label]
