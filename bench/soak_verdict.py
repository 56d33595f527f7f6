"""What a soak run has seen, and whether that is good enough. Pure: no clock, no socket."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from bench.stats import Histogram, slope

KEPT_VIOLATIONS: Final = 10

MIB: Final = 2**20


@dataclass(frozen=True, slots=True)
class Limits:
    """The stated bounds. Seconds, MiB and shares."""

    latency_p99: float = 0.1
    latency_worst: float = 3.0
    watch_p99: float = 0.2
    watch_worst: float = 3.0
    expiry_worst: float = 3.0
    early: float = 0.05
    growth_share: float = 0.05
    growth_mib: float = 8.0
    wal_mib: float = 5 * 64.0
    snapshots: int = 5
    handles: int = 8
    rate_share: float = 0.95


@dataclass(frozen=True, slots=True)
class Point:
    """The server as seen at one moment: MiB, counts, and seconds since the start."""

    at: float
    resident: float
    anonymous: float
    database: float
    wal: float
    snapshots: int
    descriptors: int
    threads: int


@dataclass(slots=True)
class Findings:
    """Everything that was counted."""

    seconds: float = 0.0
    wanted: int = 0
    operations: int = 0
    reads: int = 0
    events: int = 0
    catch_ups: int = 0
    expired: int = 0
    kept_alive: int = 0
    revoked: int = 0
    manual_compactions: int = 0
    auto_compactions: int = 0
    defragmentations: int = 0
    latency: Histogram = field(default_factory=Histogram)
    watch_delay: Histogram = field(default_factory=Histogram)
    expiry_delay: Histogram = field(default_factory=Histogram)
    earliest_expiry: float = 0.0
    points: list[Point] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def fault(self, kind: str, example: str) -> None:
        """Count something that must never happen; the first few are told in words."""
        self.faults[kind] = self.faults.get(kind, 0) + 1
        if len(self.examples) < KEPT_VIOLATIONS:
            self.examples.append(f"{kind}: {example}")


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the verdict."""

    name: str
    value: str
    bound: str
    passed: bool


FAULTS: Final = (
    "failed request",
    "stale read",
    "event lost",
    "event repeated or out of order",
    "event nobody caused",
    "lease expired early",
    "lease not expired",
    "connection lost",
)


def verdict(findings: Findings, limits: Limits, *, long_run: bool) -> list[Rule]:
    """All rules; only a ``long_run`` must have seen maintenance and have levelled off."""
    rules = [_none(kind, findings.faults.get(kind, 0)) for kind in FAULTS]
    rules += [_none(kind, count) for kind, count in findings.faults.items() if kind not in FAULTS]
    rules += _timely(findings, limits)
    rules += _busy(findings, limits)
    if long_run:
        rules += _maintained(findings) + level(findings.points, limits)
    return rules


def _none(kind: str, count: int) -> Rule:
    return Rule(kind, str(count), "0", count == 0)


def _at_most(name: str, value: float, bound: float, unit: str, factor: float = 1.0) -> Rule:
    shown, limit = value * factor, bound * factor
    return Rule(name, f"{shown:,.1f} {unit}", f"<= {limit:,.1f} {unit}", value <= bound)


def _at_least(name: str, value: float, bound: float) -> Rule:
    return Rule(name, f"{value:,.0f}", f">= {bound:,.0f}", value >= bound)


def _timely(findings: Findings, limits: Limits) -> list[Rule]:
    latency, watch, expiry = findings.latency, findings.watch_delay, findings.expiry_delay
    return [
        _at_most("request p99", latency.percentile(99), limits.latency_p99, "ms", 1e3),
        _at_most("request worst", latency.largest, limits.latency_worst, "ms", 1e3),
        _at_most("watch delay p99", watch.percentile(99), limits.watch_p99, "ms", 1e3),
        _at_most("watch delay worst", watch.largest, limits.watch_worst, "ms", 1e3),
        _at_most("lease expiry worst delay", expiry.largest, limits.expiry_worst, "ms", 1e3),
    ]


def _busy(findings: Findings, limits: Limits) -> list[Rule]:
    return [
        _at_least("operations", findings.operations, findings.wanted * limits.rate_share),
        _at_least("events", findings.events, 1),
        _at_least("watches that caught up", findings.catch_ups, 1),
        _at_least("leases expired", findings.expired, 1),
    ]


def _maintained(findings: Findings) -> list[Rule]:
    return [
        _at_least("leases kept alive", findings.kept_alive, 1),
        _at_least("leases revoked", findings.revoked, 1),
        _at_least("compactions by hand", findings.manual_compactions, 1),
        _at_least("compactions by themselves", findings.auto_compactions, 1),
        _at_least("defragmentations", findings.defragmentations, 1),
    ]


def level(points: Sequence[Point], limits: Limits) -> list[Rule]:
    """Memory, files and handles must not grow over the later half of the run."""
    later = points[len(points) // 2 :]
    if len(later) < 3:
        return [Rule("samples", str(len(points)), ">= 5", False)]
    sizes: list[tuple[str, Callable[[Point], float]]] = [
        ("resident memory", lambda point: point.resident),
        ("anonymous memory", lambda point: point.anonymous),
        ("database file", lambda point: point.database),
    ]
    rules = [_levels_off(name, later, of, limits) for name, of in sizes]
    rules.append(_at_most("log files", max(p.wal for p in points), limits.wal_mib, "MiB"))
    snapshots = max(point.snapshots for point in later)
    rules.append(_at_most("raft snapshot files", snapshots, limits.snapshots, ""))
    handles: list[tuple[str, Callable[[Point], float]]] = [
        ("descriptors", lambda point: point.descriptors),
        ("threads", lambda point: point.threads),
    ]
    for name, of in handles:
        grown = growth(later, of)
        rules.append(_at_most(f"{name}, growth", grown, float(limits.handles), ""))
    return rules


def growth(points: Sequence[Point], of: Callable[[Point], float]) -> float:
    """The trend of a value times the time the points span."""
    trend = slope([(point.at, of(point)) for point in points])
    return trend * (points[-1].at - points[0].at)


def _levels_off(
    name: str, points: Sequence[Point], of: Callable[[Point], float], limits: Limits
) -> Rule:
    """Growth up to a share of the level, or a few MiB, is not told from noise."""
    highest = max(of(point) for point in points)
    bound = max(limits.growth_mib, limits.growth_share * highest)
    rule = _at_most(f"{name}, growth", growth(points, of), bound, "MiB")
    return Rule(rule.name, f"{rule.value} at {highest:,.1f}", rule.bound, rule.passed)


def table(rules: Sequence[Rule]) -> str:
    """The verdict as text."""
    columns = ("name", "value")
    widths = [max(len(getattr(rule, column)) for rule in rules) for column in columns]
    return "\n".join(
        f"  {'ok  ' if rule.passed else 'FAIL'}  {rule.name.ljust(widths[0])}  "
        f"{rule.value.rjust(widths[1])}  {rule.bound}"
        for rule in rules
    )
