"""A run that does not come to an end is a failure like any other.

What counts is the time that the process computes: a machine may be busy, or stop the process for
a while, and a run in which time stands still can be stopped only from outside of it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class TooLong(KeyboardInterrupt):
    """As Ctrl-C: nothing that runs holds it up, tasks of asyncio included."""


@contextmanager
def computing(seconds: float) -> Iterator[None]:
    """Raise `TooLong` where more than so many seconds of computing have passed. Outside of the
    main thread, which alone gets signals, there is no limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TooLong(f"more than {seconds:g} s of computing")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
