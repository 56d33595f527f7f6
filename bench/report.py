"""The table on the terminal and the JSON file."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench.measure import GENERATOR_BOUND, METRICS, Metric
from bench.runner import Outcome
from bench.stats import Summary

ALWAYS: Final = ("rate", "p50_ms", "p99_ms", "server_us")
HIDDEN: Final = ("generator_us", "generator_busy", "others_busy", "late_p99_ms", "anonymous_mib")
"""Metrics about the measurement rather than the servers; in JSON and in the notes."""

OTHERS_NOTICED: Final = 0.15
LATE_NOTICED_MS: Final = 1.0


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:,.{digits}f}"


def _cell(summary: Summary | None, metric: Metric) -> str:
    if summary is None:
        return "-"
    low, middle, high = (
        _number(value, metric.digits) for value in (summary.low, summary.middle, summary.high)
    )
    return middle if low == high else f"{middle} ({low}..{high})"


def _verdict(value: float, metric: Metric) -> str:
    """Whether a ratio is good for the second server, with 5 % left to chance."""
    if not metric.better or math.isnan(value) or 0.95 <= value <= 1.05:
        return ""
    return "better" if (value > 1) == (metric.better == "higher") else "worse"


def rows(outcome: Outcome, labels: Sequence[str]) -> list[list[str]]:
    """The table rows of one workload: metric, both servers, ratio of the medians, verdict."""
    summaries = [outcome.summary(label) for label in labels]
    ratios = outcome.ratios(labels)
    table = []
    for name, metric in METRICS.items():
        if name in HIDDEN or not any(name in summary for summary in summaries):
            continue
        cells = [_cell(summary.get(name), metric) for summary in summaries]
        value = ratios.get(name, math.nan)
        table.append([metric.title, *cells, _number(value, 2), _verdict(value, metric)])
    return table


def notes(outcome: Outcome, labels: Sequence[str]) -> list[str]:
    """What a reader must know before believing the numbers."""
    said = [f"{label} FAILED: {error}" for label, error in outcome.errors.items()]
    for label in labels:
        summary = outcome.summary(label)
        if not summary:
            continue
        lost = summary.get("lost")
        if lost is not None and lost.high > 0:
            said.append(f"{label} LOST up to {lost.high:,.0f} puts that it had answered with OK")
        refused = summary.get("refused")
        if refused is not None and refused.middle > 0:
            said.append(f"{label}: refused requests ({refused.middle:,.0f}) have no latency")
        busy = summary.get("generator_busy")
        if busy is not None and busy.middle > GENERATOR_BOUND:
            said.append(f"{label}: the load generator was the bottleneck ({busy.middle:.0%} busy)")
        others = summary.get("others_busy")
        if others is not None and others.middle > OTHERS_NOTICED:
            said.append(f"{label}: other processes used {others.middle:.2f} cores meanwhile")
        late = summary.get("late_p99_ms")
        if late is not None and late.middle > LATE_NOTICED_MS:
            said.append(f"{label}: requests were sent late, p99 {late.middle:.2f} ms")
    return said


def section(outcome: Outcome, labels: Sequence[str]) -> str:
    """One workload as text."""
    head = ["", *labels, f"{labels[1]}/{labels[0]}", ""]
    table = [head, *rows(outcome, labels)]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    lines = [f"{outcome.title}  [{outcome.name}]"]
    for row in table:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:4], widths[1:4], strict=True)]
        lines.append("  " + "  ".join([*cells, row[4]]).rstrip())
    lines += [f"  ! {note}" for note in notes(outcome, labels)]
    return "\n".join(lines)


def overview(outcomes: Sequence[Outcome], labels: Sequence[str]) -> str:
    """One line per workload: the ratios of the medians that matter most."""
    lines = [f"{labels[1]}/{labels[0]}, ratios of medians (more is better for operations/s only)"]
    lines.append("  " + "".rjust(18) + "".join(METRICS[name].title.rjust(18) for name in ALWAYS))
    for outcome in outcomes:
        ratios = outcome.ratios(labels)
        if not any(name in ratios for name in ALWAYS):
            continue
        cells = (_number(ratios.get(name, math.nan), 2).rjust(18) for name in ALWAYS)
        lines.append("  " + outcome.name.ljust(18) + "".join(cells))
    return "\n".join(lines)


def generator_line(outcomes: Sequence[Outcome], labels: Sequence[str]) -> str:
    """What the load generator itself cost."""
    costs = [
        (summary["generator_us"].middle, summary["generator_busy"].middle)
        for outcome in outcomes
        for summary in (outcome.summary(label) for label in labels)
        if "generator_us" in summary
    ]
    if not costs:
        return ""
    per_operation = sorted(cost for cost, _ in costs)
    return (
        f"load generator: CPU per operation {per_operation[0]:.1f}..{per_operation[-1]:.1f} us, "
        f"median {median(per_operation):.1f}; at most {max(busy for _, busy in costs):.0%} "
        "of one core"
    )


def filesystem(path: Path) -> str:
    """The type of the filesystem that holds ``path``."""
    path = path.resolve()
    best, kind = "", "unknown"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        mount = left.split()[4]
        inside = path == Path(mount) or Path(mount) in path.parents
        if inside and len(mount) >= len(best):
            best, kind = mount, right.split()[0]
    return kind


def fsync_milliseconds(root: Path, times: int = 200) -> float:
    """The median time of appending 4 KiB and fdatasync, to tell what the disk allows."""
    path = root / "fsync-probe"
    taken = []
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    try:
        for _ in range(times):
            began = time.perf_counter()
            os.write(descriptor, b"\0" * 4096)
            os.fdatasync(descriptor)
            taken.append(time.perf_counter() - began)
    finally:
        os.close(descriptor)
        path.unlink()
    return median(taken) * 1e3


def surroundings(root: Path) -> dict[str, Any]:
    """The machine, as far as it matters for the numbers."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "filesystem": filesystem(root),
        "fdatasync_ms": round(fsync_milliseconds(root), 3),
        "load_average": os.getloadavg()[0],
    }


def as_json(
    outcomes: Sequence[Outcome], labels: Sequence[str], context: dict[str, Any]
) -> dict[str, Any]:
    """All samples, summaries and ratios."""
    return {
        "context": context,
        "servers": list(labels),
        "workloads": [
            {
                "name": outcome.name,
                "title": outcome.title,
                "errors": outcome.errors,
                "samples": outcome.samples,
                "summary": {label: _summary_json(outcome, label) for label in labels},
                "ratios": _finite(outcome.ratios(labels)),
                "notes": notes(outcome, labels),
            }
            for outcome in outcomes
        ],
    }


def _summary_json(outcome: Outcome, label: str) -> dict[str, dict[str, float]]:
    return {
        name: {"min": value.low, "median": value.middle, "max": value.high}
        for name, value in outcome.summary(label).items()
    }


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write the report, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
