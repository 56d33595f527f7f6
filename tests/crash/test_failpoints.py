"""A panic at each named point of the server, under load; then nothing may be lost or halved."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from crash.harness import CrashRun
from crash.history import Recorder
from crash.workload import Epoch, Mind, make_minds
from support.failpoints import Failpoints
from support.member import MemberFactory
from support.need import allow, need
from support.rpc import LEASE_TTL, Client
from support.seeds import fresh_seed

FLAGS = ["--log-level=warn", "--snapshot-count=60"]
FIRE_SECONDS = 20.0

# What has to go on so that the point is reached.
UNDER_LOAD = [
    "raftBeforeSave",
    "raftAfterSave",
    "raftBeforeLeaderSend",
    "raftBeforeAdvance",
    "raftBeforeSaveSnap",
    "raftAfterSaveSnap",
    "raftAfterWALRelease",
    "raftBeforeWALSaveSnaphot",
    "walBeforeSync",
    "walAfterSync",
    "beforeCommit",
    "afterCommit",
    "beforeStartDBTxn",
    "afterStartDBTxn",
    "beforeWritebackBuf",
    "afterWritebackBuf",
    "commitBeforePreCommitHook",
    "commitAfterPreCommitHook",
    "beforeApplyOneEntryNormal",
    "beforeSendWatchResponse",
    "beforeLookupWhenLeaseTimeToLive",
    "beforeRangeStreamChunk",
]
COMPACTING = [
    "compactBeforeSetFinishedCompact",
    "compactAfterSetFinishedCompact",
    "compactBeforeCommitBatch",
    "compactAfterCommitBatch",
    "compactAfterAcquiredBatchTxLock",
    "compactBeforeCommitScheduledCompact",
    "compactAfterCommitScheduledCompact",
]
DEFRAGMENTING = ["defragBeforeCopy", "defragBeforeRename"]
STARTING = ["beforeApplyOneConfChange", "beforePublishing"]

# Not reached by a single member: the points of followers, of snapshots received from others, of
# leases asked for by others; and the points that return an error instead of ending the process.
ELSEWHERE = {
    "raftBeforeFollowerSend",
    "raftDropHeartbeat",
    "raftBeforeApplySnap",
    "raftAfterApplySnap",
    "applyBeforeOpenSnapshot",
    "applyAfterOpenSnapshot",
    "afterIsMemberExist",
    "beforeCheckpointInLeaseRenew",
    "beforeLookupWhenForwardLeaseTimeToLive",
    "beforeServeHTTPLeaseRenew",
    "defragOpenFileError",
    "defragdbFail",
}
SHORT = {"raftBeforeSave", "commitAfterPreCommitHook", "compactBeforeSetFinishedCompact"}


@pytest.fixture
def seed(pytestconfig: pytest.Config) -> int:
    return pytestconfig.getoption("crash_seed") or fresh_seed()


def only_if_asked(name: str, config: pytest.Config) -> None:
    if name not in SHORT and not config.getoption("crash_long"):
        pytest.skip("one of many: --crash-long")


@pytest.mark.parametrize("name", [*UNDER_LOAD, *COMPACTING, *DEFRAGMENTING])
def test_a_panic_under_load_loses_nothing(
    members: MemberFactory, kvorum: Path, seed: int, name: str, pytestconfig: pytest.Config
) -> None:
    only_if_asked(name, pytestconfig)
    print(f"--crash-seed {seed}")
    member = members(kvorum, flags=FLAGS)
    points = Failpoints(member)
    member.start()
    allow(name in points.known(), f"the server has no failpoint {name}")
    run = CrashRun(member, seed, minds_for(name, seed))
    if name in COMPACTING:
        run.cycle(run.kill)  # so that there is something to compact

    def panic(epoch: Epoch) -> None:
        assert epoch.recorder.wait_acks(run.rng.randint(20, 120), FIRE_SECONDS)
        points.set(name, "panic")
        provoke(name, member.endpoint)
        assert member.wait_exit(timeout=FIRE_SECONDS) != 0
        assert "panic" in member.log_text(), "the log does not say why"

    run.cycle(panic)


def minds_for(name: str, seed: int) -> dict[str, Mind]:
    minds = make_minds(seed, compacting=name in COMPACTING)
    if name in DEFRAGMENTING:
        minds["defrag1"] = Mind("defrag1", random.Random(seed))
    return minds


def provoke(name: str, endpoint: str) -> None:
    """Requests that the load does not make."""
    with Client(endpoint) as client:
        if name == "beforeLookupWhenLeaseTimeToLive":
            client.raw(LEASE_TTL.path, LEASE_TTL.request(ID=1).SerializeToString(), timeout=5.0)
        elif name == "beforeRangeStreamChunk":
            client.raw("/etcdserverpb.KV/RangeStream", b"\x0a\x01\0\x12\x01\0", timeout=5.0)


@pytest.mark.parametrize("name", STARTING)
def test_a_panic_at_the_first_start_leaves_a_usable_folder(
    members: MemberFactory, kvorum: Path, seed: int, name: str, pytestconfig: pytest.Config
) -> None:
    only_if_asked(name, pytestconfig)
    member = members(kvorum, flags=FLAGS)
    points = Failpoints(member)
    member.start()
    allow(name in points.known(), f"the server has no failpoint {name}")
    member.stop()
    fresh = members(kvorum, flags=FLAGS)
    fresh.spawn({"GOFAIL_FAILPOINTS": f"{full_name(points, name)}=panic"})
    try:
        assert fresh.wait_exit(timeout=FIRE_SECONDS) != 0
    except subprocess.TimeoutExpired:
        pytest.fail(f"{name} never fired")
    run = CrashRun(fresh.start(), seed)
    run.verify(Recorder())
    run.cycle(run.kill)


def full_name(points: Failpoints, name: str) -> str:
    return points.names.get(name, name)


def test_the_points_are_all_accounted_for(members: MemberFactory, kvorum: Path) -> None:
    """Every point that the server has is tried above, or named with a reason not to."""
    member = members(kvorum, flags=FLAGS)
    points = Failpoints(member)
    member.start()
    known = points.known()
    need(bool(known), "the server has no failpoints")
    tried = {*UNDER_LOAD, *COMPACTING, *DEFRAGMENTING, *STARTING}
    assert known <= tried | ELSEWHERE
