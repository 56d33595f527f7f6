"""Metrics: etcd's names, types, labels and buckets; the text; what scrapes see."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, cast

import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvorum.api.metrics import (
    Exposition,
    MetricsPage,
    TelemetryCollector,
    go_float,
    process_registry,
    render_number,
)
from kvorum.h2.http import HttpRequest, HttpResponse
from kvorum.instruments import MAX_CHILDREN, Histogram, Registry, exponential
from kvorum.telemetry import GRPC_CODES, Telemetry

ETCD_METRICS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "etcd_metrics.json").read_text()
)
LIBRARY_FAMILIES = {
    "grpc_server_started_total",
    "grpc_server_handled_total",
    "grpc_server_msg_received_total",
    "grpc_server_msg_sent_total",
}
PROCESS_FAMILIES = {
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_network_receive_bytes_total",
    "process_network_transmit_bytes_total",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_virtual_memory_bytes",
    "process_virtual_memory_max_bytes",
}


def scrape(telemetry: Telemetry, query: str = "") -> str:
    sent = HttpRequest("GET", "/metrics", query, [], b"", "1.1")
    response = MetricsPage(telemetry).handle(sent)
    assert isinstance(response, HttpResponse)
    assert isinstance(response.body, bytes)
    return response.body.decode()


def families(text: str) -> set[str]:
    return {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}


@pytest.mark.parametrize("row", ETCD_METRICS, ids=lambda row: row["name"])
def test_is_declared_as_in_etcd(row: dict[str, Any]) -> None:
    declared = {family.name: family for family in Telemetry().registry}
    family = declared[row["name"]]
    assert family.kind == row["type"]
    assert sorted(family.labels) == sorted(row["labels"])
    assert family.help.endswith(".")
    assert (len(family.children()) == 1) == row["at_start"]


def test_declares_nothing_else() -> None:
    names = {family.name for family in Telemetry().registry}
    assert names - {row["name"] for row in ETCD_METRICS} == LIBRARY_FAMILIES


@pytest.mark.parametrize(
    "row", [row for row in ETCD_METRICS if row["buckets"]], ids=lambda row: row["name"]
)
def test_has_etcd_s_buckets(row: dict[str, Any]) -> None:
    declared = {family.name: family for family in Telemetry().registry}
    family = cast(Any, declared[row["name"]])
    child = family.with_labels(*("x" for _ in family.labels))
    assert isinstance(child, Histogram)
    assert child.bounds == exponential(**row["buckets"])


def test_handling_times_are_extensive() -> None:
    names = {family.name for family in Telemetry(extensive=True).registry}
    assert "grpc_server_handling_seconds" in names


def test_a_scrape_has_every_family_that_etcd_has_at_the_start() -> None:
    expected = {row["name"] for row in ETCD_METRICS if row["at_start"]}
    text = scrape(Telemetry())
    page = {
        "promhttp_metric_handler_requests_total",
        "promhttp_metric_handler_requests_in_flight",
    }
    assert families(text) == expected | PROCESS_FAMILIES | page


def test_methods_start_at_zero() -> None:
    telemetry = Telemetry(extensive=True)
    put = telemetry.grpc.method("/etcdserverpb.KV/Put", "unary")
    put.started.value += 2
    put.handled[0].value += 1
    assert put.seconds is not None
    put.seconds.observe(0.02)
    text = scrape(telemetry)
    labels = 'grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"'
    assert f"grpc_server_started_total{{{labels}}} 2\n" in text
    assert f'grpc_server_handled_total{{grpc_code="OK",{labels}}} 1\n' in text
    assert f'grpc_server_handled_total{{grpc_code="Unauthenticated",{labels}}} 0\n' in text
    assert f'grpc_server_handling_seconds_bucket{{{labels},le="0.025"}} 1\n' in text
    assert text.count("grpc_server_handled_total{") == len(GRPC_CODES) == 17
    assert telemetry.grpc.method("/etcdserverpb.KV/Put", "unary").started is put.started


def test_text_reads_back() -> None:
    registry = Registry()
    registry.counter("c_total", "Help with \\ and\nnewline.").value += 3
    gauges = registry.gauges("g", "Gauge.", "b", "a")
    gauges.with_labels('quo"te', "back\\slash\n").value = 1.5
    histogram = registry.histogram("h", "Histogram.", (0.5, 1.0))
    for value in (0.5, 0.6, 7):
        histogram.observe(value)
    histogram.observe_n(0.1, 10)
    text = Exposition([registry]).render().decode()
    read = {family.name: family for family in text_string_to_metric_families(text)}
    assert read["c"].documentation == "Help with \\ and\nnewline."
    assert read["c"].samples[0].value == 3
    (sample,) = read["g"].samples
    assert (sample.labels, sample.value) == ({"b": 'quo"te', "a": "back\\slash\n"}, 1.5)
    assert 'g{a="back' in text
    values = {(sample.name, sample.labels.get("le")): sample.value for sample in read["h"].samples}
    assert values == {
        ("h_bucket", "0.5"): 11,
        ("h_bucket", "1"): 12,
        ("h_bucket", "+Inf"): 13,
        ("h_sum", None): pytest.approx(9.1),
        ("h_count", None): 13,
    }


def test_families_and_children_are_in_order() -> None:
    registry = Registry()
    registry.gauge("b", "B.")
    family = registry.gauges("a", "A.", "x")
    family.with_labels("2").value = 2
    family.with_labels("1").value = 1
    text = Exposition([registry]).render().decode()
    rows = [line for line in text.splitlines() if line[0] != "#"]
    assert rows == ['a{x="1"} 1', 'a{x="2"} 2', "b 0"]


def test_children_come_and_go_between_scrapes() -> None:
    registry = Registry()
    family = registry.gauges("a", "A.", "x")
    page = Exposition([registry])
    assert page.render() == b""
    family.with_labels("1").value = 1
    assert page.render().endswith(b'a{x="1"} 1\n')
    family.remove("1")
    family.with_labels("2").value = 2
    assert page.render().count(b"a{") == 1
    assert page.render().endswith(b'a{x="2"} 2\n')
    family.clear()
    assert page.render() == b""


def test_followers_are_asked_at_the_scrape() -> None:
    registry = Registry()
    now: dict[tuple[str, ...], float] = {("1",): 1}
    registry.gauges("a", "A.", "x").follow(lambda: now)
    registry.gauge("b", "B.").follow(lambda: len(now))
    page = Exposition([registry])
    assert b'a{x="1"} 1\n' in page.render()
    now.clear()
    now["2",] = 5
    now["3",] = 6
    text = page.render()
    assert b'a{x="2"} 5\na{x="3"} 6\n' in text
    assert b'x="1"' not in text
    assert text.endswith(b"b 2\n")


def test_label_sets_are_bounded() -> None:
    registry = Registry()
    family = registry.counters("a_total", "A.", "from_a_client")
    for number in range(MAX_CHILDREN + 50):
        family.with_labels(str(number)).value += 1
    children = dict(family.children())
    assert len(children) == MAX_CHILDREN + 1
    assert children["other",].value == 50


def test_a_name_is_declared_once() -> None:
    registry = Registry()
    registry.counter("a_total", "A.")
    with pytest.raises(AssertionError, match="declared twice"):
        registry.gauge("a_total", "A.")


def test_wrong_number_of_labels() -> None:
    with pytest.raises(AssertionError, match="has labels"):
        Registry().gauges("a", "A.", "x").with_labels("1", "2")


def test_picks_families_by_name() -> None:
    telemetry = Telemetry()
    query = "name[]=etcd_mvcc_put_total&name%5B%5D=etcd_mvcc_hash_duration_seconds_sum"
    text = scrape(telemetry, query)
    assert families(text) == {"etcd_mvcc_put_total", "etcd_mvcc_hash_duration_seconds"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.001, "0.001"),
        (0.0001, "0.0001"),
        (0.00001, "1e-05"),
        (1.0, "1"),
        (8.192, "8.192"),
        (524288.0, "524288"),
        (1048576.0, "1.048576e+06"),
        (1000000.0, "1e+06"),
        (52.4288, "52.4288"),
    ],
)
def test_bounds_are_written_as_go_does(value: float, text: str) -> None:
    assert go_float(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7.0, "7"),
        (1.5, "1.5"),
        (1 << 60, "1152921504606846976"),
        (math.inf, "+Inf"),
        (-math.inf, "-Inf"),
        (math.nan, "NaN"),
        (1e300, "1e+300"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert render_number(value) == text


def test_process_metrics_tell_the_truth() -> None:
    text = Exposition([process_registry()]).render().decode()
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert values.keys() == PROCESS_FAMILIES
    assert abs(values["process_cpu_seconds_total"] - sum(os.times()[:2])) < 5
    assert 3 <= values["process_open_fds"] < values["process_max_fds"]
    assert values["process_resident_memory_bytes"] > 5e6
    reference = prometheus_client.ProcessCollector(registry=None)
    theirs = {sample.name: sample.value for one in reference.collect() for sample in one.samples}
    started = theirs["process_start_time_seconds"]
    assert values["process_start_time_seconds"] == pytest.approx(started, abs=2)
    rss = theirs["process_resident_memory_bytes"]
    assert values["process_resident_memory_bytes"] == pytest.approx(rss, rel=0.2)


def test_collector_gives_a_program_s_registry_the_same() -> None:
    telemetry = Telemetry()
    telemetry.mvcc.puts.value += 4
    telemetry.disk.wal_fsync.observe(0.003)
    telemetry.cluster.version.follow(lambda: {("3.7",): 1})
    registry = prometheus_client.CollectorRegistry()
    registry.register(TelemetryCollector(telemetry.registry))
    assert registry.get_sample_value("etcd_mvcc_put_total") == 4
    assert registry.get_sample_value("etcd_cluster_version", {"cluster_version": "3.7"}) == 1
    fsync = "etcd_disk_wal_fsync_duration_seconds"
    assert registry.get_sample_value(f"{fsync}_bucket", {"le": "0.004"}) == 1
    assert registry.get_sample_value(f"{fsync}_bucket", {"le": "0.002"}) == 0
    assert registry.get_sample_value(f"{fsync}_count") == 1
