"""A cluster of one out of a member that is left of a larger one (``--force-new-cluster``).

The log is continued with entries that remove everybody else, and counted as committed to its end.
etcd drops what its commit index does not cover. We keep it: the commit index reaches the disk late,
and the newest acknowledged writes may be in that tail. A log that wins an election keeps its tail
too, and in a cluster of one it would.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from kvorum.log import get_logger
from kvorum.membership import Cluster, Member, changes
from kvorum.raft.codec import decode_conf_change, encode_conf_change
from kvorum.raft.types import ConfChange, ConfChangeType, Entry, EntryType, HardState
from kvorum.server.errors import BadDataDirectory
from kvorum.types import Index, MemberID, Term
from kvorum.wal import ReadResult, SnapshotRecord

lg = get_logger()


class Forced(NamedTuple):
    """``kept`` of the log's entries, then ``added``, which are to be logged with the state."""

    hard_state: HardState
    kept: list[Entry]
    added: list[Entry]


def force_new_cluster(
    log: ReadResult,
    start: SnapshotRecord,
    applied: Index,
    cluster: Cluster,
    peer_urls: tuple[str, ...],
) -> Forced:
    """What the log has to become. ``cluster`` is as of ``applied``.

    Raises:
        BadDataDirectory: the member was removed from its cluster; its data may be old.
    """
    kept = _without_leftovers(log.entries, start)
    last = Index(start.index + len(kept))
    members, removed = _members_at_end(cluster, kept, applied)
    if cluster.local in removed:
        raise BadDataDirectory(
            f"member {cluster.local:x} was removed from its cluster: a new one cannot be forced"
            " out of its data; take that of another member, or a snapshot"
        )
    added: list[Entry] = []
    term = max(log.hard_state.term, kept[-1].term if kept else start.term, Term(1))
    for change in _changes(members, cluster.local, peer_urls):
        index = Index(last + len(added) + 1)
        added.append(Entry(term, index, *encode_conf_change(change)))
    commit = Index(last + len(added))
    lg.info(
        "forcing restart member",
        cluster_id=f"{cluster.id:x}",
        local_member_id=f"{cluster.local:x}",
        wal_commit_index=log.hard_state.commit,
        commit_index=commit,
        removed=[f"{member:x}" for member in members if member != cluster.local],
    )
    return Forced(HardState(term, log.hard_state.vote, commit), kept, added)


def _without_leftovers(entries: list[Entry], start: SnapshotRecord) -> list[Entry]:
    """Behind a snapshot that came from a leader there may be entries of the log that it replaced.
    They are of older terms than the snapshot, and a log's terms never go down."""
    term = start.term
    for position, entry in enumerate(entries):
        if entry.term < term:
            return entries[:position]
        term = entry.term
    return entries


def _members_at_end(
    cluster: Cluster, entries: Iterable[Entry], applied: Index
) -> tuple[dict[MemberID, bool], set[MemberID]]:
    """All members once the log is applied, and whether they are learners; and who was removed."""
    members = {member.id: member.is_learner for member in cluster.sorted()}
    removed = set(cluster.removed)
    for entry in entries:
        if entry.index <= applied or entry.type is not EntryType.CONF_CHANGE:
            continue
        change = decode_conf_change(entry.data)
        if change.type is ConfChangeType.REMOVE_NODE:
            members.pop(change.node_id, None)
            removed.add(change.node_id)
        elif change.type is ConfChangeType.ADD_LEARNER_NODE:
            members[change.node_id] = True
        elif change.type is ConfChangeType.ADD_NODE:
            members[change.node_id] = False
    return members, removed


def _changes(
    members: dict[MemberID, bool], local: MemberID, peer_urls: tuple[str, ...]
) -> list[ConfChange]:
    """First make ourselves a voter, so that there always is one; then remove the others."""
    made: list[ConfChange] = []
    if local not in members:  # the log that came so far does not reach our addition
        made.append(changes.adding(Member(local, peer_urls)))
    elif members[local]:
        made.append(changes.promoting(local))
    return made + [changes.removing(member) for member in sorted(members) if member != local]
