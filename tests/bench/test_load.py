"""The load generator against a real etcd: counts that add up, and errors that are noticed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench import client as api
from bench import sources
from bench.client import Client, RpcError
from bench.load import ClosedLoop, Load, OpenLoop, between
from bench.members import Member
from bench.sources import VALUE, Source
from bench.streams import FanOut, KeepAlives
from bench.wire import LoadError, Loop
from bench.workloads import verify_puts, verify_swaps
from kvorum.pb import etcdserverpb as pb


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def client(etcd: Member) -> Iterator[Client]:
    client = Client(etcd.port)
    yield client
    client.close()


def load_on(loop: Loop, member: Member, source: Source, *, indexed: bool = False) -> Load:
    return Load(loop, [member.port], 3, source, indexed)


@pytest.mark.parametrize("indexed", [False, True])
def test_every_good_put_left_its_key(
    loop: Loop, etcd: Member, client: Client, indexed: bool
) -> None:
    prefix = b"closed/%d/" % indexed
    load = load_on(loop, etcd, sources.puts(prefix), indexed=indexed)
    marks: list[int] = []
    record = ClosedLoop(load, 5).run(0.05, 0.2, lambda: marks.append(load.good))
    assert len(record.latencies) == marks[1] - marks[0] > 0
    assert 0.2 <= record.seconds < 2.0
    assert all(0 < latency < 5 for latency in record.latencies)
    verify_puts(client, prefix, load.good)
    with pytest.raises(LoadError, match="but there are"):
        verify_puts(client, prefix, load.good + 1)


def test_an_exact_number_of_requests(loop: Loop, etcd: Member, client: Client) -> None:
    load = load_on(loop, etcd, sources.puts(b"exact/"))
    assert len(ClosedLoop(load, 7).send(500).latencies) == 500
    assert client.count(b"exact/") == 500


def test_all_swaps_succeed_and_are_counted(loop: Loop, etcd: Member, client: Client) -> None:
    load = load_on(loop, etcd, sources.Swaps(b"swaps/", VALUE, keys=20))
    ClosedLoop(load, 4).send(600)
    verify_swaps(client, b"swaps/", 600)
    with pytest.raises(LoadError, match="took place"):
        verify_swaps(client, b"swaps/", 601)


def test_a_bulk_fill_larger_than_the_windows(loop: Loop, etcd: Member, client: Client) -> None:
    load = load_on(loop, etcd, sources.Bulk(b"bulk/", VALUE))
    ClosedLoop(load, 8).send(60)
    assert client.count(b"bulk/") == 60 * sources.BULK


def test_long_replies_are_read_whole(loop: Loop, etcd: Member, client: Client) -> None:
    client.fill((b"long/%04d" % number for number in range(1_000)), VALUE)
    load = load_on(loop, etcd, sources.ranges(b"long/", 1_000, len(VALUE)))
    assert len(ClosedLoop(load, 2).send(100).latencies) == 100


def test_a_mixed_load_keeps_its_shares(loop: Loop, etcd: Member, client: Client) -> None:
    client.fill((b"mix/%012d" % number for number in range(50)), VALUE)
    source = sources.Mixed(sources.gets(b"mix/", 50, 256), sources.puts(b"mixed/"), 5)
    record = ClosedLoop(load_on(loop, etcd, source), 3).send(1_000)
    writes = sum(source.is_write(stream) for stream in record.streams)
    assert writes == source.written == client.count(b"mixed/")
    assert writes == pytest.approx(200, abs=10)


def test_an_open_loop_offers_its_rate(loop: Loop, etcd: Member, client: Client) -> None:
    load = load_on(loop, etcd, sources.puts(b"open/"))
    offered = OpenLoop(load, 500.0)
    record = offered.run(0.1, 0.5)
    assert len(record.latencies) == pytest.approx(500 * record.seconds, abs=10)
    assert client.count(b"open/") == load.good == len(offered.lateness)


def test_an_open_loop_counts_from_when_a_request_was_due(loop: Loop, etcd: Member) -> None:
    offered = OpenLoop(load_on(loop, etcd, sources.puts(b"due/")), 200.0)
    offered.start()
    # As if we had been kept from running for 0.3 s, in which 60 requests were due.
    offered._began -= 0.3
    offered.turn_for(0.05)
    record = offered.drain()
    assert max(record.latencies) == max(record.latencies[:60]) > 0.3
    assert max(offered.lateness) > 0.29
    assert len(record.latencies) == len(offered.lateness) >= 65


def test_a_record_is_cut_by_when_requests_began(loop: Loop, etcd: Member) -> None:
    record = ClosedLoop(load_on(loop, etcd, sources.puts(b"cut/")), 1).send(30)
    middle = sorted(record.began)[10]
    assert len(between(record, 0, middle).latencies) == 10
    assert len(between(record, middle, float("inf")).streams) == 20


def test_error_replies_end_the_run(loop: Loop, etcd: Member) -> None:
    bad = pb.PutRequest(key=b"", value=b"without a key").SerializeToString()
    good = pb.PutRequest(key=b"good").SerializeToString()
    source = sources.Constant(api.PUT, bad, check=sources.check_put)
    source.primes = lambda: [(api.PUT, good)]  # type: ignore[method-assign]
    load = load_on(loop, etcd, source)
    with pytest.raises(LoadError, match="key is not provided"):
        ClosedLoop(load, 2).send(10)
    assert load.good == 0


def test_error_replies_are_counted_where_they_are_expected(loop: Loop, etcd: Member) -> None:
    bad = pb.PutRequest(key=b"", value=b"without a key").SerializeToString()
    good = pb.PutRequest(key=b"good").SerializeToString()
    source = sources.Constant(api.PUT, bad, check=sources.check_put)
    source.primes = lambda: [(api.PUT, good)]  # type: ignore[method-assign]
    load = load_on(loop, etcd, source)
    load.strict = False
    assert ClosedLoop(load, 2).send(10).latencies == []
    assert [failure.code for failure in load.failures] == [3] * 10
    assert load.good == 0


def test_a_method_that_does_not_exist_is_noticed_at_once(loop: Loop, etcd: Member) -> None:
    source = sources.Constant("/etcdserverpb.KV/Nothing", b"", check=lambda message: None)
    with pytest.raises(LoadError, match="code 12"):
        load_on(loop, etcd, source)


def test_replies_that_are_not_as_they_should_be_end_the_run(loop: Loop, etcd: Member) -> None:
    source = sources.one_get(b"no such key", 256, serializable=False)
    with pytest.raises(LoadError, match="0 keys in a reply"):
        ClosedLoop(load_on(loop, etcd, source), 2).send(10)


def test_too_few_bytes_in_all_replies_together_are_noticed(loop: Loop, etcd: Member) -> None:
    message = pb.RangeRequest(key=b"no such key").SerializeToString()
    source = sources.Constant(api.RANGE, message, check=lambda reply: None, least=256)
    with pytest.raises(LoadError, match="OK replies had only"):
        ClosedLoop(load_on(loop, etcd, source), 2).send(10)


def test_an_oversize_request_is_an_error(client: Client) -> None:
    with pytest.raises(RpcError) as raised:
        client.call(api.PUT, pb.PutRequest(key=b"big", value=bytes(3_000_000)), pb.PutResponse)
    assert raised.value.code in (3, 8)
    assert client.count(b"big") == 0


def test_a_server_killed_during_the_run_is_an_error(loop: Loop, own_etcd: Member) -> None:
    load = load_on(loop, own_etcd, sources.puts(b"killed/"))
    closed = ClosedLoop(load, 5)
    with pytest.raises(LoadError, match=r"connection lost with [1-9]"):
        closed.run(0.05, 20.0, own_etcd.kill)
    assert load.good > 0


def test_a_server_killed_during_an_open_loop_is_an_error(loop: Loop, own_etcd: Member) -> None:
    offered = OpenLoop(load_on(loop, own_etcd, sources.puts(b"killed/")), 2_000.0)
    with pytest.raises(LoadError, match="connection lost"):
        offered.run(0.05, 20.0, own_etcd.kill)


@pytest.mark.parametrize(("keys", "watchers", "window"), [(1, 40, 2), (40, 1, 20)])
def test_every_event_comes_once_per_watcher(
    etcd: Member, keys: int, watchers: int, window: int
) -> None:
    names = [b"watch/%d/%03d" % (watchers, number) for number in range(keys)]
    fan_out = FanOut(etcd.port, names, watchers=watchers, window=window, indexed=False)
    try:
        record = fan_out.run(0.05, 0.2, lambda: None)
        assert fan_out._events == fan_out._source.issued * watchers
    finally:
        fan_out.close()
    assert 0 < len(record.latencies) <= fan_out._events


def test_events_that_come_too_often_are_noticed(etcd: Member) -> None:
    fan_out = FanOut(etcd.port, [b"twice"], watchers=2, window=1, indexed=False)
    fan_out._watchers = 1
    try:
        with pytest.raises(LoadError, match="more than once"):
            fan_out.run(0.0, 0.1, lambda: None)
    finally:
        fan_out.close()


def grant(client: Client, seconds: int) -> int:
    request = pb.LeaseGrantRequest(TTL=seconds)
    return int(client.call(api.LEASE_GRANT, request, pb.LeaseGrantResponse).ID)


def test_leases_are_kept_alive(etcd: Member, client: Client) -> None:
    ids = [[grant(client, 60) for _ in range(3)] for _ in range(2)]
    renewals = KeepAlives(etcd.port, ids)
    try:
        record = renewals.run(0.05, 0.2, lambda: None)
    finally:
        renewals.close()
    assert len(record.latencies) > 6


def test_a_lease_that_is_gone_is_noticed(etcd: Member) -> None:
    renewals = KeepAlives(etcd.port, [[123456789]])
    try:
        with pytest.raises(LoadError, match="is gone"):
            renewals.run(0.05, 0.1, lambda: None)
    finally:
        renewals.close()
