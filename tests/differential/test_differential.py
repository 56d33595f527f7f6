"""Random requests to a real etcd and to the server under test: every answer must be the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from differential import kv_requests
from differential.generator import Generator
from differential.runner import Mismatch, Runner
from differential.shrink import shrink
from differential.steps import Step
from differential.target import Target
from support.binaries import Binaries, etcd_version
from support.member import MemberFactory
from support.rpc import RANGE
from support.seeds import fresh_seed

from kvorum.pb import etcdserverpb as pb

STEPS = 20_000
RANGE_STREAM_PATH = "/etcdserverpb.KV/RangeStream"
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
def test_random_requests_get_the_same_answers(
    runner: Runner,
    seed: int,
    steps: int,
    pytestconfig: pytest.Config,
    request: pytest.FixtureRequest,
) -> None:
    again = f"--diff-seed {seed} --diff-steps {steps}"
    print(f"differential run: {again}")
    try:
        drive(runner, Generator(seed), steps)
        print(report(runner))
    except Mismatch as mismatch:
        runner.mismatches.setdefault("first", mismatch)
    found = [str(mismatch) for mismatch in runner.mismatches.values()]
    if found and pytestconfig.getoption("diff_shrink"):
        found.append(shrunk(runner, request))
    if found:
        log = runner.new.member.log_tail()
        pytest.fail("\n".join([again, *found, log]), pytrace=False)


def drive(runner: Runner, generator: Generator, steps: int) -> None:
    """Most of the steps, a compaction of everything, a restart of both, the rest."""
    runner.generate(generator, steps * 9 // 10)
    runner.let_leases_expire()
    runner.compare_state()
    if runner.new.newer:
        check_range_stream(runner.new, generator)
    runner.compact_all()
    runner.compare_state()
    runner.restart()
    runner.compare_state()
    runner.generate(generator, steps - steps * 9 // 10)
    runner.compare_state()


def check_range_stream(target: Target, generator: Generator) -> None:
    """The streamed range, which 3.5 does not have, gives what the plain range gives."""
    compared = 0
    for _ in range(200):
        request = kv_requests.range_request(generator.at)
        request.ClearField("sort_order")
        request.ClearField("sort_target")
        for name in ("min_mod", "max_mod", "min_create", "max_create"):
            request.ClearField(f"{name}_revision")
        plain = target.client.raw(RANGE.path, request.SerializeToString())
        if plain.ok:
            parts = target.client.collect(RANGE_STREAM_PATH, request.SerializeToString())
            assert joined(parts) == pb.RangeResponse.FromString(plain.body), request
            compared += 1
    assert compared > 20


def joined(parts: list[bytes]) -> Any:
    """The chunks of a streamed range as one response."""
    whole = pb.RangeResponse()
    for part in parts:
        whole.MergeFrom(pb.RangeStreamResponse.FromString(part).range_response)
    return whole


def shrunk(runner: Runner, request: pytest.FixtureRequest) -> str:
    """The shortest sequence found that differs on fresh servers, as text."""
    members: MemberFactory = request.getfixturevalue("members")
    binaries = runner.old.member.binary, runner.new.member.binary
    first = min(mismatch.position for mismatch in runner.mismatches.values())

    def differs(steps: list[Step]) -> bool:
        fresh = make_runner(members, *binaries)
        try:
            fresh.replay(steps)
        except Mismatch:
            return True
        finally:
            fresh.close()
            fresh.old.member.kill()
            fresh.new.member.kill()
        return False

    kept = shrink(runner.done[: first + 1], differs)
    return f"{len(kept)} steps remain:\n" + "\n".join(step.describe() for step in kept[-40:])


def report(runner: Runner) -> str:
    lines = [f"{count:7} {name}" for name, count in sorted(runner.outcomes.items())]
    return "\n".join([*lines, f"{runner.events:7} watch events"])
