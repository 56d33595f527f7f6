"""The commands of the interaction traces."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from raftlab import describe
from raftlab.cluster import Cluster, HistoryStorage, Member
from raftlab.datadriven import Case
from raftlab.output import Output

from kvorum.raft import (
    NO_LIMIT,
    AnyConfChange,
    ConfChange,
    ConfChangeSingle,
    ConfChangeTransition,
    ConfChangeV2,
    Config,
    ConfState,
    Entry,
    Message,
    MsgType,
    RaftError,
    ReadOnlyOption,
    Snapshot,
    SnapshotMetadata,
)
from kvorum.raft.tracker import format_progress
from kvorum.types import Index, MemberID, Term

MAX_INT32 = (1 << 31) - 1

TRANSITIONS = {
    "auto": ConfChangeTransition.AUTO,
    "implicit": ConfChangeTransition.JOINT_IMPLICIT,
    "explicit": ConfChangeTransition.JOINT_EXPLICIT,
}

SWITCHES = {
    "async-storage-writes": "async_storage_writes",
    "prevote": "pre_vote",
    "checkquorum": "check_quorum",
    "disable-conf-change-validation": "disable_conf_change_validation",
    "step-down-on-removal": "step_down_on_removal",
}

NUMBERS = {
    "inflight": "max_inflight_msgs",
    "max-committed-size-per-ready": "max_committed_size_per_ready",
}


def parse_changes(text: str) -> tuple[ConfChangeSingle, ...]:
    """``v1 l2 r3 u4``: voter, learner, remove, update. Raises ValueError."""
    kinds = {letter: kind for kind, letter in describe.LETTERS.items()}
    singles = []
    for word in text.split():
        if len(word) < 2:
            raise ValueError(f"unknown token {word}")
        if word[0] not in kinds:
            raise ValueError(f"unknown input: {word}")
        singles.append(ConfChangeSingle(kinds[word[0]], MemberID(int(word[1:]))))
    return tuple(singles)


def _ids(values: Iterable[str]) -> tuple[MemberID, ...]:
    return tuple(MemberID(int(value)) for value in values)


class Interaction:
    """A cluster that is told what to do in the words of a trace."""

    def __init__(self) -> None:
        self.output = Output()
        self.cluster = Cluster(self.output)
        self._commands: dict[str, Callable[[Case], None]] = {
            "_breakpoint": lambda case: None,
            "add-nodes": self._add_nodes,
            "campaign": self._campaign,
            "compact": self._compact,
            "deliver-msgs": self._deliver_msgs,
            "forget-leader": self._forget_leader,
            "log-level": self._log_level,
            "process-append-thread": self._process_append,
            "process-apply-thread": self._process_apply,
            "process-ready": self._process_ready,
            "propose": self._propose,
            "propose-conf-change": self._propose_conf_change,
            "raft-log": self._raft_log,
            "raft-state": self._raft_state,
            "report-unreachable": self._report_unreachable,
            "send-snapshot": self._send_snapshot,
            "set-randomized-election-timeout": self._set_timeout,
            "stabilize": self._stabilize,
            "status": self._status,
            "tick-election": self._tick_election,
            "tick-heartbeat": self._tick_heartbeat,
            "transfer-leadership": self._transfer_leadership,
        }

    def handle(self, case: Case) -> str:
        """Carry out one command; what it shows, or ``ok``. Errors show at any level."""
        try:
            command = self._commands.get(case.command)
            if command is None:
                raise ValueError("unknown command")
            command(case)
        except (RaftError, ValueError) as error:
            if self.output.quiet:
                return str(error)
            self.output.write(str(error))
        return self.output.take() or "ok"

    def _first(self, case: Case) -> Member:
        return self.cluster.member(int(case.arguments[0].key))

    # --- setting up

    def _add_nodes(self, case: Case) -> None:
        options = case.options()
        state = ConfState(
            voters=_ids(options.get("voters", ())), learners=_ids(options.get("learners", ()))
        )
        index = Index(int(options.get("index", ["0"])[0]))
        content = options.get("content", [""])[0].encode()
        bootstrap = bool(index or content or state != ConfState())
        if bootstrap and index <= 1:
            raise ValueError("index must be specified as > 1 due to bootstrap")
        meta = SnapshotMetadata(state, index, Term(1 if bootstrap else 0))
        for _ in range(int(case.arguments[0].key)):
            self._add_node(Snapshot(content, meta), options)

    def _add_node(self, snapshot: Snapshot, options: dict[str, list[str]]) -> None:
        storage = HistoryStorage()
        storage.history.append(snapshot)
        if snapshot.metadata.index:
            storage.apply_snapshot(snapshot)
        number = len(self.cluster.members) + 1
        config = Config(
            id=MemberID(number),
            storage=storage,
            applied=snapshot.metadata.index,
            election_tick=3,
            heartbeat_tick=1,
            max_size_per_msg=NO_LIMIT,
            logger=self.output,
            rng=Random(number),
            **_settings(options),
        )
        self.cluster.members.append(Member(config, storage))

    def _log_level(self, case: Case) -> None:
        self.output.set_level(case.arguments[0].key)

    def _set_timeout(self, case: Case) -> None:
        timeout = int(case.options()["timeout"][0])
        self._first(case).node.raft.randomized_election_timeout = timeout

    # --- calls

    def _campaign(self, case: Case) -> None:
        self._first(case).node.campaign()

    def _forget_leader(self, case: Case) -> None:
        self._first(case).node.forget_leader()

    def _propose(self, case: Case) -> None:
        data = case.arguments[1].key.encode()
        self._first(case).node.propose([Entry(data=data)])

    def _propose_conf_change(self, case: Case) -> None:
        options = case.options()
        transition = TRANSITIONS[options.get("transition", ["auto"])[0]]
        singles = parse_changes(case.input)
        change: AnyConfChange = ConfChangeV2(transition, singles)
        if options.get("v1") == ["true"]:
            if len(singles) > 1 or transition is not ConfChangeTransition.AUTO:
                raise ValueError("v1 conf change can only have one operation and no transition")
            change = ConfChange(singles[0].type, singles[0].node_id)
        self._first(case).node.propose_conf_change(change)

    def _report_unreachable(self, case: Case) -> None:
        numbers = case.numbers()
        if len(numbers) != 2:
            raise ValueError(
                "must specify exactly two node indexes: node on which to report, and reported node"
            )
        self._first(case).node.report_unreachable(MemberID(numbers[1]))

    def _tick_election(self, case: Case) -> None:
        member = self._first(case)
        for _ in range(member.config.election_tick):
            member.node.tick()

    def _tick_heartbeat(self, case: Case) -> None:
        member = self._first(case)
        for _ in range(member.config.heartbeat_tick):
            member.node.tick()

    def _transfer_leadership(self, case: Case) -> None:
        options = case.options()
        leader = self.cluster.member(int(options["from"][0]))
        leader.node.transfer_leader(MemberID(int(options["to"][0])))

    # --- work and messages

    def _each(self, case: Case, title: str, work: Callable[[Member], None]) -> None:
        members = [self.cluster.member(number) for number in case.numbers()]
        for member in members:
            if len(members) == 1:
                work(member)
            else:
                self.output.write(f"> {member.id} {title}\n")
                with self.output.indented():
                    work(member)

    def _process_ready(self, case: Case) -> None:
        self._each(case, "handling Ready", self.cluster.process_ready)

    def _process_append(self, case: Case) -> None:
        self._each(case, "processing append thread", self.cluster.process_append)

    def _process_apply(self, case: Case) -> None:
        self._each(case, "processing apply thread", self.cluster.process_apply)

    def _deliver_msgs(self, case: Case) -> None:
        kinds = {kind.label: kind for kind in MsgType}
        kind: MsgType | None = None
        recipients = []
        for argument in case.arguments:
            if argument.key == "type":
                kind = kinds[argument.values[0]]
            elif argument.key == "drop":
                recipients += [(int(value), True) for value in argument.values]
            else:
                recipients.append((int(argument.key), False))
        counts = [self.cluster.deliver(to, kind, drop=drop) for to, drop in recipients]
        if not sum(counts):
            self.output.write("no messages\n")

    def _stabilize(self, case: Case) -> None:
        level = self.output.level
        for name in case.options().get("log-level", ()):
            self.output.set_level(name)
        try:
            self.cluster.stabilize(self.cluster.chosen(case.numbers()))
        finally:
            self.output.level = level

    def _send_snapshot(self, case: Case) -> None:
        sender, receiver = case.numbers()
        member = self.cluster.member(sender)
        m = Message(
            MsgType.SNAP,
            to=MemberID(receiver),
            from_=MemberID(sender),
            term=member.node.basic_status().hard_state.term,
            snapshot=member.storage.snapshot(),
        )
        self.cluster.network.append(m)
        self.output.write(describe.message(m))

    # --- looking

    def _compact(self, case: Case) -> None:
        self._first(case).storage.compact(Index(int(case.arguments[1].key)))
        self._raft_log(case)

    def _raft_log(self, case: Case) -> None:
        storage = self._first(case).storage
        first, last = storage.first_index(), storage.last_index()
        if last < first:
            self.output.write(f"log is empty: first index={first}, last index={last}")
        else:
            entries = storage.entries(first, Index(last + 1), NO_LIMIT)
            self.output.write(describe.entries(entries))

    def _raft_state(self, case: Case) -> None:
        for member in self.cluster.members:
            status = member.node.status()
            lead, state = status.basic.soft_state
            role = "Voter" if member.id in status.config.all_voters() else "Non-Voter"
            self.output.write(
                f"{member.id}: {state} ({role}) Term:{status.basic.hard_state.term} Lead:{lead}\n"
            )

    def _status(self, case: Case) -> None:
        self.output.write(format_progress(self._first(case).node.status().progress.items()))


def _settings(options: dict[str, list[str]]) -> dict[str, Any]:
    """The ``Config`` arguments that the options of ``add-nodes`` ask for."""
    settings: dict[str, Any] = {"max_inflight_msgs": MAX_INT32}
    for key, [value, *_] in options.items():
        if key in SWITCHES:
            settings[SWITCHES[key]] = value == "true"
        elif key in NUMBERS:
            settings[NUMBERS[key]] = int(value)
        elif key == "read-only":
            settings["read_only_option"] = ReadOnlyOption(value)
    return settings
