"""An applier on a real state, without a loop: the log is a list in the test's hands."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from naive_kv import KEYS
from server_kit import Caller, State

from kvorum import errors
from kvorum.alarm import AlarmStore
from kvorum.api.validate import check_txn
from kvorum.membership import Cluster, Member, Version
from kvorum.pb import etcdserverpb as pb
from kvorum.pb import membershippb
from kvorum.raft.codec import encode_conf_change
from kvorum.raft.types import ConfChange, ConfState, Entry, EntryType
from kvorum.server.applier import Applier
from kvorum.server.confchange import Change
from kvorum.server.header import HeaderWriter
from kvorum.server.meta import read_applied, write_applied
from kvorum.server.proposer import Proposer
from kvorum.server.quota import Quota
from kvorum.server.request import RequestIds
from kvorum.types import Index, MemberID, Revision, Term

ME = MemberID(0xAB)
CLUSTER = 7
BUCKETS = ("key", "meta", "lease", "alarm", "cluster", "members", "members_removed")

KINDS = {
    pb.PutRequest: "put",
    pb.DeleteRangeRequest: "delete_range",
    pb.TxnRequest: "txn",
    pb.CompactionRequest: "compaction",
    pb.LeaseGrantRequest: "lease_grant",
    pb.LeaseRevokeRequest: "lease_revoke",
    pb.LeaseCheckpointRequest: "lease_checkpoint",
    pb.AlarmRequest: "alarm",
    membershippb.ClusterVersionSetRequest: "cluster_version_set",
    membershippb.ClusterMemberAttrSetRequest: "cluster_member_attr_set",
    membershippb.DowngradeInfoSetRequest: "downgrade_info_set",
}


class Bench:
    """One member's state; ``now`` is its clock, which the state must not depend on."""

    def __init__(self, folder: Path, *, quota: int = -1, now: float = 0.0) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.state = State(folder)
        self.alarms = AlarmStore(self.state.backend)
        self.alarms.restore()
        self.cluster = Cluster(CLUSTER, ME, self.state.backend)
        self.cluster.restore()
        self.quota = Quota(self.state.backend, quota)
        self.header = HeaderWriter(CLUSTER, ME)
        self.header.set_term(Term(2))
        self.proposer = Proposer(
            RequestIds(ME, 0), max_request_bytes=1 << 20, wake=lambda: None, clock=lambda: 0.0
        )
        self.terms: list[Term] = []
        self.changes: list[Change] = []
        self.versions: list[tuple[Version | None, Version | None]] = []
        self.no_space_raised = 0
        self.clock = now
        self.applier = Applier(
            store=self.state.store,
            lessor=self.state.lessor,
            alarms=self.alarms,
            cluster=self.cluster,
            quota=self.quota,
            header=self.header,
            proposer=self.proposer,
            observer=self,
        )
        self.applier.index, self.applier.term = read_applied(self.state.backend)
        self.state.backend.pre_commit = self._before_commit

    def _before_commit(self) -> None:
        if self.applier.index:
            write_applied(self.state.backend, self.applier.index, self.applier.term)

    # What the applier asks of its observer

    def now(self) -> float:
        return self.clock

    def raise_no_space(self) -> None:
        self.no_space_raised += 1

    def term_begun(self, term: Term) -> None:
        self.terms.append(term)

    def membership_changed(self, change: Change) -> None:
        self.changes.append(change)

    def version_changed(self, before: Version | None, after: Version | None) -> None:
        self.versions.append((before, after))

    # What tests do

    def apply(self, entries: Iterable[Entry]) -> dict[str, int]:
        return self.applier.apply(list(entries), change_conf)

    def entries(self) -> list[Entry]:
        """The next batch, as consensus hands it out."""
        entries = self.proposer.take_batch()
        for place, entry in enumerate(entries, self.applier.index + 1):
            entry.index, entry.term = Index(place), Term(2)
        return entries

    def propose(self, request: Any) -> Caller:
        caller = Caller()
        kind = KINDS[type(request)]
        self.proposer.propose(kind, request.SerializeToString(), request, caller)
        return caller

    def carry_out(self, request: Any) -> Caller:
        caller = self.propose(request)
        self.apply(self.entries())
        return caller

    def compact_all(self) -> None:
        """What the background would do sooner or later."""
        store = self.state.store
        while store.compactions:
            job = store.compactions.popleft()
            while not job.index_step() or not job.delete_step():
                pass

    def content(self) -> dict[str, list[tuple[bytes, bytes]]]:
        """Everything the database holds, once all is in it."""
        backend = self.state.backend
        backend.commit_now()
        return {bucket: backend.range(bucket, b"", None) for bucket in BUCKETS}

    def picture(self) -> tuple[object, ...]:
        """The state in memory."""
        state, lessor = self.state, self.state.lessor
        leases = [(lease, lessor.keys(lease)) for lease in sorted(lessor.leases(0.0))]
        alarms = [(alarm.memberID, alarm.alarm) for alarm in self.alarms.get()]
        members = self.cluster.sorted()
        pairs = state.store.range_kvs(b"\0", b"\0").kvs
        return state.store.rev, state.store.compact_rev, pairs, leases, alarms, members

    def crash(self, folder: Path) -> Bench:
        """Another start, from what was on disk."""
        shutil.copytree(self.folder, folder)
        return Bench(folder, now=self.clock + 1000.0)

    def close(self) -> None:
        self.state.backend.close()


def change_conf(change: ConfChange) -> ConfState:
    return ConfState((change.node_id,) if change.node_id else ())


def first_entry() -> Entry:
    change = ConfChange(node_id=ME, context=Member(ME, ("http://p",), "me").to_json())
    return Entry(Term(1), Index(1), *encode_conf_change(change))


def as_from_the_log(entries: Iterable[Entry]) -> list[Entry]:
    """The same entries, without what rides along on the member that proposed them."""
    return [Entry(e.term, e.index, e.type, e.data) for e in entries]


def story(seed: int, length: int) -> list[Entry]:
    """A log by chance, with everything in it that a log of one member has."""
    chance = random.Random(seed)
    maker = Bench.__new__(Bench)
    maker.proposer = Proposer(
        RequestIds(ME, 0), max_request_bytes=1 << 20, wake=lambda: None, clock=lambda: 0.0
    )
    log = [first_entry(), Entry(Term(2), Index(2), EntryType.NORMAL, b"")]
    while len(log) < length:
        maker.propose(any_write(chance, Revision(len(log) // 2)))
        (entry,) = maker.proposer.take_batch()
        log.append(Entry(Term(2), Index(len(log) + 1), EntryType.NORMAL, entry.data))
    return log


def any_write(chance: random.Random, about: Revision) -> Any:
    kind = chance.choice(["put"] * 8 + ["delete", "txn", "txn", "grant", "revoke", "other"])
    key, lease = chance.choice(KEYS), chance.choice([0, 0, 0, 1, 2, 3])
    if kind == "put":
        value = bytes(chance.randrange(256) for _ in range(chance.randrange(20)))
        return pb.PutRequest(key=key, value=value, lease=lease, prev_kv=chance.random() < 0.2)
    if kind == "delete":
        return pb.DeleteRangeRequest(key=key, range_end=chance.choice([b"", *KEYS]))
    if kind == "txn":
        return any_txn(chance)
    if kind == "grant":
        return pb.LeaseGrantRequest(ID=lease or 1, TTL=chance.randrange(1, 100))
    if kind == "revoke":
        return pb.LeaseRevokeRequest(ID=lease or 1)
    return any_other(chance, about)


def any_txn(chance: random.Random) -> pb.TxnRequest:
    while True:
        request = pb.TxnRequest(
            compare=[pb.Compare(key=chance.choice(KEYS), target=pb.Compare.MOD, result=2)],
            success=[any_op(chance) for _ in range(3)],
            failure=[any_op(chance) for _ in range(3)],
        )
        request.compare[0].mod_revision = chance.randrange(200)
        try:
            check_txn(request, 128)
        except errors.EtcdError:
            continue
        return request


def any_op(chance: random.Random) -> pb.RequestOp:
    key = chance.choice(KEYS)
    if chance.random() < 0.3:
        return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=b"txn", lease=chance.randrange(3)))


def any_other(chance: random.Random, about: Revision) -> Any:
    return chance.choice(
        [
            pb.CompactionRequest(revision=about),
            pb.LeaseCheckpointRequest(checkpoints=[pb.LeaseCheckpoint(ID=1, remaining_TTL=5)]),
            pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=ME, alarm=pb.NOSPACE),
            pb.AlarmRequest(action=pb.AlarmRequest.DEACTIVATE, memberID=ME, alarm=pb.NOSPACE),
            pb.AlarmRequest(action=pb.AlarmRequest.DEACTIVATE, memberID=ME, alarm=pb.NOSPACE),
            membershippb.ClusterVersionSetRequest(ver="3.7.0"),
            membershippb.ClusterMemberAttrSetRequest(
                member_ID=ME,
                member_attributes=membershippb.Attributes(name="me", client_urls=["http://c"]),
            ),
            membershippb.DowngradeInfoSetRequest(enabled=True, ver="3.6.0"),
        ]
    )
