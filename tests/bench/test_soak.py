from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from bench import soak
from bench.aio import AsyncClient
from bench.client import PUT, RpcError
from bench.members import Member, Program
from bench.soak_actors import Leases, Ledger, Watcher, wait_all
from bench.soak_verdict import Findings, Limits, Point, Rule, growth, level, table, verdict
from kvorum.pb import etcdserverpb as pb

LIMITS = Limits()
FLAT = Point(
    at=0,
    resident=100,
    anonymous=60,
    database=30,
    wal=128,
    snapshots=2,
    descriptors=20,
    threads=9,
)


def points(**slopes: float) -> list[Point]:
    """A minute of points in which the named values grow so much a second."""
    return [
        replace(
            FLAT,
            at=float(second),
            **{name: getattr(FLAT, name) + second * each for name, each in slopes.items()},
        )
        for second in range(60)
    ]


def failed(rules: list[Rule]) -> list[str]:
    return [rule.name for rule in rules if not rule.passed]


def good_findings() -> Findings:
    findings = Findings(operations=100, wanted=100, events=50, catch_ups=3, expired=2)
    findings.kept_alive = findings.revoked = findings.defragmentations = 1
    findings.manual_compactions = findings.auto_compactions = 1
    findings.points = points()
    for histogram in (findings.latency, findings.watch_delay, findings.expiry_delay):
        histogram.add(0.01)
    return findings


def test_a_good_run_passes() -> None:
    rules = verdict(good_findings(), LIMITS, long_run=True)
    assert failed(rules) == []
    assert len(table(rules).splitlines()) == len(rules) > 20


@pytest.mark.parametrize(
    ("name", "each"),
    [("resident", 0.5), ("anonymous", 0.5), ("database", 0.5), ("threads", 1), ("descriptors", 1)],
)
def test_what_grows_fails(name: str, each: float) -> None:
    (rule,) = failed(level(points(**{name: each}), LIMITS))
    assert rule.startswith(name)


def test_growth_that_ends_before_the_later_half_is_no_fault() -> None:
    early = [replace(FLAT, at=float(n), anonymous=min(n, 25) * 10.0) for n in range(60)]
    assert failed(level(early, LIMITS)) == []


def test_noise_around_a_level_is_no_growth() -> None:
    noisy = [replace(FLAT, at=float(n), anonymous=60 + 30 * (n % 5 == 0)) for n in range(60)]
    assert growth(noisy, lambda point: point.anonymous) == pytest.approx(0, abs=1)


def test_too_few_points_fail() -> None:
    assert failed(level(points()[:4], LIMITS)) == ["samples"]


def test_logs_and_snapshots_are_bounded() -> None:
    crowded = [replace(point, wal=500, snapshots=9) for point in points()]
    assert failed(level(crowded, LIMITS)) == ["log files", "raft snapshot files"]


def test_slowness_fails() -> None:
    findings = good_findings()
    findings.latency.add(5.0)
    findings.watch_delay.add(5.0)
    findings.expiry_delay.add(5.0)
    assert failed(verdict(findings, LIMITS, long_run=True)) == [
        "request p99",
        "request worst",
        "watch delay p99",
        "watch delay worst",
        "lease expiry worst delay",
    ]


def test_every_fault_fails_and_the_first_ones_are_told() -> None:
    findings = good_findings()
    for number in range(100):
        findings.fault("event lost", f"revision {number}")
    findings.fault("something new", "never seen")
    assert failed(verdict(findings, LIMITS, long_run=True)) == ["event lost", "something new"]
    assert findings.examples[0] == "event lost: revision 0"
    assert len(findings.examples) == 10


def test_idleness_and_missing_maintenance_fail_a_long_run() -> None:
    names = failed(verdict(Findings(wanted=10), LIMITS, long_run=True))
    assert {"operations", "events", "leases expired", "compactions by themselves"} <= set(names)


def test_a_ledger_matches_events_and_replies_in_any_order() -> None:
    findings = Findings()
    ledger = Ledger(findings)
    ledger.done(5, sent=1.0)
    ledger.event(5, 1.25)
    ledger.event(6, 1.5)
    ledger.done(6, sent=1.0)
    ledger.overdue(1e9)
    assert findings.faults == {}
    assert findings.watch_delay.count == 2
    assert findings.watch_delay.largest == 0.5


def test_a_ledger_finds_lost_repeated_and_unasked_events() -> None:
    findings = Findings()
    ledger = Ledger(findings)
    ledger.done(5, sent=1.0)
    ledger.event(7, 1.0)
    ledger.event(7, 1.0)
    ledger.event(6, 1.0)
    ledger.overdue(2.0)
    assert "event lost" not in findings.faults
    for _ in range(2):
        ledger.overdue(100.0)
    assert findings.faults == {
        "event repeated or out of order": 2,
        "event lost": 1,
        "event nobody caused": 1,
    }


def test_the_clients_calls_and_their_errors(etcd: Member) -> None:
    async def story() -> None:
        client = await AsyncClient.connect(etcd.port)
        reply = await client.call(PUT, pb.PutRequest(key=b"aio"), pb.PutResponse)
        assert reply.header.revision > 1
        with pytest.raises(RpcError, match="key is not provided"):
            await client.call(PUT, pb.PutRequest(), pb.PutResponse)
        assert client.open == 0
        client.close()

    asyncio.run(story())


def test_a_broken_connection_fails_the_calls(own_etcd: Member) -> None:
    async def story() -> None:
        client = await AsyncClient.connect(own_etcd.port)
        watcher = Watcher(client, b"x/", lambda event, now: None)
        await wait_all([watcher.created])
        own_etcd.kill()
        with pytest.raises(RpcError, match="connection lost"):
            await client.call(PUT, pb.PutRequest(key=b"x"), pb.PutResponse)

    asyncio.run(story())


def test_a_revoked_and_a_kept_lease(etcd: Member) -> None:
    async def story() -> Findings:
        findings = Findings()
        client = await AsyncClient.connect(etcd.port)
        leases = Leases(client, findings, LIMITS)
        watcher = Watcher(client, Leases.PREFIX, leases.on_event)
        await wait_all([watcher.created])
        await leases.one(2, 0, revoke=True)
        await leases.one(2, 2, revoke=True)
        client.close()
        return findings

    findings = asyncio.run(story())
    assert (findings.revoked, findings.kept_alive, findings.faults) == (2, 2, {})


@pytest.mark.parametrize(("when", "faults"), [(11.9, 1), (11.96, 0), (15.0, 0)])
def test_a_lease_may_not_end_before_its_time(etcd: Member, when: float, faults: int) -> None:
    async def story() -> Findings:
        findings = Findings()
        client = await AsyncClient.connect(etcd.port)
        Leases(client, findings, LIMITS)._judge_expiry(7, 2, sent=10.0, when=when)
        client.close()
        return findings

    assert asyncio.run(story()).faults.get("lease expired early", 0) == faults


def test_a_short_soak_of_etcd(
    etcd_program: Program,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(soak, "LEASE_SECONDS", (2,))
    monkeypatch.setattr(soak, "RENEWALS", 1)
    arguments = ["--minutes", "0.04", "--rate", "200", "--keys", "50", "--max-p99", "3"]
    arguments += ["--kvorum", etcd_program.command[0], "--data-root", str(tmp_path / "data")]
    arguments += ["--json", str(tmp_path / "verdict.json"), "--max-worst", "10"]
    code = soak.main(arguments)
    out = capsys.readouterr().out
    assert code == 0, out
    assert out.splitlines()[-1] == "PASSED"
    assert (tmp_path / "verdict.json").exists()
    assert not list((tmp_path / "data").iterdir())


def test_a_server_that_dies_fails_the_soak(own_etcd: Member) -> None:
    async def story() -> Findings:
        run = soak.Soak(own_etcd, LIMITS, seconds=60, rate=200, keys=50, seed=1)
        asyncio.get_running_loop().call_later(0.5, own_etcd.kill)
        with pytest.raises(ExceptionGroup):
            await run.run()
        return run.findings

    findings = asyncio.run(story())
    assert findings.faults["failed request"] >= 1
