"""Entries, messages and Readies as the traces write them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from kvorum.raft import (
    LOCAL_APPEND_THREAD,
    LOCAL_APPLY_THREAD,
    NONE,
    ConfChangeSingle,
    ConfChangeType,
    ConfState,
    DecodeError,
    Entry,
    EntryType,
    HardState,
    Message,
    ReadState,
    Ready,
    Snapshot,
)
from kvorum.raft.codec import decode_entry_conf_change
from kvorum.types import MemberID

LETTERS = {
    ConfChangeType.ADD_NODE: "v",
    ConfChangeType.ADD_LEARNER_NODE: "l",
    ConfChangeType.REMOVE_NODE: "r",
    ConfChangeType.UPDATE_NODE: "u",
}

_TARGETS = {
    NONE: "None",
    LOCAL_APPEND_THREAD: "AppendThread",
    LOCAL_APPLY_THREAD: "ApplyThread",
}

_ESCAPES = {7: "a", 8: "b", 12: "f", 10: "n", 13: "r", 9: "t", 11: "v", 34: '"', 92: "\\"}


def quoted(data: bytes) -> str:
    """Bytes in double quotes, as Go prints them."""
    shown = []
    for byte in data:
        if byte in _ESCAPES:
            shown.append("\\" + _ESCAPES[byte])
        elif 0x20 <= byte < 0x7F:
            shown.append(chr(byte))
        else:
            shown.append(f"\\x{byte:02x}")
    return '"' + "".join(shown) + '"'


def target(member: MemberID) -> str:
    return _TARGETS.get(member) or f"{member:x}"


def changes(singles: Iterable[ConfChangeSingle]) -> str:
    return " ".join(f"{LETTERS[one.type]}{one.node_id}" for one in singles)


def entry(one: Entry) -> str:
    if one.type is EntryType.NORMAL:
        content = quoted(one.data)
    else:
        try:
            content = changes(decode_entry_conf_change(one).as_v2().changes)
        except DecodeError as error:
            content = str(error)
    return f"{one.term}/{one.index} {one.type} {content}".rstrip()


def entries(some: Iterable[Entry]) -> str:
    return "".join(entry(one) + "\n" for one in some)


def hard_state(state: HardState) -> str:
    vote = f" Vote:{state.vote}" if state.vote else ""
    return f"Term:{state.term}{vote} Commit:{state.commit}"


def conf_state(state: ConfState) -> str:
    fields = (
        ("Voters", state.voters),
        ("VotersOutgoing", state.voters_outgoing),
        ("Learners", state.learners),
        ("LearnersNext", state.learners_next),
    )
    shown = " ".join(f"{name}:[{' '.join(map(str, members))}]" for name, members in fields)
    return f"{shown} AutoLeave:{str(state.auto_leave).lower()}"


def snapshot(one: Snapshot) -> str:
    meta = one.metadata
    return f"Index:{meta.index} Term:{meta.term} ConfState:{conf_state(meta.conf_state)}"


def read_states(states: Sequence[ReadState]) -> str:
    shown = (f"{{{state.index} [{' '.join(map(str, state.context))}]}}" for state in states)
    return f"[{' '.join(shown)}]"


def message(m: Message, indent: str = "", *, responses: bool = True) -> str:
    return indent + "".join(_message_parts(m, indent, responses))


def _message_parts(m: Message, indent: str, responses: bool) -> Iterator[str]:
    yield f"{target(m.from_)}->{target(m.to)} {m.type} Term:{m.term} Log:{m.log_term}/{m.index}"
    if m.reject:
        yield f" Rejected (Hint: {m.reject_hint})"
    if m.commit:
        yield f" Commit:{m.commit}"
    if m.vote:
        yield f" Vote:{m.vote}"
    if len(m.entries) == 1:
        yield f" Entries:[{entry(m.entries[0])}]"
    elif m.entries:
        lines = "".join(f"\n{indent}  {entry(one)}" for one in m.entries)
        yield f" Entries:[{lines}\n{indent}]"
    if m.snapshot is not None and not m.snapshot.is_empty():
        yield f"\n{indent}  Snapshot: {snapshot(m.snapshot)}"
    if responses and m.responses:
        lines = "".join("\n" + message(one, indent + "  ") for one in m.responses)
        yield f" Responses:[{lines}\n{indent}]"


def ready(rd: Ready) -> str:
    body = "".join(_ready_parts(rd))
    return f"Ready MustSync={str(rd.must_sync).lower()}:\n{body}" if body else "<empty Ready>"


def _ready_parts(rd: Ready) -> Iterator[str]:
    if rd.soft_state is not None:
        yield f"Lead:{rd.soft_state.lead} State:{rd.soft_state.state}\n"
    if not rd.hard_state.is_empty():
        yield f"HardState {hard_state(rd.hard_state)}\n"
    if rd.read_states:
        yield f"ReadStates {read_states(rd.read_states)}\n"
    if rd.entries:
        yield "Entries:\n" + entries(rd.entries)
    if rd.snapshot is not None and not rd.snapshot.is_empty():
        yield f"Snapshot {snapshot(rd.snapshot)}\n"
    if rd.committed_entries:
        yield "CommittedEntries:\n" + entries(rd.committed_entries)
    if rd.messages:
        yield "Messages:\n" + "".join(message(m) + "\n" for m in rd.messages)
