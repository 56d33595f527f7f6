"""The store against a real etcd: the same random history, the same HashKV.

The hash covers every record byte by byte, so that equal hashes mean equal revisions, versions and
encodings. etcd 3.5.1 refuses the hash at the compaction revision itself; all later ones agree.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from support.binaries import Binaries
from support.member import MemberFactory
from support.rpc import COMPACT, HASH_KV, LEASE_GRANT, RANGE, TXN, Client

from kvorum.backend import Backend
from kvorum.mvcc.store import Store
from kvorum.pb import etcdserverpb as pb
from kvorum.types import LeaseID

KEYS = [b"k%d" % i for i in range(12)]
LEASES = [0, 0, 0, 7, 2**62 + 5, -3]
STEPS = 150


class Twins:
    """A store and an etcd that are given the same requests."""

    def __init__(self, path: Path, client: Client, rng: random.Random) -> None:
        self.client = client
        self.rng = rng
        backend = Backend(path / "kvorum.mdb", loop=asyncio.get_running_loop())
        self.store = Store(backend)
        self.store.restore()
        for lease in set(LEASES) - {0}:
            client.call(LEASE_GRANT, ID=lease, TTL=100_000)

    def transaction(self) -> None:
        """Up to four operations, none of which touches what another one does."""
        rng, txn = self.rng, self.store.write()
        free = rng.sample(KEYS, k=len(KEYS))
        ops = []
        for _ in range(rng.randint(1, 4)):
            key = free.pop()
            if rng.random() < 0.65:
                value, lease = rng.choice([b"", b"v" * rng.randint(1, 400)]), rng.choice(LEASES)
                ops.append(
                    pb.RequestOp(request_put=pb.PutRequest(key=key, value=value, lease=lease))
                )
                txn.put(key, value, LeaseID(lease))
            else:
                ops.append(pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key)))
                txn.delete_range(key, b"")
        answer = self.client.call(TXN, success=ops)
        assert answer.header.revision == txn.end()

    def delete_range(self) -> None:
        key, end = sorted(self.rng.sample(KEYS, 2))
        end = self.rng.choice([end, end, b"\x00"])
        request = pb.DeleteRangeRequest(key=key, range_end=end)
        answer = self.client.call(TXN, success=[pb.RequestOp(request_delete_range=request)])
        txn = self.store.write()
        assert answer.responses[0].response_delete_range.deleted == txn.delete_range(key, end)
        assert answer.header.revision == txn.end()

    async def compact(self) -> None:
        low = max(self.store.compact_rev + 1, 2)
        if low > self.store.rev:
            return
        rev = self.rng.randint(low, self.store.rev)
        physical = self.rng.random() < 0.5
        self.client.call(COMPACT, revision=rev, physical=physical)
        job = self.store.compact(rev)
        if physical:
            await job.run(sleep=0)

    async def compare_hashes(self) -> None:
        store = self.store
        store.hashes.clear()  # etcd 3.5.1 does not remember those of compactions
        low = max(store.compact_rev + 1, 2)
        for rev in {0, *(self.rng.randint(low, store.rev) for _ in range(3) if low <= store.rev)}:
            theirs = self.client.call(HASH_KV, revision=rev)
            ours, current = await store.hash_kv(rev)
            assert (ours.hash, ours.compact_rev) == (theirs.hash, theirs.compact_revision), rev
            assert current == theirs.header.revision

    def compare_range(self) -> None:
        rev = self.rng.randint(max(self.store.compact_rev, 1), self.store.rev)
        limit = self.rng.randint(0, 4)
        theirs = self.client.call(RANGE, key=b"k", range_end=b"\x00", revision=rev, limit=limit)
        ours = self.store.range_kvs(b"k", b"\x00", rev=rev, limit=limit)
        assert [kv.SerializeToString() for kv in theirs.kvs] == ours.kvs
        assert (theirs.count, theirs.header.revision) == (ours.count, ours.rev)


@pytest.mark.parametrize("seed", [11])
def test_hash_kv_over_a_random_history(
    tmp_path: Path, reference: Binaries, members: MemberFactory, seed: int
) -> None:
    async def scenario(client: Client) -> None:
        rng = random.Random(seed)
        twins = Twins(tmp_path, client, rng)
        for _ in range(STEPS):
            dice = rng.random()
            if dice < 0.75:
                twins.transaction()
            elif dice < 0.85:
                twins.delete_range()
            elif dice < 0.9:
                await twins.compact()
            else:
                await twins.compare_hashes()
            twins.compare_range()
        await twins.compare_hashes()
        twins.store.backend.close()

    member = members(reference.etcd, flags=["--unsafe-no-fsync"]).start()
    with Client(member.endpoint) as client:
        asyncio.run(scenario(client.wait_connected()))
