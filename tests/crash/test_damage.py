"""Damaged log files: the server repairs what a crash tears, and refuses what a bad disk garbles.

The same damage is done to a real etcd's log, which has the same format: both must serve, or both
refuse. Whoever serves must show a beginning of the true history and keep new writes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from crash.checks import Model, replay
from crash.damage import DAMAGES, Damage, LogFile, copy_folder
from crash.history import Event, Watched
from crash.workload import Watcher
from support.binaries import Binaries
from support.member import QUICK, Member, MemberExited, MemberFactory
from support.rpc import DELETE_RANGE, PUT, RANGE, TXN, Client
from support.seeds import fresh_seed
from support.wait import WaitTimeout

from kvorum.pb import etcdserverpb as pb

SHORT = {
    "torn record",
    "torn in the middle",
    "wrong crc at the end",
    "flip in the middle",
    "cut between records",
}
WRITES = 150

# Nothing is committed to the database while the server runs, so that all is in the log alone.
FLAGS = ["--log-level=warn", *QUICK]
BEHIND = [*FLAGS, "--backend-batch-interval=1h", "--backend-batch-limit=1000000"]


@dataclass(slots=True)
class Master:
    """A killed server's folder, and the history in it."""

    binary: Path
    folder: Path
    events: list[Event]


@dataclass(slots=True)
class Fate:
    """What became of a server that was started on a damaged folder."""

    state: str  # serves, refuses or hangs
    log: str
    exit_code: int | None = None
    events: int = 0
    wrong: str = ""


def make_master(members: MemberFactory, binary: Path, flags: list[str]) -> Master:
    member = members(binary, flags=flags).start()
    with Client(member.endpoint) as client:
        last = write_some(client, WRITES)
    events = read_log(member.endpoint, last)
    member.kill()
    return Master(binary, member.folder, events)


def write_some(client: Client, count: int) -> int:
    """Puts, deletions and transactions of different sizes, one after the other."""
    for number in range(count):
        key = b"key%02d" % (number % 30)
        if number % 10 == 7:
            reply = client.call(DELETE_RANGE, key=key)
        elif number % 10 == 8:
            puts = [pb.PutRequest(key=b"txn%d" % n, value=b"%d" % number) for n in range(3)]
            ops = [pb.RequestOp(request_put=put) for put in puts]
            reply = client.call(TXN, success=ops)
        else:
            reply = client.call(PUT, key=key, value=b"value %d " % number * (number % 13 + 1))
    return reply.header.revision


def read_log(endpoint: str, last: int) -> list[Event]:
    everything = Watched("log", b"\0", b"\xff" * 4, 1)
    if last == 1:
        return []
    watcher = Watcher(endpoint, everything)
    watcher.wait_revision(last, 20.0)
    watcher.close()
    return everything.events


class Masters:
    """One killed folder per server and kind, made when first needed."""

    def __init__(self, members: MemberFactory) -> None:
        self._members = members
        self._made: dict[tuple[Path, bool], Master] = {}

    def get(self, binary: Path, *, behind: bool) -> Master:
        key = (binary, behind)
        if key not in self._made:
            flags = BEHIND if behind else FLAGS
            self._made[key] = make_master(self._members, binary, flags)
        return self._made[key]


@pytest.fixture(scope="module")
def masters(module_members: MemberFactory) -> Masters:
    return Masters(module_members)


@pytest.fixture
def seed(pytestconfig: pytest.Config) -> int:
    return pytestconfig.getoption("crash_seed") or fresh_seed()


def damaged(members: MemberFactory, master: Master, damage: Damage, seed: int) -> Member:
    """A member on a damaged copy of the master's folder."""
    member = members(master.binary, flags=FLAGS)
    copy_folder(master.folder / "data", member.data_dir)
    damage.do(LogFile(member.wal_files()[-1], random.Random(seed)))
    return member


def fate_of(member: Member, master: Master) -> Fate:
    try:
        member.start(timeout=12.0)
    except MemberExited:
        return Fate("refuses", member.log_text(), member.exit_code)
    except WaitTimeout:
        member.kill()
        return Fate("hangs", member.log_text(), wrong="it neither serves nor ends")
    return examine(member, master)


def examine(member: Member, master: Master) -> Fate:
    """Is what is served a beginning of the true history, and does the store go on from there?"""
    with Client(member.endpoint) as client:
        last = client.call(RANGE, key=b"x").header.revision
    events = read_log(member.endpoint, last)
    fate = Fate("serves", member.log_text(), events=len(events))
    if events != master.events[: len(events)]:
        fate.wrong = "it serves another history than the true one"
        return fate
    fate.wrong = goes_on(member, events)
    return fate


def goes_on(member: Member, before: list[Event]) -> str:
    """Write, restart, and look for the writes."""
    with Client(member.endpoint) as client:
        for number in range(8):
            reply = client.raw(
                PUT.path, pb.PutRequest(key=b"on%d" % number).SerializeToString(), timeout=5.0
            )
            if not reply.ok:
                return f"it takes no writes: {reply.code} {reply.details}"
    member.kill()
    try:
        member.start()
    except MemberExited as error:
        return f"it does not start a second time: {error}"
    with Client(member.endpoint) as client:
        last = client.call(RANGE, key=b"x").header.revision
    after = read_log(member.endpoint, last)
    if after[: len(before)] != before or len(after) != len(before) + 8:
        return f"{len(after)} events after 8 writes on top of {len(before)}"
    return "; ".join(replay(Model(), after))


def pick(damage: Damage, config: pytest.Config) -> None:
    if damage.name not in SHORT and not config.getoption("crash_long"):
        pytest.skip("one of many: --crash-long")


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name.replace(" ", "-"))
def test_both_repair_or_both_refuse(
    members: MemberFactory,
    masters: Masters,
    reference: Binaries,
    kvorum: Path,
    damage: Damage,
    seed: int,
    pytestconfig: pytest.Config,
) -> None:
    pick(damage, pytestconfig)
    print(f"--crash-seed {seed}")
    fates = []
    for binary in (reference.etcd, kvorum):
        master = masters.get(binary, behind=True)
        fates.append(fate_of(damaged(members, master, damage, seed), master))
    old, new = fates
    print(f"reference: {describe(old)}\ntested: {describe(new)}")
    assert new.wrong == ""
    assert new.state in allowed(old, damage)
    check_fate(new, damage, masters.get(kvorum, behind=True))


def allowed(old: Fate, damage: Damage) -> set[str]:
    """The reference's own fate; but where it hangs, refusing is right."""
    if damage.name == "junk length word":
        return {"serves", "refuses"}  # since 3.6 a length beyond the file is a torn end
    return {"refuses"} if old.state == "hangs" else {old.state}


def check_fate(fate: Fate, damage: Damage, master: Master) -> None:
    if fate.state == "serves":
        if damage.keeps:
            assert fate.events == len(master.events), "acknowledged writes are gone"
        return
    assert fate.exit_code not in (0, None)
    assert '"level":"fatal"' in fate.log or '"level":"panic"' in fate.log, fate.log
    assert "Traceback" not in fate.log, fate.log


def describe(fate: Fate) -> str:
    if fate.state == "serves":
        return f"serves {fate.events} events {fate.wrong}"
    lines = fate.log.strip().splitlines() or [""]
    return f"{fate.state}, exit code {fate.exit_code}: {lines[-1][:300]}"


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name.replace(" ", "-"))
def test_a_log_older_than_the_database_is_never_trusted(
    members: MemberFactory,
    masters: Masters,
    kvorum: Path,
    damage: Damage,
    seed: int,
    pytestconfig: pytest.Config,
) -> None:
    """The database has committed what the log has lost: whoever serves must not skip new writes."""
    pick(damage, pytestconfig)
    master = masters.get(kvorum, behind=False)
    fate = fate_of(damaged(members, master, damage, seed), master)
    print(f"--crash-seed {seed}: {describe(fate)}")
    assert fate.wrong == ""
    check_fate(fate, damage, master)


def test_the_examination_finds_a_false_history(
    members: MemberFactory, masters: Masters, reference: Binaries
) -> None:
    """A real server on a sound folder, held against a history that is not its own."""
    master = masters.get(reference.etcd, behind=True)
    other = list(master.events)
    other[20] = other[20]._replace(value=b"never written")
    false = Master(master.binary, master.folder, other)
    nothing = Damage("nothing", lambda log: None, keeps=True)
    fate = fate_of(damaged(members, master, nothing, 1), false)
    assert "another history" in fate.wrong
    assert fate_of(damaged(members, master, nothing, 1), master).wrong == ""


def test_a_killed_log_is_sound_to_an_independent_reader(masters: Masters, kvorum: Path) -> None:
    """Every frame and every CRC, and an entry for every acknowledged write."""
    master = masters.get(kvorum, behind=True)
    log = LogFile(sorted((master.folder / "data/member/wal").glob("*.wal"))[-1], random.Random(1))
    revisions = {event.revision for event in master.events}
    assert len(log.entries()) + 8 >= len(revisions)
