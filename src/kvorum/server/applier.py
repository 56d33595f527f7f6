"""Carries out what was committed, entry by entry, in log order.

An entry changes the store, the leases, the alarms or the member list, and nothing else does. All
members run the same entries through this code, so nothing in it may depend on the clock, on
configuration that members do not share, or on how far background work has come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from kvorum import errors, failpoint
from kvorum.alarm import AlarmStore, alarm_name
from kvorum.errors import EtcdError
from kvorum.lease.lessor import Lessor
from kvorum.log import get_logger
from kvorum.membership import Cluster, Version, parse_version
from kvorum.mvcc.store import Store
from kvorum.pb import etcdserverpb as pb
from kvorum.pb.wire import delimited, int64_field
from kvorum.raft.types import ConfChange, ConfState, Entry, EntryType
from kvorum.server.confchange import NO_CHANGE, Change, apply_conf_change
from kvorum.server.header import HeaderWriter
from kvorum.server.proposer import CONF_CHANGE, Proposal, Proposer, fail
from kvorum.server.quota import LEASE_COST, Quota, put_cost, txn_cost
from kvorum.server.request import decode_id, decode_plain, decode_request
from kvorum.server.txn import check_put, execute_delete, execute_put, execute_write_txn
from kvorum.server.v2request import apply_v2_request, is_v2_request
from kvorum.types import Index, LeaseID, MemberID, Term

Handler = Callable[[Any], bytes]

_V2: Final = 8
"""The first byte of a bare v2 request."""

lg = get_logger()


class Observer(Protocol):
    """Who acts on what an entry brings about outside the state."""

    def now(self) -> float: ...
    def raise_no_space(self) -> None: ...
    def term_begun(self, term: Term) -> None: ...
    def membership_changed(self, change: Change) -> None: ...
    def version_changed(self, before: Version | None, after: Version | None) -> None: ...


class Applier:
    """Applies committed entries.

    ``index`` and ``term`` are those of the last applied entry; they go into the backend in the same
    transaction as what the entry changed. A handler returns the reply's body, without the header;
    an `EtcdError` out of a handler is the request's answer, anything else ends the member.
    """

    def __init__(
        self,
        *,
        store: Store,
        lessor: Lessor,
        alarms: AlarmStore,
        cluster: Cluster,
        quota: Quota,
        header: HeaderWriter,
        proposer: Proposer,
        observer: Observer,
    ) -> None:
        self.index = Index(0)
        self.term = Term(0)
        self.conf_state = ConfState()
        self.conf_changed = False
        self._store = store
        self._lessor = lessor
        self._alarms = alarms
        self._cluster = cluster
        self._quota = quota
        self._header = header
        self._proposer = proposer
        self._observer = observer
        self._no_space = False
        self._corrupt = False
        self._handlers: dict[str, Handler] = {
            "put": self._put,
            "delete_range": self._delete_range,
            "txn": self._txn,
            "compaction": self._compaction,
            "lease_grant": self._lease_grant,
            "lease_revoke": self._lease_revoke,
            "lease_checkpoint": self._lease_checkpoint,
            "alarm": self._alarm,
            "cluster_version_set": self._cluster_version_set,
            "cluster_member_attr_set": self._cluster_member_attr_set,
            "downgrade_info_set": self._downgrade_info_set,
            "downgrade_version_test": self._nothing,
            CONF_CHANGE: self._refused_by_raft,
        }
        self.load_alarms()

    def take_over(self, index: Index, term: Term, conf_state: ConfState) -> None:
        """The state was replaced by one as of ``index``."""
        assert index > self.index, (index, self.index)
        self.index, self.term, self.conf_state = index, term, conf_state
        self.conf_changed = True

    def load_alarms(self) -> None:
        """Look again at which alarms are on: they decide what is let through."""
        self._no_space = self._alarms.is_on(pb.NOSPACE)
        self._corrupt = self._alarms.is_on(pb.CORRUPT)

    def apply(
        self, entries: Sequence[Entry], change_conf: Callable[[ConfChange], ConfState]
    ) -> dict[str, int]:
        """Apply a batch, and answer the callers of this member's own requests; how many requests
        there were of each kind."""
        handlers = self._handlers
        done = self._proposer.done
        store = self._store
        header = self._header
        counts: dict[str, int] = {}
        for entry in entries:
            assert entry.index == self.index + 1, (entry.index, self.index)
            if failpoint.active:
                failpoint.hit("beforeApplyOneEntryNormal")
            proposal: Any = entry.local
            if proposal is not None and entry.type is EntryType.NORMAL:
                entry.local = None  # the log keeps the entry for followers, not the request
                kind = proposal.kind
                counts[kind] = counts.get(kind, 0) + 1
                try:
                    body = handlers[kind](proposal.request)
                except EtcdError as error:
                    if done(proposal.id) is not None:
                        fail(proposal.caller, error)
                else:
                    if done(proposal.id) is not None:
                        proposal.caller.reply(header.field(store.rev) + body)
            else:
                kind = self._apply_encoded(entry, change_conf)
                if kind:
                    counts[kind] = counts.get(kind, 0) + 1
            self.index = entry.index
            self.term = entry.term
        return counts

    def _apply_encoded(self, entry: Entry, change_conf: Callable[[ConfChange], ConfState]) -> str:
        """An entry that comes from the log or from another member; the kind of request in it."""
        if entry.type is EntryType.CONF_CHANGE:
            self._apply_conf_change(entry, change_conf)
            return ""
        assert entry.type is EntryType.NORMAL, f"entry {entry.index} has type {entry.type}"
        if not entry.data:
            self._observer.term_begun(entry.term)
            return ""
        if entry.data[0] == _V2 and is_v2_request(entry.data):
            before = self._cluster.version
            apply_v2_request(entry.data, self._cluster)
            self._note_version(before)
            return ""
        kind, request, proposal = self._decode(entry)
        handler = self._handlers.get(kind)
        if handler is None:
            raise NotImplementedError(f"entry {entry.index}: cannot apply a request of kind {kind}")
        try:
            body = handler(request)
        except EtcdError as error:
            if proposal is not None:
                fail(proposal.caller, error)
        else:
            if proposal is not None:
                proposal.caller.reply(self._header.field(self._store.rev) + body)
        return kind

    def _decode(self, entry: Entry) -> tuple[str, Any, Proposal | None]:
        """The request in an entry, and who waits for it here. One that this member forwarded to
        the leader it still has, decoded."""
        proposer = self._proposer
        if proposer.forwarded:
            own = proposer.forwarded.pop(entry.data, None)
            if own is not None:
                return own.kind, own.request, proposer.done(own.id)
        plain = decode_plain(entry.data)
        if plain is None:
            request_id, kind, request = decode_request(entry.data)
            return kind, request, proposer.done(request_id)
        kind, request, id_at = plain
        if not proposer.waiting:
            return kind, request, None
        return kind, request, proposer.done(decode_id(entry.data, id_at))

    def _apply_conf_change(
        self, entry: Entry, change_conf: Callable[[ConfChange], ConfState]
    ) -> None:
        applied = apply_conf_change(entry, self._cluster, change_conf)
        self.conf_state = applied.conf_state
        self.conf_changed = True
        if applied.change is not NO_CHANGE:
            self._observer.membership_changed(applied.change)
        proposal = self._proposer.done(applied.request)
        if proposal is None:
            return
        if applied.refusal is not None:
            fail(proposal.caller, applied.refusal)
        else:
            proposal.caller.reply(b"")

    def _refuse_if_corrupt(self) -> None:
        if self._corrupt:
            raise errors.Corrupt

    def _put(self, request: pb.PutRequest) -> bytes:
        if self._corrupt or self._no_space:
            raise errors.Corrupt if self._corrupt else errors.NoSpace
        fits = self._quota.ample or self._fits(put_cost(request))
        if request.prev_kv or request.ignore_value or request.ignore_lease:
            check_put(self._store, request, self._lessor.has)
            write = self._store.write()
            body = execute_put(write, request)
            write.end()
        else:
            lease = request.lease
            if lease and not self._lessor.has(LeaseID(lease)):
                raise errors.LeaseNotFound
            self._store.put(request.key, request.value, LeaseID(lease))
            body = b""
        if not fits:
            self._report_no_space()
        return body

    def _fits(self, cost: int) -> bool:
        """Whether there is room, and less of it from now on."""
        fits = self._quota.allows(cost)
        self._quota.spend(cost)
        return fits

    def _report_no_space(self) -> None:
        """The request that crossed the quota was carried out on every member, and is answered with
        an error all the same (etcd's quota applier)."""
        self._observer.raise_no_space()
        raise errors.NoSpace

    def _delete_range(self, request: pb.DeleteRangeRequest) -> bytes:
        self._refuse_if_corrupt()
        write = self._store.write()
        body = execute_delete(write, request)
        write.end()
        return body

    def _txn(self, request: pb.TxnRequest) -> bytes:
        self._refuse_if_corrupt()
        fits = True
        if self._no_space or not self._quota.ample:
            cost = txn_cost(request)
            if cost and self._no_space:
                raise errors.NoSpace
            fits = self._fits(cost)
        body = execute_write_txn(self._store, request, self._lessor.has)
        if not fits:
            self._report_no_space()
        return body

    def _compaction(self, request: pb.CompactionRequest) -> bytes:
        self._refuse_if_corrupt()
        self._store.compact(request.revision)
        return b""

    def _lease_grant(self, request: pb.LeaseGrantRequest) -> bytes:
        if self._corrupt or self._no_space:
            raise errors.Corrupt if self._corrupt else errors.NoSpace
        fits = self._quota.allows(LEASE_COST)
        ttl = self._lessor.grant(LeaseID(request.ID), request.TTL, self._observer.now())
        if not fits:
            self._report_no_space()
        return int64_field(2, request.ID) + int64_field(3, ttl)

    def _lease_revoke(self, request: pb.LeaseRevokeRequest) -> bytes:
        self._refuse_if_corrupt()
        keys = self._lessor.revoke(LeaseID(request.ID))
        if keys:
            write = self._store.write()
            for key in keys:
                write.delete_range(key, b"")
            write.end()
        return b""

    def _lease_checkpoint(self, request: pb.LeaseCheckpointRequest) -> bytes:
        for checkpoint in request.checkpoints:
            self._lessor.checkpoint(
                LeaseID(checkpoint.ID), checkpoint.remaining_TTL, self._observer.now()
            )
        return b""

    def _alarm(self, request: pb.AlarmRequest) -> bytes:
        member = MemberID(request.memberID)
        changed: list[pb.AlarmMember] = []
        if request.action == pb.AlarmRequest.GET:
            changed = self._alarms.get(request.alarm)
        elif request.action == pb.AlarmRequest.ACTIVATE and request.alarm != pb.NONE:
            changed = [self._alarms.activate(member, request.alarm)]
            lg.warn("alarm raised", alarm=alarm_name(request.alarm), member_id=f"{member:x}")
        elif request.action == pb.AlarmRequest.DEACTIVATE:
            gone = self._alarms.deactivate(member, request.alarm)
            changed = [gone] if gone is not None else []
        self.load_alarms()
        return b"".join(delimited(2, alarm.SerializeToString()) for alarm in changed)

    def _cluster_version_set(self, request: Any) -> bytes:
        before = self._cluster.version
        self._cluster.set_version(request.ver)
        self._note_version(before)
        return b""

    def _note_version(self, before: str) -> None:
        after = self._cluster.version
        if after != before:
            lg.info("set cluster version", cluster_version=after)
            self._observer.version_changed(parse_version(before), parse_version(after))

    def _refused_by_raft(self, request: Any) -> bytes:
        """A change of the members in whose place raft has put an empty entry."""
        raise errors.RequestTooManyRequests

    def _nothing(self, request: Any) -> bytes:
        """etcd's test of whether a log can be read by an older version."""
        del request
        return b""

    def _cluster_member_attr_set(self, request: Any) -> bytes:
        attributes = request.member_attributes
        self._cluster.set_attributes(
            MemberID(request.member_ID), attributes.name, attributes.client_urls
        )
        return b""

    def _downgrade_info_set(self, request: Any) -> bytes:
        self._cluster.set_downgrade(request.enabled, request.ver)
        return b""
