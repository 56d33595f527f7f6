"""What committed entries do to the state, and what their callers hear."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from applier_kit import (
    CLUSTER,
    KINDS,
    ME,
    Bench,
    as_from_the_log,
    first_entry,
    story,
)
from server_kit import Caller

from kvorum import errors
from kvorum.pb import etcdserverpb as pb
from kvorum.pb import membershippb, mvccpb
from kvorum.pb.wire import delimited, varint
from kvorum.raft.types import ConfChange, ConfState, Entry, EntryType
from kvorum.server import applier as applier_module
from kvorum.server.request import decode_request, encode_request
from kvorum.types import Index, LeaseID, MemberID, Term


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A member that has applied the entries of its start."""
    bench = Bench(tmp_path / "a")
    bench.apply([first_entry(), Entry(Term(2), Index(2), EntryType.NORMAL, b"")])
    yield bench
    bench.close()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def one(name: str, **settings: Any) -> Bench:
        made.append(Bench(tmp_path / name, **settings))
        return made[-1]

    yield one
    for bench in made:
        bench.close()


def header(revision: int) -> pb.ResponseHeader:
    return pb.ResponseHeader(cluster_id=CLUSTER, member_id=ME, revision=revision, raft_term=2)


def reply(caller: Caller, kind: Any) -> Any:
    return kind.FromString(caller.message)


# Every kind of request


def test_put(bench: Bench) -> None:
    caller = bench.carry_out(pb.PutRequest(key=b"k", value=b"v"))
    assert reply(caller, pb.PutResponse) == pb.PutResponse(header=header(2))
    caller = bench.carry_out(pb.PutRequest(key=b"k", ignore_value=True, prev_kv=True))
    response = reply(caller, pb.PutResponse)
    assert response.header == header(3)
    assert (response.prev_kv.value, response.prev_kv.mod_revision) == (b"v", 2)
    assert mvccpb.KeyValue.FromString(bench.state.store.get(b"k") or b"").value == b"v"


@pytest.mark.parametrize(
    ("request_", "refusal"),
    [
        (pb.PutRequest(key=b"k", lease=5), errors.LeaseNotFound),
        (pb.PutRequest(key=b"k", lease=5, prev_kv=True), errors.LeaseNotFound),
        (pb.PutRequest(key=b"k", ignore_value=True), errors.KeyNotFound),
        (pb.PutRequest(key=b"k", ignore_lease=True), errors.KeyNotFound),
        (
            pb.TxnRequest(success=[pb.RequestOp(request_put=pb.PutRequest(key=b"k", lease=5))]),
            errors.LeaseNotFound,
        ),
        (pb.CompactionRequest(revision=2), errors.FutureRev),
        (pb.CompactionRequest(revision=-1), errors.Compacted),
        (pb.LeaseRevokeRequest(ID=5), errors.LeaseNotFound),
        (pb.LeaseGrantRequest(ID=5, TTL=10**10), errors.LeaseTTLTooLarge),
        (pb.LeaseGrantRequest(ID=0, TTL=5), errors.LeaseNotFound),
    ],
)
def test_refusals_change_nothing(
    bench: Bench, request_: Any, refusal: type[errors.EtcdError]
) -> None:
    caller = bench.carry_out(request_)
    assert caller.answers == [(refusal.code, refusal.message)]
    assert bench.state.store.rev == 1
    assert bench.applier.index == 3  # but the entry was applied
    assert bench.carry_out(pb.PutRequest(key=b"k")).message


def test_delete_range(bench: Bench) -> None:
    for key in (b"a", b"b"):
        bench.carry_out(pb.PutRequest(key=key))
    caller = bench.carry_out(pb.DeleteRangeRequest(key=b"a", range_end=b"z", prev_kv=True))
    response = reply(caller, pb.DeleteRangeResponse)
    assert (response.header, response.deleted) == (header(4), 2)
    assert [kv.key for kv in response.prev_kvs] == [b"a", b"b"]
    caller = bench.carry_out(pb.DeleteRangeRequest(key=b"a"))
    assert reply(caller, pb.DeleteRangeResponse) == pb.DeleteRangeResponse(header=header(4))


def test_txn(bench: Bench) -> None:
    put = pb.RequestOp(request_put=pb.PutRequest(key=b"k"))
    caller = bench.carry_out(pb.TxnRequest(success=[put]))
    response = reply(caller, pb.TxnResponse)
    assert (response.header, response.succeeded) == (header(2), True)
    assert response.responses[0].response_put.header.revision == 2


def test_compaction(bench: Bench) -> None:
    for _ in range(3):
        bench.carry_out(pb.PutRequest(key=b"k"))
    caller = bench.carry_out(pb.CompactionRequest(revision=3))
    assert reply(caller, pb.CompactionResponse) == pb.CompactionResponse(header=header(4))
    assert bench.state.store.compact_rev == 3
    assert [job.rev for job in bench.state.store.compactions] == [3]
    assert bench.carry_out(pb.CompactionRequest(revision=3)).failure == errors.Compacted.message


def test_leases(bench: Bench) -> None:
    caller = bench.carry_out(pb.LeaseGrantRequest(ID=5, TTL=60))
    assert reply(caller, pb.LeaseGrantResponse) == pb.LeaseGrantResponse(
        header=header(1), ID=5, TTL=60
    )
    assert bench.carry_out(pb.LeaseGrantRequest(ID=5, TTL=9)).failure == errors.LeaseExist.message
    caller = bench.carry_out(pb.LeaseGrantRequest(ID=-1, TTL=-7))
    shortest = bench.state.lessor.limits.min_ttl
    assert reply(caller, pb.LeaseGrantResponse) == pb.LeaseGrantResponse(
        header=header(1), ID=-1, TTL=shortest
    )
    for key in (b"b", b"a", b"c"):
        bench.carry_out(pb.PutRequest(key=key, lease=5))
    caller = bench.carry_out(pb.LeaseRevokeRequest(ID=5))
    assert reply(caller, pb.LeaseRevokeResponse) == pb.LeaseRevokeResponse(header=header(5))
    gone = [change for change in bench.state.store.changes if len(change[0]) == 18]
    assert [key for _, key, _, _ in gone] == [b"a", b"b", b"c"]
    assert len({rev[:8] for rev, _, _, _ in gone}) == 1  # one revision for all of them
    caller = bench.carry_out(pb.LeaseRevokeRequest(ID=-1))
    assert reply(caller, pb.LeaseRevokeResponse).header == header(5)  # without keys there is none


def test_checkpoints(bench: Bench) -> None:
    bench.carry_out(pb.LeaseGrantRequest(ID=5, TTL=600))
    checkpoints = [pb.LeaseCheckpoint(ID=i, remaining_TTL=300) for i in (4, 5)]
    caller = bench.carry_out(pb.LeaseCheckpointRequest(checkpoints=checkpoints))
    assert reply(caller, pb.LeaseCheckpointResponse).header == header(1)
    lease = bench.state.lessor.get(LeaseID(5))
    assert lease is not None
    assert lease.remaining == 300


def test_alarms(bench: Bench) -> None:
    def send(action: str, alarm: int, member: int = ME) -> list[tuple[int, int]]:
        number = pb.AlarmRequest.AlarmAction.Value(action)
        request = pb.AlarmRequest(action=number, memberID=member, alarm=alarm)  # type: ignore[arg-type]
        response = reply(bench.carry_out(request), pb.AlarmResponse)
        assert response.header == header(1)
        return [(a.memberID, a.alarm) for a in response.alarms]

    assert send("GET", pb.NONE) == []
    assert send("ACTIVATE", pb.NONE) == []
    assert send("ACTIVATE", pb.NOSPACE) == [(ME, pb.NOSPACE)]
    assert send("ACTIVATE", pb.NOSPACE) == [(ME, pb.NOSPACE)]
    assert send("ACTIVATE", pb.CORRUPT, 9) == [(9, pb.CORRUPT)]
    assert send("GET", pb.NONE) == [(ME, pb.NOSPACE), (9, pb.CORRUPT)]
    assert send("GET", pb.CORRUPT) == [(9, pb.CORRUPT)]
    assert send("DEACTIVATE", pb.CORRUPT) == []  # another member's
    assert send("DEACTIVATE", pb.CORRUPT, 9) == [(9, pb.CORRUPT)]
    assert send("GET", pb.NONE) == [(ME, pb.NOSPACE)]


def test_an_alarm_of_a_later_version_is_raised_as_any_other(bench: Bench) -> None:
    """etcd takes any number; an entry that cannot be applied would end this member for good."""
    request = pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=1, alarm=9)  # type: ignore[arg-type]
    response = reply(bench.carry_out(request), pb.AlarmResponse)
    assert [(a.memberID, a.alarm) for a in response.alarms] == [(1, 9)]


def test_an_unknown_action_does_nothing(bench: Bench) -> None:
    request = pb.AlarmRequest(action=7, memberID=1, alarm=pb.NOSPACE)  # type: ignore[arg-type]
    assert reply(bench.carry_out(request), pb.AlarmResponse) == pb.AlarmResponse(header=header(1))
    assert bench.alarms.get() == []


def test_what_members_say_of_themselves(bench: Bench) -> None:
    attributes = membershippb.Attributes(name="new", client_urls=["http://c:1"])
    bench.carry_out(
        membershippb.ClusterMemberAttrSetRequest(member_ID=ME, member_attributes=attributes)
    )
    member = bench.cluster.members[ME]
    assert (member.name, member.client_urls) == ("new", ("http://c:1",))
    bench.carry_out(membershippb.ClusterVersionSetRequest(ver="3.7.0"))
    assert bench.cluster.version == "3.7.0"
    bench.carry_out(membershippb.DowngradeInfoSetRequest(enabled=True, ver="3.6.0"))
    assert bench.cluster.downgrade_target == "3.6.0"
    bench.carry_out(membershippb.DowngradeInfoSetRequest(enabled=False))
    assert bench.cluster.downgrade_target == ""


# Callers


def test_a_batch_counts_its_own_requests(bench: Bench) -> None:
    for request in (pb.PutRequest(key=b"a"), pb.PutRequest(key=b"b"), pb.TxnRequest()):
        bench.propose(request)
    entries = bench.entries()
    assert bench.apply(entries) == {"put": 2, "txn": 1}
    assert bench.applier.index == entries[-1].index
    assert [entry.local for entry in entries] == [None] * 3  # the log need not hold requests
    assert bench.proposer.waiting == {}


def test_who_gave_up_is_not_answered_but_the_request_is_carried_out(bench: Bench) -> None:
    for decoded in (True, False):
        caller = bench.propose(pb.PutRequest(key=b"k"))
        entries = bench.entries()
        bench.proposer.expire(1.0)
        assert caller.failure == errors.Timeout.message
        bench.apply(entries if decoded else as_from_the_log(entries))
        assert len(caller.answers) == 1
    caller = bench.propose(pb.LeaseRevokeRequest(ID=1))
    entries = bench.entries()
    bench.proposer.expire(1.0)
    bench.apply(entries)
    assert caller.failure == errors.Timeout.message
    assert bench.state.store.rev == 3


def test_a_request_that_came_back_through_the_log_finds_its_caller(bench: Bench) -> None:
    """As it does when it was forwarded to a leader, and came back from there."""
    good, bad = bench.propose(pb.PutRequest(key=b"k")), bench.propose(pb.LeaseRevokeRequest(ID=1))
    counts = bench.apply(as_from_the_log(bench.entries()))
    assert counts == {"put": 1, "lease_revoke": 1}
    assert reply(good, pb.PutResponse).header == header(2)
    assert bad.failure == errors.LeaseNotFound.message


@pytest.mark.plain
def test_a_forwarded_request_is_not_decoded_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = bench.propose(pb.PutRequest(key=b"k"))
    entries = bench.entries()
    bench.proposer.forward(entries)
    others = Entry(Term(2), Index(3), EntryType.NORMAL, entries[0].data[:-1] + b"\x01")
    entries[0].index = Index(4)
    decoded: list[bytes] = []
    decode = applier_module.decode_plain

    def watched(data: bytes) -> Any:
        decoded.append(data)
        return decode(data)

    monkeypatch.setattr(applier_module, "decode_plain", watched)
    bench.apply(as_from_the_log([others, *entries]))
    assert decoded == [others.data]  # somebody else's, whose id is another
    assert reply(mine, pb.PutResponse).header == header(3)
    assert not bench.proposer.forwarded
    assert not bench.proposer.waiting


def test_a_change_that_raft_made_nothing_of_is_refused(bench: Bench) -> None:
    caller = Caller()
    bench.proposer.propose_conf_change(ConfChange(node_id=MemberID(9)), caller)
    (entry,) = bench.proposer.conf_changes
    empty = Entry(Term(2), Index(bench.applier.index + 1), local=entry.local)
    bench.apply([empty])
    assert caller.failure == errors.RequestTooManyRequests.message


# Entries that are no requests of this version


def test_an_empty_entry_begins_a_term(bench: Bench) -> None:
    bench.apply([Entry(Term(3), Index(3), EntryType.NORMAL, b"")])
    assert bench.terms == [2, 3]
    assert (bench.applier.index, bench.applier.term) == (3, 3)


def test_the_first_entry_makes_the_member(bench: Bench) -> None:
    assert bench.applier.conf_state == ConfState((ME,))
    assert bench.applier.conf_changed
    assert bench.cluster.members[ME].name == "me"


def test_a_request_of_v2(bench: Bench) -> None:
    data = b"\x08\x07" + b"".join(
        delimited(number, text) for number, text in ((2, b"PUT"), (3, b"/0/version"), (4, b"3.5.0"))
    )
    bench.apply([Entry(Term(2), Index(3), EntryType.NORMAL, data)])
    assert bench.cluster.version == "3.5.0"


@pytest.mark.parametrize(
    ("entry", "kind", "why"),
    [
        (
            Entry(Term(2), Index(3), EntryType.NORMAL, encode_request("auth_enable", b"", b"\x01")),
            NotImplementedError,
            "entry 3: cannot apply a request of kind auth_enable",
        ),
        (Entry(Term(2), Index(3), EntryType.CONF_CHANGE_V2, b""), AssertionError, "entry 3"),
        (Entry(Term(2), Index(4), EntryType.NORMAL, b""), AssertionError, "4, 2"),
        (Entry(Term(2), Index(2), EntryType.NORMAL, b""), AssertionError, "2, 2"),
        (Entry(Term(2), Index(3), EntryType.NORMAL, b"\xa2\x06\0"), ValueError, "0 requests"),
    ],
)
def test_what_cannot_be_applied_ends_the_member(
    bench: Bench, entry: Entry, kind: type[Exception], why: str
) -> None:
    with pytest.raises(kind, match=why):
        bench.apply([entry])
    assert bench.applier.index == 2


# Alarms

GRANT = pb.LeaseGrantRequest(ID=9, TTL=60)
PUT = pb.PutRequest(key=b"k")
READ = pb.RequestOp(request_range=pb.RangeRequest(key=b"k"))
DELETE = pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"k"))
WRITES: list[Any] = [
    PUT,
    pb.PutRequest(key=b"k", prev_kv=True),
    pb.TxnRequest(success=[pb.RequestOp(request_put=PUT)]),
    pb.TxnRequest(failure=[pb.RequestOp(request_put=PUT)]),  # the branch not taken counts
    GRANT,
]
FREES: list[Any] = [
    pb.DeleteRangeRequest(key=b"k"),
    pb.TxnRequest(success=[DELETE, READ]),
    pb.CompactionRequest(revision=2),
    pb.LeaseRevokeRequest(ID=5),
]
UPKEEP: list[Any] = [
    pb.LeaseCheckpointRequest(),
    pb.AlarmRequest(action=pb.AlarmRequest.GET),
    membershippb.ClusterVersionSetRequest(ver="3.7.0"),
]


def raise_alarm(bench: Bench, alarm: int) -> None:
    activate = pb.AlarmRequest.ACTIVATE
    bench.carry_out(pb.AlarmRequest(action=activate, memberID=1, alarm=alarm))  # type: ignore[arg-type]


@pytest.fixture
def used(bench: Bench) -> Bench:
    bench.carry_out(pb.LeaseGrantRequest(ID=5, TTL=60))
    for _ in range(2):
        bench.carry_out(PUT)
    return bench


@pytest.mark.parametrize("request_", WRITES)
def test_without_space_nothing_is_written(used: Bench, request_: Any) -> None:
    raise_alarm(used, pb.NOSPACE)
    assert used.carry_out(request_).failure == errors.NoSpace.message
    assert used.state.store.rev == 3
    assert not used.state.lessor.has(LeaseID(9))
    assert used.no_space_raised == 0  # the alarm is on already
    off = pb.AlarmRequest.DEACTIVATE
    used.carry_out(pb.AlarmRequest(action=off, memberID=1, alarm=pb.NOSPACE))
    assert used.carry_out(request_).message


@pytest.mark.parametrize("request_", [*FREES, *UPKEEP])
def test_without_space_what_frees_some_goes_on(used: Bench, request_: Any) -> None:
    raise_alarm(used, pb.NOSPACE)
    assert used.carry_out(request_).message


@pytest.mark.parametrize("request_", [*WRITES, *FREES])
def test_with_corruption_nothing_is_changed(used: Bench, request_: Any) -> None:
    raise_alarm(used, pb.NOSPACE)
    raise_alarm(used, pb.CORRUPT)
    assert used.carry_out(request_).failure == errors.Corrupt.message
    assert used.state.store.rev == 3
    assert used.state.store.compact_rev == -1
    assert used.state.lessor.has(LeaseID(5))


@pytest.mark.parametrize("request_", UPKEEP)
def test_with_corruption_upkeep_goes_on(used: Bench, request_: Any) -> None:
    raise_alarm(used, pb.CORRUPT)
    assert used.carry_out(request_).message


def test_alarms_are_known_again_after_a_restart(used: Bench, tmp_path: Path) -> None:
    raise_alarm(used, pb.NOSPACE)
    used.state.backend.commit_now()
    again = used.crash(tmp_path / "again")
    assert again.carry_out(PUT).failure == errors.NoSpace.message
    again.close()


# The quota


@pytest.mark.parametrize("request_", WRITES)
def test_the_request_that_crosses_the_quota_is_carried_out_and_told_off(
    used: Bench, request_: Any
) -> None:
    used.quota.limit = 1
    used.quota.refresh()
    before = used.state.store.rev
    assert used.carry_out(request_).failure == errors.NoSpace.message
    assert used.no_space_raised == 1
    done = used.state.store.rev == before + 1 or used.state.lessor.has(LeaseID(9))
    assert done or request_ is WRITES[3]


def test_a_refused_request_does_not_raise_the_alarm(used: Bench) -> None:
    used.quota.limit = 1
    used.quota.refresh()
    for request in (pb.PutRequest(key=b"x", lease=4), pb.LeaseGrantRequest(ID=5, TTL=1)):
        assert used.carry_out(request).failure != errors.NoSpace.message
    assert used.no_space_raised == 0


@pytest.mark.parametrize("request_", [*FREES, *UPKEEP])
def test_beyond_the_quota_what_frees_space_goes_on(used: Bench, request_: Any) -> None:
    used.quota.limit = 1
    used.quota.refresh()
    assert used.carry_out(request_).message
    assert used.no_space_raised == 0


# The state follows from the log


def test_every_kind_is_in_the_story() -> None:
    """Otherwise what follows would show less than it says."""
    log = story(1, 400)
    assert {decode_request(entry.data)[1] for entry in log[2:]} == set(KINDS.values())


def test_decoded_and_encoded_entries_do_the_same(make: Callable[..., Bench]) -> None:
    """Nor does the clock matter, nor who asked."""
    log = story(2, 400)
    first, second = make("a"), make("b", now=5000.0)
    first.apply(log)
    for entry in log:
        if entry.data and entry.type is EntryType.NORMAL:
            replay_as_own(second, entry)
        else:
            second.apply(as_from_the_log([entry]))
    assert first.picture() == second.picture()
    for bench in (first, second):
        bench.compact_all()
    assert first.content() == second.content()


def replay_as_own(bench: Bench, entry: Entry) -> None:
    _, kind, request = decode_request(entry.data)
    caller = Caller()
    bench.proposer.propose(kind, request.SerializeToString(), request, caller)
    bench.apply(bench.entries())
    assert len(caller.answers) == 1


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_a_crash_between_commits_loses_nothing(make: Callable[..., Bench], seed: int) -> None:
    """The index goes to disk with what it covers, so that a replay from there gives the same."""
    length = 240
    log = story(seed, length)
    whole = make("a")
    whole.apply(log)
    whole.compact_all()
    folder = whole.folder.parent
    for committed, applied in ((1, 2), (2, 50), (60, 61), (100, 200), (199, 240), (240, 240)):
        before = make(f"b{committed}")
        before.apply(as_from_the_log(log[:committed]))
        before.state.backend.commit_now()
        after = before.crash(folder / f"c{committed}")
        before.apply(as_from_the_log(log[committed:applied]))  # what the crash takes away
        assert after.applier.index == committed
        after.apply(as_from_the_log(log[committed:]))
        assert after.picture() == whole.picture()
        after.compact_all()
        assert after.content() == whole.content()
        after.close()


def test_commits_in_the_middle_change_nothing(make: Callable[..., Bench]) -> None:
    log = story(6, 200)
    bench, other = make("a"), make("b")
    bench.apply(log)
    for entry in log:
        other.apply([entry])
        other.state.backend.commit_now()
    assert bench.picture() == other.picture()
    assert bench.content() == other.content()


def test_a_member_that_was_removed_says_nothing(bench: Bench) -> None:
    bench.cluster.remove(ME)
    request = membershippb.ClusterMemberAttrSetRequest(member_ID=ME)
    bench.carry_out(request)
    assert bench.cluster.members == {}
    with pytest.raises(AssertionError, match="never added"):
        bench.carry_out(membershippb.ClusterMemberAttrSetRequest(member_ID=MemberID(77)))


def test_the_id_of_a_request_is_that_of_its_header(bench: Bench) -> None:
    caller = bench.propose(PUT)
    (entry,) = bench.entries()
    other = encode_request("put", PUT.SerializeToString(), varint(12345))
    bench.apply([Entry(Term(2), entry.index, EntryType.NORMAL, other)])
    assert caller.answers == []  # it was another's
