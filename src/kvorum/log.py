"""The log: one JSON object a line, with etcd's keys, so that etcd's log tools read it as they are.

    {"level":"info","ts":"2026-01-31T12:00:00.123456Z","caller":"server/member.py:88","msg":"...",...}

Fields are keyword arguments. A single underscore becomes a hyphen (``member_id`` is written
``member-id``, as etcd names it) and a double one an underscore. Durations are given as `timedelta`
or through `took`. Repeats of one message beyond 100 a second are thinned out to every hundredth,
as etcd's logger does; what was left out is counted in `Log.sampled_out`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, Final, NoReturn

from kvorum import durations
from kvorum.logsink import FileSink, JournalSink, RotatingFileSink, Rotation, Sink, StreamSink

DEBUG: Final = -1
INFO: Final = 0
WARN: Final = 1
ERROR: Final = 2
DPANIC: Final = 3
PANIC: Final = 4
FATAL: Final = 5

LEVELS: Final[Mapping[str, int]] = {
    "debug": DEBUG,
    "info": INFO,
    "warn": WARN,
    "error": ERROR,
    "dpanic": DPANIC,
    "panic": PANIC,
    "fatal": FATAL,
}
_LEVEL_NAMES: Final = {number: name for name, number in LEVELS.items()}

FORMATS: Final = ("json", "console")
SAMPLE_FIRST: Final = 100
SAMPLE_THEREAFTER: Final = 100
MAX_STACK_FRAMES: Final = 64


class Log:
    """What all loggers of a process share: level, format and sinks, changeable while running."""

    def __init__(self) -> None:
        self.level: int = INFO
        self.format = "json"
        self.sinks: list[Sink] = [StreamSink(2)]
        self.sampled_out = 0
        self._lock = threading.RLock()
        self._sample_second = 0
        self._seen: dict[tuple[int, str], int] = {}
        self._stamp_second = -1
        self._stamp_head = ""
        self._stamp_zone = ""

    @property
    def dropped(self) -> int:
        """Lines lost because a sink failed."""
        return sum(sink.dropped for sink in self.sinks)

    def replace(self, sinks: list[Sink]) -> None:
        with self._lock:
            old, self.sinks = self.sinks, sinks
        for sink in old:
            sink.close()

    def write(self, level: int, caller: str, msg: str, fields: Mapping[str, object]) -> None:
        with self._lock:
            now = time.time_ns()
            if level < PANIC and self._is_surplus(level, msg, now // 1_000_000_000):
                return
            name = _LEVEL_NAMES[level]
            stamp = self._timestamp(now)
            encode = encode_console if self.format == "console" else encode_json
            line = encode(name, stamp, caller, msg, fields)
            for sink in self.sinks:
                sink.write(line, name)

    def _is_surplus(self, level: int, msg: str, second: int) -> bool:
        if second != self._sample_second:
            self._sample_second = second
            self._seen.clear()
        count = self._seen.get((level, msg), 0) + 1
        self._seen[level, msg] = count
        surplus = count > SAMPLE_FIRST and (count - SAMPLE_FIRST) % SAMPLE_THEREAFTER != 0
        self.sampled_out += surplus
        return surplus

    def _timestamp(self, now: int) -> str:
        """Microseconds and the zone as Go's Z0700: Z for UTC, else +0200."""
        second, rest = divmod(now, 1_000_000_000)
        if second != self._stamp_second:
            clock = time.localtime(second)
            self._stamp_second = second
            self._stamp_head = time.strftime("%Y-%m-%dT%H:%M:%S", clock)
            zone = time.strftime("%z", clock)
            self._stamp_zone = "Z" if clock.tm_gmtoff == 0 else zone
        return f"{self._stamp_head}.{rest // 1000:06d}{self._stamp_zone}"


class Logger:
    """Writes lines with a level and fields. Cheap to make; `bind` gives one with fixed fields."""

    __slots__ = ("_fields", "_log")

    def __init__(self, log: Log, fields: Mapping[str, object] | None = None) -> None:
        self._log = log
        self._fields = dict(fields) if fields else {}

    def bind(self, **fields: object) -> Logger:
        return Logger(self._log, {**self._fields, **fields})

    def enabled(self, level: int) -> bool:
        """For a caller whose fields are costly to gather."""
        return self._log.level <= level

    def debug(self, msg: str, /, **fields: object) -> None:
        if self._log.level <= DEBUG:
            self._write(DEBUG, msg, fields)

    def info(self, msg: str, /, **fields: object) -> None:
        if self._log.level <= INFO:
            self._write(INFO, msg, fields)

    def warn(self, msg: str, /, **fields: object) -> None:
        if self._log.level <= WARN:
            self._write(WARN, msg, fields)

    def error(self, msg: str, /, **fields: object) -> None:
        if self._log.level <= ERROR:
            self._write(ERROR, msg, fields)

    def panic(self, msg: str, /, **fields: object) -> NoReturn:
        """Write the line with the stack, then end the process at once with exit code 2.

        For a broken invariant: nothing after it, no clean-up either, may touch the data.
        """
        if self._log.level <= PANIC:
            fields.setdefault("stacktrace", stack())
            self._write(PANIC, msg, fields)
        write_last_words(f"panic: {msg}\n\n{stack()}\n")
        _exit(2)

    def fatal(self, msg: str, /, **fields: object) -> NoReturn:
        """Write the line, then raise SystemExit(1): the start-up cannot go on."""
        if self._log.level <= FATAL:
            self._write(FATAL, msg, fields)
        raise SystemExit(1)

    def _write(self, level: int, msg: str, fields: dict[str, object]) -> None:
        if self._fields:
            fields = {**self._fields, **fields}
        self._log.write(level, _caller(), msg, fields)


def _exit(code: int) -> NoReturn:
    os._exit(code)


def write_last_words(text: str) -> None:
    """Straight to standard error, as Go's runtime does before it dies."""
    StreamSink(2).write(text.encode("utf-8", "backslashreplace"), "panic")


def _caller() -> str:
    """``folder/file.py:line`` of the frame that logs, two above `Logger._write`."""
    frame = sys._getframe(3)
    path = frame.f_code.co_filename
    cut = path.rfind("/", 0, path.rfind("/"))
    return f"{path[cut + 1 :]}:{frame.f_lineno}"


def stack() -> str:
    """The calls that led here, innermost first, as etcd's stacktrace field has them."""
    frame = sys._getframe(2)
    calls = traceback.StackSummary.extract(
        traceback.walk_stack(frame), limit=MAX_STACK_FRAMES, lookup_lines=False
    )
    return "\n".join(f"{call.name}\n\t{call.filename}:{call.lineno}" for call in calls)


def exception_stack(error: BaseException) -> str:
    """The calls that an exception came through, outermost first, for a stacktrace field."""
    calls = traceback.extract_tb(error.__traceback__, limit=-MAX_STACK_FRAMES)
    return "\n".join(f"{call.name}\n\t{call.filename}:{call.lineno}" for call in calls)


def took(seconds: float) -> timedelta:
    """A measured span as a field: ``lg.info("...", took=log.took(end - start))``."""
    return timedelta(seconds=seconds)


_names: dict[str, str] = {}


def field_name(name: str) -> str:
    """The written name of a keyword. Keywords come from source code, so the cache stays small."""
    known = _names.get(name)
    if known is None:
        known = "_".join(part.replace("_", "-") for part in name.split("__"))
        _names[name] = known
    return known


def render(value: object) -> object:
    """A value that JSON can hold, as etcd's log shows one of its kind."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)  # JSON has no NaN and no infinity
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "backslashreplace")
    if isinstance(value, timedelta):
        return durations.render(round(value / timedelta(microseconds=1)) * 1000)
    if isinstance(value, BaseException):
        return str(value) or type(value).__name__
    if isinstance(value, Mapping):
        return {str(key): render(item) for key, item in value.items()}
    if isinstance(value, Iterable):
        return [render(item) for item in value]
    return str(value)


def _rendered(fields: Mapping[str, object]) -> dict[str, object]:
    chosen: dict[str, object] = {}
    for name, value in fields.items():
        try:
            chosen[field_name(name)] = render(value)
        except Exception as error:  # a value's own __str__ may do anything; the line must go out
            chosen[field_name(name)] = f"<unprintable {type(value).__name__}: {error!r}>"
    return chosen


_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def encode_json(
    level: str, stamp: str, caller: str, msg: str, fields: Mapping[str, object]
) -> bytes:
    record: dict[str, Any] = {"level": level, "ts": stamp, "caller": caller, "msg": msg}
    if fields:
        record |= {
            name if name not in record else f"{name}_": value
            for name, value in _rendered(fields).items()
        }
    return (_to_json(record) + "\n").encode("utf-8", "backslashreplace")


def encode_console(
    level: str, stamp: str, caller: str, msg: str, fields: Mapping[str, object]
) -> bytes:
    parts = [stamp, level, caller, msg]
    rendered = _rendered(fields)
    stacktrace = rendered.pop("stacktrace", None)
    if rendered:
        parts.append(_to_json(rendered))
    line = "\t".join(parts) + "\n"
    if stacktrace:
        line += f"{stacktrace}\n"
    return line.encode("utf-8", "backslashreplace")


_default = Log()
_root = Logger(_default)


def get_logger() -> Logger:
    """The process's logger. `configure` also changes what loggers taken before it do."""
    return _root


def set_level(name: str) -> None:
    """Change the level while running. Raises ValueError for an unknown name."""
    if name not in LEVELS:
        raise ValueError(f'unknown log level "{name}" (one of {", ".join(LEVELS)})')
    _default.level = LEVELS[name]


def get_level() -> str:
    return _LEVEL_NAMES[_default.level]


def shared() -> Log:
    """The state behind `get_logger`: level, sinks and counts of lines lost."""
    return _default


def configure(
    *,
    level: str = "info",
    format: str = "json",
    outputs: Iterable[str] = ("default",),
    rotation: str | None = None,
) -> None:
    """Set up the process's log as etcd's --log-* flags ask. `rotation` is the JSON of
    --log-rotation-config-json when rotation is on, else None.

    Raises ValueError for a setting that cannot be, OSError for a file that cannot be opened.
    """
    if format not in FORMATS:
        raise ValueError(f'unknown log format "{format}" (json or console)')
    sinks = open_sinks(list(outputs) or ["default"], rotation)
    set_level(level)
    _default.format = format
    _default.replace(sinks)


def open_sinks(outputs: list[str], rotation: str | None) -> list[Sink]:
    settings = None if rotation is None else Rotation.parse(rotation)
    check_outputs(outputs, rotated=settings is not None)
    return [_open_sink(output, settings) for output in sorted(set(outputs))]


def check_outputs(outputs: list[str], *, rotated: bool) -> None:
    """Raise ValueError for combinations that etcd refuses too."""
    if len(outputs) > 1 and "default" in outputs:
        raise ValueError('multi logoutput for "default" is not supported yet')
    if len(outputs) > 1 and "systemd/journal" in outputs:
        raise ValueError("systemd/journal cannot be combined with other log outputs")
    streams = {"default", "stderr", "stdout", "systemd/journal"}
    files = [output for output in outputs if output not in streams]
    if rotated and len(files) != 1:
        raise ValueError("log rotation requires exactly one file path in --log-outputs")


def _open_sink(output: str, rotation: Rotation | None) -> Sink:
    if output in ("default", "stderr"):
        return StreamSink(2)
    if output == "stdout":
        return StreamSink(1)
    if output == "systemd/journal":
        return JournalSink()
    return FileSink(output) if rotation is None else RotatingFileSink(output, rotation)
