"""Every source's requests, read back from their bytes."""

from __future__ import annotations

from itertools import pairwise

import pytest

from bench import frames, sources
from bench.frames import HEAD, HeaderBlocks
from bench.sources import BULK, VALUE, Bulk, Mixed, Source, Swaps
from bench.streams import MARK, MarkedPuts
from bench.wire import LoadError
from kvorum.pb import etcdserverpb as pb


def made(source: Source, requests: int, wire: int = 0) -> list[tuple[int, bytes]]:
    """(stream id, message) of the first requests of a source, each checked as HTTP/2."""
    paths = [path for path, _ in source.primes()]
    blocks = HeaderBlocks(paths, "127.0.0.1:1", indexed=False)
    make = source.attach(wire, blocks, 1)
    return [parsed(make(1 + 2 * number), source, blocks) for number in range(requests)]


def parsed(request: bytes, source: Source, blocks: HeaderBlocks) -> tuple[int, bytes]:
    head, flags, stream = HEAD.unpack_from(request)
    size = head >> 8
    assert (head & 255, flags) == (frames.HEADERS, frames.END_HEADERS)
    assert request[9 : 9 + size] in blocks.steady.values()
    data = request[9 + size :]
    head, flags, again = HEAD.unpack_from(data)
    assert (head & 255, flags, again) == (frames.DATA, frames.END_STREAM, stream)
    assert head >> 8 == len(data) - 9 <= source.size
    (message,), rest = frames.split_messages(data[9:])
    assert rest == b""
    return stream, message


def test_puts_have_distinct_keys_and_the_value() -> None:
    messages = [pb.PutRequest.FromString(message) for _, message in made(sources.puts(b"p/"), 50)]
    assert {message.value for message in messages} == {VALUE}
    assert len({message.key for message in messages}) == 50
    assert len(VALUE) == 256


def test_connections_share_one_sequence_of_keys() -> None:
    source = sources.puts(b"p/")
    messages = made(source, 5, wire=0) + made(source, 5, wire=1)
    assert len({pb.PutRequest.FromString(message).key for _, message in messages}) == 10


def test_gets_reach_every_key_once_before_any_again() -> None:
    messages = made(sources.gets(b"g/", 30, 256), 60)
    keys = [pb.RangeRequest.FromString(message).key for _, message in messages]
    expected = {b"g/%012d" % number for number in range(30)}
    assert set(keys[:30]) == set(keys[30:]) == expected
    assert keys[:30] == keys[30:]
    assert keys[:30] != sorted(keys[:30])


def test_a_mixed_source_writes_every_fifth_request_and_counts_it() -> None:
    source = Mixed(sources.gets(b"m/", 10, 256), sources.puts(b"m/"), 5)
    messages = made(source, 20)
    for index, (stream, message) in enumerate(messages):
        writes = index % 5 == 4
        assert source.is_write(stream) == writes
        assert (pb.PutRequest.FromString(message).value == VALUE) == writes
    assert source.written == 4


@pytest.mark.parametrize("wire", [0, 7])
def test_swaps_go_through_the_versions_of_each_key(wire: int) -> None:
    source = Swaps(b"s/", VALUE, keys=3)
    seen: dict[bytes, list[int]] = {}
    for _, message in made(source, 3 * 300, wire=wire):
        txn = pb.TxnRequest.FromString(message)
        (compare,) = txn.compare
        assert (compare.target, compare.result) == (pb.Compare.VERSION, pb.Compare.EQUAL)
        assert txn.success[0].request_put.key == compare.key
        assert txn.success[0].request_put.value == VALUE
        assert message == txn.SerializeToString(), "as any client would encode it"
        seen.setdefault(compare.key, []).append(compare.version)
    assert list(seen.values()) == [list(range(300))] * 3
    assert all(key.startswith(b"s/%04d/" % wire) for key in seen)


def test_a_bulk_transaction_puts_its_share_of_the_keys() -> None:
    source = Bulk(b"b/", VALUE)
    keys = []
    for _, message in made(source, 4):
        puts = [op.request_put for op in pb.TxnRequest.FromString(message).success]
        assert len(puts) == BULK
        assert {put.value for put in puts} == {VALUE}
        keys += [put.key for put in puts]
    assert keys == [b"b/%012d" % number for number in range(4 * BULK)]


def test_marked_puts_carry_their_number_and_take_the_keys_in_turn() -> None:
    source = MarkedPuts([b"k/0", b"k/1", b"k/2"])
    puts = [pb.PutRequest.FromString(message) for _, message in made(source, 7)]
    assert [put.key for put in puts[:4]] == [b"k/0", b"k/1", b"k/2", b"k/0"]
    numbers = [int(put.value.removeprefix(MARK)[:12]) for put in puts]
    assert all(later == earlier + 1 for earlier, later in pairwise(numbers))
    assert {len(put.value) for put in puts} == {256}


def test_checks_refuse_what_is_not_the_expected_reply() -> None:
    check = sources.range_checker(1, 256)
    good = pb.RangeResponse(count=1)
    good.kvs.add(value=VALUE)
    check(good.SerializeToString())
    good.kvs[0].value = b"short"
    with pytest.raises(LoadError, match="not 256"):
        check(good.SerializeToString())
    with pytest.raises(LoadError, match="0 keys"):
        check(b"")
    with pytest.raises(LoadError, match="without a revision"):
        sources.check_put(b"")
    with pytest.raises(LoadError, match="not granted"):
        sources.check_grant(b"")
    with pytest.raises(LoadError, match="did not"):
        Swaps(b"s/", VALUE).check(1, b"")


def test_a_message_without_exactly_one_slot_is_refused() -> None:
    with pytest.raises(ValueError, match="one slot"):
        sources.Slotted("/p", b"no", iter([]), prime=b"", check=lambda message: None)
