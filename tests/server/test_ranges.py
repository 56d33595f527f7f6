"""Range requests against a model that keeps every revision as a plain dict."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from naive_kv import KEYS, Model, answer, any_request
from server_kit import State, open_state

from kvorum import errors
from kvorum.mvcc.store import Store, WriteTxn
from kvorum.pb import etcdserverpb as pb
from kvorum.pb import mvccpb
from kvorum.server.ranges import ReadView, encode_kvs, execute_range
from kvorum.types import LeaseID

LEASES = (LeaseID(0), LeaseID(7), LeaseID(-3))


@dataclass
class World:
    """A store after a few hundred changes, and the model of it; or a transaction within it."""

    view: ReadView
    model: Model


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    with open_state(tmp_path) as state:
        yield state


@pytest.fixture(params=["store", "transaction"])
def world(state: State, request: pytest.FixtureRequest) -> Iterator[World]:
    """The store, or a write transaction that has not ended; revisions before 40 are compacted."""
    chance = random.Random(5)
    model, store = Model(), state.store
    for lease in filter(None, LEASES):
        state.lessor.grant(lease, 100, 0.0)
    for _ in range(150):
        change(chance, store, model)
    model.compacted = 40
    job = store.compact(40)
    while not job.index_step() or not job.delete_step():
        pass
    if request.param == "store":
        yield World(store, model)
        return
    write = store.write()
    changes(chance, write, model)
    yield World(write, model)
    write.end()


def change(chance: random.Random, store: Store, model: Model) -> None:
    if chance.random() < 0.4:
        write = store.write()
        changes(chance, write, model)
        write.end()
    else:
        key, value, lease = pair(chance)
        model.put(store.put(key, value, lease), key, value, lease)


def changes(chance: random.Random, write: WriteTxn, model: Model) -> None:
    """A few changes with one revision, each key once."""
    rev = model.rev + 1
    for key in chance.sample(KEYS, 3):
        _, value, lease = pair(chance)
        if chance.random() < 0.5:
            write.put(key, value, lease)
            model.put(rev, key, value, lease)
        elif write.delete_range(key, b""):
            model.delete(rev, key)


def pair(chance: random.Random) -> tuple[bytes, bytes, LeaseID]:
    value = bytes(chance.randrange(3) for _ in range(chance.randrange(3)))
    return chance.choice(KEYS), value, chance.choice(LEASES)


def test_against_the_model(world: World) -> None:
    chance = random.Random(7)
    refused = 0
    for _ in range(4000):
        request = any_request(chance)
        expected = answer(world.model, request)
        if isinstance(expected, type):
            refused += 1
            with pytest.raises(expected):
                execute_range(world.view, request)
            continue
        body, revision = execute_range(world.view, request)
        assert pb.RangeResponse.FromString(body) == expected, request
        assert revision == world.model.rev
    assert 100 < refused < 1000


def test_the_order_is_taken_before_the_limit_and_filters_before_both(state: State) -> None:
    """Values fall while keys rise, so that each step shows."""
    store = state.store
    for number in range(9):
        store.put(b"order%d" % number, b"%d" % (9 - number), LeaseID(0))
    first = store.rev - 8
    request = pb.RangeRequest(key=b"order", range_end=b"ordes", limit=2)
    request.sort_target = pb.RangeRequest.VALUE

    def keys() -> tuple[list[bytes], bool, int]:
        response = pb.RangeResponse.FromString(execute_range(store, request)[0])
        return [kv.key for kv in response.kvs], response.more, response.count

    # Without an order, the limit comes first: three pairs are read, and those are sorted.
    assert keys() == ([b"order2", b"order1"], True, 9)
    request.sort_order = pb.RangeRequest.ASCEND
    assert keys() == ([b"order8", b"order7"], True, 9)
    request.sort_order = pb.RangeRequest.DESCEND
    assert keys() == ([b"order0", b"order1"], True, 9)
    request.min_mod_revision = first + 7
    assert keys() == ([b"order7", b"order8"], False, 9)  # the count knows nothing of filters
    request.limit = 1
    assert keys() == ([b"order7"], True, 9)
    request.max_create_revision = first
    assert keys() == ([], False, 9)


def test_repeated_pairs_have_the_bytes_of_protobuf() -> None:
    kvs = [mvccpb.KeyValue(key=b"k" * size, version=1).SerializeToString() for size in (1, 1, 300)]
    response = pb.RangeResponse.FromString(encode_kvs(kvs))
    assert response == pb.RangeResponse(kvs=[mvccpb.KeyValue.FromString(kv) for kv in kvs])
    assert encode_kvs(kvs) == response.SerializeToString()
    assert encode_kvs([]) == b""
    deleted = pb.DeleteRangeResponse.FromString(encode_kvs(kvs, b"\x1a"))
    assert list(deleted.prev_kvs) == list(response.kvs)


def test_a_revision_that_is_not_there(state: State) -> None:
    store = state.store
    store.put(b"x", b"", LeaseID(0))
    store.compact(store.put(b"x", b"", LeaseID(0)))
    for fields in ({}, {"count_only": True}, {"keys_only": True}, {"limit": 1}):
        request = pb.RangeRequest(key=b"x", revision=store.rev + 1, **fields)  # type: ignore[arg-type]
        with pytest.raises(errors.FutureRev):
            execute_range(store, request)
        request.revision = 1
        with pytest.raises(errors.Compacted):
            execute_range(store, request)
