from __future__ import annotations

from typing import Any

from kvorum.raft.types import Entry, Message, MsgType
from kvorum.server.outbox import condense
from kvorum.types import Index, MemberID, Term

A, B = MemberID(1), MemberID(2)


def app(to: MemberID, index: int, entries: int = 0, **fields: Any) -> Message:
    return Message(
        MsgType.APP,
        to,
        term=fields.pop("term", Term(3)),
        index=Index(index),
        entries=[Entry() for _ in range(entries)],
        **fields,
    )


def resp(to: MemberID, index: int, **fields: Any) -> Message:
    return Message(MsgType.APP_RESP, to, term=Term(3), index=Index(index), **fields)


def beat(to: MemberID, context: bytes = b"") -> Message:
    return Message(MsgType.HEARTBEAT, to, term=Term(3), context=context)


def test_one_for_each_stays_as_it_is() -> None:
    messages = [app(A, 5), app(B, 5)]
    assert condense(messages) == messages


def test_a_commit_index_goes_with_the_entries_after_it() -> None:
    first, second = app(A, 5, commit=Index(4)), app(A, 5, entries=2, commit=Index(5))
    other = app(B, 5)
    assert condense([first, other, second]) == [other, second]


def test_entries_are_never_left_out() -> None:
    messages = [app(A, 5, entries=1), app(A, 6, entries=1), app(A, 7)]
    assert condense(messages) == messages


def test_a_probe_further_back_replaces_nothing() -> None:
    messages = [app(A, 5), app(A, 3)]
    assert condense(messages) == messages


def test_what_was_said_in_another_term_stands() -> None:
    messages = [app(A, 5, term=Term(2)), app(A, 5)]
    assert condense(messages) == messages


def test_the_last_acknowledgement_stands_for_those_before() -> None:
    assert condense([resp(A, 5), resp(A, 6), resp(A, 9)]) == [resp(A, 9)]


def test_a_rejection_asks_for_something() -> None:
    messages = [resp(A, 5, reject=True), resp(A, 6)]
    assert condense(messages) == messages
    messages = [resp(A, 6), resp(A, 5, reject=True)]
    assert condense(messages) == messages


def test_the_last_heartbeat_confirms_all_reads() -> None:
    messages = [beat(A, b"1"), beat(B, b"1"), beat(A, b"2"), beat(B, b"2")]
    assert condense(messages) == [beat(A, b"2"), beat(B, b"2")]


def test_all_else_goes_out_in_order() -> None:
    vote = Message(MsgType.VOTE_RESP, A, term=Term(3))
    messages = [vote, resp(A, 3), vote, beat(A), resp(A, 4)]
    assert condense(messages) == [vote, vote, beat(A), resp(A, 4)]
