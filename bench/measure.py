"""From a run to the numbers of one round: rate, latencies, CPU of the server and of our own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bench.load import Record
from bench.members import Server, busy_seconds
from bench.stats import percentile
from bench.wire import LoadError

Sample = dict[str, float]
"""One round's metrics by name; METRICS says what they mean."""


@dataclass(frozen=True, slots=True)
class Metric:
    """How a metric is called and printed; ``better`` is 'higher', 'lower' or empty."""

    title: str
    digits: int
    better: str


METRICS: Final = {
    "rate": Metric("operations/s", 0, "higher"),
    "p50_ms": Metric("p50 ms", 3, "lower"),
    "p99_ms": Metric("p99 ms", 3, "lower"),
    "max_ms": Metric("worst ms", 2, "lower"),
    "read_p50_ms": Metric("reads p50 ms", 3, "lower"),
    "read_p99_ms": Metric("reads p99 ms", 3, "lower"),
    "write_p50_ms": Metric("writes p50 ms", 3, "lower"),
    "write_p99_ms": Metric("writes p99 ms", 3, "lower"),
    "server_us": Metric("server CPU us/op", 1, "lower"),
    "peak_mib": Metric("peak memory MiB", 1, "lower"),
    "anonymous_mib": Metric("anonymous MiB", 1, "lower"),
    "resident_mib": Metric("resident MiB", 1, "lower"),
    "seconds": Metric("seconds", 2, "lower"),
    "stop_seconds": Metric("stop, s", 2, "lower"),
    "start_seconds": Metric("start to first get, s", 2, "lower"),
    "restart_mib": Metric("resident after it, MiB", 1, "lower"),
    "before_p99_ms": Metric("p99 ms before", 2, "lower"),
    "during_p99_ms": Metric("p99 ms meanwhile", 2, "lower"),
    "during_read_p99_ms": Metric("gets p99 ms meanwhile", 2, "lower"),
    "during_write_p99_ms": Metric("puts p99 ms meanwhile", 2, "lower"),
    "stall_ms": Metric("longest stall ms", 1, "lower"),
    "failover_ms": Metric("median of failovers, ms", 0, "lower"),
    "failover_max_ms": Metric("longest failover, ms", 0, "lower"),
    "growth_mib": Metric("leader's growth, MiB", 1, "lower"),
    "growth_anonymous_mib": Metric("of it anonymous, MiB", 1, "lower"),
    "p99_times": Metric("p99 meanwhile / before", 2, "lower"),
    "lost": Metric("answered puts lost", 0, "lower"),
    "refused": Metric("requests refused", 0, "lower"),
    "database_mib": Metric("database MiB", 1, "lower"),
    "database_before_mib": Metric("database before, MiB", 1, "lower"),
    "generator_us": Metric("generator CPU us/op", 1, ""),
    "generator_busy": Metric("generator's use of a core", 2, ""),
    "others_busy": Metric("others' use of cores", 2, ""),
    "late_p99_ms": Metric("sent late, p99 ms", 3, ""),
}

GENERATOR_BOUND: Final = 0.8
"""Above this share of one core the generator may be what limits the rate."""


@dataclass(frozen=True, slots=True)
class _Mark:
    at: float
    server: float
    own: float
    everybody: float


class Meter:
    """Reads the CPU clocks whenever it is called: at the start and the end of a measurement."""

    def __init__(self, member: Server) -> None:
        self._member = member
        self._marks: list[_Mark] = []

    def __call__(self) -> None:
        server, everybody = self._member.cpu_seconds(), busy_seconds()
        self._marks.append(_Mark(time.perf_counter(), server, time.process_time(), everybody))

    def costs(self, operations: int) -> Sample:
        """CPU per operation between the two marks, and who else used the machine."""
        first, last = self._marks
        wall = last.at - first.at
        server, own = last.server - first.server, last.own - first.own
        others = last.everybody - first.everybody - server - own
        return {
            "server_us": server / operations * 1e6,
            "generator_us": own / operations * 1e6,
            "generator_busy": own / wall,
            "others_busy": max(0.0, others / wall),
        }


def latencies(values: Sequence[float], prefix: str = "") -> Sample:
    """The percentiles of latencies in seconds, as milliseconds."""
    ordered = sorted(values)
    return {
        f"{prefix}p50_ms": percentile(ordered, 50) * 1e3,
        f"{prefix}p99_ms": percentile(ordered, 99) * 1e3,
    }


def sample_of(record: Record, meter: Meter) -> Sample:
    """The metrics every workload has."""
    operations = len(record.latencies)
    if not operations:
        raise LoadError("no request was answered while it was measured")
    return {
        "rate": operations / record.seconds,
        **latencies(record.latencies),
        "max_ms": max(record.latencies) * 1e3,
        **meter.costs(operations),
    }
