"""The process around a member: signals, limits, stray errors, the init daemon."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from typing import Any, Final

from kvorum import log

SWITCH_INTERVAL: Final = 0.0005
"""Seconds a thread waits for the interpreter before it asks for it: the backend's, while it
commits, and, where the kernel cannot sync the log, the log's. Back from an fdatasync that one waits
so long while the loop is busy: at the default of 5 ms a sync of 0.3 ms took 5.4 ms (median,
measured), at this value 0.8 ms for 7 % of the loop's speed. Where the kernel syncs, a longer one
gains nothing."""

DEATH_SECONDS: Final = 10.0

GC_THRESHOLD: Final = (20_000, 20, 50)
"""Requests live for a turn and form no cycles, so that looking for them every 700 objects finds
nothing: 4 % of the write path."""

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
SIGNAL_NAMES: Final = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupt"}
"""As Go names them in the log."""


def take_default_signals() -> None:
    """Until the member runs, a signal just ends the process: there is nothing to put away, and
    Python's own Ctrl-C would print a traceback."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def end_by(number: signal.Signals) -> int:
    """End the process by the signal's default action, so that its parent sees why it ended.

    Process 1 has no default actions: there this returns the exit code 0.
    """
    sys.stdout.flush()
    if os.getpid() == 1:
        return 0
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    time.sleep(DEATH_SECONDS)  # another thread may be the one that takes it
    raise AssertionError(f"still running after {number.name}")


def prepare() -> None:
    sys.setswitchinterval(SWITCH_INTERVAL)
    raise_file_limit()
    catch_stray_errors()
    gc.set_threshold(*GC_THRESHOLD)
    gc.freeze()  # what is imported by now stays: the collector need not walk it again


def raise_file_limit() -> None:
    """As many files as the hard limit lets us, as Go's runtime does at start."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:
            log.get_logger().warn("failed to raise the limit of open files", error=error)


class _ToLog(logging.Handler):
    """Lines of the standard library's loggers (asyncio's, above all) go to our log."""

    def emit(self, record: logging.LogRecord) -> None:
        lg = log.get_logger()
        write = lg.error if record.levelno >= logging.ERROR else lg.warn
        fields: dict[str, Any] = {"logger": record.name}
        if record.exc_info and record.exc_info[1]:
            fields["error"] = record.exc_info[1]
            fields["stacktrace"] = log.exception_stack(record.exc_info[1])
        write(record.getMessage(), **fields)


def catch_stray_errors() -> None:
    """Nothing is lost in silence, and nothing but log lines reaches standard error."""
    root = logging.getLogger()
    root.handlers[:] = [_ToLog(logging.WARNING)]
    logging.captureWarnings(True)
    threading.excepthook = _thread_failed
    sys.unraisablehook = _unraisable


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    name = args.thread.name if args.thread else ""
    _report("exception in a thread", args.exc_value, thread=name)


def _unraisable(args: Any) -> None:
    _report("exception in a finalizer", args.exc_value, object=repr(args.object))


def _report(msg: str, error: BaseException | None, **fields: object) -> None:
    stacktrace = log.exception_stack(error) if error else ""
    log.get_logger().error(msg, error=error, stacktrace=stacktrace, **fields)


def loop_failed(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The loop's handler for an exception that nobody awaited."""
    _report(context["message"], context.get("exception"))


def notify_init_daemon() -> None:
    """Tell systemd that we serve (Type=notify), if it asked to be told."""
    lg = log.get_logger()
    lg.info("notifying init daemon")
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as messenger:
                messenger.settimeout(1.0)
                messenger.sendto(b"READY=1", address.replace("@", "\0", 1))
        except OSError as error:
            lg.error("failed to notify systemd for readiness", error=error)
            return
    lg.info("successfully notified init daemon")
