"""Simulated clusters: a few seeds pass, a seed is the same every time, and planted bugs are found.

``make sim`` runs as many seeds as wanted, ``python -m sim --bugs`` all the bugs.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvorum.raft.types import Message, MsgType
from kvorum.testing.history import Event, Get, GetResult, KeyValue, Operation, Put
from kvorum.testing.watch_guarantees import Response, Watch
from sim.bugs import BUGS
from sim.disk import Disk
from sim.plan import Plan, draw
from sim.process import Clock, Process
from sim.run import Report, Run, run
from sim.verdicts import linearizability, watch_violations, what_happened
from sim.watchers import Watcher
from sim.world import World

REPOSITORY = Path(__file__).resolve().parents[2]
SEEDS = range(1, 13)
SHORT = 8.0
"""Simulated seconds of a run in these tests."""

QUICK_BUGS = [
    "applied-twice",
    "serializable-for-all",
    "append-answered-early",
    "watch-skips-one",
    "written-not-told",
]


@pytest.fixture(scope="module")
def reports() -> list[Report]:
    return [run(seed, plan=draw(seed, SHORT)) for seed in SEEDS]


def test_seeds_pass(reports: list[Report]) -> None:
    wrong = {report.seed: report.wrong for report in reports if not report.ok}
    assert wrong == {}, f"replay with: python -m sim --seed {next(iter(wrong))} --trace"


def test_there_is_something_to_see(reports: list[Report]) -> None:
    """Nothing is found where nothing happens."""
    words = Counter(word for report in reports for line in report.lines for word in line.split())
    assert sum(report.operations for report in reports) > 500
    assert words["leads"] > len(reports)
    for word in ("power", "partition", "killed", "compacted"):
        assert words[word], f"no {word} in any trace"


def test_what_members_did_is_known_of_every_revision() -> None:
    for seed in SEEDS[:3]:
        runs: list[Run] = []
        report = run(seed, plan=draw(seed, SHORT), prepare=runs.append)
        cluster = runs[0].cluster
        assert report.ok
        assert cluster.members[0].server is not None
        newest = cluster.members[0].server.store.rev
        assert newest >= report.revision > 2
        assert list(what_happened(cluster.ledger.book.records)) == list(range(2, newest + 1))


def test_what_members_did_settles_what_no_client_knows() -> None:
    """One of these puts was seen, as the last: trying what came before it takes for ever."""
    puts = [Operation(n, Put(b"a", b"%d" % n), 0, 1) for n in range(100)]
    values = [b"%d" % n for n in [*range(50), *range(51, 100), 50]]
    pairs = [KeyValue(b"a", value, 2, at, at - 1) for at, value in enumerate(values, 2)]
    happened = {kv.mod: (Event("put", kv),) for kv in pairs}
    read = Operation(100, Get(b"a"), 2, 3, GetResult(101, (pairs[-1],), 1))
    assert linearizability([*puts, read], [], happened) == []
    assert linearizability([*puts[1:], read], [], happened) != []


def test_the_pair_before_may_be_missing_once_members_have_compacted_it() -> None:
    """Even if nobody was told that they have."""
    old, new = KeyValue(b"a", b"1", 2, 2, 1), KeyValue(b"a", b"2", 2, 3, 2)
    happened = {2: (Event("put", old),), 3: (Event("put", new, old),)}
    watch = Watch(b"a", start=3, prev=True, responses=[Response(3, (Event("put", new),))])

    def member(compact_rev: int) -> Any:
        return SimpleNamespace(
            server=SimpleNamespace(store=SimpleNamespace(compact_rev=compact_rev))
        )

    assert watch_violations([watch], happened, [member(-1), member(3)]) == []
    assert watch_violations([watch], happened, [member(-1)]) != []


def test_a_seed_is_the_same_every_time_and_everywhere() -> None:
    """Also in another process, in which objects have other hashes and addresses."""
    script = (
        "from sim.plan import draw; from sim.run import run;"
        f"print(run(3, plan=draw(3, {SHORT})).fingerprint)"
    )
    prints = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONHASHSEED": hashes},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hashes in ("0", "12345")
    }
    assert prints == {f"{run(3, plan=draw(3, SHORT)).fingerprint}\n"}


def test_what_is_kept_in_sets_has_the_same_order_in_every_run() -> None:
    """Members wake those who wait in the order of a set, which must not be that of addresses."""

    def futures() -> list[asyncio.Future[object]]:
        loop = Process(World(1), "m1.1", Disk(), Clock()).loop
        return [loop.create_future() for _ in range(20)]

    first, second = futures(), futures()
    assert [first.index(each) for each in set(first)] == [
        second.index(each) for each in set(second)
    ]


def test_a_paused_process_goes_on_in_order() -> None:
    """Also if its pause becomes longer, or ends before its time; a message overtook another."""
    world = World(1)
    process = Process(world, "m1.1", Disk(), Clock())
    seen: list[int] = []

    def send(number: int) -> None:
        process.run_event(lambda: seen.append(number))

    process.pause(2.0)
    send(1)
    world.after(1.0, process.pause, 3.0)
    world.after(1.5, send, 2)
    world.run_until(3.9)
    assert seen == []
    world.run_until(4.0)
    assert seen == [1, 2]

    process.pause(5.0)
    send(3)
    process.resume()
    world.after(0.5, send, 4)
    world.run_until(10.0)
    assert seen == [1, 2, 3, 4]


@pytest.mark.parametrize("name", QUICK_BUGS)
def test_a_planted_bug_is_found(name: str) -> None:
    bug = BUGS[name]
    with bug.planted():
        found = any(not run(seed, plan=draw(seed, SHORT)).ok for seed in range(1, bug.within + 1))
    assert found, bug.what


def test_a_leader_that_learns_late_of_its_election_need_not_have_what_came_since() -> None:
    """It stands still from before the votes for it arrive until another one has led for long."""

    def prepare(this: Run) -> None:
        network, ledger = this.cluster.network, this.cluster.ledger

        def watch(message: Message) -> None:
            ledger.sent(message)
            if message.type is MsgType.VOTE_RESP and not message.reject:
                network.watch = ledger.sent
                network.transports[message.to].process.pause(5.0)

        network.watch = watch

    report = run(1, plan=Plan(1, duration=SHORT), prepare=prepare)
    elections = [line.split() for line in report.lines if " leads in term " in line]
    terms = [int(words[-1]) for words in elections]
    assert terms != sorted(terms), elections
    assert report.ok, report.wrong


def test_that_watchers_end_up_to_date_is_not_left_to_chance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Watcher, "_later", lambda self: None)  # the next time is never
    reports = [run(seed, plan=draw(seed, SHORT)) for seed in SEEDS[:4]]
    assert [report.wrong for report in reports] == [[]] * 4


def test_a_run_that_does_not_end_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.run.MOST_COMPUTING", 0.05)
    plan = draw(1, SHORT)
    endless = run(1, plan=plan, prepare=lambda this: forever(this.world))
    assert "more than 0.05 s of computing" in endless.wrong[0]
    monkeypatch.undo()
    assert run(1, plan=plan).ok


def forever(world: World) -> None:
    """From the second second on, time stands still."""
    world.after(1.0, lambda: again())

    def again() -> None:
        world.soon(again)


def test_nothing_is_left_behind() -> None:
    """A planted bug and a simulation leave the code as it was."""
    code = {name: vars(module).copy() for name, module in sys.modules.items() if "kvorum." in name}
    with BUGS["fsync-skipped"].planted():
        run(1, plan=draw(1, 1.0))
    for name, before in code.items():
        after = vars(sys.modules[name])
        assert [key for key in before if before[key] is not after.get(key)] == [], name
        assert "open" not in after or before.get("open") is after["open"], name


def test_every_bug_says_what_it_is() -> None:
    assert len(BUGS) >= 20
    assert all(bug.what.endswith(".") and bug.within <= 200 for bug in BUGS.values())
