"""The two ways to offer load: closed loop (n requests always in flight) and open loop (a rate)."""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from bench.connection import Body, Failure
from bench.frames import HEAD, HeaderBlocks
from bench.sources import Make, Source
from bench.wire import LoadError, Loop, Patience, Wire, describe

SAMPLE_EVERY: Final = 1000
"""Of so many stream ids on a connection, one has its reply looked at."""

HEADS: Final = 2 * HEAD.size

MAX_OPEN: Final = 50_000
"""Bound of the requests an open loop keeps waiting before it gives up."""

_clock = time.perf_counter


@dataclass(slots=True)
class Record:
    """What became of the measured requests. ``began`` and ``latencies`` are in seconds."""

    seconds: float = 0.0
    began: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    streams: list[int] = field(default_factory=list)

    def clear(self) -> None:
        self.began.clear()
        self.latencies.clear()
        self.streams.clear()


class Lane:
    """A wire with the maker of its requests."""

    __slots__ = ("make", "sample_at", "samples", "wire")

    def __init__(self, wire: Wire, make: Make) -> None:
        self.wire = wire
        self.make = make
        self.sample_at = wire.connection.next_id
        self.samples: set[int] = set()

    def queue(self, requests: int, began: float, size: int) -> int:
        """Put up to ``requests`` requests into the connection's output, as its window allows.

        Each is one HEADERS and one DATA frame, the latter with at most ``size`` bytes. Returns how
        many. The caller sends.
        """
        connection = self.wire.connection
        if connection.window < requests * size:
            requests = connection.window // size
        if requests <= 0:
            return 0
        append = connection.out.append
        make = self.make
        from_bytes = int.from_bytes
        starts = self.wire.starts
        stream = connection.next_id
        if stream >= self.sample_at:
            self.sample_at = stream + 2 * SAMPLE_EVERY
            connection.sinks[stream] = Body()
            self.samples.add(stream)
        spent = 0
        for _ in range(requests):
            request = make(stream)
            append(request)
            starts[stream] = began
            stream += 2
            # All but the two frame heads and the header block, whose length comes first.
            spent += len(request) - HEADS - from_bytes(request[:3], "big")
        connection.next_id = stream
        connection.window -= spent
        return requests


class Load:
    """Connections that are ready to send one source's requests.

    ``good`` counts all OK replies since the start and ``failures`` keeps the other ones; a caller
    that does not expect any leaves ``strict``, which turns the first into a LoadError. The wires go
    to the ``ports`` in turn.
    """

    def __init__(
        self, loop: Loop, ports: Sequence[int], wires: int, source: Source, indexed: bool
    ) -> None:
        self.loop = loop
        self.source = source
        self.good = 0
        self.strict = True
        self.failures: list[Failure] = []
        self.record = Record()
        self._received = 0
        self._least = source.least
        primes = source.primes()
        authority = f"127.0.0.1:{ports[0]}"
        blocks = HeaderBlocks([path for path, _ in primes], authority, indexed=indexed)
        self.lanes = {}
        for number in range(wires):
            wire = Wire(ports[number % len(ports)])
            loop.add([wire])
            make = source.attach(number, blocks, 1 + 2 * len(primes))
            self._prime(wire, blocks, primes)
            self.lanes[wire.fd] = Lane(wire, make)
            self._received -= wire.connection.received

    def close(self) -> None:
        for lane in self.lanes.values():
            self.loop.remove(lane.wire)
            lane.wire.close()
        self.lanes.clear()

    def _prime(self, wire: Wire, blocks: HeaderBlocks, primes: Sequence[tuple[str, bytes]]) -> None:
        """One request per method, waited for, which also fills the peer's header table."""
        connection = wire.connection
        for path, message in primes:
            body = Body()
            stream = connection.request(blocks.first[path], message, body)
            wire.starts[stream] = _clock()
            self._await(wire, stream)
            if len(body.messages()) != 1:
                raise LoadError(f"{path} was not answered with one message")
            connection.forget(stream)

    def _await(self, wire: Wire, stream: int) -> None:
        patience = Patience()
        self.loop.send(wire)
        while wire.starts:
            for turned, done in self.loop.turn(1.0):
                self.loop.send(turned)
                if turned is wire and done:
                    del wire.starts[stream]
            if wire.connection.failures:
                raise LoadError(describe(wire.connection.failures))
            patience.check(lambda: "while connecting")

    @property
    def open(self) -> int:
        """Requests in flight."""
        return sum(len(lane.wire.starts) for lane in self.lanes.values())

    def settle(self, lane: Lane, done: list[int], now: float) -> int:
        """Note finished requests, good and bad; returns how many."""
        wire = lane.wire
        pop = wire.starts.pop
        record = self.record
        began = [pop(stream) for stream in done]
        record.began += began
        record.latencies += [now - start for start in began]
        record.streams += done
        ended = len(done)
        self.good += ended
        if lane.samples:
            self._check_samples(lane, done)
        if wire.connection.failures:
            ended += self._fail(wire)
        return ended

    def _fail(self, wire: Wire) -> int:
        failures = wire.connection.failures
        self.failures += failures
        for failure in failures:
            if wire.starts.pop(failure.stream, None) is None:
                raise LoadError(f"a failure on stream {failure.stream}, which is not open")
        count = len(failures)
        failures.clear()
        if self.strict:
            raise LoadError(describe(self.failures))
        return count

    def _check_samples(self, lane: Lane, done: list[int]) -> None:
        for stream in lane.samples.intersection(done):
            lane.samples.remove(stream)
            sink = lane.wire.connection.sinks.pop(stream)
            assert isinstance(sink, Body)
            messages = sink.messages()
            if len(messages) != 1:
                raise LoadError(f"a reply of {len(messages)} messages to a unary call")
            self.source.check(stream, messages[0])

    def verify(self) -> None:
        """All replies together must have had as many bytes as that number of good ones has."""
        received = self._received
        received += sum(lane.wire.connection.received for lane in self.lanes.values())
        if received < self.good * self._least:
            raise LoadError(f"{self.good} OK replies had only {received} bytes of messages")


@contextmanager
def quiet() -> Iterator[None]:
    """Without the garbage collector, whose pauses would be counted as the server's."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


class ClosedLoop:
    """Keeps ``depth`` requests in flight on every connection."""

    def __init__(self, load: Load, depth: int) -> None:
        self._load = load
        self._owed = dict.fromkeys(load.lanes, depth)
        self._budget = 0

    def run(
        self, warm_up: float, seconds: float, mark: Callable[[], None] = lambda: None
    ) -> Record:
        """Warm up, measure, wait for what is in flight. ``mark`` is called at both ends."""
        load = self._load
        with quiet():
            self._budget = 2**62
            self._until(_clock() + warm_up)
            load.record.clear()
            mark()
            began = _clock()
            ended = self._until(began + seconds)
            mark()
            record = load.record
            load.record = Record()
            self._budget = 0
            self._drain()
        record.seconds = ended - began
        load.verify()
        return record

    def send(self, requests: int) -> Record:
        """Send so many requests as fast as they are answered, and wait for all."""
        load = self._load
        began = _clock()
        self._budget = requests
        self._drain()
        record = load.record
        load.record = Record()
        record.seconds = _clock() - began
        load.verify()
        return record

    def _until(self, deadline: float) -> float:
        """Turn until the deadline; returns the time."""
        patience = Patience()
        self._top_up()
        now = _clock()
        while now < deadline:
            self._turn(patience, deadline - now)
            now = _clock()
        return now

    def _drain(self) -> None:
        patience = Patience()
        self._top_up()
        while self._budget or self._load.open:
            self._turn(patience, 1.0)

    def _top_up(self) -> None:
        for lane in self._load.lanes.values():
            self._submit(lane, _clock())
            self._load.loop.send(lane.wire)

    def _submit(self, lane: Lane, now: float) -> None:
        """Send as many requests as this lane owes, has budget for and has credit for."""
        fd = lane.wire.fd
        wanted = min(self._owed[fd], self._budget)
        sent = lane.queue(wanted, now, self._load.source.size)
        self._owed[fd] -= sent
        self._budget -= sent

    def _turn(self, patience: Patience, timeout: float) -> None:
        load = self._load
        lanes = load.lanes
        owed = self._owed
        progress = False
        for wire, done in load.loop.turn(min(timeout, 1.0)):
            lane = lanes[wire.fd]
            now = _clock()
            if done or wire.connection.failures:
                owed[wire.fd] += load.settle(lane, done, now)
                progress = True
            if owed[wire.fd]:
                self._submit(lane, now)
            if wire.connection.out:
                load.loop.send(wire)
        if progress:
            patience.progress()
        else:
            patience.check(lambda: f"{load.open} requests in flight")


class OpenLoop:
    """Sends ``rate`` requests a second, evenly, whatever the server does.

    A request's latency counts from the moment it was due, so that a stall is seen by all requests
    that fell into it. ``lateness`` holds how much later than due each was really sent.
    """

    def __init__(self, load: Load, rate: float) -> None:
        if rate <= 0:
            raise ValueError("the rate must be above zero")
        self._load = load
        self._rate = rate
        self._lanes = list(load.lanes.values())
        self._waiting: deque[float] = deque()
        self._next = 0
        self._sent = 0
        self._due = 0
        self._began = 0.0
        self.lateness: list[float] = []
        self.other: Callable[[Wire, list[int]], None] | None = None

    def run(
        self, warm_up: float, seconds: float, mark: Callable[[], None] = lambda: None
    ) -> Record:
        """Warm up, measure, wait for what is in flight."""
        with quiet():
            self.start()
            self.turn_for(warm_up)
            mark()
            began = _clock()
            self.turn_for(seconds)
            ended = _clock()
            mark()
            record = self.drain()
        return between(record, began, ended)

    def start(self) -> None:
        self._began = _clock()

    def turn_for(self, seconds: float) -> None:
        deadline = _clock() + seconds
        self.turn_until(lambda: _clock() >= deadline)

    def turn_until(self, stop: Callable[[], bool]) -> None:
        """Send and receive until ``stop`` says so; it is asked at least every millisecond."""
        patience = Patience()
        while not stop():
            self._send_due()
            self._receive(patience)
        self._send_due()

    def drain(self) -> Record:
        """Wait for all replies; returns all requests since the start."""
        load = self._load
        patience = Patience()
        while load.open or self._waiting:
            self._send_waiting(_clock())
            self._receive(patience)
        record = load.record
        load.record = Record()
        load.verify()
        return record

    def _send_due(self) -> None:
        now = _clock()
        due = int((now - self._began) * self._rate)
        if due > self._due:
            first = self._began
            self._waiting.extend(first + n / self._rate for n in range(self._due, due))
            self._due = due
            if len(self._waiting) + self._load.open > MAX_OPEN:
                raise LoadError(f"more than {MAX_OPEN} requests wait: the server is overloaded")
            self._send_waiting(now)

    def _send_waiting(self, now: float) -> None:
        waiting = self._waiting
        size = self._load.source.size
        touched = set()
        while waiting:
            lane = self._lanes[self._next % len(self._lanes)]
            if not lane.queue(1, waiting[0], size):
                break
            self._next += 1
            touched.add(lane.wire)
            self.lateness.append(now - waiting.popleft())
        for wire in touched:
            self._load.loop.send(wire)

    def _receive(self, patience: Patience) -> None:
        load = self._load
        due = self._began + (self._due + 1) / self._rate
        pause = min(0.001, due - _clock())
        if not load.loop.sleep(pause):
            if load.open:
                patience.check(lambda: f"{load.open} requests in flight")
            return
        patience.progress()
        for wire, done in load.loop.turn(0):
            lane = load.lanes.get(wire.fd)
            if lane is not None:
                load.settle(lane, done, _clock())
            elif self.other is not None:
                self.other(wire, done)
            if wire.connection.out:
                load.loop.send(wire)


def between(record: Record, began: float, ended: float) -> Record:
    """The part of a record whose requests began in [began, ended)."""
    rows = zip(record.began, record.latencies, record.streams, strict=True)
    kept = [row for row in rows if began <= row[0] < ended]
    return Record(
        ended - began,
        [row[0] for row in kept],
        [row[1] for row in kept],
        [row[2] for row in kept],
    )
