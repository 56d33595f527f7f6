"""The life of a member: started, stopped, started again, and what can end it."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
from support.embedded import Client, config_of, ending, member_on, op, read, serving, status, story
from support.ports import free_port
from support.rpc import (
    ALARM,
    COMPACT,
    DELETE_RANGE,
    HASH_KV,
    KEEP_ALIVE_PATH,
    LEASE_GRANT,
    LEASE_LEASES,
    LEASE_TTL,
    MEMBER_LIST,
    PUT,
    RANGE,
    STATUS,
    TXN,
    WATCH_PATH,
)

from kvorum import embed, errors, failpoint
from kvorum.backend import CommitError, LockedError
from kvorum.config import ServerConfig, parse_urls
from kvorum.embed import Member
from kvorum.errors import Code
from kvorum.h2 import Channel, RpcError
from kvorum.pb import etcdserverpb as pb
from kvorum.server.errors import BadDataDirectory, BadInitialCluster, StartError
from kvorum.server.kernelsync import KernelSync
from kvorum.server.publisher import Publisher
from kvorum.types import Index
from kvorum.wal import WriteFailed

ALL = {"key": b"\0", "range_end": b"\0"}


def files(folder: str, pattern: str) -> list[Path]:
    return list(Path(folder).glob(pattern))


# Restarts


@story
async def test_a_restart_keeps_everything(tmp_path: Path) -> None:
    config = config_of(tmp_path, snapshot_count=50)
    async with member_on(config) as (member, client):
        await client.call(LEASE_GRANT, ID=7, TTL=1000)
        for number in range(300):
            await client.put(b"k%02d" % (number % 30), b"%d" % number, lease=7 * (number % 2))
            if number % 100 == 99:
                await snapshot_taken(member)
        await client.call(DELETE_RANGE, key=b"k05", range_end=b"k10")
        await client.call(TXN, success=[op("put", key=b"t1"), op("put", key=b"t2")])
        await client.call(COMPACT, revision=200, physical=True)
        await client.call(ALARM, action=pb.AlarmRequest.ACTIVATE, memberID=5, alarm=pb.CORRUPT)
        before = await picture(client)
    for _ in range(2):
        async with member_on(config) as (_, client):
            assert await picture(client) == before
    assert len(files(config.snap_dir, "*.snap")) >= 3


async def snapshot_taken(member: Member) -> None:
    """The database is committed, and the snapshot that this set off is safe."""
    server, loop = member.server, asyncio.get_running_loop()
    await server.backend.commit()
    async with asyncio.timeout(10):
        for _ in range(4):  # the file, its record, and what comes before and after them
            done: asyncio.Future[Any] = loop.create_future()
            server._disk.submit(lambda: None, done.set_result)
            await done


async def picture(client: Client) -> list[Any]:
    """All that a client can see, but for what counts terms and entries."""
    old = await client.call(RANGE, **ALL, revision=250)
    now = await client.call(RANGE, **ALL)
    lease = await client.call(LEASE_TTL, ID=7, keys=True)
    hashes = [await client.call(HASH_KV, revision=r) for r in (0, 200, 222)]
    return [
        now.header.revision,
        list(now.kvs),
        list(old.kvs),
        await client.error(RANGE, **ALL, revision=199),
        [x.ID for x in (await client.call(LEASE_LEASES)).leases],
        (lease.grantedTTL, list(lease.keys)),
        list((await client.call(ALARM)).alarms),
        list((await client.call(MEMBER_LIST)).members),
        # That of a compaction is kept in memory alone, with the compaction before it.
        [hashes[0].hash, hashes[2].hash],
        (await client.call(STATUS)).storageVersion,
    ]


@story
async def test_every_acknowledged_write_is_there_after_a_stop_in_the_middle(tmp_path: Path) -> None:
    config = config_of(tmp_path, unsafe_no_fsync=False)
    acknowledged: set[bytes] = set()

    async def write(client: Client, name: bytes) -> None:
        for number in range(10_000):
            key = b"%b%d" % (name, number)
            await client.put(key, bytes(100))
            acknowledged.add(key)

    member = Member(config)
    await member.start()
    clients = [Client(config) for _ in range(4)]
    writers = [
        asyncio.ensure_future(write(client, b"w%d-%d-" % (i, j)))
        for i, client in enumerate(clients)
        for j in range(8)
    ]
    async with asyncio.timeout(20):
        while len(acknowledged) < 500:
            await asyncio.wait(writers, timeout=0.01)
    await member.stop()
    ended = await asyncio.gather(*writers, return_exceptions=True)
    assert all("UNAVAILABLE" in str(error) for error in ended), ended
    for client in clients:
        await client.close()
    async with member_on(config) as (_, client):
        found = await client.call(RANGE, **ALL, keys_only=True)
        present = {kv.key for kv in found.kvs}
    assert acknowledged <= present
    assert len(present - acknowledged) <= len(writers)  # those that were under way


@story
async def test_a_member_may_be_started_again(tmp_path: Path) -> None:
    member = Member(config_of(tmp_path))
    for round_ in range(3):
        await member.start()
        client = Client(member.config)
        assert await client.put(b"k") == round_ + 2
        await client.close()
        await member.stop()
        await member.stop()  # once more is nothing


@story
async def test_the_term_rises_and_the_identity_stays(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    found = []
    for _ in range(3):
        async with member_on(config) as (_, client):
            header = (await client.call(RANGE, key=b"k")).header
            found.append((header.cluster_id, header.member_id, header.raft_term))
    assert {pair[:2] for pair in found} == {found[0][:2]}
    assert [term for _, _, term in found] == [2, 3, 4]


# Stopping


@story
async def test_open_streams_end_when_a_member_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "DRAIN_SECONDS", 0.1)
    config = config_of(tmp_path)
    member = Member(config)
    await member.start()
    client = Client(config)
    watch, alive = await client.stream(WATCH_PATH), await client.stream(KEEP_ALIVE_PATH)
    create = pb.WatchCreateRequest(**ALL)
    await watch.send(pb.WatchRequest(create_request=create).SerializeToString())
    assert (await read(watch, pb.WatchResponse)).created
    async with asyncio.timeout(5):
        await member.stop()
    for stream in (watch, alive):
        assert (await ending(stream))[0] is Code.UNAVAILABLE
    await client.close()


@story
async def test_requests_that_wait_are_answered_when_a_member_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their entries cannot be written in time; they hear that the server stopped."""
    monkeypatch.setattr(embed, "DRAIN_SECONDS", 0.05)
    config = config_of(tmp_path)
    member = Member(config)
    await member.start()
    client = Client(config)
    await client.put(b"k")
    failpoint.enable("walBeforeSync", "1*sleep(400)")
    try:
        waiting = [asyncio.ensure_future(client.error(PUT, key=b"x%d" % i)) for i in range(5)]
        waiting.append(asyncio.ensure_future(client.error(COMPACT, revision=2, physical=True)))
        await client.call(RANGE, key=b"k", serializable=True)  # by now they have arrived
        await member.stop()
    finally:
        failpoint.disable("walBeforeSync")
    answers = await asyncio.gather(*waiting)
    assert answers[:5] == [status(errors.Stopped)] * 5
    assert answers[5][0] is Code.UNAVAILABLE
    await client.close()
    async with member_on(config) as (_, client):
        assert await client.put(b"after") >= 3


@story
async def test_a_stop_waits_for_calls_that_can_still_be_answered(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    member = Member(config)
    await member.start()
    client = Client(config)
    await client.put(b"k")
    failpoint.enable("walBeforeSync", "1*sleep(100)")
    try:
        late = asyncio.ensure_future(client.put(b"late"))
        await client.call(RANGE, key=b"k", serializable=True)
        await member.stop()
        assert await late == 3
    finally:
        failpoint.disable("walBeforeSync")
    await client.close()


@story
async def test_long_work_under_way_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compaction, hashes and a defragmentation are given up; nothing is lost by that."""
    monkeypatch.setattr(embed, "DRAIN_SECONDS", 0.01)
    config = config_of(tmp_path, compaction_batch_limit=1, compaction_sleep_interval=0.05)
    member = Member(config)
    await member.start()
    client = Client(config)
    for number in range(200):
        await client.put(b"k%d" % (number % 3), bytes(1000))
    await client.call(COMPACT, revision=190)
    work = [client.call(HASH_KV), client.call(HASH_KV, revision=195), client.call(HASH_KV)]
    tasks = [asyncio.ensure_future(one) for one in work]
    await client.call(RANGE, key=b"k0", serializable=True)
    async with asyncio.timeout(10):
        await member.stop()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.close()
    async with member_on(config) as (member, client):
        assert await client.error(RANGE, key=b"k0", revision=189) == status(errors.Compacted)
        assert member.server.compactions.running  # it goes on where it was stopped


# Starts that fail


async def refused(config: ServerConfig, kind: type[Exception]) -> str:
    """What a start raises; twice, since nothing may be left open after the first."""
    texts = []
    for _ in range(2):
        with pytest.raises(kind) as caught:
            await Member(config).start()
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    return texts[0]


@story
async def test_an_address_that_is_taken(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with socket.create_server(("127.0.0.1", config.listen_client_urls[0].port)):
        text = await refused(config, StartError)
    assert text == f"listen {config.listen_client_urls[0]}: Address already in use"
    assert files(config.data_dir, "*") == []  # that came first
    async with member_on(config) as (_, client):
        assert await client.put(b"k") == 2


@story
async def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    config = config_of(tmp_path, data_dir="/dev/null")
    assert "cannot make /dev/null" in await refused(config, BadDataDirectory)
    await is_free(config)


@story
async def test_a_cluster_that_cannot_be_begun(tmp_path: Path) -> None:
    url = "http://127.0.0.1:1"
    config = config_of(
        tmp_path, initial_advertise_peer_urls=parse_urls(url), initial_cluster=f"other={url}"
    )
    assert "couldn't find local name" in await refused(config, BadInitialCluster)
    await is_free(config)


async def is_free(config: ServerConfig) -> None:
    """Nobody listens any more."""
    with socket.create_server(("127.0.0.1", config.listen_client_urls[0].port)):
        pass


@story
async def test_a_second_member_on_the_same_directory(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        await refused(config_of(tmp_path), LockedError)
        assert await client.put(b"k") == 2


@story
async def test_a_state_that_cannot_be_restored(tmp_path: Path) -> None:
    """Found after log and database were opened, when the parts are put together."""
    config = config_of(tmp_path)
    async with member_on(config) as (member, client):
        await client.put(b"k")
        member.server.backend.put("lease", b"odd", b"\xff\xff")
    await refused(config, Exception)
    await is_free(config)


@story
@pytest.mark.plain
async def test_an_entry_that_cannot_be_applied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found in the replay, when the threads are running already."""
    config = config_of(tmp_path)
    async with member_on(config) as (member, client):
        await client.put(b"k")
        monkeypatch.setattr(member.server.backend, "take", list)  # nothing more comes to disk
        await client.put(b"replayed")

    def broken(*_: Any) -> None:
        raise RuntimeError("cannot be applied")

    with monkeypatch.context() as patch:
        patch.setattr("kvorum.mvcc.store.Store.put", broken)
        assert await refused(config, RuntimeError) == "cannot be applied"
    async with member_on(config) as (_, client):
        assert await client.put(b"k") == 4


@story
async def test_a_start_that_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Publisher, "attempt", lambda self: None)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(Member(config).start(), 0.2)
    await is_free(config)
    async with member_on(config) as (_, client):
        assert await client.put(b"k") == 2


@story
async def test_a_publication_that_was_lost_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Publisher._propose
    lost = []

    def lose_the_first(self: Publisher, kind: str, request: Any, done: Any) -> None:
        if kind == "cluster_member_attr_set" and not lost:
            lost.append(kind)
            done(errors.Timeout.message)
        else:
            real(self, kind, request, done)

    monkeypatch.setattr(Publisher, "_propose", lose_the_first)
    async with serving(tmp_path) as (_, client):
        assert lost
        assert (await client.call(MEMBER_LIST)).members[0].name == "m"


# Ends that were not asked for


@story
async def test_a_disk_that_fails_under_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the log's thread syncs."""
    monkeypatch.setattr(KernelSync, "open", lambda loop: None)
    config = config_of(tmp_path, unsafe_no_fsync=False)
    member = Member(config)
    await member.start()
    client = Client(config)
    await client.put(b"before")

    def broken(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("kvorum.wal.log.sync_data", broken)
        doomed = [asyncio.ensure_future(client.error(PUT, key=b"k%d" % i)) for i in range(10)]
        async with asyncio.timeout(10):
            why = await member.wait_fatal()
        assert isinstance(why, WriteFailed)
        assert "Input/output error" in str(why)
        assert await asyncio.gather(*doomed) == [status(errors.Stopped)] * 10
    for rpc in (PUT, DELETE_RANGE, RANGE):
        assert await client.error(rpc, key=b"k") == status(errors.Stopped)
    await client.close()
    await member.stop()  # what is wrong was told already
    async with member_on(config) as (_, client):
        assert (await client.call(RANGE, key=b"before")).count == 1


@story
async def test_a_disk_that_fails_under_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path)
    member = Member(config)
    await member.start()
    client = Client(config)

    def broken(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(member.server.backend.database, "write", broken)
    assert await client.put(b"k") == 2  # it is in the log
    async with asyncio.timeout(10):
        why = await member.wait_fatal()
    assert isinstance(why, CommitError)
    assert "No space left on device" in str(why)
    assert await client.error(PUT, key=b"x") == status(errors.Stopped)
    await client.close()
    await member.stop()
    await is_free(config)
    async with member_on(config) as (_, client):
        assert (await client.call(RANGE, key=b"k")).count == 1


@story
async def test_a_stop_that_cannot_bring_everything_to_disk_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, backend_batch_interval=60.0)
    member = Member(config)
    await member.start()
    client = Client(config)
    await client.put(b"k")
    await client.close()

    def broken(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(member.server.backend.database, "write", broken)
    with pytest.raises(CommitError, match="No space left on device"):
        await member.stop()
    await is_free(config)
    async with member_on(config) as (_, client):  # and the log has it all
        assert (await client.call(RANGE, key=b"k")).count == 1


@story
async def test_a_write_that_fails_while_the_member_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop does not hear of it any more, and meets the failed log itself."""
    monkeypatch.setattr(KernelSync, "open", lambda loop: None)
    monkeypatch.setattr(embed, "DRAIN_SECONDS", 0.05)
    config = config_of(tmp_path, unsafe_no_fsync=False)
    member = Member(config)
    await member.start()
    client = Client(config)
    await client.put(b"k")

    def broken(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("kvorum.wal.log.sync_data", broken)
        failpoint.enable("walBeforeSync", "1*sleep(300)")
        try:
            doomed = asyncio.ensure_future(client.error(PUT, key=b"x"))
            await client.call(RANGE, key=b"k", serializable=True)
            await asyncio.gather(member.stop(), return_exceptions=True)
        finally:
            failpoint.disable("walBeforeSync")
        assert await doomed == status(errors.Stopped)
    await client.close()
    await is_free(config)
    async with member_on(config) as (_, client):
        assert (await client.call(RANGE, key=b"k")).count == 1


@story
@pytest.mark.plain
async def test_a_bug_in_the_apply_ends_the_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as (member, client):

        def broken(*_: Any) -> int:
            raise RuntimeError("a bug")

        monkeypatch.setattr(member.server.store, "put", broken)
        assert await client.error(PUT, key=b"k") == status(errors.Stopped)
        async with asyncio.timeout(10):
            assert str(await member.wait_fatal()) == "a bug"


@story
@pytest.mark.plain
async def test_a_bug_in_a_handler_ends_its_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the member, as its state is in doubt."""
    async with serving(tmp_path) as (member, client):

        def broken(*_: Any) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(member.server.lessor, "leases", broken)
        code, text = await client.error(LEASE_LEASES)
        assert (code, text) == (Code.INTERNAL, "internal error: RuntimeError")
        async with asyncio.timeout(10):
            assert str(await member.wait_fatal()) == "a bug"


# Snapshots and the database's commits


@story
async def test_no_snapshot_is_taken_of_what_is_not_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defragmentation reports a change of the file's size while the next commit is under way;
    a snapshot beyond the database would make the next start refuse it."""
    async with serving(tmp_path, backend_batch_interval=60.0) as (member, client):
        server, backend = member.server, member.server.backend
        seen: list[Index] = []
        monkeypatch.setattr(
            server._snapshotter, "committed", lambda index, term, state: seen.append(index)
        )
        await client.put(b"a")
        await backend.commit()
        on_disk = server.applier.index
        assert seen == [on_disk]
        await backend._committer.hold()
        await client.put(b"b")
        waiting = asyncio.ensure_future(backend.commit())
        await asyncio.sleep(0)
        backend._committer.release()  # the commit begins
        backend.on_commit()
        assert seen == [on_disk]
        await waiting
        assert seen == [on_disk, on_disk + 1]


@story
async def test_snapshots_bound_what_a_restart_reads(tmp_path: Path) -> None:
    # Commits, and so snapshots, come only where the test waits for them.
    config = config_of(
        tmp_path, snapshot_count=100, snapshot_catchup_entries=10, backend_batch_interval=60.0
    )
    async with member_on(config) as (member, client):
        for number in range(1000):
            await client.put(b"k%d" % (number % 10))
            if number % 250 == 249:
                await snapshot_taken(member)
    async with member_on(config) as (member, client):
        storage = member.server._snapshotter._storage
        assert storage.last_index() > 1000
        assert storage.first_index() > 990
        assert (await client.call(RANGE, **ALL)).count == 10


# Listeners


@story
async def test_two_members_in_one_process(tmp_path: Path) -> None:
    async with serving(tmp_path / "a") as (first, a):
        async with serving(tmp_path / "b", name="other") as (second, b):
            assert first.server.id != second.server.id
            await asyncio.gather(*(a.put(b"k%d" % i) for i in range(100)))
            assert await b.put(b"k") == 2
            assert (await a.call(RANGE, **ALL)).count == 100
            assert (await b.call(RANGE, **ALL)).count == 1
            assert first.telemetry.mvcc.puts.read() == 100
            assert second.telemetry.mvcc.puts.read() == 1
        assert await a.put(b"k") == 102  # the other one's end is not this one's
        assert not first.server.failure.done()


@story
async def test_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    config = config_of(tmp_path, listen_client_urls=parse_urls(f"unix://{path}"))
    for _ in range(2):  # what the first leaves there is no obstacle
        async with Member(config):
            channel = Channel("localhost", 0, path=path)
            message = await channel.unary(PUT.path, pb.PutRequest(key=b"k").SerializeToString())
            assert pb.PutResponse.FromString(message).header.revision >= 2
            await channel.close()


@story
async def test_http_on_a_listener_of_its_own(tmp_path: Path) -> None:
    plain, metrics = (parse_urls(f"http://127.0.0.1:{free_port()}") for _ in range(2))
    settings = {"listen_client_http_urls": plain, "listen_metrics_urls": metrics}
    async with serving(tmp_path, **settings) as (member, client):
        assert await client.put(b"k") == 2
        client_port = member.config.listen_client_urls[0].port
        assert await get(plain[0].port, "/version") == 200
        assert await get(plain[0].port, "/health") == 200
        assert await get(metrics[0].port, "/metrics") == 200
        assert await get(metrics[0].port, "/version") == 404
        assert await get(client_port, "/version") != 200
        elsewhere = Channel("127.0.0.1", plain[0].port)
        with pytest.raises(RpcError):
            await elsewhere.unary(RANGE.path, b"")
        await elsewhere.close()


async def get(port: int, path: str) -> int:
    """The status of a GET; 0 if there is no answer that is one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    try:
        async with asyncio.timeout(10):
            line = await reader.readline()
    finally:
        writer.close()
    words = line.split()
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


@story
async def test_requests_beyond_the_limit_of_the_transport(tmp_path: Path) -> None:
    async with serving(tmp_path, max_request_bytes=10_000) as (_, client):
        assert await client.error(PUT, key=b"k", value=bytes(20_000)) == status(
            errors.RequestTooLarge
        )
        code, text = await client.error(PUT, key=b"k", value=bytes(600_000))
        assert code is Code.RESOURCE_EXHAUSTED
        assert text.startswith("grpc: received message larger than max")
        assert await client.put(b"k", bytes(9_000)) == 2


def test_a_member_that_was_not_started_has_no_server(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="was not started"):
        _ = Member(config_of(tmp_path)).server


def test_settings_come_from_keywords(tmp_path: Path) -> None:
    config = embed.config(data_dir=str(tmp_path), name="x")
    assert isinstance(config, embed.ServerConfig)
    assert (config.name, config.data_dir) == ("x", str(tmp_path))
