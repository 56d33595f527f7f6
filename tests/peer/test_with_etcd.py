"""A member of ours in a cluster with a real etcd 3.5: as its follower, and as its leader."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from peersite import run
from raftmember import RaftMember, raft_member
from support.binaries import Binaries
from support.member import Member, MemberFactory

from kvorum.h2 import Channel
from kvorum.pb import etcdserverpb as pb
from kvorum.raft.types import EntryType, MsgType

TOKEN = "with-etcd"


class Pair:
    """Our member ``kv`` and an etcd named ``go``, which clients speak with."""

    def __init__(self, ours: RaftMember, etcd: Member, ctl: Path) -> None:
        self.ours = ours
        self.etcd = etcd
        self.ctl = ctl
        self.its_id = ours.ids["go"]

    async def etcdctl(self, *args: str) -> str:
        command = (str(self.ctl), f"--endpoints=http://{self.etcd.endpoint}", *args)
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        return output.decode()

    async def puts(self, count: int) -> None:
        """So many, 50 at a time."""
        numbers = iter(range(count))
        async with Channel("127.0.0.1", self.etcd.client_port) as channel:

            async def some() -> None:
                for number in numbers:
                    request = pb.PutRequest(key=b"k%d" % number, value=b"v" * 300)
                    await channel.unary(
                        "/etcdserverpb.KV/Put", request.SerializeToString(), timeout=20.0
                    )

            await asyncio.gather(*(some() for _ in range(50)))

    def values(self) -> int:
        """How many large entries are committed here."""
        return sum(len(entry.data) > 300 for entry in self.ours.committed)


@asynccontextmanager
async def pair(
    folder: Path, members: MemberFactory, reference: Binaries, *, campaigns: bool
) -> AsyncIterator[Pair]:
    etcd = members(reference.etcd, name="go")
    its_url = f"http://127.0.0.1:{etcd.peer_port}"
    async with raft_member(folder, "go", its_url, TOKEN, campaigns=campaigns) as ours:
        cluster = f"go={its_url},kv={ours.urls['kv']}"
        etcd.flags = [
            f"--initial-cluster={cluster}",
            f"--initial-cluster-token={TOKEN}",
            "--snapshot-count=500",
        ]
        etcd.spawn()
        try:
            yield Pair(ours, etcd, reference.etcdctl)
        finally:
            await asyncio.to_thread(etcd.kill)
        assert ours.errors == []


Story = Callable[[Pair], object]


def with_etcd(
    story: Story, folder: Path, members: MemberFactory, reference: Binaries, *, campaigns: bool
) -> None:
    async def work() -> None:
        async with pair(folder, members, reference, campaigns=campaigns) as both:
            await story(both)

    run(work(), 60.0)


async def writes_and_reads(both: Pair) -> None:
    for number in range(3):
        assert await both.etcdctl("put", f"key{number}", "value") == "OK\n"
    found = await both.etcdctl("get", "key", "--prefix", "--print-value-only")
    assert found == "value\n" * 3
    await both.ours.until(lambda: any(b"key2" in e.data for e in both.ours.committed))


def test_etcd_leads_by_our_vote_and_commits_by_our_acks(
    tmp_path: Path, members: MemberFactory, reference: Binaries
) -> None:
    async def story(both: Pair) -> None:
        ours = both.ours
        await ours.until(lambda: ours.node.raft.lead == both.its_id)
        await writes_and_reads(both)
        before = Counter(message.type for message in ours.got)
        await both.puts(2000)
        await ours.until(lambda: both.values() == 2000)
        kinds = Counter(message.type for message in ours.got) - before
        assert kinds[MsgType.APP] > 0
        assert before[MsgType.VOTE] == before[MsgType.PRE_VOTE] == 1
        assert before[MsgType.HEARTBEAT] > 0
        assert "dropped" not in str(ours.log.texts())
        listed = await both.etcdctl("member", "list")
        assert f"{ours.id:x}, started, kv, {ours.urls['kv']}" in listed

    with_etcd(story, tmp_path, members, reference, campaigns=False)


def test_we_lead_and_etcd_follows(
    tmp_path: Path, members: MemberFactory, reference: Binaries
) -> None:
    """Proposals and read indexes of its clients come over its stream; it applies what we send."""

    async def story(both: Pair) -> None:
        ours = both.ours
        await ours.until(lambda: ours.node.raft.lead)
        if not ours.leading:
            await both.etcdctl("move-leader", f"{ours.id:x}")
            await ours.until(lambda: ours.leading)
        await writes_and_reads(both)
        await both.puts(2000)
        await ours.until(lambda: both.values() == 2000)
        kinds = Counter(message.type for message in ours.got)
        assert kinds[MsgType.PROP] >= 2003
        assert kinds[MsgType.READ_INDEX] > 0
        assert kinds[MsgType.APP_RESP] > 0
        status = await both.etcdctl("endpoint", "status")
        assert ", false, false, " in status  # neither leader nor learner

    with_etcd(story, tmp_path, members, reference, campaigns=True)


def test_leadership_moves_to_us_and_back(
    tmp_path: Path, members: MemberFactory, reference: Binaries
) -> None:
    async def story(both: Pair) -> None:
        ours = both.ours
        await ours.until(lambda: ours.node.raft.lead == both.its_id)
        await both.etcdctl("put", "a", "1")
        await both.etcdctl("move-leader", f"{ours.id:x}")
        await ours.until(lambda: ours.leading)
        assert any(message.type is MsgType.TIMEOUT_NOW for message in ours.got)
        await both.etcdctl("put", "a", "2")
        ours.node.transfer_leader(both.its_id)
        ours.wake()
        await ours.until(lambda: ours.node.raft.lead == both.its_id)
        assert await both.etcdctl("get", "a", "--print-value-only") == "2\n"

    with_etcd(story, tmp_path, members, reference, campaigns=False)


def test_a_restarted_etcd_finds_us_again(
    tmp_path: Path, members: MemberFactory, reference: Binaries
) -> None:
    async def story(both: Pair) -> None:
        ours = both.ours
        await asyncio.to_thread(both.etcd.wait_ready)
        await both.etcdctl("put", "a", "1")
        await asyncio.to_thread(both.etcd.kill)
        await ours.until(lambda: ours.transport.active_since(both.its_id) is None)
        both.etcd.spawn()
        await ours.until(lambda: ours.transport.active_since(both.its_id) is not None)
        await asyncio.to_thread(both.etcd.wait_ready)
        assert await both.etcdctl("get", "a", "--print-value-only") == "1\n"

    with_etcd(story, tmp_path, members, reference, campaigns=True)


def test_etcd_sends_us_its_database(
    tmp_path: Path, members: MemberFactory, reference: Binaries
) -> None:
    """A member that lost its log is sent a snapshot by the next leader, and then follows on."""

    async def story(both: Pair) -> None:
        first = both.ours
        await first.until(lambda: first.node.raft.lead == both.its_id)
        await both.puts(6000)  # etcd 3.5 keeps 5000 entries after a snapshot
        await asyncio.to_thread(both.etcd.kill)
        await first.stop()
        its_url = f"http://127.0.0.1:{both.etcd.peer_port}"
        port = int(first.urls["kv"].rpartition(":")[2])
        home = tmp_path / "again"
        home.mkdir()
        async with raft_member(home, "go", its_url, TOKEN, campaigns=False, port=port) as ours:
            both.etcd.spawn()
            await ours.until(lambda: ours.snapshots)
            ((message, database),) = ours.snapshots
            assert message.snapshot is not None
            index = message.snapshot.metadata.index
            assert index > 5000
            with database.open("rb") as file:
                assert file.read(20)[16:] == b"\xed\xda\x0c\xed"  # bbolt's magic
            assert ours.telemetry.transfer.received.with_labels(f"{both.its_id:x}").value == 1
            await both.etcdctl("put", "after", "it")
            await ours.until(lambda: any(b"after" in e.data for e in ours.committed))
            normal = [e for e in ours.committed if e.type is EntryType.NORMAL]
            assert all(entry.index > index for entry in normal if entry.index > 3)

    with_etcd(story, tmp_path, members, reference, campaigns=False)
