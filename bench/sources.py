"""Where a run's requests come from: methods encoded beforehand, with slots to patch.

A source makes one request in well under a microsecond; protobuf and HPACK are used at set-up only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count, cycle
from random import Random
from typing import Final, Protocol

from bench import client
from bench.frames import HeaderBlocks, request_parts
from bench.wire import LoadError
from kvorum.pb import etcdserverpb as pb

BULK: Final = 50
"""Puts of 256 bytes in one transaction, so that the request fits a frame of 16,384 bytes."""

Make = Callable[[int], bytes]
"""Takes a stream id, gives the whole request of that stream."""

DIGITS: Final = 12
SLOT: Final = b"0" * DIGITS
"""What a number in a key looks like before it is patched in."""

VALUE: Final = bytes(Random(1).choices(range(32, 127), k=256))
"""256 bytes that do not look like the next ones."""


class Source(Protocol):
    """The requests of one workload.

    ``size`` is an upper bound of the DATA bytes of one request, ``least`` a lower bound of those
    of a good reply.
    """

    size: int
    least: int

    def primes(self) -> Sequence[tuple[str, bytes]]:
        """(path, message) of one harmless request per method, sent first on every connection."""
        ...

    def attach(self, wire: int, blocks: HeaderBlocks, first: int) -> Make:
        """The maker for wire number ``wire``, whose next stream id is ``first``."""
        ...

    def check(self, stream: int, message: bytes) -> None:
        """Look at the reply to one request; raises LoadError when it is not as it should be."""
        ...


class Slotted:
    """Requests that differ by the 12 digits of ``slots`` in place of ``SLOT`` in the message."""

    def __init__(
        self,
        path: str,
        message: bytes,
        slots: Iterator[bytes],
        *,
        prime: bytes,
        check: Callable[[bytes], None],
        least: int = 5,
    ) -> None:
        if message.count(SLOT) != 1:
            raise ValueError("the message must have exactly one slot")
        self.path = path
        self.size = len(message) + 5
        self.least = least
        self._before, self._after = message.split(SLOT)
        self._slots = slots
        self._prime = prime
        self._check = check

    def primes(self) -> Sequence[tuple[str, bytes]]:
        return [(self.path, self._prime)]

    def attach(self, wire: int, blocks: HeaderBlocks, first: int) -> Make:
        one, two, three = request_parts(blocks.steady[self.path], self.size - 5)
        three += self._before
        after = self._after
        slot = self._slots.__next__

        def make(stream: int) -> bytes:
            number = stream.to_bytes(4, "big")
            return b"".join((one, number, two, number, three, slot(), after))

        return make

    def check(self, stream: int, message: bytes) -> None:
        self._check(message)


class Constant:
    """The same request again and again."""

    def __init__(
        self, path: str, message: bytes, *, check: Callable[[bytes], None], least: int = 5
    ) -> None:
        self.path = path
        self.size = len(message) + 5
        self.least = least
        self._message = message
        self._check = check

    def primes(self) -> Sequence[tuple[str, bytes]]:
        return [(self.path, self._message)]

    def attach(self, wire: int, blocks: HeaderBlocks, first: int) -> Make:
        one, two, three = request_parts(blocks.steady[self.path], self.size - 5)
        three += self._message

        def make(stream: int) -> bytes:
            number = stream.to_bytes(4, "big")
            return b"".join((one, number, two, number, three))

        return make

    def check(self, stream: int, message: bytes) -> None:
        self._check(message)


class Mixed:
    """Of every ``period`` requests of a connection the last is a write, the others are reads.

    ``written`` counts the writes that were made.
    """

    def __init__(self, reads: Source, writes: Source, period: int) -> None:
        self._reads = reads
        self._writes = writes
        self._cycle = 2 * period
        self.written = 0
        self.size = max(reads.size, writes.size)
        self.least = min(reads.least, writes.least)

    def primes(self) -> Sequence[tuple[str, bytes]]:
        return [*self._reads.primes(), *self._writes.primes()]

    def attach(self, wire: int, blocks: HeaderBlocks, first: int) -> Make:
        read = self._reads.attach(wire, blocks, first)
        write = self._writes.attach(wire, blocks, first)
        cycle, last = self._cycle, self._cycle - 1

        def make(stream: int) -> bytes:
            if stream % cycle != last:
                return read(stream)
            self.written += 1
            return write(stream)

        return make

    def is_write(self, stream: int) -> bool:
        return stream % self._cycle == self._cycle - 1

    def check(self, stream: int, message: bytes) -> None:
        source = self._writes if self.is_write(stream) else self._reads
        source.check(stream, message)


class Bulk:
    """Transactions of ``puts`` puts of distinct keys, which must fit one frame, to fill a store."""

    def __init__(self, prefix: bytes, value: bytes, puts: int = BULK) -> None:
        put = pb.RequestOp(request_put=pb.PutRequest(key=prefix + SLOT, value=value))
        self._puts = puts
        self._message = pb.TxnRequest(success=[put] * puts).SerializeToString()
        self._next = 0
        self.size = len(self._message) + 5
        self.least = 5

    def primes(self) -> Sequence[tuple[str, bytes]]:
        return [(client.TXN, b"")]

    def attach(self, wire: int, blocks: HeaderBlocks, first: int) -> Make:
        one, two, three = request_parts(blocks.steady[client.TXN], self.size - 5)
        template = self._message.replace(b"%", b"%%").replace(SLOT, b"%012d")

        def make(stream: int) -> bytes:
            number = stream.to_bytes(4, "big")
            start = self._next
            self._next = start + self._puts
            message = template % tuple(range(start, self._next))
            return b"".join((one, number, two, number, three, message))

        return make

    def check(self, stream: int, message: bytes) -> None:
        if len(pb.TxnResponse.FromString(message).responses) != self._puts:
            raise LoadError(f"a transaction of {self._puts} puts has another number of replies")


class Swaps:
    """Transactions 'if key has version n, put it', each key's versions one after the other.

    A connection goes round ``keys`` keys, many more than it has requests in flight, so that a
    key's last swap is answered before its next one is sent, and all must succeed.
    """

    def __init__(self, prefix: bytes, value: bytes, *, keys: int = 200) -> None:
        self._prefix = prefix
        self._value = value
        self._keys = keys
        self.size = len(b"".join(_swap(*self._parts(0, 0), 6))) + 11
        self.least = 5

    def _parts(self, wire: int, key: int) -> tuple[bytes, bytes]:
        name = self._prefix + b"%04d/%06d" % (wire, key)
        compare = pb.Compare(key=name, target=pb.Compare.VERSION, result=pb.Compare.EQUAL)
        put = pb.RequestOp(request_put=pb.PutRequest(key=name, value=self._value))
        return compare.SerializeToString(), pb.TxnRequest(success=[put]).SerializeToString()

    def primes(self) -> Sequence[tuple[str, bytes]]:
        before, after = _swap(*self._parts(9999, 0), 6)
        return [(client.TXN, before + _varint(2**40) + after)]

    def attach(self, wire: int, blocks: HeaderBlocks, first: int) -> Make:
        block = blocks.steady[client.TXN]
        keys = self._keys
        parts = [self._parts(wire, key) for key in range(keys)]
        frames: dict[tuple[int, int], tuple[bytes, bytes, bytes, bytes]] = {}

        def make(stream: int) -> bytes:
            version, key = divmod(stream - first >> 1, keys)
            tag = _varint(version)
            ready = frames.get((key, len(tag)))
            if ready is None:
                before, after = _swap(*parts[key], len(tag))
                size = len(before) + len(tag) + len(after)
                one, two, three = request_parts(block, size)
                ready = (one, two, three + before, after)
                frames[key, len(tag)] = ready
            one, two, three, four = ready
            number = stream.to_bytes(4, "big")
            return b"".join((one, number, two, number, three, tag, four))

        return make

    def check(self, stream: int, message: bytes) -> None:
        if not pb.TxnResponse.FromString(message).succeeded:
            raise LoadError("a compare-and-swap that had to succeed did not")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _swap(compare: bytes, success: bytes, tag: int) -> tuple[bytes, bytes]:
    """What comes before and after the version, of ``tag`` bytes, in a TxnRequest.

    Compare.version (field 4) is the last field of the compare.
    """
    size = len(compare) + 1 + tag
    return b"\x0a" + _varint(size) + compare + b"\x20", success


def numbered(start: int = 0) -> Iterator[bytes]:
    """Slots that never repeat."""
    return map(b"%012d".__mod__, count(start))


def shuffled(keys: int) -> Iterator[bytes]:
    """Slots of ``keys`` keys in a random order, again and again."""
    order = [b"%012d" % number for number in range(keys)]
    Random(2).shuffle(order)
    return cycle(order)


def puts(prefix: bytes, value: bytes = VALUE, slots: Iterator[bytes] | None = None) -> Slotted:
    """Puts of distinct keys ``prefix`` + 12 digits."""
    message = pb.PutRequest(key=prefix + SLOT, value=value).SerializeToString()
    prime = pb.PutRequest(key=b"prime", value=value).SerializeToString()
    slots = slots or numbered()
    return Slotted(client.PUT, message, slots, prime=prime, check=check_put)


def gets(prefix: bytes, keys: int, size: int) -> Slotted:
    """Linearizable gets of ``keys`` keys ``prefix`` + 12 digits with values of ``size`` bytes."""
    message = pb.RangeRequest(key=prefix + SLOT).SerializeToString()
    prime = pb.RangeRequest(key=prefix + b"%012d" % 0).SerializeToString()
    return Slotted(
        client.RANGE,
        message,
        shuffled(keys),
        prime=prime,
        check=range_checker(1, size),
        least=size,
    )


def one_get(key: bytes, size: int, *, serializable: bool) -> Constant:
    """Gets of one key with a value of ``size`` bytes."""
    message = pb.RangeRequest(key=key, serializable=serializable).SerializeToString()
    return Constant(client.RANGE, message, check=range_checker(1, size), least=size)


def ranges(prefix: bytes, keys: int, size: int) -> Constant:
    """Ranges over all ``keys`` keys of a prefix."""
    request = pb.RangeRequest(key=prefix, range_end=client.prefix_end(prefix))
    check = range_checker(keys, size)
    return Constant(client.RANGE, request.SerializeToString(), check=check, least=keys * size)


def grants(seconds: int) -> Constant:
    """Grants of leases whose ids the server chooses."""
    message = pb.LeaseGrantRequest(TTL=seconds).SerializeToString()
    return Constant(client.LEASE_GRANT, message, check=check_grant)


def check_put(message: bytes) -> None:
    if pb.PutResponse.FromString(message).header.revision < 1:
        raise LoadError("a put was answered without a revision")


def range_checker(keys: int, size: int) -> Callable[[bytes], None]:
    """A check that a reply has ``keys`` keys with values of ``size`` bytes."""

    def check(message: bytes) -> None:
        reply = pb.RangeResponse.FromString(message)
        if len(reply.kvs) != keys or reply.count < keys:
            raise LoadError(f"{len(reply.kvs)} keys in a reply that must have {keys}")
        wrong = {len(kv.value) for kv in reply.kvs} - {size}
        if wrong:
            raise LoadError(f"values of {wrong} bytes in a reply, not {size}")

    return check


def check_grant(message: bytes) -> None:
    reply = pb.LeaseGrantResponse.FromString(message)
    if not reply.ID or reply.error:
        raise LoadError(f"a lease was not granted: {reply.error!r}")
