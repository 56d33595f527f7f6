"""The network between clients and members. A connection is cut or it is not; it loses nothing."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Final

from sim.calls import EXPIRED, LOST, ClientCall, Outcome
from sim.world import World

if TYPE_CHECKING:
    from kvorum.h2 import Method
    from sim.process import Process

NOTICE_TIME: Final = 0.02
"""Seconds after which a client knows that its member is gone."""


class ClientNet:
    """Reaches every process but those that are cut off."""

    def __init__(self, world: World, random: Random, delay: float = 0.0015) -> None:
        self.world = world
        self.cut_off: set[str] = set()
        self._random = random
        self._delay = delay
        self._numbers = 0

    def number(self) -> int:
        """Of the next call."""
        self._numbers += 1
        return self._numbers

    def delay(self) -> float:
        return self._random.expovariate(1 / self._delay)

    def is_open(self, process: Process) -> bool:
        return process.alive and process.name not in self.cut_off

    def unary(
        self,
        process: Process,
        method: Method,
        message: bytes,
        on_end: Callable[[Outcome], None],
        *,
        timeout: float,
    ) -> ClientCall:
        """Call; ``on_end`` gets the outcome, at the latest when the time is up."""
        call = ClientCall(self, process, on_end=on_end)
        self.world.after(timeout, call.end, Outcome(EXPIRED, error="deadline", by_server=False))
        call.start(method, message)
        return call

    def stream(
        self,
        process: Process,
        method: Method,
        on_message: Callable[[bytes], None],
        on_end: Callable[[Outcome], None],
        *,
        read_time: float = 0.0,
    ) -> ClientCall:
        """Open a stream; ``read_time`` is what the client needs for each message."""
        call = ClientCall(self, process, on_end=on_end, on_message=on_message, read_time=read_time)
        call.start(method, None)
        return call

    def lose(self, process: Process) -> None:
        """A process has ended: its clients notice."""
        for call in list(process.calls):
            self.break_later(call)

    def break_later(self, call: ClientCall) -> None:
        """A connection is broken: its client notices."""
        outcome = Outcome(LOST, error="connection lost", by_server=False)
        self.world.after(self._random.expovariate(1 / NOTICE_TIME), call.end, outcome)
