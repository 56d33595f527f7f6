from __future__ import annotations

import pytest

from kvorum.pb import etcdserverpb as pb
from kvorum.server.quota import DEFAULT_QUOTA, KEY_OVERHEAD, LEASE_COST, Quota, put_cost, txn_cost

MIB = 1024 * 1024


class Backend:
    def __init__(self, size: int = 0) -> None:
        self.now = size

    def size(self) -> int:
        return self.now


def put(size: int) -> pb.RequestOp:
    return pb.RequestOp(request_put=pb.PutRequest(key=b"k" * size))


def test_zero_is_the_default_and_below_it_there_is_no_limit() -> None:
    assert Quota(Backend(), 0).limit == DEFAULT_QUOTA == 2 << 30
    endless = Quota(Backend(1 << 60), -1)
    assert endless.ample
    assert endless.allows(1 << 60)


def test_the_limit_itself_is_out_of_reach() -> None:
    quota = Quota(Backend(900), 1000)
    assert not quota.ample
    assert quota.allows(99)
    assert not quota.allows(100)


def test_what_costs_nothing_is_always_let_through() -> None:
    quota = Quota(Backend(5000), 1000)
    assert quota.allows(0)
    assert not quota.allows(1)


def test_the_size_is_that_of_the_last_refresh() -> None:
    backend = Backend(0)
    quota = Quota(backend, 100 * MIB)
    assert quota.ample
    backend.now = 99 * MIB
    assert quota.allows(MIB)
    quota.refresh()
    assert not quota.ample
    assert quota.allows(MIB - 1)
    assert not quota.allows(MIB)
    backend.now = 1
    quota.refresh()
    assert quota.ample


def test_what_is_written_during_a_commit_counts_until_the_next() -> None:
    backend = Backend(100)
    quota = Quota(backend, 1000)
    quota.spend(300)
    quota.freeze()
    quota.spend(200)
    assert quota.allows(399)
    assert not quota.allows(400)
    backend.now = 450  # what the 300 became
    quota.refresh()
    assert quota.allows(349)
    assert not quota.allows(350)
    quota.freeze()
    backend.now = 600
    quota.refresh()
    assert quota.allows(399)
    assert not quota.allows(400)


@pytest.mark.parametrize("limit", [0, 1, 63 * MIB, 64 * MIB, 65 * MIB, 1 << 40, -1])
@pytest.mark.parametrize("size", [0, 1, MIB, 64 * MIB, 2 << 30])
def test_ample_means_that_no_request_can_reach_the_limit(size: int, limit: int) -> None:
    """The largest request is bounded far below what ``ample`` leaves."""
    quota = Quota(Backend(size), limit)
    if quota.ample:
        assert limit < 0 or size + 64 * MIB < quota.limit
        assert quota.allows(64 * MIB)


def test_costs_are_as_etcd_reckons_them() -> None:
    assert put_cost(pb.PutRequest(key=b"abc", value=b"defg", lease=1)) == KEY_OVERHEAD + 7 == 263
    assert LEASE_COST == 64
    assert txn_cost(pb.TxnRequest()) == 0
    free = [
        pb.RequestOp(request_range=pb.RangeRequest(key=b"k")),
        pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"k")),
        pb.RequestOp(),
    ]
    assert txn_cost(pb.TxnRequest(success=free, failure=free)) == 0


def test_a_transaction_costs_its_dearer_branch_also_inside() -> None:
    inner = pb.TxnRequest(success=[put(1)], failure=[put(2), put(3)])
    outer = pb.TxnRequest(success=[pb.RequestOp(request_txn=inner), put(4)], failure=[put(500)] * 2)
    assert txn_cost(inner) == 2 * KEY_OVERHEAD + 5
    assert txn_cost(outer) == 2 * KEY_OVERHEAD + 1000
    del outer.failure[1]
    assert txn_cost(outer) == max(3 * KEY_OVERHEAD + 9, KEY_OVERHEAD + 500)
