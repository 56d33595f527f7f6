"""A cluster of one out of what is left of a larger one."""

from __future__ import annotations

from pathlib import Path

import pytest
from boot_kit import ME, PEER, booting, config_of, refusal, wal_dir

from kvorum.config import ServerConfig
from kvorum.membership import Cluster, Member, changes
from kvorum.raft.codec import decode_conf_change, encode_conf_change
from kvorum.raft.types import (
    NONE,
    ConfChange,
    ConfChangeType,
    ConfState,
    Entry,
    EntryType,
    HardState,
)
from kvorum.server.bootstrap.force_new import Forced, force_new_cluster
from kvorum.server.bootstrap.start import Booted
from kvorum.server.errors import BadDataDirectory
from kvorum.server.meta import write_applied
from kvorum.types import Index, MemberID, Term
from kvorum.wal import START, ReadResult, SnapshotRecord, read_log

LOCAL, B, C = MemberID(5), MemberID(3), MemberID(9)
URLS = ("http://localhost:2380",)
Removed = ConfChangeType.REMOVE_NODE


class NoBackend:
    """For a member list that only this test looks at."""

    def put(self, bucket: str, key: bytes, value: bytes) -> None: ...
    def delete(self, bucket: str, key: bytes) -> None: ...
    def get(self, bucket: str, key: bytes) -> bytes | None: ...
    def range(self, bucket: str, lo: bytes, hi: bytes | None) -> list[tuple[bytes, bytes]]:
        return []


def cluster_of(*members: MemberID, learners: tuple[MemberID, ...] = ()) -> Cluster:
    made = Cluster(0xC, LOCAL, NoBackend(), max_learners=9)
    for member in (*members, *learners):
        made.add(Member(member, (f"http://{member}:1",), is_learner=member in learners))
    return made


def adding(member: MemberID, *, learner: bool = False) -> ConfChange:
    return changes.adding(Member(member, (f"http://{member}:1",), is_learner=learner))


def entry(index: int, change: ConfChange | None = None, term: int = 2) -> Entry:
    kind, data = (EntryType.NORMAL, b"") if change is None else encode_conf_change(change)
    return Entry(Term(term), Index(index), kind, data)


def forced(
    entries: list[Entry],
    cluster: Cluster,
    *,
    applied: int = 0,
    commit: int = 0,
    start: SnapshotRecord = START,
) -> Forced:
    log = ReadResult(b"", HardState(Term(2), B, Index(commit)), entries)
    return force_new_cluster(log, start, Index(applied), cluster, URLS)


def changes_of(entries: list[Entry]) -> list[tuple[ConfChangeType, MemberID]]:
    return [(change.type, change.node_id) for change in map(_decoded, entries)]


def _decoded(entry: Entry) -> ConfChange:
    assert entry.type is EntryType.CONF_CHANGE
    return decode_conf_change(entry.data)


def test_everybody_else_is_removed() -> None:
    log = [entry(index) for index in range(1, 6)]
    made = forced(log, cluster_of(C, LOCAL, B), applied=5, commit=5)
    assert made.kept == log
    assert changes_of(made.added) == [(Removed, B), (Removed, C)]
    assert [(e.term, e.index) for e in made.added] == [(2, 6), (2, 7)]
    assert made.hard_state == HardState(Term(2), B, Index(7))


def test_nothing_is_to_be_done_alone() -> None:
    """As at every further start with the flag."""
    made = forced([entry(1)], cluster_of(LOCAL), applied=1, commit=1)
    assert made.added == []
    assert made.hard_state.commit == 1


def test_what_the_commit_index_does_not_cover_is_kept() -> None:
    """It lags behind what was acknowledged; so did the last changes of the cluster."""
    log = [entry(1), entry(2, adding(C)), entry(3, changes.removing(B)), entry(4)]
    made = forced(log, cluster_of(LOCAL, B), applied=1, commit=1)
    assert made.kept == log
    assert changes_of(made.added) == [(Removed, C)]
    assert made.hard_state.commit == 5


def test_changes_that_are_applied_are_not_counted_again() -> None:
    log = [entry(1, adding(C)), entry(2, changes.removing(C))]
    made = forced(log, cluster_of(LOCAL, B, C), applied=2, commit=2)
    assert changes_of(made.added) == [(Removed, B), (Removed, C)]


def test_learners_are_removed_too() -> None:
    log = [entry(1, adding(C, learner=True))]
    made = forced(log, cluster_of(LOCAL, learners=(B,)))
    assert changes_of(made.added) == [(Removed, B), (Removed, C)]


@pytest.mark.parametrize("logged", [False, True])
def test_a_learner_becomes_a_voter_first(logged: bool) -> None:
    log = [entry(1, adding(LOCAL, learner=True) if logged else None)]
    made = forced(log, cluster_of(B, learners=() if logged else (LOCAL,)))
    first, second = map(_decoded, made.added)
    assert changes.is_promotion(first)
    assert (first.node_id, second.type, second.node_id) == (LOCAL, Removed, B)


def test_a_promotion_in_the_log_is_enough() -> None:
    log = [entry(1, changes.promoting(LOCAL))]
    made = forced(log, cluster_of(B, learners=(LOCAL,)))
    assert changes_of(made.added) == [(Removed, B)]


def test_a_member_whose_addition_did_not_arrive_yet_adds_itself() -> None:
    made = forced([entry(1, adding(B)), entry(2, adding(C))], cluster_of())
    first, *others = map(_decoded, made.added)
    assert changes.member_of(first) == Member(LOCAL, URLS)
    assert [change.node_id for change in others] == [B, C]


@pytest.mark.parametrize("logged", [False, True])
def test_a_member_that_was_removed_has_to_stay_away(logged: bool) -> None:
    cluster = cluster_of(LOCAL, B)
    if not logged:
        cluster.remove(LOCAL)
    log = [entry(1, changes.removing(LOCAL) if logged else None)]
    with pytest.raises(BadDataDirectory, match="was removed from its cluster"):
        forced(log, cluster)


def test_leftovers_behind_a_received_snapshot_are_dropped() -> None:
    """The snapshot, of term 3, replaced a log whose entries of term 1 are still in the file."""
    start = SnapshotRecord(Index(10), Term(3))
    stale = [entry(index, term=1) for index in (11, 12)]
    made = forced(stale, cluster_of(LOCAL, B), applied=10, commit=10, start=start)
    assert made.kept == []
    assert [(e.index, e.term) for e in made.added] == [(11, 3)]
    fresh = [entry(11, term=3), entry(12, term=4), entry(13, term=2)]
    assert forced(fresh, cluster_of(LOCAL), applied=10, start=start).kept == fresh[:2]


# In a data directory


def of_three(folder: Path) -> ServerConfig:
    """A member of three, with 20 entries, 15 of them applied and 17 known as committed."""
    others = ["http://127.0.0.1:1", "http://127.0.0.1:2"]
    config = config_of(folder, initial_cluster=f"m={PEER},a={others[0]},b={others[1]}")
    with booting(config) as booted:
        fill(booted)
    return config


def fill(booted: Booted) -> None:
    first = booted.storage.entries(Index(1), Index(4), 1 << 20)
    cluster = Cluster(booted.cluster.id, booted.member, booted.backend)
    for each in first:
        cluster.add(Member.from_json(decode_conf_change(each.data).context))
    write_applied(booted.backend, Index(15), Term(1))
    entries = [entry(index, term=1) for index in range(4, 21)]
    booted.wal.write(booted.wal.encode(HardState(Term(1), NONE, Index(17)), entries))


def test_a_member_of_three_becomes_one(tmp_path: Path) -> None:
    config = of_three(tmp_path)
    with booting(config) as booted:  # without the flag
        assert len(booted.storage.initial_state()[1].voters) == 3
        assert booted.storage.last_index() == 20
    alone = config_of(tmp_path, force_new_cluster=True)
    with booting(alone) as booted:
        state, conf = booted.storage.initial_state()
        assert len(conf.voters) == 3  # as of what is applied
        assert (booted.applied, state.commit, booted.storage.last_index()) == (15, 22, 22)
        added = booted.storage.entries(Index(21), Index(23), 1 << 20)
        assert {node for _, node in changes_of(added)} == set(conf.voters) - {ME}
    assert len(read_log(wal_dir(config)).entries) == 22
    assert read_log(wal_dir(config)).hard_state.commit == 22


@pytest.mark.parametrize("force", [False, True])
def test_a_start_that_was_cut_off_goes_on(tmp_path: Path, force: bool) -> None:
    """Nothing of it was applied yet; the log says all, with the flag and without it."""
    config = of_three(tmp_path)
    with booting(config_of(tmp_path, force_new_cluster=True)):
        pass
    with booting(config_of(tmp_path, force_new_cluster=force)) as booted:
        assert (booted.applied, booted.storage.last_index()) == (15, 22)
        assert booted.storage.initial_state()[0].commit == 22
    assert len(read_log(wal_dir(config)).entries) == 22


def test_a_new_directory_is_simply_new(tmp_path: Path) -> None:
    with booting(config_of(tmp_path, force_new_cluster=True)) as booted:
        assert booted.storage.initial_state() == (
            HardState(Term(1), NONE, Index(1)),
            ConfState(),
        )


def test_a_member_that_was_removed_does_not_start(tmp_path: Path) -> None:
    config = of_three(tmp_path)
    with booting(config) as booted:
        Cluster(booted.cluster.id, booted.member, booted.backend).remove(ME)
    text = refusal(config_of(tmp_path, force_new_cluster=True), BadDataDirectory)
    assert text.startswith(f"member {ME:x} was removed from its cluster")
