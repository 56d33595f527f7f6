"""What is compared: each workload prepares a fresh member once and then measures round by round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from bench import client as api
from bench import sources
from bench.client import Client, prefix_end
from bench.connection import Failure
from bench.load import ClosedLoop, Load, OpenLoop, Record
from bench.measure import Meter, Sample, latencies, sample_of
from bench.members import Server
from bench.sources import VALUE, Source
from bench.stats import percentile
from bench.streams import FanOut, KeepAlives
from bench.wire import LoadError, Loop, describe
from kvorum.pb import etcdserverpb as pb

LEASE_SECONDS: Final = 3600
MIXED_KEYS: Final = 10_000
RANGE_KEYS: Final = 1_000
READS_PER_WRITE: Final = 4


@dataclass(frozen=True, slots=True)
class Settings:
    """How long, how often and how the headers go."""

    rounds: int = 3
    seconds: float = 2.0
    warm_up: float = 0.5
    indexed: bool = False


class Workload(Protocol):
    """One comparison. ``name`` is for --only, ``title`` for the table."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    def prepare(self, member: Server) -> None:
        """Fill a fresh member."""
        ...

    def round(self, member: Server, number: int, settings: Settings) -> Sample:
        """One measurement; ``number`` is new for each on this member."""
        ...


def nothing(client: Client) -> None:
    """For workloads that begin with an empty store."""


def unverified(client: Client, prefix: bytes, changes: int) -> None:
    """For reads, which leave nothing behind that could be counted."""


def verify_puts(client: Client, prefix: bytes, good: int) -> None:
    """Every good put must have left its key."""
    found = client.count(prefix)
    if found != good:
        raise LoadError(f"{good} puts were answered with OK, but there are {found} keys")


def verify_swaps(client: Client, prefix: bytes, good: int) -> None:
    """A key's version counts its swaps."""
    request = pb.RangeRequest(key=prefix, range_end=prefix_end(prefix), keys_only=True)
    reply = client.call(api.RANGE, request, pb.RangeResponse)
    swaps = sum(kv.version for kv in reply.kvs)
    if swaps != good:
        raise LoadError(f"{good} swaps were answered with OK, but {swaps} took place")


@dataclass(frozen=True, slots=True)
class Unary:
    """Closed loop on a unary method: ``connections`` with ``depth`` requests in flight each, in
    turn to all members of a cluster if they are to be ``spread``."""

    name: str
    title: str
    connections: int
    depth: int
    source: Callable[[bytes], Source]
    fill: Callable[[Client], None] = nothing
    verify: Callable[[Client, bytes, int], None] = unverified
    spread: bool = False

    def prepare(self, member: Server) -> None:
        with_client(member, self.fill)

    def round(self, member: Server, number: int, settings: Settings) -> Sample:
        prefix = b"%s/%d/" % (self.name.encode(), number)
        source = self.source(prefix)
        loop = Loop()
        try:
            ports = member.ports if self.spread else [member.port]
            load = Load(loop, ports, self.connections, source, settings.indexed)
            meter = Meter(member)
            record = ClosedLoop(load, self.depth).run(settings.warm_up, settings.seconds, meter)
        finally:
            loop.close()
        # All were answered and none failed, so what was written is what was made.
        changed = source.written if isinstance(source, sources.Mixed) else load.good
        with_client(member, lambda client: self.verify(client, prefix, changed))
        return {**sample_of(record, meter), **split(source, record)}


def split(source: Source, record: Record) -> Sample:
    """Reads and writes apart, for a mixed source."""
    if not isinstance(source, sources.Mixed):
        return {}
    reads: list[float] = []
    writes: list[float] = []
    for stream, latency in zip(record.streams, record.latencies, strict=True):
        (writes if source.is_write(stream) else reads).append(latency)
    return {**latencies(reads, "read_"), **latencies(writes, "write_")}


def with_client(member: Server, use: Callable[[Client], None]) -> None:
    """Do something on a connection of its own."""
    client = Client(member.port)
    try:
        use(client)
    finally:
        client.close()


def refusals(failures: list[Failure]) -> int:
    """How many failures say that the server has too much to do; any other is a LoadError."""
    others = [failure for failure in failures if "too many requests" not in failure.message]
    if others:
        raise LoadError(describe(others))
    return len(failures)


class Offered:
    """Puts at a fixed rate: a share of what the first server reached in the closed loop."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.rate = 0.0
        self.name = f"put-rate-{share * 100:.0f}"

    @property
    def title(self) -> str:
        offered = f"{self.rate:,.0f}/s, " if self.rate else ""
        return f"put 256 B at {offered}{self.share:.0%} of the first server's rate"

    def prepare(self, member: Server) -> None:
        """Nothing to fill."""

    def round(self, member: Server, number: int, settings: Settings) -> Sample:
        prefix = b"%s/%d/" % (self.name.encode(), number)
        loop = Loop()
        try:
            load = Load(loop, [member.port], 10, sources.puts(prefix), settings.indexed)
            load.strict = False
            meter = Meter(member)
            offered = OpenLoop(load, self.rate)
            record = offered.run(settings.warm_up, settings.seconds, meter)
        finally:
            loop.close()
        with_client(member, lambda client: verify_puts(client, prefix, load.good))
        late = percentile(sorted(offered.lateness), 99) * 1e3
        refused = {"refused": float(refusals(load.failures)), "late_p99_ms": late}
        return {**sample_of(record, meter), **refused}


@dataclass(frozen=True, slots=True)
class Watches:
    """Events: ``keys`` keys with ``watchers`` watchers each."""

    name: str
    title: str
    keys: int
    watchers: int
    window: int

    def prepare(self, member: Server) -> None:
        """Nothing to fill."""

    def round(self, member: Server, number: int, settings: Settings) -> Sample:
        keys = [b"%s/%d/%05d" % (self.name.encode(), number, n) for n in range(self.keys)]
        fan_out = FanOut(
            member.port,
            keys,
            watchers=self.watchers,
            window=self.window,
            indexed=settings.indexed,
        )
        meter = Meter(member)
        try:
            record = fan_out.run(settings.warm_up, settings.seconds, meter)
        finally:
            fan_out.close()
        return sample_of(record, meter)


@dataclass(frozen=True, slots=True)
class Keepalive:
    """Lease renewals on ``streams`` streams with ``depth`` leases each."""

    name: str
    title: str
    streams: int
    depth: int

    def prepare(self, member: Server) -> None:
        """Leases are granted per round."""

    def round(self, member: Server, number: int, settings: Settings) -> Sample:
        ids = [[self._grant(member) for _ in range(self.depth)] for _ in range(self.streams)]
        renewals = KeepAlives(member.port, ids)
        meter = Meter(member)
        try:
            record = renewals.run(settings.warm_up, settings.seconds, meter)
        finally:
            renewals.close()
        return sample_of(record, meter)

    def _grant(self, member: Server) -> int:
        client = Client(member.port)
        try:
            request = pb.LeaseGrantRequest(TTL=LEASE_SECONDS)
            return int(client.call(api.LEASE_GRANT, request, pb.LeaseGrantResponse).ID)
        finally:
            client.close()


class Grants:
    """Lease grants; the leases that exist are counted before and after."""

    name = "lease-grant"
    title = "lease grant, 10 x 10"

    def prepare(self, member: Server) -> None:
        """Nothing to fill."""

    def round(self, member: Server, number: int, settings: Settings) -> Sample:
        before = leases(member)
        good: list[int] = []
        unary = Unary(
            self.name,
            self.title,
            10,
            10,
            lambda prefix: sources.grants(LEASE_SECONDS),
            verify=lambda client, prefix, count: good.append(count),
        )
        sample = unary.round(member, number, settings)
        # The first request of every connection grants one more, which is not counted as load.
        expected = before + good[0] + unary.connections
        found = leases(member)
        if found != expected:
            raise LoadError(f"{found} leases exist, though {expected} were granted")
        return sample


def leases(member: Server) -> int:
    """How many leases a member has."""
    client = Client(member.port)
    try:
        reply = client.call(api.LEASE_LIST, pb.LeaseLeasesRequest(), pb.LeaseLeasesResponse)
        return len(reply.leases)
    finally:
        client.close()


def _put(name: str, connections: int, depth: int) -> Unary:
    title = f"put 256 B, {connections} connections x {depth}"
    return Unary(name, title, connections, depth, sources.puts, verify=verify_puts)


def fill_one(client: Client) -> None:
    client.fill([b"one"], VALUE)


def _get(name: str, title: str, serializable: bool) -> Unary:
    def source(prefix: bytes) -> Source:
        return sources.one_get(b"one", len(VALUE), serializable=serializable)

    return Unary(name, title, 10, 10, source, fill=fill_one)


def _numbered_keys(prefix: bytes, keys: int) -> list[bytes]:
    return [prefix + b"%012d" % number for number in range(keys)]


def _mixed(prefix: bytes) -> Source:
    reads = sources.gets(b"mixed-keys/", MIXED_KEYS, len(VALUE))
    return sources.Mixed(reads, sources.puts(prefix), READS_PER_WRITE + 1)


def standard() -> list[Workload]:
    """The workloads of a run without --million, in their order."""
    return [
        _put("put-1x1", 1, 1),
        _put("put-10x10", 10, 10),
        _put("put-100x10", 100, 10),
        _put("put-1000x1", 1000, 1),
        _get("get-linearizable", "linearizable get of one key, 10 x 10", serializable=False),
        _get("get-serializable", "serializable get of one key, 10 x 10", serializable=True),
        Unary(
            "range-1000",
            "range of 1,000 keys, 10 x 1",
            10,
            1,
            lambda prefix: sources.ranges(b"range-keys/", RANGE_KEYS, len(VALUE)),
            fill=lambda client: client.fill(_numbered_keys(b"range-keys/", RANGE_KEYS), VALUE),
        ),
        Unary(
            "txn-swap",
            "txn compare-and-swap, 10 x 10",
            10,
            10,
            lambda prefix: sources.Swaps(prefix, VALUE),
            verify=verify_swaps,
        ),
        Unary(
            "mixed-80-20",
            "80 % gets of 10,000 keys, 20 % puts, 10 x 10",
            10,
            10,
            _mixed,
            fill=lambda client: client.fill(_numbered_keys(b"mixed-keys/", MIXED_KEYS), VALUE),
            verify=verify_puts,
        ),
        Watches("watch-1x1000", "events, 1 key with 1,000 watchers", 1, 1000, 4),
        Watches("watch-1000x1", "events, 1,000 keys with 1 watcher each", 1000, 1, 100),
        Grants(),
        Keepalive("lease-keepalive", "lease keepalive, 10 streams x 10 leases", 10, 10),
        Offered(0.5),
        Offered(0.8),
    ]
