"""Random requests to a real etcd and to the server under test: every answer must be the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from differential.generator import Generator
from differential.runner import Mismatch, Runner
from differential.target import Target
from support.binaries import Binaries, etcd_version
from support.member import MemberFactory
from support.seeds import fresh_seed

STEPS = 20_000
FLAGS = ["--snapshot-count=3000", "--log-level=warn", "--unsafe-no-fsync"]


@pytest.fixture
def seed(pytestconfig: pytest.Config) -> int:
    given = pytestconfig.getoption("diff_seed") or os.environ.get("KVORUM_DIFF_SEED")
    return int(given) if given else fresh_seed()


@pytest.fixture
def steps(pytestconfig: pytest.Config) -> int:
    given = pytestconfig.getoption("diff_steps") or os.environ.get("KVORUM_DIFF_STEPS")
    return int(given) if given else STEPS


def make_runner(
    members: MemberFactory, reference: Path, tested: Path, *, keep_going: bool = False
) -> Runner:
    pair = [members(binary, flags=FLAGS) for binary in (reference, tested)]
    for member in pair:
        member.spawn()
    for member in pair:
        member.wait_ready()
    newer = etcd_version(tested) > etcd_version(reference)
    targets = Target(pair[0]), Target(pair[1], newer=newer)
    return Runner(*targets, keep_going=keep_going)


@pytest.fixture
def runner(
    members: MemberFactory, reference: Binaries, kvorum: Path, pytestconfig: pytest.Config
) -> Iterator[Runner]:
    keep_going = pytestconfig.getoption("diff_keep_going")
    made = make_runner(members, reference.etcd, kvorum, keep_going=keep_going)
    yield made
    made.close()


@pytest.mark.timeout(900)
def test_random_requests_get_the_same_answers(runner: Runner, seed: int, steps: int) -> None:
    print(f"differential run: --diff-seed {seed} --diff-steps {steps}")
    generator = Generator(seed)
    try:
        runner.generate(generator, steps * 9 // 10)
        runner.let_leases_expire()
        runner.compare_state()
        runner.compact_all()
        runner.compare_state()
        runner.restart()
        runner.compare_state()
        runner.generate(generator, steps - steps * 9 // 10)
        runner.compare_state()
        print(report(runner))
    except Mismatch as mismatch:
        runner.mismatches.setdefault("first", mismatch)
    found = "\n".join(str(mismatch) for mismatch in runner.mismatches.values())
    if found:
        log = runner.new.member.log_tail()
        pytest.fail(f"--diff-seed {seed} --diff-steps {steps}\n{found}\n{log}", pytrace=False)


def report(runner: Runner) -> str:
    lines = [f"{count:7} {name}" for name, count in sorted(runner.outcomes.items())]
    return "\n".join([*lines, f"{runner.events:7} watch events"])
