"""Trees built at once are as good as grown ones."""

from __future__ import annotations

import random

import pytest

from kvorum.mvcc.tree import FAN_OUT, LEAF_FILL, Tree, build

INNER = LEAF_FILL * FAN_OUT


@pytest.mark.parametrize(
    "size", [0, 1, 2, LEAF_FILL - 1, LEAF_FILL, LEAF_FILL + 1, INNER, INNER + 1, 3 * INNER + 7]
)
def test_a_built_tree_is_sound_and_can_be_changed(size: int) -> None:
    keys = [b"%08d" % i for i in range(size)]
    values = [b"v%d" % i for i in range(size)]
    tree = build(keys, values)
    tree._check()
    expected = dict(zip(keys, values, strict=True))
    assert dict(tree.items()) == expected
    assert list(tree.keys()) == keys
    rng = random.Random(size)
    for _ in range(200):
        key = b"%08d" % rng.randrange(size + 10)
        if rng.random() < 0.5:
            tree[key] = expected[key] = b"new"
        elif key in expected:
            del tree[key]
            del expected[key]
    tree._check()
    assert list(tree.items()) == sorted(expected.items())


def test_a_built_tree_can_be_emptied_and_filled_again() -> None:
    keys = [b"%08d" % i for i in range(INNER + LEAF_FILL)]
    tree = build(keys, keys)
    for key in keys:
        del tree[key]
    tree._check()
    assert not tree
    tree.update(Tree({b"a": b"b"}))
    assert dict(tree.items()) == {b"a": b"b"}


def test_ranges_of_a_built_tree() -> None:
    keys = [b"%08d" % i for i in range(2 * INNER)]
    tree = build(keys, keys)
    rng = random.Random(1)
    for _ in range(50):
        low, high = rng.randrange(len(keys)), rng.randrange(len(keys))
        assert list(tree.keys(keys[low], keys[high], False, True)) == keys[low:high]
        assert len(tree.keys(keys[low], keys[high], False, True)) == max(0, high - low)
        assert len(tree.keys(keys[low])) == len(keys) - low
