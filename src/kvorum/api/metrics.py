"""Telemetry as Prometheus reads it: the text of a scrape, and a collector for other registries.

The text is written here and not by prometheus-client: a scrape happens on the loop that serves,
and one of 1,700 lines costs a millisecond this way and twenty through the library's objects.
"""

from __future__ import annotations

import gzip
import os
import resource
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from kvorum.api.httpkit import query_of
from kvorum.h2.http import HttpRequest, HttpResponse
from kvorum.instruments import AnyFamily, Counter, Histogram, Registry
from kvorum.telemetry import Telemetry

if TYPE_CHECKING:
    from prometheus_client.core import Metric

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"
COMPRESSION: Final = 1
"""The fastest level: 160 KB in 0.3 ms, to a fifteenth."""
Child = Counter | Histogram


class Exposition:
    """Renders registries again and again; what does not change between scrapes is kept."""

    def __init__(self, registries: Iterable[Registry]) -> None:
        self._registries = tuple(registries)
        self._rows: dict[str, tuple[int, list[tuple[list[str], Child]]]] = {}

    def render(self, only: Collection[str] = ()) -> bytes:
        """The text format 0.0.4; of the families (or samples) named in `only`, if any are."""
        families = [family for registry in self._registries for family in registry]
        families.sort(key=lambda family: family.name)
        lines: list[str] = []
        for family in families:
            if not only or not set(only).isdisjoint(_sample_names(family)):
                self._render_family(family, lines)
        return "".join(lines).encode()

    def _render_family(self, family: AnyFamily, lines: list[str]) -> None:
        family.refresh()
        known = self._rows.get(family.name)
        if known is None or known[0] != family.generation:
            known = self._rows[family.name] = (family.generation, _rows(family))
        rows = known[1]
        if not rows:
            return
        lines.append(f"# HELP {family.name} {_escape_help(family.help)}\n")
        lines.append(f"# TYPE {family.name} {family.kind}\n")
        for heads, child in rows:
            if isinstance(child, Histogram):
                _render_histogram(heads, child, lines)
            else:
                lines.append(f"{heads[0]}{render_number(child.read())}\n")


def _rows(family: AnyFamily) -> list[tuple[list[str], Child]]:
    children = sorted(family.children(), key=lambda item: item[0])
    return [(_heads(family, labels, child), child) for labels, child in children]


def _sample_names(family: AnyFamily) -> tuple[str, ...]:
    name = family.name
    if family.kind == "histogram":
        return (name, f"{name}_bucket", f"{name}_sum", f"{name}_count")
    return (name,)


def _heads(family: AnyFamily, labels: tuple[str, ...], child: Child) -> list[str]:
    """What stands before the numbers of a child: one head, or one for each bucket, sum, count.
    Labels stand in the order of their names, and le last, as in Go's library."""
    named = sorted(zip(family.labels, labels, strict=True))
    pairs = [f'{name}="{_escape_label(value)}"' for name, value in named]
    if not isinstance(child, Histogram):
        return [_head(family.name, pairs)]
    bounds = [*map(go_float, child.bounds), "+Inf"]
    heads = [_head(f"{family.name}_bucket", [*pairs, f'le="{bound}"']) for bound in bounds]
    return [*heads, _head(f"{family.name}_sum", pairs), _head(f"{family.name}_count", pairs)]


def _head(name: str, pairs: list[str]) -> str:
    return f"{name}{{{','.join(pairs)}}} " if pairs else f"{name} "


def _render_histogram(heads: list[str], child: Histogram, lines: list[str]) -> None:
    total = 0
    for head, count in zip(heads, child.counts, strict=False):
        total += count
        lines.append(f"{head}{total}\n")
    lines.append(f"{heads[-2]}{render_number(child.sum)}\n")
    lines.append(f"{heads[-1]}{total}\n")


def _escape_help(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _escape_label(text: str) -> str:
    return _escape_help(text).replace('"', r"\"")


def render_number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    if value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value)


def go_float(value: float) -> str:
    """As Go's ``%g`` writes it: from a million on in exponent form. The le label is a text to
    Prometheus, and must be the one that etcd writes."""
    _, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(exponent, int)
    assert value > 0, value
    power = len(digits) + exponent - 1
    if -4 <= power < 6:
        return f"{Decimal(repr(value)).normalize():f}"
    text = "".join(map(str, digits))
    mantissa = f"{text[0]}.{text[1:]}" if len(text) > 1 else text
    return f"{mantissa}e{power:+03d}"


class MetricsPage:
    """/metrics: any method, compressed when asked for; ``name[]`` picks families, as in other
    Prometheus libraries."""

    def __init__(self, telemetry: Telemetry) -> None:
        pages = Registry()
        requests = pages.counters(
            "promhttp_metric_handler_requests_total", "Scrapes by status code.", "code"
        )
        self._answered, _, _ = (requests.with_labels(code) for code in ("200", "500", "503"))
        pages.gauge("promhttp_metric_handler_requests_in_flight", "Scrapes being served.")
        self._exposition = Exposition([telemetry.registry, process_registry(), pages])

    def handle(self, request: HttpRequest) -> HttpResponse:
        only = query_of(request).get("name[]", [])
        body = self._exposition.render(only)
        self._answered.value += 1
        headers = [("Content-Type", CONTENT_TYPE)]
        if accepts_gzip(request.header("accept-encoding")):
            headers.append(("Content-Encoding", "gzip"))
            body = gzip.compress(body, COMPRESSION, mtime=0)
        return HttpResponse(200, body, headers)


def accepts_gzip(accepted: str) -> bool:
    """Whether an Accept-Encoding header lets us compress: it names gzip, and not with q=0."""
    for part in accepted.split(","):
        coding, _, parameters = part.strip().partition(";")
        if coding.strip().lower() == "gzip":
            weight = parameters.strip().lower().removeprefix("q=")
            return weight.strip("0.") != "" or weight == ""
    return False


class TelemetryCollector:
    """A custom collector for a prometheus-client registry of the embedding program::

    prometheus_client.REGISTRY.register(TelemetryCollector(member.telemetry.registry))
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import Metric

        for family in self._registry:
            family.refresh()
            metric = Metric(family.name, family.help, family.kind)
            for labels, child in family.children():
                named = dict(zip(family.labels, labels, strict=True))
                if isinstance(child, Histogram):
                    _add_histogram(metric, family.name, named, child)
                else:
                    metric.add_sample(family.name, named, child.read())
            yield metric


def _add_histogram(metric: Metric, name: str, labels: dict[str, str], child: Histogram) -> None:
    total = 0
    for bound, count in zip([*map(go_float, child.bounds), "+Inf"], child.counts, strict=True):
        total += count
        metric.add_sample(f"{name}_bucket", {**labels, "le": bound}, total)
    metric.add_sample(f"{name}_sum", labels, child.sum)
    metric.add_sample(f"{name}_count", labels, total)


def process_registry() -> Registry:
    """What Prometheus' Go library says of every process, where Linux tells it."""
    registry = Registry()
    add = registry.sampled
    add("counter", "process_cpu_seconds_total", "CPU time, user and system.", _cpu_seconds)
    add("gauge", "process_max_fds", "Limit of open file descriptors.", fd_limit)
    add("gauge", "process_open_fds", "Open file descriptors.", fds_used)
    add("gauge", "process_resident_memory_bytes", "Memory in use.", _resident_bytes)
    add("gauge", "process_virtual_memory_bytes", "Address space in use.", _virtual_bytes)
    add("gauge", "process_virtual_memory_max_bytes", "Limit of address space.", _virtual_limit)
    started = _start_time()
    add("gauge", "process_start_time_seconds", "Unix time of the start.", lambda: started)
    for way, field in (("receive", "InOctets"), ("transmit", "OutOctets")):
        text = f"Bytes over the network ({way}), of all processes in this network namespace."
        add("counter", f"process_network_{way}_bytes_total", text, _network_bytes(field))
    return registry


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system


def fds_used() -> float:
    try:
        return len(os.listdir("/proc/self/fd")) - 1  # the listing itself has one open
    except OSError:
        return 0


def fd_limit() -> float:
    return _limit(resource.RLIMIT_NOFILE)


def _virtual_limit() -> float:
    return _limit(resource.RLIMIT_AS)


def _limit(which: int) -> float:
    soft = resource.getrlimit(which)[0]
    return float("inf") if soft == resource.RLIM_INFINITY else soft


def _stat() -> list[str]:
    """The fields of /proc/self/stat after the program's name (which may hold spaces); proc(5)
    counts them from 3. Empty where there is no such file."""
    try:
        with open("/proc/self/stat") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def _virtual_bytes() -> float:
    stat = _stat()
    return int(stat[20]) if stat else 0


def _resident_bytes() -> float:
    stat = _stat()
    return int(stat[21]) * resource.getpagesize() if stat else 0


def _start_time() -> float:
    """Boot time and the start in clock ticks after it; now, where Linux does not tell."""
    stat = _stat()
    if not stat:
        return time.time()
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return round(boot + int(stat[19]) / os.sysconf("SC_CLK_TCK"), 2)


def _network_bytes(field: str) -> Callable[[], float]:
    def read() -> float:
        try:
            with open("/proc/self/net/netstat") as file:
                rows = [line.split() for line in file if line.startswith("IpExt:")]
        except OSError:
            return 0
        return int(rows[1][rows[0].index(field)]) if len(rows) == 2 else 0

    return read
