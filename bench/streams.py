"""Loads on streaming methods: watches that get events, leases that are kept alive."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from bench import client
from bench.connection import Body
from bench.frames import (
    HeaderBlocks,
    data_frames,
    envelope,
    request_headers,
    request_parts,
    split_messages,
    stateless_block,
)
from bench.load import Load, Record, quiet
from bench.sources import DIGITS, SLOT, VALUE, Make, check_put
from bench.wire import LoadError, Loop, Patience, Wire, describe
from kvorum.pb import etcdserverpb as pb

MARK: Final = b"\xf0event\xf1"
_EVENT: Final = re.compile(re.escape(MARK) + rb"(\d{%d})" % DIGITS)
_CARRY: Final = len(MARK) + DIGITS - 1

_clock = time.perf_counter


class MarkedPuts:
    """Puts whose values carry a mark and their number, by which their events are known again."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = keys
        self.issued = 0
        value = MARK + SLOT + VALUE[: 256 - len(MARK) - DIGITS]
        self._head, self._tail = self._encode(keys[0], value).split(SLOT)
        self._value = value
        self.size = len(self._head) + DIGITS + len(self._tail) + 5
        self.least = 5

    @staticmethod
    def _encode(key: bytes, value: bytes) -> bytes:
        return bytes(pb.PutRequest(key=key, value=value).SerializeToString())

    def primes(self) -> Sequence[tuple[str, bytes]]:
        return [(client.PUT, self._encode(b"prime", b""))]

    def attach(self, wire: int, blocks: HeaderBlocks, first: int) -> Make:
        one, two, three = request_parts(blocks.steady[client.PUT], self.size - 5)
        heads = [self._encode(key, self._value).split(SLOT)[0] for key in self._keys]
        tail = self._tail
        count = len(heads)

        def make(stream: int) -> bytes:
            number = stream.to_bytes(4, "big")
            issued = self.issued
            self.issued = issued + 1
            head = heads[issued % count]
            return b"".join((one, number, two, number, three, head, b"%012d" % issued, tail))

        return make

    def check(self, stream: int, message: bytes) -> None:
        check_put(message)


class _Events:
    """Finds marked events in what a watch stream receives."""

    __slots__ = ("_carry", "_found")

    def __init__(self, found: Callable[[list[bytes]], None]) -> None:
        self._found = found
        self._carry = b""

    def data(self, payload: bytes) -> None:
        # A match cannot lie in the carried bytes as a whole, so none is counted twice.
        chunk = self._carry + payload
        self._carry = chunk[-_CARRY:]
        numbers = _EVENT.findall(chunk)
        if numbers:
            self._found(numbers)


class FanOut:
    """Every put of one of ``keys`` goes to ``watchers`` watchers of that key.

    At most ``window`` puts are out whose events have not all come. Latency is from the sending of
    a put to the arrival of its event, one value per event.
    """

    def __init__(
        self, port: int, keys: Sequence[bytes], *, watchers: int, window: int, indexed: bool
    ) -> None:
        self.loop = Loop()
        self._port = port
        self._watchers = watchers
        self._window = window
        self._events = 0
        self._sent: dict[bytes, float] = {}
        self._latencies: list[float] = []
        self._watching: dict[int, Wire] = {}
        self._source = MarkedPuts(keys)
        self._load = Load(self.loop, [port], 10, self._source, indexed)
        self._lanes = list(self._load.lanes.values())
        self._next = 0
        self._watch([key for key in keys for _ in range(watchers)])

    def close(self) -> None:
        self.loop.close()

    def _watch(self, keys: Sequence[bytes], wires: int = 4, streams: int = 4) -> None:
        """Create the watches, spread over ``wires`` connections with ``streams`` streams each."""
        for number in range(wires):
            wire = Wire(self._port)
            self.loop.add([wire])
            self._watching[wire.fd] = wire
            for stream in range(streams):
                share = keys[number * streams + stream :: wires * streams]
                if share:
                    self._create(wire, share)

    def _create(self, wire: Wire, keys: Sequence[bytes]) -> None:
        block = stateless_block(request_headers(client.WATCH, f"127.0.0.1:{self._port}"))
        connection = wire.connection
        body = Body()
        stream = connection.start(block, body)
        for key in keys:
            create = pb.WatchCreateRequest(key=key)
            connection.write(stream, pb.WatchRequest(create_request=create).SerializeToString())
        wire.starts[stream] = _clock()
        self.loop.send(wire)
        patience = Patience()
        created = 0
        while created < len(keys):
            self._turn_set_up(patience)
            messages = body.whole()
            created = sum(pb.WatchResponse.FromString(message).created for message in messages)
        connection.sinks[stream] = _Events(self._found)

    def _turn_set_up(self, patience: Patience) -> None:
        for wire, _ in self.loop.turn(1.0):
            if wire.connection.failures:
                raise LoadError(describe(wire.connection.failures))
            self.loop.send(wire)
        patience.check(lambda: "while watches were created")

    def _found(self, numbers: list[bytes]) -> None:
        now = _clock()
        sent = self._sent
        self._events += len(numbers)
        self._latencies += [now - sent[number] for number in numbers]

    def run(self, warm_up: float, seconds: float, mark: Callable[[], None]) -> Record:
        """Warm up, measure, wait for all events; each must come exactly once per watcher."""
        with quiet():
            self._until(_clock() + warm_up)
            self._latencies.clear()
            mark()
            began = _clock()
            self._until(began + seconds)
            ended = _clock()
            mark()
            measured = list(self._latencies)
            self._drain()
        return Record(ended - began, latencies=measured)

    def _until(self, deadline: float) -> None:
        patience = Patience()
        while _clock() < deadline:
            self._submit()
            self._turn(patience)

    def _submit(self) -> None:
        source = self._source
        free = self._window - (source.issued - self._events // self._watchers)
        touched = set()
        for _ in range(free):
            lane = self._lanes[self._next % len(self._lanes)]
            self._next += 1
            number = b"%012d" % source.issued
            now = _clock()
            if lane.queue(1, now, source.size):
                self._sent[number] = now
                touched.add(lane.wire)
        for wire in touched:
            self.loop.send(wire)

    def _turn(self, patience: Patience) -> None:
        before = self._events
        for wire, done in self.loop.turn(0.1):
            lane = self._load.lanes.get(wire.fd)
            if lane is not None:
                self._load.settle(lane, done, _clock())
            elif done or wire.connection.failures:
                raise LoadError(f"a watch stream ended: {wire.connection.failures or 'OK'}")
            if wire.connection.out:
                self.loop.send(wire)
        if self._events > before:
            patience.progress()
        else:
            patience.check(lambda: f"{self._missing()} events missing")

    def _missing(self) -> int:
        return self._source.issued * self._watchers - self._events

    def _drain(self) -> None:
        patience = Patience()
        while self._load.open or self._missing() > 0:
            self._turn(patience)
        if self._missing():
            raise LoadError(f"{-self._missing()} events came more than once")
        self._load.record = Record()


class KeepAlives:
    """One LeaseKeepAlive stream per connection; each of its leases has one request in flight."""

    def __init__(self, port: int, leases: Sequence[Sequence[int]]) -> None:
        self.loop = Loop()
        self._latencies: list[float] = []
        self._streams: dict[int, _KeepAliveStream] = {}
        block = stateless_block(request_headers(client.LEASE_KEEPALIVE, f"127.0.0.1:{port}"))
        for ids in leases:
            wire = Wire(port)
            self.loop.add([wire])
            self._streams[wire.fd] = _KeepAliveStream(wire, block, ids)

    def close(self) -> None:
        self.loop.close()

    def run(self, warm_up: float, seconds: float, mark: Callable[[], None]) -> Record:
        """Warm up, measure, wait for what is in flight."""
        with quiet():
            for stream in self._streams.values():
                stream.renew_all()
                self.loop.send(stream.wire)
            self._until(_clock() + warm_up)
            self._latencies.clear()
            mark()
            began = _clock()
            self._until(began + seconds)
            ended = _clock()
            mark()
            measured = list(self._latencies)
            self._drain()
        return Record(ended - began, latencies=measured)

    def _until(self, deadline: float) -> None:
        patience = Patience()
        while _clock() < deadline:
            self._turn(patience, again=True)

    def _drain(self) -> None:
        patience = Patience()
        while any(stream.wire.starts for stream in self._streams.values()):
            self._turn(patience, again=False)

    def _turn(self, patience: Patience, *, again: bool) -> None:
        for wire, done in self.loop.turn(0.1):
            if done or wire.connection.failures:
                raise LoadError(f"a keepalive stream ended: {wire.connection.failures or 'OK'}")
            latencies = self._streams[wire.fd].answered(again=again)
            self._latencies += latencies
            if latencies:
                patience.progress()
            if wire.connection.out:
                self.loop.send(wire)
        patience.check(lambda: "keepalives in flight")


class _KeepAliveStream:
    """One stream; ``wire.starts`` maps lease ids to when they were sent."""

    def __init__(self, wire: Wire, block: bytes, leases: Sequence[int]) -> None:
        self.wire = wire
        self._rest = b""
        self._received: list[bytes] = []
        self._stream = wire.connection.start(block, self)
        self._requests = dict(self._encode(leases))
        self._owed = list(leases)

    def _encode(self, leases: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        for lease in leases:
            message = pb.LeaseKeepAliveRequest(ID=lease).SerializeToString()
            yield lease, data_frames(self._stream, envelope(message), end=False)

    def data(self, payload: bytes) -> None:
        messages, self._rest = split_messages(self._rest + payload)
        self._received += messages

    def renew_all(self) -> None:
        """Queue the requests that are owed, as far as flow control allows."""
        append = self.wire.connection.append
        now = _clock()
        while self._owed and append(self._stream, self._requests[self._owed[-1]]):
            self.wire.starts[self._owed.pop()] = now

    def answered(self, *, again: bool) -> list[float]:
        """The latencies of the replies that came; with ``again`` each is sent anew."""
        now = _clock()
        latencies = []
        for message in self._received:
            reply = pb.LeaseKeepAliveResponse.FromString(message)
            if reply.TTL <= 0:
                raise LoadError(f"lease {reply.ID:x} is gone")
            latencies.append(now - self.wire.starts.pop(reply.ID))
            if again:
                self._owed.append(reply.ID)
        self._received.clear()
        if again and self._owed:
            self.renew_all()
        return latencies
