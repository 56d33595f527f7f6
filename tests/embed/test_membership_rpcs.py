"""The Cluster service, MoveLeader and Downgrade over the wire: replies and statuses are those that
etcd 3.7 was seen to give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.embedded import Client, serving, status, story
from support.rpc import MEMBER_LIST, STATUS, Rpc

from kvorum import errors
from kvorum.errors import Code, EtcdError
from kvorum.pb import etcdserverpb as pb
from kvorum.server.cluster import together


def rpc(service: str, name: str, prefix: str = "") -> Rpc:
    request, response = (getattr(pb, f"{prefix}{name}{end}") for end in ("Request", "Response"))
    return Rpc(f"/etcdserverpb.{service}/{prefix}{name}", request, response)


ADD, REMOVE, UPDATE, PROMOTE = (
    rpc("Cluster", name, "Member") for name in ("Add", "Remove", "Update", "Promote")
)
MOVE_LEADER, DOWNGRADE = rpc("Maintenance", "MoveLeader"), rpc("Maintenance", "Downgrade")
LATE = ["http://127.0.0.1:1"]


async def own(client: Client) -> pb.Member:
    (member,) = (await client.call(MEMBER_LIST)).members
    return member  # type: ignore[no-any-return]


@story
async def test_a_learner_comes_and_goes(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        me = await own(client)
        added = await client.call(
            ADD, peerURLs=["http://127.0.0.1:2", " http://127.0.0.1:1"], isLearner=True
        )
        assert list(added.member.peerURLs) == ["http://127.0.0.1:1", "http://127.0.0.1:2"]
        assert added.member.isLearner
        assert (added.member.name, list(added.member.clientURLs)) == ("", [])
        assert sorted(m.ID for m in added.members) == [m.ID for m in added.members]
        assert {m.ID for m in added.members} == {me.ID, added.member.ID}
        listed = (await client.call(MEMBER_LIST, linearizable=True)).members
        assert list(listed) == list(added.members)
        head = added.header
        assert (head.member_id, head.revision, head.raft_term) == (me.ID, 0, 2)
        updated = await client.call(UPDATE, ID=added.member.ID, peerURLs=LATE)
        learner = next(m for m in updated.members if m.ID == added.member.ID)
        assert (list(learner.peerURLs), learner.isLearner) == (LATE, True)
        removed = await client.call(REMOVE, ID=added.member.ID)
        assert list(removed.members) == [me]


@pytest.mark.parametrize(
    ("method", "fields", "error"),
    [
        (ADD, {}, errors.MemberBadURLs),
        (ADD, {"peerURLs": ["late"]}, errors.MemberBadURLs),
        (ADD, {"peerURLs": ["http://a:1/b"]}, errors.MemberBadURLs),
        (ADD, {"peerURLs": ["taken"]}, errors.PeerURLExist),
        (ADD, {"peerURLs": ["http://127.0.0.1:2"], "isLearner": True}, errors.TooManyLearners),
        (REMOVE, {"ID": 1}, errors.MemberNotFound),
        (REMOVE, {"ID": "me"}, errors.MemberNotEnoughStarted),
        (UPDATE, {"ID": 1, "peerURLs": LATE}, errors.MemberNotFound),
        (UPDATE, {"ID": "learner", "peerURLs": ["taken"]}, errors.PeerURLExist),
        (UPDATE, {"ID": "learner"}, errors.MemberBadURLs),
        (PROMOTE, {"ID": 1}, errors.MemberNotFound),
        (PROMOTE, {"ID": "me"}, errors.MemberNotLearner),
        (PROMOTE, {"ID": "learner"}, errors.LearnerNotReady),
        (MOVE_LEADER, {"targetID": 1}, errors.BadLeaderTransferee),
        (MOVE_LEADER, {"targetID": "learner"}, errors.BadLeaderTransferee),
    ],
)
@story
async def test_refusals(
    tmp_path: Path, method: Rpc, fields: dict[str, Any], error: type[EtcdError]
) -> None:
    async with serving(tmp_path) as (_, client):
        me = await own(client)
        learner = await client.call(ADD, peerURLs=["http://127.0.0.1:3"], isLearner=True)
        known = {"me": me.ID, "learner": learner.member.ID}
        filled = {
            name: list(me.peerURLs) if value == ["taken"] else known.get(str(value), value)
            for name, value in fields.items()
        }
        before = (await client.call(MEMBER_LIST)).members
        assert await client.error(method, **filled) == status(error)
        assert (await client.call(MEMBER_LIST)).members == before
        await client.put(b"k")


@story
async def test_a_removed_id_is_not_known_any_more(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        gone = (await client.call(ADD, peerURLs=LATE, isLearner=True)).member.ID
        await client.call(REMOVE, ID=gone)
        refused = status(errors.MemberNotFound)
        assert await client.error(REMOVE, ID=gone) == refused
        assert await client.error(UPDATE, ID=gone, peerURLs=LATE) == refused
        assert await client.error(PROMOTE, ID=gone) == refused


@story
async def test_the_only_member_stays_the_leader(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        reply = await client.call(MOVE_LEADER, targetID=(await own(client)).ID)
        assert reply == pb.MoveLeaderResponse()


@story
async def test_more_learners_where_the_flag_allows_them(tmp_path: Path) -> None:
    async with serving(tmp_path, max_learners=2) as (_, client):
        for port in (1, 2):
            await client.call(ADD, peerURLs=[f"http://l:{port}"], isLearner=True)
        refused = await client.error(ADD, peerURLs=["http://127.0.0.1:4"], isLearner=True)
        assert refused == status(errors.TooManyLearners)


@story
async def test_members_outlive_a_restart(tmp_path: Path) -> None:
    async with serving(tmp_path) as (member, client):
        await client.call(ADD, peerURLs=LATE, isLearner=True)
        config, listed = member.config, (await client.call(MEMBER_LIST)).members
    async with serving(tmp_path, **_same(config)) as (_, client):
        assert (await client.call(MEMBER_LIST)).members == listed


def _same(config: Any) -> dict[str, Any]:
    names = ("listen_client_urls", "listen_peer_urls", "initial_advertise_peer_urls")
    return {name: getattr(config, name) for name in names}


# Downgrade


@story
async def test_a_downgrade_and_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "INTERVAL", 0.05)
    async with serving(tmp_path) as (member, client):
        validate, enable, cancel = (
            getattr(pb.DowngradeRequest, name) for name in ("VALIDATE", "ENABLE", "CANCEL")
        )
        reply = await client.call(DOWNGRADE, action=validate, version="3.6")
        assert (reply.version, reply.header.revision) == ("3.7", 1)
        assert (await client.call(DOWNGRADE, action=cancel)).version == "3.7"
        assert (await client.call(DOWNGRADE, action=enable, version="3.6.0")).version == "3.7"
        running = await client.call(STATUS)
        assert (running.downgradeInfo.enabled, running.downgradeInfo.targetVersion) == (
            True,
            "3.6.0",
        )
        while (await client.call(STATUS)).storageVersion != "3.6.0":
            await client.put(b"k")
        assert member.server.cluster.version == "3.6.0"
        assert (await client.call(DOWNGRADE, action=cancel)).version == "3.6"
        assert not (await client.call(STATUS)).downgradeInfo.enabled
        while (await client.call(STATUS)).storageVersion != "3.7.0":
            await client.put(b"k")


@pytest.mark.parametrize(
    ("action", "version", "expected"),
    [
        (0, "", status(errors.WrongDowngradeVersionFormat)),
        (1, "six", status(errors.WrongDowngradeVersionFormat)),
        (0, "3.5", status(errors.InvalidDowngradeTargetVersion)),
        (1, "3.7.0", status(errors.InvalidDowngradeTargetVersion)),
        (7, "3.6", (Code.UNKNOWN, "etcdserver: unknown method")),
    ],
)
@story
async def test_downgrades_that_are_refused(
    tmp_path: Path, action: int, version: str, expected: tuple[Code, str]
) -> None:
    async with serving(tmp_path) as (member, client):
        await client.put(b"k")
        assert await client.error(DOWNGRADE, action=action, version=version) == expected
        assert member.server.cluster.downgrade_target == ""
