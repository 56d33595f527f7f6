"""A member that dies during a compaction does all of it again, and ends up where others are."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from kvorum import failpoint
from kvorum.backend import Backend
from kvorum.mvcc.store import Store
from kvorum.types import LeaseID

NO_LEASE = LeaseID(0)
EXIT_BY_FAILPOINT = 2
COMPACTED = 60


async def opened(path: Path) -> Store:
    store = Store(Backend(path, loop=asyncio.get_running_loop(), batch_interval=3600))
    store.restore()
    return store


def write(store: Store) -> None:
    for i in range(80):
        store.put(b"%d" % (i % 7), b"%d" % i, NO_LEASE)
        if i % 9 == 0:
            txn = store.write()
            txn.delete_range(b"%d" % (i % 7), b"")
            txn.end()


async def picture(store: Store) -> list[object]:
    """All that a client can see, and the hash that members compare."""
    value, _ = await store.hash_kv(store.rev)
    revs = range(COMPACTED, store.rev + 1)
    return [value, *(store.range_kvs(b"\x00", b"\x00", rev=rev).kvs for rev in revs)]


async def never_crashed(path: Path) -> list[object]:
    store = await opened(path)
    write(store)
    await store.compact(COMPACTED).run(sleep=0)
    result = await picture(store)
    result.append(list(store.backend.scan("key")))
    store.backend.close()
    return result


POINTS = {
    "compactBeforeCommitScheduledCompact": False,
    "compactAfterCommitScheduledCompact": False,
    "compactAfterAcquiredBatchTxLock": True,
    "compactBeforeCommitBatch": True,
    "compactAfterCommitBatch": True,
    "compactBeforeSetFinishedCompact": True,
    "compactAfterSetFinishedCompact": True,
}
"""Whether the scheduled revision is on disk by then. In etcd it is at the second one too; here the
commit is on its way, and the raft log has the request."""


@pytest.mark.parametrize("name", POINTS)
def test_dying_in_a_compaction(tmp_path: Path, name: str) -> None:
    async def dying() -> None:
        store = await opened(tmp_path / "kvorum.mdb")
        write(store)
        await store.backend.commit()
        failpoint.enable(name, "2*off->panic" if "Batch" in name else "panic")
        await store.compact(COMPACTED).run(batch_limit=10, sleep=0)

    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            asyncio.run(dying())
        finally:
            os._exit(99)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == EXIT_BY_FAILPOINT

    async def going_on() -> None:
        store = await opened(tmp_path / "kvorum.mdb")
        assert [job.rev for job in store.compactions] == [COMPACTED] * POINTS[name]
        job = store.compactions[0] if POINTS[name] else store.compact(COMPACTED)
        expected = await never_crashed(tmp_path / "other.mdb")
        store.hashes.clear()
        assert await picture(store) == expected[:-1]
        await job.run(sleep=0)
        store.hashes.clear()
        assert await picture(store) == expected[:-1]
        assert list(store.backend.scan("key")) == expected[-1]
        store.backend.close()

    asyncio.run(going_on())
