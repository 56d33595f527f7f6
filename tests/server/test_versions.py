"""Which version the leader proposes for the cluster; downgrades; the version of the storage."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

import pytest
from members_kit import ME, THREE, TWO, Asked, Bench, DictBuckets, Reply, member, on_a_loop, url_of

from kvorum import errors
from kvorum.errors import EtcdError
from kvorum.membership import Version
from kvorum.pb import etcdserverpb as pb
from kvorum.raft.codec import encode_conf_change
from kvorum.raft.types import ConfChange, Entry, EntryType
from kvorum.server.cluster.downgrade import Downgrades, parse_target
from kvorum.server.cluster.storage_version import (
    CannotMigrate,
    migrate,
    storage_version,
    wanted_version,
)
from kvorum.server.cluster.versions import ClusterVersion, MemberVersions, versions_document
from kvorum.server.request import RequestIds, encode_request
from kvorum.types import Index, MemberID, Term


class VersionBench(Bench):
    """``releases`` are what the other members say they are."""

    def __init__(self, *others: MemberID) -> None:
        super().__init__([member(ME), *(member(other) for other in others)])
        self.tasks: list[asyncio.Task[None]] = []
        self.releases: dict[str, str] = {}
        self.http.answer = self._version
        versions = MemberVersions(self.cluster, self.http, 1.0)
        self.version = ClusterVersion(
            cluster=self.cluster, proposer=self.proposer, members=versions, spawn=self._spawn
        )
        self.downgrades = Downgrades(
            cluster=self.cluster,
            proposer=self.proposer,
            reads=self.reads,
            members=versions,
            loop=self.loop,
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(self.loop.create_task(work))

    def _version(self, asked: Asked) -> Reply | Exception:
        assert (asked.method, asked.path) == ("GET", "/version")
        release = self.releases.get(asked.url)
        if release is None:
            return ConnectionRefusedError()
        return Reply(200, release.encode())

    def is_a(self, member: MemberID, release: str) -> None:
        document = {"etcdserver": release, "etcdcluster": "3.5.0"}
        self.releases[url_of(member)] = json.dumps(document)

    async def decided(self) -> list[str]:
        """What is proposed for the cluster, if anything is."""
        self.version.check()
        tasks, self.tasks = self.tasks, []
        await asyncio.gather(*tasks)
        return [entry.local.request.ver for entry in self.proposer.take_batch()]  # type: ignore[attr-defined]

    def answer(self, error: type[EtcdError] | None = None) -> None:
        """The proposal was applied, or it failed."""
        (proposal,) = list(self.proposer.waiting.values())
        self.proposer.done(proposal.id)
        if error is None:
            self.cluster.set_version(proposal.request.ver)
            proposal.caller.reply(b"")
        else:
            proposal.caller.fail(error.code, error.message)


@on_a_loop
async def test_alone_it_decides_at_once() -> None:
    bench = VersionBench()
    bench.version.check()
    assert bench.tasks == []
    assert [e.local.request.ver for e in bench.proposer.take_batch()] == ["3.7.0"]  # type: ignore[attr-defined]
    bench.answer()
    assert await bench.decided() == []


@on_a_loop
async def test_the_oldest_member_decides() -> None:
    bench = VersionBench(TWO, THREE)
    bench.is_a(TWO, "3.5.1")
    bench.is_a(THREE, "3.7.1")
    assert await bench.decided() == ["3.5.0"]
    bench.answer()
    assert await bench.decided() == []
    bench.is_a(TWO, "3.7.1")
    assert await bench.decided() == ["3.7.0"]
    bench.answer()
    asked = len(bench.http.asked)
    assert await bench.decided() == []
    assert len(bench.http.asked) == asked  # there is nothing left to find out


@on_a_loop
async def test_a_member_that_does_not_answer() -> None:
    """The cluster begins with the lowest version of all, and then keeps what it has."""
    bench = VersionBench(TWO, THREE)
    bench.is_a(TWO, "3.7.1")
    assert await bench.decided() == ["3.0.0"]
    bench.answer()
    assert await bench.decided() == []
    bench.is_a(THREE, "3.7.1")
    assert await bench.decided() == ["3.7.0"]


@pytest.mark.parametrize("document", ["", "[]", "{}", '{"etcdserver":"x"}', "null"])
@on_a_loop
async def test_a_member_that_answers_nonsense(document: str) -> None:
    bench = VersionBench(TWO)
    bench.cluster.set_version("3.5.0")
    bench.releases[url_of(TWO)] = document
    assert await bench.decided() == []


@on_a_loop
async def test_a_newer_member_does_not_raise_the_version_above_our_own() -> None:
    bench = VersionBench(TWO)
    bench.is_a(TWO, "3.9.0")
    assert await bench.decided() == ["3.7.0"]


@on_a_loop
async def test_one_look_at_a_time_and_again_after_a_failure() -> None:
    bench = VersionBench(TWO)
    bench.is_a(TWO, "3.7.1")
    bench.version.check()
    bench.version.check()
    assert len(bench.tasks) == 1
    assert await bench.decided() == ["3.7.0"]
    assert await bench.decided() == []  # it is on its way
    bench.answer(errors.Timeout)
    assert await bench.decided() == ["3.7.0"]


@on_a_loop
async def test_a_look_that_was_cut_off_is_not_the_last() -> None:
    bench = VersionBench(TWO)
    bench.is_a(TWO, "3.7.1")
    bench.version.check()
    await asyncio.sleep(0)
    bench.tasks[0].cancel()
    await asyncio.wait(bench.tasks)
    bench.tasks.clear()
    assert await bench.decided() == ["3.7.0"]


@on_a_loop
async def test_a_downgrade_lowers_the_version() -> None:
    bench = VersionBench(TWO)
    bench.is_a(TWO, "3.7.1")
    bench.cluster.set_version("3.7.0")
    bench.cluster.set_downgrade(True, "3.6.0")
    assert await bench.decided() == ["3.6.0"]
    bench.answer()
    assert await bench.decided() == []
    bench.is_a(TWO, "3.6.4")
    assert await bench.decided() == []
    bench.cluster.set_downgrade(False, "")
    assert await bench.decided() == []
    bench.is_a(TWO, "3.7.1")
    assert await bench.decided() == ["3.7.0"]


@on_a_loop
async def test_a_downgrade_that_leads_nowhere() -> None:
    bench = VersionBench(TWO)
    bench.is_a(TWO, "3.7.1")
    bench.cluster.set_version("3.7.0")
    bench.cluster.set_downgrade(True, "3.5.0")
    assert await bench.decided() == []
    bench.cluster.set_downgrade(True, "3.6.0")
    assert await bench.decided() == ["3.6.0"]


def test_the_version_document() -> None:
    assert versions_document("", "") == (
        b'{"etcdserver":"3.7.1","etcdcluster":"not_decided","storage":"unknown"}'
    )
    assert versions_document("3.6.0", "3.5.0") == (
        b'{"etcdserver":"3.7.1","etcdcluster":"3.6.0","storage":"3.5.0"}'
    )


# Downgrades


@pytest.mark.parametrize("text", ["", "3", "x", "3.6.0.0", "v3.6", "3.6-", " 3.6"])
def test_targets_that_are_none(text: str) -> None:
    with pytest.raises(errors.WrongDowngradeVersionFormat):
        parse_target(text)


def test_targets() -> None:
    assert parse_target("3.6") == parse_target("3.6.0") == parse_target("3.6.9") == Version(3, 6)


@pytest.mark.parametrize(
    ("target", "version", "running", "error"),
    [
        ("3.6", "3.7.0", "", None),
        ("3.6.0", "3.7.0", "", None),
        ("3.5", "3.7.0", "", errors.InvalidDowngradeTargetVersion),
        ("3.7", "3.7.0", "", errors.InvalidDowngradeTargetVersion),
        ("3.6", "3.7.0", "3.6.0", errors.DowngradeInProcess),
        ("3.5", "3.7.0", "3.6.0", errors.InvalidDowngradeTargetVersion),
        ("3.6", "", "", errors.ClusterVersionUnavailable),
        ("six", "3.7.0", "", errors.WrongDowngradeVersionFormat),
    ],
)
@on_a_loop
async def test_validation(
    target: str, version: str, running: str, error: type[EtcdError] | None
) -> None:
    bench = VersionBench()
    if version:
        bench.cluster.set_version(version)
    if running:
        bench.cluster.set_downgrade(True, running)
    if error is None:
        assert await bench.downgrades.validate(target) == version
    else:
        with pytest.raises(error):
            await bench.downgrades.validate(target)
        with pytest.raises(error):
            await bench.downgrades.enable(target)
    assert bench.proposer.take_batch() == []


@on_a_loop
async def test_a_downgrade_is_enabled_and_cancelled() -> None:
    bench = VersionBench()
    bench.cluster.set_version("3.7.0")
    task = asyncio.ensure_future(bench.downgrades.enable("3.6"))
    (proposal,) = await bench.proposed()
    assert (proposal.kind, proposal.request.enabled, proposal.request.ver) == (
        "downgrade_info_set",
        True,
        "3.6.0",
    )
    proposal.caller.reply(b"")
    assert await task == "3.7.0"
    bench.cluster.set_downgrade(True, "3.6.0")
    task = asyncio.ensure_future(bench.downgrades.cancel())
    (proposal,) = await bench.proposed()
    assert proposal.request.SerializeToString() == b""
    proposal.caller.reply(b"")
    assert await task == "3.7.0"


@on_a_loop
async def test_without_a_downgrade_there_is_none_to_cancel() -> None:
    """Which is no error: etcd only logs it."""
    bench = VersionBench()
    bench.cluster.set_version("3.7.0")
    assert await bench.downgrades.cancel() == "3.7.0"
    assert bench.proposer.take_batch() == []


@on_a_loop
async def test_without_a_leader_nothing_is_decided() -> None:
    bench = VersionBench()
    bench.cluster.set_version("3.7.0")
    bench.reads.close(errors.Timeout)
    for asking in (bench.downgrades.validate("3.6"), bench.downgrades.enable("3.6")):
        with pytest.raises(errors.Timeout):
            await asking


@on_a_loop
async def test_the_leader_ends_a_downgrade_that_all_have_made() -> None:
    bench = VersionBench(TWO)
    bench.cluster.set_version("3.6.0")
    await bench.downgrades.check()  # none is under way
    assert bench.http.asked == []
    bench.cluster.set_downgrade(True, "3.6.0")
    bench.is_a(TWO, "3.6.4")
    await bench.downgrades.check()
    assert bench.proposer.take_batch() == []  # this member has not made it
    del bench.releases[url_of(TWO)]
    await bench.downgrades.check()
    bench.cluster.set_downgrade(True, "3.7.0")
    bench.is_a(TWO, "3.7.4")
    task = asyncio.ensure_future(bench.downgrades.check())
    (proposal,) = await bench.proposed()
    await bench.downgrades.check()  # the first look is not over
    assert bench.proposer.take_batch() == []
    proposal.caller.reply(b"")
    await task


# Storage


def named(buckets: DictBuckets) -> str | None:
    value = buckets.data.get("meta", {}).get(b"storageVersion")
    return value.decode() if value is not None else None


def test_what_a_file_is() -> None:
    buckets = DictBuckets()
    assert storage_version(buckets, Term(0)) is None
    assert storage_version(buckets, Term(2)) == (3, 5)
    buckets.put("meta", b"storageVersion", b"3.6.0")
    assert storage_version(buckets, Term(2)) == (3, 6)


def test_what_it_should_be() -> None:
    assert wanted_version(None) is None
    assert wanted_version(Version(3, 0)) is None
    assert wanted_version(Version(3, 5)) == (3, 5)


@pytest.mark.parametrize(
    ("current", "target", "steps", "name"),
    [
        ((3, 5), (3, 7), [(3, 6), (3, 7)], "3.7.0"),
        ((3, 6), (3, 7), [(3, 7)], "3.7.0"),
        ((3, 7), (3, 7), [], None),
        ((3, 7), (3, 6), [(3, 6)], "3.6.0"),
        ((3, 7), (3, 5), [(3, 6), (3, 5)], None),
    ],
)
def test_migrations(
    current: tuple[int, int], target: tuple[int, int], steps: list[Version], name: str | None
) -> None:
    buckets = DictBuckets()
    assert migrate(buckets, Version(*current), Version(*target), []) == steps
    assert named(buckets) == name


@pytest.mark.parametrize(
    ("current", "target", "why"),
    [
        (None, (3, 7), "missing term information"),
        ((3, 7), (4, 0), "changing major"),
        ((3, 7), (3, 8), 'version "3.8.0" is not supported'),
        ((3, 7), (3, 4), 'version "3.4.0" is not supported'),
        ((3, 4), (3, 7), 'version "3.4.0" is not supported'),
    ],
)
def test_migrations_that_there_are_not(
    current: tuple[int, int] | None, target: tuple[int, int], why: str
) -> None:
    buckets = DictBuckets()
    with pytest.raises(CannotMigrate, match=why):
        migrate(buckets, Version(*current) if current else None, Version(*target), [])
    assert named(buckets) is None


def entry(kind: str, message: Any) -> Entry:
    _, request_id = RequestIds(ME, 0).take()
    data = encode_request(kind, message.SerializeToString(), request_id)
    return Entry(Term(2), Index(9), EntryType.NORMAL, data)


def test_a_log_that_the_target_does_not_know() -> None:
    """As etcd's own tests plant one."""
    needs = entry("downgrade_version_test", pb.DowngradeVersionTestRequest(ver="3.7.0"))
    with pytest.raises(CannotMigrate, match=r"WAL contains newer entries.*\(3.6.0\).*\(3.7.0\)"):
        migrate(DictBuckets(), Version(3, 7), Version(3, 6), [needs])
    assert migrate(DictBuckets(), Version(3, 6), Version(3, 7), [needs]) == [(3, 7)]
    needs = entry("downgrade_version_test", pb.DowngradeVersionTestRequest(ver="nonsense"))
    with pytest.raises(CannotMigrate):
        migrate(DictBuckets(), Version(3, 6), Version(3, 5), [needs])


def test_a_log_that_every_target_knows() -> None:
    v2 = b"\x08\x07\x12\x03PUT\x1a\x0a/0/version"
    log = [
        Entry(Term(2), Index(5), EntryType.NORMAL, b""),
        Entry(Term(2), Index(6), EntryType.NORMAL, v2),
        Entry(Term(2), Index(7), *encode_conf_change(ConfChange(node_id=ME))),
        entry("put", pb.PutRequest(key=b"k")),
    ]
    assert migrate(DictBuckets(), Version(3, 7), Version(3, 5), log) == [(3, 6), (3, 5)]
