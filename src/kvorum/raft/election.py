"""Elections: campaigning, voting, counting (section 5.2, 5.4.1; pre-vote: thesis, section 9.6)."""

from __future__ import annotations

from enum import Enum
from typing import Final

from kvorum.raft import replication
from kvorum.raft.core import Raft
from kvorum.raft.quorum import VoteResult
from kvorum.raft.types import (
    NONE,
    EntryID,
    EntryType,
    Message,
    MsgType,
    StateType,
)
from kvorum.types import Index, Term


class Campaign(Enum):
    """Why a member campaigns."""

    PRE_ELECTION = "CampaignPreElection"
    ELECTION = "CampaignElection"
    TRANSFER = "CampaignTransfer"


TRANSFER_CONTEXT: Final = Campaign.TRANSFER.value.encode()
"""Marks a vote request that the leader itself has asked for: a lease does not stand against it."""

_RESPONSE: Final = {
    MsgType.VOTE: MsgType.VOTE_RESP,
    MsgType.PRE_VOTE: MsgType.PRE_VOTE_RESP,
}


def campaign_for(r: Raft, why: Campaign) -> None:
    """Campaign, unless this member leads already, has no vote, or must apply a change first."""
    if r.state is StateType.LEADER:
        r.logger.debug(f"{r.id:x} ignoring MsgHup because already leader")
    elif not r.promotable():
        r.logger.warn(f"{r.id:x} is unpromotable and can not campaign")
    elif _has_unapplied_conf_change(r):
        r.logger.warn(
            f"{r.id:x} cannot campaign at term {r.term} since there are still pending "
            "configuration changes to apply"
        )
    else:
        r.logger.info(f"{r.id:x} is starting a new election at term {r.term}")
        _campaign(r, why)


def campaign(r: Raft) -> None:
    """Campaign as after an election time-out."""
    campaign_for(r, Campaign.PRE_ELECTION if r.config.pre_vote else Campaign.ELECTION)


def _has_unapplied_conf_change(r: Raft) -> bool:
    log = r.log
    if log.applied >= log.committed:
        return False
    unapplied = log.scan(Index(log.applied + 1), Index(log.committed + 1), log.page_size)
    return any(entry.type is not EntryType.NORMAL for entry in unapplied)


def _campaign(r: Raft, why: Campaign) -> None:
    if why is Campaign.PRE_ELECTION:
        r.become_pre_candidate()
        kind = MsgType.PRE_VOTE
        # The term that it would campaign in; its own does not change yet.
        term = Term(r.term + 1)
    else:
        r.become_candidate()
        kind = MsgType.VOTE
        term = r.term
    context = TRANSFER_CONTEXT if why is Campaign.TRANSFER else b""
    last = r.log.last_id()
    for voter in r.tracker.config.all_voters():
        if voter == r.id:
            # The own vote counts when it is durable, as everybody else's.
            r.send(Message(_RESPONSE[kind], to=voter, term=term))
            continue
        r.logger.info(
            f"{r.id:x} [logterm: {last.term}, index: {last.index}] sent {kind} request to "
            f"{voter:x} at term {r.term}"
        )
        r.send(
            Message(
                kind,
                to=voter,
                term=term,
                log_term=last.term,
                index=last.index,
                context=context,
            )
        )


def in_lease(r: Raft) -> bool:
    """Whether a leader was heard of so recently that nobody else should be elected."""
    return bool(
        r.config.check_quorum and r.lead != NONE and r.election_elapsed < r.config.election_tick
    )


def describe_request(r: Raft, m: Message, verdict: str) -> str:
    """The line about a vote request and what became of it."""
    last = r.log.last_id()
    return (
        f"{r.id:x} [logterm: {last.term}, index: {last.index}, vote: {r.vote:x}] {verdict} "
        f"{m.type} {'for' if verdict == 'cast' else 'from'} {m.from_:x} "
        f"[logterm: {m.log_term}, index: {m.index}] at term {r.term}"
    )


def on_vote_request(r: Raft, m: Message) -> None:
    """Grant a vote: one a term, first come first served, to a log that is as good as ours.

    A learner votes too: whoever asks may know of its promotion before it does itself, and without
    its vote there might be no quorum to tell it.
    """
    may_vote = (
        r.vote == m.from_
        or (r.vote == NONE and r.lead == NONE)
        or (m.type is MsgType.PRE_VOTE and m.term > r.term)
    )
    response = _RESPONSE[m.type]
    if not (may_vote and r.log.is_up_to_date(EntryID(m.log_term, m.index))):
        r.logger.info(describe_request(r, m, "rejected"))
        r.send(Message(response, to=m.from_, term=r.term, reject=True))
        return
    r.logger.info(describe_request(r, m, "cast"))
    # The request's term, not ours: a pre-candidate asks for a term that nobody is in yet, and
    # would take an answer in an older one for a late message.
    r.send(Message(response, to=m.from_, term=m.term))
    if m.type is MsgType.VOTE:
        r.election_elapsed = 0
        r.vote = m.from_


def on_vote_response(r: Raft, m: Message) -> None:
    """Count a vote, and move on when the election is decided."""
    granted, rejected, result = _poll(r, m)
    r.logger.info(f"{r.id:x} has received {granted} {m.type} votes and {rejected} vote rejections")
    if result is VoteResult.LOST:
        r.become_follower(r.term, NONE)
    elif result is VoteResult.WON:
        if r.state is StateType.PRE_CANDIDATE:
            _campaign(r, Campaign.ELECTION)
        else:
            r.become_leader()
            replication.broadcast_append(r)


def _poll(r: Raft, m: Message) -> tuple[int, int, VoteResult]:
    rejection = " rejection" if m.reject else ""
    r.logger.info(f"{r.id:x} received {m.type}{rejection} from {m.from_:x} at term {r.term}")
    r.tracker.record_vote(m.from_, not m.reject)
    return r.tracker.tally_votes()
