"""Clients' calls: what the gRPC engine does for a member, without the bytes of HTTP/2.

A call reaches the handlers that a real one would reach, as the same bytes, and may use of its call
what they use of a real one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kvorum.errors import Code

if TYPE_CHECKING:
    from kvorum.h2 import Method
    from sim.clientnet import ClientNet
    from sim.process import Process

LOST: Final = int(Code.UNAVAILABLE)
EXPIRED: Final = int(Code.DEADLINE_EXCEEDED)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a unary call ended. ``code`` 0: with ``message``. ``by_server`` tells an error that the
    member gave from one of the way there and back."""

    code: int
    message: bytes = b""
    error: str = ""
    by_server: bool = True


class SimCall:
    """The member's side: `kvorum.h2.Call` as far as handlers use it."""

    def __init__(self, client: ClientCall, process: Process, method: Method) -> None:
        self.process = process
        self.method = method
        self.done = False
        self.backlog = 0
        self.deadline: float | None = None
        self.metadata: list[tuple[str, str]] = []
        self.peer = "client"
        self.on_message: Callable[[bytes], None] | None = None
        self.on_end: Callable[[], None] | None = None
        self.on_cancel: Callable[[], None] | None = None
        self.on_writable: Callable[[], None] | None = None
        self._client = client
        self._inbox: list[bytes] = []
        self._paused = False
        self._number = client.number

    def __hash__(self) -> int:
        """The same in every run: calls are kept in sets, and told something in their order."""
        return self._number

    def reply(self, message: bytes) -> None:
        if not self.done:
            self.done = True
            self._client.answer(Outcome(0, bytes(message)))

    def fail(self, code: int, message: str = "") -> None:
        if not self.done:
            self.done = True
            self._client.answer(Outcome(int(code), b"", message))

    def send(self, message: bytes) -> None:
        if not self.done:
            self.backlog += len(message)
            self._client.deliver(bytes(message))

    def finish(self) -> None:
        if not self.done:
            self.done = True
            self._client.answer(Outcome(0))

    def feed(self, message: bytes) -> None:
        """A message of the client's stream has come."""
        self._inbox.append(message)
        self._deliver()

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self._deliver()

    def _deliver(self) -> None:
        while self._inbox and not self._paused and not self.done and self.on_message is not None:
            self.on_message(self._inbox.pop(0))

    def was_read(self, size: int) -> None:
        """The client has taken some bytes."""
        was_full = self.backlog
        self.backlog -= size
        if was_full and not self.backlog and self.on_writable is not None and not self.done:
            self.on_writable()

    def cancel(self) -> None:
        """The client is gone."""
        if not self.done:
            self.done = True
            if self.on_cancel is not None:
                self.on_cancel()


class ClientCall:
    """The client's side of a call to one process, unary or a stream."""

    def __init__(
        self,
        net: ClientNet,
        process: Process,
        *,
        on_end: Callable[[Outcome], None],
        on_message: Callable[[bytes], None] | None = None,
        read_time: float = 0.0,
    ) -> None:
        self._net = net
        self._process = process
        self._on_end = on_end
        self._on_message = on_message
        self._read_time = read_time
        self._last_arrival = 0.0
        self._last_departure = 0.0
        self._broken = False
        self.number = net.number()
        self.ended = False
        self.call: SimCall | None = None

    # What the member sends

    def answer(self, outcome: Outcome) -> None:
        self._later(lambda: self.end(outcome))

    def deliver(self, message: bytes) -> None:
        self._later(lambda: self._read(message))

    def _later(self, work: Callable[[], None]) -> None:
        """Over one connection, so that everything comes in order; or never, if it is cut."""
        world = self._net.world
        arrival = max(self._last_arrival, world.now + self._net.delay())
        self._last_arrival = arrival + self._read_time
        world.after(arrival - world.now, self._arrive, work)

    def _arrive(self, work: Callable[[], None]) -> None:
        if self._is_open():
            work()

    def _is_open(self) -> bool:
        """A connection that has lost something delivers nothing more, and both ends notice."""
        if not self._broken and not self._net.is_open(self._process):
            self._broken = True
            self._net.break_later(self)
        return not self._broken and not self.ended

    def _read(self, message: bytes) -> None:
        assert self._on_message is not None, "a unary call was sent a stream"
        if self.call is not None and self._process.alive:
            call = self.call
            self._process.run_event(lambda: call.was_read(len(message)))
        self._on_message(message)

    # What the client does

    def start(self, method: Method, message: bytes | None) -> None:
        self._to_member(lambda: self._begin(method, message))

    def _begin(self, method: Method, message: bytes | None) -> None:
        self.call = SimCall(self, self._process, method)
        self._process.calls[self] = None
        if message is None:
            method.handler(self.call)
        else:
            method.handler(self.call, message)

    def send(self, message: bytes) -> None:
        """One message of a stream."""
        self._to_member(lambda: self._take(message))

    def _take(self, message: bytes) -> None:
        if self.call is not None:
            self.call.feed(message)

    def _to_member(self, work: Callable[[], Any]) -> None:
        net, process = self._net, self._process

        def arrive() -> None:
            if self._is_open():
                process.run_event(work)

        arrival = max(self._last_departure, net.world.now + net.delay())
        self._last_departure = arrival
        net.world.after(arrival - net.world.now, arrive)

    def end(self, outcome: Outcome) -> None:
        """It is over, for the client; the member may hear of it."""
        if self.ended:
            return
        self.ended = True
        self._process.calls.pop(self, None)
        call = self.call
        if call is not None and not call.done:
            self._process.run_event(call.cancel)
        self._on_end(outcome)
