"""Sets of revisions in shards."""

from __future__ import annotations

import random

import pytest

from kvorum.mvcc.revision import rev_key, tombstone_key
from kvorum.mvcc.shards import RevShards

REVS = [rev_key(main, sub) for main in range(200, 2000, 7) for sub in range(main % 3)]
REVS.append(tombstone_key(600))


@pytest.mark.parametrize("size", [1, 10, 1000, 100_000])
def test_all_come_out_in_order_and_in_lists_of_the_size_asked_for(size: int) -> None:
    shards = RevShards()
    shuffled = random.Random(size).sample(REVS, len(REVS))
    shards.add(shuffled[:100])
    shards.add(shuffled[100:])
    drained = list(shards.drain(size))
    assert [rev for batch in drained for rev in batch] == sorted(REVS)
    assert {len(batch) for batch in drained[:-1]} <= {size}
    assert 0 < len(drained[-1]) <= size
    assert list(shards.drain(size)) == []


def test_a_shard_has_what_begins_alike() -> None:
    shards = RevShards()
    shards.add(REVS)
    assert tombstone_key(600) in shards.near(rev_key(600))
    assert shards.near(rev_key(600)) == {rev for rev in REVS if rev[:7] == rev_key(600)[:7]}
    assert shards.near(rev_key(10**9)) == frozenset()
