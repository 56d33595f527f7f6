"""Rounds, tables and the command line, with two real servers or none that runs."""

from __future__ import annotations

import io
import json
import math
import pstats
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench import __main__ as command
from bench import million, report
from bench.client import RANGE, Call, Client, RpcError
from bench.cluster_workloads import of_clusters
from bench.connection import Body, Failure
from bench.load import Record
from bench.measure import METRICS, Sample
from bench.members import Member, Program, free_ports
from bench.profiling import LAUNCHER, profile
from bench.runner import Outcome, Runner, order
from bench.sources import Mixed, puts
from bench.wire import LoadError
from bench.workloads import Settings, refusals, standard
from kvorum.pb import etcdserverpb as pb

BRIEF = Settings(rounds=2, seconds=0.3, warm_up=0.02)


def outcome_of(first: list[Sample], second: list[Sample]) -> Outcome:
    return Outcome("work", "a title", {"a": first, "b": second})


def quietly(text: str) -> None:
    """For the progress lines."""


def test_the_servers_take_turns_at_going_first() -> None:
    assert [order(number) for number in range(3)] == [(0, 1), (1, 0), (0, 1)]


def test_ratios_are_of_medians() -> None:
    outcome = outcome_of(
        [{"rate": 10.0}, {"rate": 100.0}, {"rate": 20.0}], [{"rate": 30.0, "p50_ms": 1.0}]
    )
    assert outcome.ratios(["a", "b"]) == {"rate": 1.5}
    assert outcome.ratios(["b", "a"]) == {"rate": pytest.approx(2 / 3)}


def test_a_section_shows_medians_spread_ratio_and_verdict() -> None:
    outcome = outcome_of(
        [{"rate": 1000.0, "p99_ms": 2.0}, {"rate": 3000.0, "p99_ms": 2.0}],
        [{"rate": 4000.0, "p99_ms": 2.05}, {"rate": 4000.0, "p99_ms": 2.05}],
    )
    lines = report.section(outcome, ["a", "b"]).splitlines()
    assert lines[0] == "a title  [work]"
    expected = "operations/s 2,000 (1,000..3,000) 4,000 2.00 better"
    assert lines[2].split() == expected.split()
    assert lines[3].split() == ["p99", "ms", "2.000", "2.050", "1.02"]


def test_less_is_better_for_latency_and_worse_for_the_rate() -> None:
    outcome = outcome_of([{"rate": 10.0, "p99_ms": 9.0}], [{"rate": 5.0, "p99_ms": 3.0}])
    assert [row[-1] for row in report.rows(outcome, ["a", "b"])] == ["worse", "better"]


def test_notes_tell_what_spoils_the_numbers() -> None:
    sample = {"rate": 1.0, "generator_busy": 0.9, "others_busy": 0.5, "late_p99_ms": 4.0}
    outcome = outcome_of([sample], [{"rate": 1.0, "generator_busy": 0.2}])
    outcome.errors["b"] = "it fell over"
    notes = report.notes(outcome, ["a", "b"])
    assert [note.split(":")[0] for note in notes] == ["b FAILED", "a", "a", "a"]
    assert "bottleneck (90% busy)" in notes[1]


def test_lost_data_is_told_and_fails_only_kvorum() -> None:
    outcome = Outcome("large-crash", "", {"etcd": [{"lost": 2.0}], "kvorum": [{"lost": 0.0}]})
    assert report.notes(outcome, ["etcd", "kvorum"]) == [
        "etcd LOST up to 2 puts that it had answered with OK"
    ]
    assert not command.lost_data(outcome)
    outcome.samples["kvorum"].append({"lost": 1.0})
    assert command.lost_data(outcome)


def test_refusals_are_counted_and_other_failures_are_not_accepted() -> None:
    refusal = Failure(1, 8, "etcdserver: too many requests")
    assert refusals([refusal, refusal]) == 2
    with pytest.raises(LoadError, match="1 replies were errors, the first: code 14"):
        refusals([refusal, Failure(3, 14, "gone")])


def test_json_holds_samples_summaries_and_finite_ratios() -> None:
    outcome = outcome_of([{"rate": 0.0}], [{"rate": 5.0}])
    document = report.as_json([outcome], ["a", "b"], {"cores": 2})
    (workload,) = json.loads(json.dumps(document, allow_nan=False))["workloads"]
    assert workload["samples"] == {"a": [{"rate": 0.0}], "b": [{"rate": 5.0}]}
    assert workload["summary"]["b"]["rate"] == {"min": 5.0, "median": 5.0, "max": 5.0}
    assert workload["ratios"] == {"rate": None}


def test_the_machine_is_described(tmp_path: Path) -> None:
    found = report.surroundings(tmp_path)
    assert found["fdatasync_ms"] >= 0
    assert found["filesystem"] != "unknown"
    assert report.filesystem(Path("/proc")) == "proc"
    assert not list(tmp_path.iterdir()), "the probe is removed"


def test_workload_names_are_distinct_and_can_be_chosen() -> None:
    names = [work.name for work in standard()]
    assert len(set(names)) == len(names) == 15
    assert [work.name for work in command.chosen(["watch-*", "put-1x1"])] == [
        "put-1x1",
        "watch-1x1000",
        "watch-1000x1",
    ]


def test_the_command_line_lists_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    assert "mixed-80-20" in capsys.readouterr().out
    assert command.main(["--only", "nothing-like-it"]) == 2
    with pytest.raises(SystemExit):
        command.main(["--rounds", "0"])


@pytest.mark.parametrize("name", ["mixed-80-20", "lease-grant", "put-rate-50"])
def test_one_etcd_against_another(etcd_program: Program, tmp_path: Path, name: str) -> None:
    other = Program("other", etcd_program.command)
    runner = Runner([etcd_program, other], tmp_path, BRIEF, quietly)
    (workload,) = command.chosen([name])
    outcome = runner.run(workload)
    assert outcome.errors == {}
    for label in ("etcd", "other"):
        assert len(outcome.samples[label]) == 2
        for sample in outcome.samples[label]:
            assert set(sample) <= set(METRICS)
            assert not any(math.isnan(value) for value in sample.values())
            assert sample["rate"] > 0
            assert sample["peak_mib"] >= sample["anonymous_mib"] > 1
    assert not any(tmp_path.glob("*/*")), "data directories are deleted"


def test_a_server_that_does_not_start_is_reported_and_the_other_measured(
    etcd_program: Program, tmp_path: Path
) -> None:
    broken = Program("broken", (sys.executable, "-c", "raise SystemExit('no such server')"))
    runner = Runner([etcd_program, broken], tmp_path, BRIEF, quietly)
    outcome = runner.run(command.chosen(["get-serializable"])[0])
    assert "broken ended with 1: no such server" in outcome.errors["broken"]
    assert len(outcome.samples["etcd"]) == 2
    assert "broken FAILED" in report.section(outcome, ["etcd", "broken"])


def test_the_whole_command_writes_a_report(etcd_program: Program, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    binary = etcd_program.command[0]
    arguments = ["--only", "get-linearizable", "--quick", "--json", str(path)]
    arguments += ["--kvorum", binary, "--etcd", binary, "--data-root", str(tmp_path / "data")]
    assert command.main(arguments) == 0
    document = json.loads(path.read_text())
    assert document["servers"] == ["etcd", "kvorum"]
    assert document["context"]["versions"]["kvorum"].startswith("etcd Version")
    assert not list((tmp_path / "data").iterdir())


def test_a_missing_binary_gives_a_failing_exit_code(etcd_program: Program, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    arguments = ["--only", "put-1x1", "--quick"]
    arguments += ["--json", str(path), "--data-root", str(tmp_path)]
    arguments += ["--etcd", etcd_program.command[0], "--kvorum", "/nonexistent/kvorum"]
    assert command.main(arguments) == 1
    document = json.loads(path.read_text())
    assert document["context"]["versions"]["kvorum"].startswith("unknown")
    (workload,) = document["workloads"]
    assert "/nonexistent/kvorum" in workload["errors"]["kvorum"]
    assert list(workload["samples"]) == ["etcd"]


def test_the_steps_of_the_large_store(own_etcd: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(million, "QUIET_SECONDS", 0.2)
    monkeypatch.setattr(million, "LEAST_WINDOW", 0.2)
    steps = million.LargeStore(own_etcd, 2_000, BRIEF).steps()
    assert list(steps) == list(million.TITLES)
    own_etcd.stop()
    samples = {name: step() for name, step in steps.items()}
    # An etcd of 3.5.0 to 3.5.2 may lose some, which must not spoil the steps after it.
    assert samples["crash"]["lost"] >= 0
    assert all(set(sample) <= set(METRICS) for sample in samples.values())
    assert samples["defragmentation"]["refused"] == 0
    assert samples["restart"]["start_seconds"] > 0
    client = Client(own_etcd.port)
    with pytest.raises(RpcError, match="revision has been compacted"):
        client.call(RANGE, pb.RangeRequest(key=b"k", revision=2), pb.RangeResponse)
    client.close()


def test_what_a_maintenance_call_delayed_is_told_from_what_came_before() -> None:
    call = Call(1, Body())
    call.started, call.ended = 10.0, 13.0
    began = [9.0, 9.999, 10.5, 12.999, 13.001]
    record = Record(5.0, began, [0.002, 3.0, 2.5, 0.005, 9.0], [1, 3, 5, 7, 9])
    sample = million.during(puts(b"p/"), record, call)
    assert sample["before_p99_ms"] == pytest.approx(2.0)
    assert sample["stall_ms"] == sample["during_p99_ms"] == pytest.approx(3000.0)
    mixed = million.during(Mixed(puts(b"r/"), puts(b"w/"), 2), record, call)
    assert mixed["during_write_p99_ms"] == pytest.approx(3000.0)
    assert mixed["during_read_p99_ms"] == pytest.approx(2500.0)


def test_the_large_store_says_which_server_failed(tmp_path: Path) -> None:
    broken = [Program(name, ("false",)) for name in ("a", "b")]
    outcomes = million.compare_large(broken, tmp_path, BRIEF, 100, quietly)
    assert set(outcomes[0].errors) == {"a", "b"}
    assert not any(outcome.samples for outcome in outcomes)


def test_cpu_time_and_memory_are_the_servers(etcd: Member) -> None:
    before = etcd.cpu_seconds()
    memory = etcd.memory()
    assert 5 < memory.anonymous <= memory.resident <= memory.peak
    assert etcd.cpu_seconds() >= before > 0


def test_a_stopped_member_has_no_numbers(tmp_path: Path) -> None:
    member = Member(Program("none", ("true",)), tmp_path)
    assert not member.running()
    with pytest.raises(LoadError, match="not running"):
        member.cpu_seconds()
    assert member.stop() == 0.0


def test_free_ports_differ() -> None:
    assert len(set(free_ports(20))) == 20


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGTERM)", "raise SystemExit(3)"])
def test_a_profile_is_written_however_the_script_ends(tmp_path: Path, end: str) -> None:
    script = tmp_path / "script"
    lines = ["import os, signal, sys", "print(sys.argv, flush=True)", "sorted([2, 1])", end]
    script.write_text("\n".join(lines))
    output = tmp_path / "out.prof"
    command = [sys.executable, str(LAUNCHER), str(output), str(script), "--flag"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode in (-signal.SIGTERM, 3)
    assert ended.stdout == str([str(script), "--flag"]) + "\n"
    text = io.StringIO()
    pstats.Stats(str(output), stream=text).print_stats()
    assert "builtins.sorted" in text.getvalue()


def test_profiling_something_that_is_no_server(tmp_path: Path) -> None:
    script = tmp_path / "kvorum"
    script.write_text("raise RuntimeError('not today')\n")
    program = Program("kvorum", (str(script),))
    (workload,) = command.chosen(["put-1x1"])
    with pytest.raises(LoadError, match="not today"):
        profile(program, workload, BRIEF, tmp_path, tmp_path / "out.prof")


def test_cluster_workloads_have_names_of_their_own() -> None:
    kinds = of_clusters(200)
    names = [work.name for work in kinds]
    assert len(set(names)) == len(names)
    assert not set(names) & {work.name for work in standard()}
    picked = command.chosen(["cluster-put-10x10"], kinds)
    assert [work.name for work in picked] == ["cluster-put-10x10"]
