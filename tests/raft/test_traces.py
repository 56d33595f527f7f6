"""Recorded runs of etcd's own raft, replayed: every line must come out the same."""

from __future__ import annotations

from pathlib import Path

from raftlab import naive_quorum
from raftlab.datadriven import Case, replay
from raftlab.interaction import Interaction, parse_changes

from kvorum.raft import NO_LIMIT, ConfChangeError, confchange
from kvorum.raft.quorum import joint_index, joint_vote, majority_index, majority_vote
from kvorum.raft.tracker import ProgressTracker, format_progress
from kvorum.types import Index, MemberID


def test_interaction(interaction_trace: Path) -> None:
    replay(interaction_trace, Interaction().handle)


class ConfChangeTrace:
    """A configuration that is changed step by step; the log grows by one with each."""

    def __init__(self) -> None:
        self.tracker = ProgressTracker(10)
        self.last_index = 0

    def handle(self, case: Case) -> str:
        try:
            self.tracker.switch(*self._change(case))
        except (ConfChangeError, ValueError) as error:
            return f"{error}\n"
        finally:
            self.last_index += 1
        return f"{self.tracker.config}\n{format_progress(self.tracker.progress.items())}"

    def _change(self, case: Case) -> confchange.Outcome:
        singles = parse_changes(case.input)
        last = Index(self.last_index)
        if case.command == "simple":
            return confchange.simple(self.tracker, last, singles)
        if case.command == "enter-joint":
            auto = case.options().get("autoleave") == ["true"]
            return confchange.enter_joint(self.tracker, last, singles, auto_leave=auto)
        if case.command == "leave-joint" and not singles:
            return confchange.leave_joint(self.tracker)
        known = case.command == "leave-joint"
        raise ValueError("this command takes no input" if known else "unknown command")


def test_conf_change(confchange_trace: Path) -> None:
    replay(confchange_trace, ConfChangeTrace().handle)


Acks = dict[MemberID, int]
Voters = frozenset[MemberID]


def handle_quorum(case: Case) -> str:
    """``committed`` or ``vote``, of one majority (cfg) or two joint ones (cfgj)."""
    options = case.options()
    voters = _members(options.get("cfg", []))
    joint = "cfgj" in options
    other = _members(options.get("cfgj", []))
    inputs = options.get("votes" if case.command == "vote" else "idx", [])
    order = list(dict.fromkeys([*voters, *other]))
    if len(order) != len(inputs):
        numbers = " ".join(_number(word) for word in inputs)
        shown = _show(frozenset(order))
        return f"error: mismatched input (explicit or _) for voters {shown}: [{numbers}]"
    given = {member: word for member, word in zip(order, inputs, strict=True) if word != "_"}
    incoming, outgoing = frozenset(voters), frozenset(other)
    if case.command == "vote":
        votes = {member: word == "y" for member, word in given.items()}
        return _vote(incoming, outgoing, votes, joint)
    acks = {member: int(word) for member, word in given.items()}
    return _committed(incoming, outgoing, acks, joint)


def _members(words: list[str]) -> list[MemberID]:
    return [MemberID(int(word)) for word in words if word != "zero"]


def _number(word: str) -> str:
    return {"_": "0", "n": "1", "y": "2"}.get(word, word)


def _show(voters: Voters) -> str:
    return "map[" + " ".join(f"{voter}:{{}}" for voter in sorted(voters)) + "]"


def _vote(incoming: Voters, outgoing: Voters, votes: dict[MemberID, bool], joint: bool) -> str:
    if not joint:
        return f"{majority_vote(incoming, votes).value}\n"
    result = joint_vote(incoming, outgoing, votes)
    assert joint_vote(outgoing, incoming, votes) is result
    return f"{result.value}\n"


def _committed(incoming: Voters, outgoing: Voters, acks: Acks, joint: bool) -> str:
    chart = _chart(incoming | outgoing, acks)
    if joint:
        index = joint_index(incoming, outgoing, acks)
        assert joint_index(outgoing, incoming, acks) == index
    else:
        index = majority_index(incoming, acks)
        _check_majority(incoming, acks, index)
    return f"{chart}{'∞' if index == NO_LIMIT else index}\n"


def _check_majority(voters: Voters, acks: Acks, index: int) -> None:
    """What must not change the result: another way to count, no other half, the same half."""
    assert naive_quorum.committed_index(voters, acks) == index
    assert joint_index(voters, frozenset(), acks) == index
    assert joint_index(voters, voters, acks) == index
    for voter in voters:
        acked = acks.get(voter, 0)
        if 0 < acked < index:
            # Who is behind the result already does not count for it, however far behind.
            for lower in (acked - 1, 0):
                assert majority_index(voters, {**acks, voter: lower}) == index


def _chart(voters: Voters, acks: Acks) -> str:
    """A bar for every voter, longer the more voters it is ahead of."""
    if not voters:
        return "<empty majority quorum>"
    width = len(voters)
    lines = [" " * width + "    idx\n"]
    for voter in sorted(voters):
        index = acks.get(voter, 0)
        ahead_of = sum(acks.get(other, 0) < index for other in voters)
        bar = ("x" * ahead_of + ">").ljust(width + 1) if voter in acks else "?" + " " * width
        lines.append(f"{bar} {index:5d}    (id={voter:x})\n")
    return "".join(lines)


def test_quorum(quorum_trace: Path) -> None:
    replay(quorum_trace, handle_quorum)
