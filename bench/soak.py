"""``python -m bench.soak --minutes 10``: does one member stay level, prompt and right?"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Final

from bench.__main__ import data_root, kvorum_of, say
from bench.aio import AsyncClient
from bench.client import RpcError
from bench.members import Member
from bench.soak_actors import (
    GROUPS,
    LOST_AFTER,
    TICK,
    Leases,
    Ledger,
    Maintenance,
    Traffic,
    Watcher,
    catch_up,
    group_prefix,
    wait_all,
)
from bench.soak_verdict import MIB, Findings, Limits, Point, Rule, table, verdict
from bench.stats import percentile
from bench.wire import LoadError

FLAGS: Final = (
    "--auto-compaction-mode=periodic",
    "--auto-compaction-retention=30s",
    "--max-wals=2",
    "--max-snapshots=2",
)
"""Set so that what must level off can do so within minutes."""

LONG_RUN: Final = 300.0
"""Seconds from which on all maintenance must have been seen and sizes must hold their level."""

LEASE_SECONDS: Final = (2, 3, 4)
RENEWALS: Final = 4
TRAFFIC_CONNECTIONS: Final = 8
CATCH_UP_REVISIONS: Final = 200

_clock = time.perf_counter


class Soak:
    """One run on a started member."""

    def __init__(
        self, member: Member, limits: Limits, *, seconds: float, rate: float, keys: int, seed: int
    ) -> None:
        self._member = member
        self._limits = limits
        self._seconds = seconds
        self._rate = rate
        self._keys = keys
        self._random = random.Random(seed)
        self._clients: list[AsyncClient] = []
        self._lives: set[asyncio.Task[None]] = set()
        self.findings = Findings(seconds=seconds)

    async def run(self) -> Findings:
        """Everything at once until the time is over. Raises LoadError when the server is gone."""
        try:
            await self._run()
        finally:
            for client in self._clients:
                client.close()
        return self.findings

    async def _connect(self) -> AsyncClient:
        client = await AsyncClient.connect(self._member.port)
        self._clients.append(client)
        return client

    async def _run(self) -> None:
        findings = self.findings
        ledgers = [Ledger(findings) for _ in range(GROUPS)]
        clients = [await self._connect() for _ in range(TRAFFIC_CONNECTIONS)]
        watching, leasing, keeping = [await self._connect() for _ in range(3)]
        seed = self._random.randrange(2**32)
        self._traffic = Traffic(clients, findings, ledgers, keys=self._keys, seed=seed)
        self._leases = Leases(leasing, findings, self._limits)
        self._maintenance = Maintenance(keeping, findings)
        watchers = [self._watch(watching, g, ledger) for g, ledger in enumerate(ledgers)]
        watchers.append(Watcher(watching, Leases.PREFIX, self._leases.on_event))
        await wait_all(watcher.created for watcher in watchers)
        self._began = _clock()
        until = self._began + self._seconds
        async with asyncio.TaskGroup() as group:
            traffic = group.create_task(self._traffic.run(self._rate, until))
            helpers = [group.create_task(step) for step in self._others(watching, ledgers)]
            await traffic
            for helper in helpers:
                helper.cancel()
            await self._settle(ledgers)

    @staticmethod
    def _watch(client: AsyncClient, group: int, ledger: Ledger) -> Watcher:
        return Watcher(
            client,
            group_prefix(group),
            lambda event, now: ledger.event(event.kv.mod_revision, now),
        )

    def _others(
        self, watching: AsyncClient, ledgers: list[Ledger]
    ) -> list[Coroutine[None, None, None]]:
        """What goes on beside the traffic, each at its own pace."""
        pace = self._seconds / 120
        groups = range(GROUPS)

        async def new_watch() -> None:
            group = self._random.choice(groups)
            await catch_up(watching, self.findings, group, CATCH_UP_REVISIONS)

        async def overdue() -> None:
            for ledger in ledgers:
                ledger.overdue(_clock())

        return [
            self._every(max(1.0, pace), self._sample),
            self._every(0.5, self._start_lease),
            self._every(1.0, new_watch),
            self._every(1.0, overdue),
            self._every(3.0, self._look),
            self._every(max(5.0, min(20.0, 4 * pace)), self._maintenance.compact),
            self._every(max(5.0, min(60.0, 8 * pace)), self._maintenance.defragment),
        ]

    async def _every(self, pause: float, step: Callable[[], Awaitable[None]]) -> None:
        """Do a step again and again; a failure is a finding, not the end."""
        while True:
            await asyncio.sleep(pause)
            try:
                await step()
            except (RpcError, TimeoutError) as error:
                name = getattr(step, "__name__", "step").strip("_")
                self.findings.fault("failed request", f"{name}: {error or 'timed out'}")
            self._check_connections()

    def _check_connections(self) -> None:
        for client in self._clients:
            if client.lost:
                raise LoadError(f"{client.lost}; the server's log: {self._member.log_tail()}")

    async def _look(self) -> None:
        await self._maintenance.look()

    async def _start_lease(self) -> None:
        choice = self._random.randrange(3)
        seconds = self._random.choice(LEASE_SECONDS)
        life = self._leases.one(seconds, RENEWALS if choice == 1 else 0, revoke=choice == 2)
        task = asyncio.get_running_loop().create_task(life)
        self._lives.add(task)
        task.add_done_callback(self._life_over)

    def _life_over(self, task: asyncio.Task[None]) -> None:
        self._lives.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.findings.fault("failed request", f"lease: {error or 'timed out'}")

    async def _settle(self, ledgers: list[Ledger]) -> None:
        """Let the leases end and the last events come."""
        if self._lives:
            await asyncio.wait(self._lives, timeout=60)
        for _ in range(int(LOST_AFTER / TICK)):
            if not any(ledger.waiting for ledger in ledgers):
                break
            await asyncio.sleep(TICK)
        for ledger in ledgers:
            ledger.overdue(float("inf"))

    async def _sample(self) -> None:
        """Take a point and print it."""
        point = observe(self._member, _clock() - self._began)
        self.findings.points.append(point)
        took, self._traffic.interval = sorted(self._traffic.interval), []
        times = "none answered"
        if took:
            times = f"p99 {percentile(took, 99) * 1e3:6.1f} worst {took[-1] * 1e3:7.1f} ms"
        say(
            f"{point.at:7.1f} s  {len(took):6} ops  {times}  rss {point.resident:6.1f} "
            f"anon {point.anonymous:6.1f} db {point.database:6.1f} wal {point.wal:5.0f} MiB"
        )


def observe(member: Member, at: float) -> Point:
    """The server's memory, files and handles."""
    memory = member.memory()
    process = Path(f"/proc/{member.pid}")
    folder = member.data / "member"
    snaps = [path for path in (folder / "snap").glob("*") if path.is_file()]
    return Point(
        at=at,
        resident=memory.resident,
        anonymous=memory.anonymous,
        database=sum(size(path) for path in snaps if path.suffix != ".snap") / MIB,
        wal=sum(size(path) for path in (folder / "wal").glob("*")) / MIB,
        snapshots=sum(path.suffix == ".snap" for path in snaps),
        descriptors=len(os.listdir(process / "fd")),
        threads=len(os.listdir(process / "task")),
    )


def size(path: Path) -> int:
    """A file's size; zero when it has just been removed."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(
        prog="python -m bench.soak", description="A long run on one member, with a verdict."
    )
    add = parse.add_argument
    bounds = Limits()
    add("--minutes", type=float, default=10.0)
    add("--rate", type=float, default=1000.0, help="requests/s (1000)")
    add("--keys", type=int, default=20_000, help="how many keys are used again and again")
    add("--seed", type=int, default=1)
    add("--kvorum", metavar="PATH", help="the server (kvorum of this environment); etcd works too")
    add("--data-root", type=Path, metavar="DIR", help="where data goes, on a real disk (build/)")
    add("--json", type=Path, metavar="FILE", help="write the verdict there, too")
    add("--max-p99", type=float, default=bounds.latency_p99, help="seconds")
    add("--max-worst", type=float, default=bounds.latency_worst, help="seconds")
    add("--max-growth", type=float, default=bounds.growth_mib, help="MiB, or 5 %% if that is more")
    return parse


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns 0 when every rule holds."""
    options = parser().parse_args(arguments)
    limits = Limits(
        latency_p99=options.max_p99,
        latency_worst=options.max_worst,
        watch_p99=2 * options.max_p99,
        watch_worst=options.max_worst,
        growth_mib=options.max_growth,
    )
    root = data_root(options.data_root)
    member = Member(kvorum_of(options), root, FLAGS)
    try:
        rules, examples = asyncio.run(judge(member, limits, options))
    finally:
        member.stop()
        shutil.rmtree(root, ignore_errors=True)
    print(table(rules))
    for example in examples:
        print(f"  ! {example}")
    passed = all(rule.passed for rule in rules)
    print("PASSED" if passed else "FAILED")
    if options.json:
        options.json.write_text(json.dumps([as_dict(rule) for rule in rules], indent=1) + "\n")
    return 0 if passed else 1


async def judge(
    member: Member, limits: Limits, options: argparse.Namespace
) -> tuple[list[Rule], list[str]]:
    """Start the member, soak it, apply the rules."""
    seconds = options.minutes * 60
    await asyncio.to_thread(member.start)
    say(f"{member.program.version()}, {options.rate:,.0f} requests/s for {seconds:.0f} s")
    soak = Soak(
        member, limits, seconds=seconds, rate=options.rate, keys=options.keys, seed=options.seed
    )
    try:
        await soak.run()
    except* (LoadError, OSError) as errors:
        soak.findings.fault("connection lost", str(errors.exceptions[0]))
    rules = verdict(soak.findings, limits, long_run=seconds >= LONG_RUN)
    return rules, soak.findings.examples


def as_dict(rule: Rule) -> dict[str, str | bool]:
    return {name: getattr(rule, name) for name in Rule.__slots__}


if __name__ == "__main__":
    sys.exit(main())
