"""What of a batch of messages is worth sending.

One pass of the state machine may answer or address the same member several times: it acknowledges
every append that came in, and tells of every step of the commit index. The last word says it all,
and a network may lose any message, so the others are left out. On a busy leader that is every
second message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kvorum.raft.types import Message, MsgType
from kvorum.types import MemberID

_CONDENSED: Final = frozenset({MsgType.APP, MsgType.APP_RESP, MsgType.HEARTBEAT})


def condense(messages: Sequence[Message]) -> list[Message]:
    """The messages without those that a later one to the same member makes superfluous, in the
    order they were in."""
    if len({message.to for message in messages}) == len(messages):
        return list(messages)
    kept: list[Message] = []
    last: dict[tuple[MemberID, MsgType], Message] = {}
    for message in reversed(messages):
        kind = message.type
        if kind in _CONDENSED:
            place = (message.to, kind)
            later = last.get(place)
            if later is not None and _covers(later, message):
                continue
            last[place] = message
        kept.append(message)
    kept.reverse()
    return kept


def _covers(later: Message, earlier: Message) -> bool:
    """Whether nothing is lost with ``earlier``."""
    if later.term != earlier.term:
        return False
    if earlier.type is MsgType.APP:
        # It only told the commit index, which never decreases.
        return not earlier.entries and later.index >= earlier.index
    if earlier.type is MsgType.APP_RESP:
        # Who has this much of the log has what is before it. A rejection asks for something.
        return not (earlier.reject or later.reject) and later.index >= earlier.index
    return True  # the number that a heartbeat carries confirms all reads up to it
