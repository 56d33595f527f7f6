"""One member's server: owns every part, connects them, starts and stops them."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack, suppress
from random import Random
from typing import Any, Final

from kvorum import errors
from kvorum.alarm import AlarmStore
from kvorum.backend import BackendError
from kvorum.config import ServerConfig, compaction_retention
from kvorum.errors import Code, EtcdError
from kvorum.lease.lessor import Lessor, LessorLimits
from kvorum.log import get_logger
from kvorum.membership import Version, parse_version
from kvorum.mvcc.store import Store
from kvorum.mvcc.watch import WatchHub, WatchLimits
from kvorum.mvcc.watch_source import StoreHistory
from kvorum.pb import etcdserverpb as pb
from kvorum.peer.http_client import HttpClient
from kvorum.peer.interface import MakeTransport, Transport
from kvorum.raft.config import Config as RaftConfig
from kvorum.raft.rawnode import RawNode
from kvorum.raft.types import NONE, ConfState, Message, Snapshot
from kvorum.server.alone import Alone
from kvorum.server.applier import Applier
from kvorum.server.autocompact import AutoCompactor
from kvorum.server.bootstrap.booted import Booted
from kvorum.server.cluster.blame import Blame
from kvorum.server.cluster.checked import corruption_checks
from kvorum.server.cluster.firstticks import skip_first_ticks
from kvorum.server.cluster.handover import hand_over
from kvorum.server.cluster.heartbeats import HeartbeatWatch
from kvorum.server.cluster.host import PeerHost
from kvorum.server.cluster.peerlist import PeerList
from kvorum.server.cluster.sending import SnapshotSender
from kvorum.server.cluster.to_leader import Requests
from kvorum.server.cluster.together import Together
from kvorum.server.compaction import Compactions
from kvorum.server.confchange import Change
from kvorum.server.diskthread import Disk, DiskThread
from kvorum.server.errors import BadDataDirectory, MemberRemoved
from kvorum.server.expiry import INTERVAL as EXPIRY_INTERVAL
from kvorum.server.expiry import LeaseExpiry
from kvorum.server.header import HeaderWriter
from kvorum.server.install import SnapshotInstaller
from kvorum.server.kernelsync import KernelSync
from kvorum.server.logwriter import LogWriter
from kvorum.server.meta import (
    read_applied,
    write_applied,
    write_conf_state,
)
from kvorum.server.metrics import ServerMetrics
from kvorum.server.proposer import Caller, Ignored, Proposer, Told, fail
from kvorum.server.publisher import Publisher
from kvorum.server.quota import Quota
from kvorum.server.raftlog import RaftLog
from kvorum.server.raftnode import RaftNode
from kvorum.server.reads import ReadGate
from kvorum.server.request import RequestIds
from kvorum.server.snapshotter import MEMORY_COUNT, PURGE_INTERVAL, SnapshotTaker
from kvorum.telemetry import Telemetry
from kvorum.types import Index, MemberID, Revision, Term
from kvorum.wal import WALError, WriteTimes

SWEEP_INTERVAL: Final = 0.5
MAX_UNCOMMITTED: Final = 500_000
"""Operations that the backend may have in memory only, while its disk is slower than the log's."""
LEAVE_SECONDS: Final = 1.0
"""How long a member goes on after it has learnt that it was removed, as in etcd."""
MAX_APPEND_BYTES: Final = 64 * 1024
"""Of the entries in one message, unless a single one is longer: what a turn of the loop encodes."""
MAX_APPLIED_BYTES: Final = 1024 * 1024
"""Of the entries that are applied in one go."""
MAX_INFLIGHT_BYTES: Final = 4 * 1024 * 1024
"""Of log entries on their way to a follower: more would only fill the queues of a slow one."""
GRPC_OVERHEAD: Final = 512 * 1024
"""Bytes by which a gRPC message may exceed ``--max-request-bytes``, as in etcd."""

lg = get_logger()


class Server:
    """A member without its listeners. Made on a running loop; `start` begins to serve, `ready` is
    set once the cluster knows this member, `failure` gets the reason if it cannot go on.
    """

    def __init__(
        self,
        config: ServerConfig,
        telemetry: Telemetry,
        booted: Booted,
        *,
        make_transport: MakeTransport | None = None,
        disk: Disk | None = None,
        chance: Random | None = None,
        unix_time: Callable[[], float] = time.time,
        http: Requests | None = None,
    ) -> None:
        """Put the parts together. The files of ``booted`` belong to the server from here on.

        Args:
            make_transport: how it speaks with other members; without, it speaks with nobody.
            disk: the thread for what blocks on the log's files.
            chance: spreads elections.
            unix_time: seconds since 1970.
            http: how it asks other members; without, by a client of its own.

        Raises:
            StartError, WALError, BackendError: the data directory cannot be used.
        """
        self.config = config
        self.telemetry = telemetry
        self.loop = asyncio.get_running_loop()
        self.ready = asyncio.Event()
        self.failure: asyncio.Future[BaseException] = self.loop.create_future()
        self._wal = booted.wal
        self._disk = LogWriter(
            booted.wal,
            disk or DiskThread("kvorum-wal", self.loop),
            kernel=None if config.unsafe_no_fsync else KernelSync.open(self.loop),
            loop=self.loop,
        )
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._frozen = (Index(0), Term(0), ConfState())
        self._frozen_after = 0
        self._stopping = False
        self._known_leader = NONE
        self.on_change: list[Callable[[], None]] = []
        """Called when there is another leader, or none, and when the members have changed."""
        self.id: MemberID = booted.member
        self.cluster = booted.cluster
        self.backend = booted.backend
        self._metrics = ServerMetrics(telemetry, config.warning_apply_duration)
        self._own_http = HttpClient() if http is None else None
        self.http: Requests = self._own_http or http  # type: ignore[assignment]
        with self._files() as files:
            self._build_state(booted)
            self._build_consensus(booted, chance or Random(os.urandom(16)), unix_time)
            self._build_peers(booted, make_transport)
            self._build_upkeep(booted)
            self._build_together(booted, unix_time)
            files.pop_all()

    def _files(self) -> ExitStack:
        """Lets go of the threads and files when it is left, each one whatever the others do."""
        files = ExitStack()
        files.callback(self.backend.close)
        files.callback(self._wal.close)
        files.callback(self._disk.close)
        return files

    def _build_state(self, booted: Booted) -> None:
        """What entries are applied to: store, leases, alarms."""
        config = self.config
        backend = self.backend
        self.lessor = Lessor(
            lambda key, value: backend.put("lease", key, value),
            lambda key: backend.delete("lease", key),
            limits=LessorLimits(min_ttl=_min_ttl(config)),
            checkpoints=config.feature_gates.enabled("LeaseCheckpoint"),
            persist=self._persists_checkpoints,
            metrics=self.telemetry.lease,
        )
        self.lessor.restore(value for _, value in backend.range("lease", b"", None))
        self.store = Store(backend, self.lessor)
        self.store.restore()
        self.alarms = AlarmStore(self.backend)
        self.alarms.restore()
        self.quota = Quota(self.backend, config.quota_backend_bytes)
        self.header = HeaderWriter(self.cluster.id, self.id)
        self.hub = WatchHub(
            StoreHistory(self.store),
            self.header.field,
            limits=WatchLimits(
                fragment_bytes=config.max_request_bytes + GRPC_OVERHEAD,
                progress_interval=config.watch_progress_notify_interval,
            ),
            metrics=self.telemetry.mvcc,
            wake=self._wake_watches,
            now=self.loop.time(),
        )

    def _build_consensus(
        self, booted: Booted, chance: Random, unix_time: Callable[[], float]
    ) -> None:
        """The write path and the read path."""
        config, loop = self.config, self.loop
        self.proposer = Proposer(
            RequestIds(self.id, int(unix_time() * 1000)),
            max_request_bytes=config.max_request_bytes,
            wake=lambda: self.raft.wake(),
            clock=loop.time,
        )
        self.reads = ReadGate(
            next_id=self.proposer.ids.next,
            ask=lambda context: self.raft.ask_read_index(context),
            wake=lambda: self.raft.wake(),
            clock=loop.time,
        )
        self.applier = Applier(
            store=self.store,
            lessor=self.lessor,
            alarms=self.alarms,
            cluster=self.cluster,
            quota=self.quota,
            header=self.header,
            proposer=self.proposer,
            observer=self,
        )
        self.applier.index, self.applier.term = booted.applied, booted.term
        self.applier.conf_state = booted.storage.initial_state()[1]
        node = RawNode(
            RaftConfig(
                id=self.id,
                storage=booted.storage,
                applied=booted.applied,
                election_tick=config.election_ticks,
                async_storage_writes=True,
                max_size_per_msg=MAX_APPEND_BYTES,
                max_committed_size_per_ready=MAX_APPLIED_BYTES,
                max_inflight_bytes=MAX_INFLIGHT_BYTES,
                check_quorum=True,
                pre_vote=config.pre_vote,
                logger=RaftLog(lg.bind(logger="raft")),
                rng=chance,
            )
        )
        self.raft = RaftNode(
            member=self.id,
            node=node,
            storage=booted.storage,
            wal=booted.wal,
            writer=self._disk,
            applier=self.applier,
            proposer=self.proposer,
            reads=self.reads,
            observer=self,
            transport=Alone(),
            loop=loop,
        )

    def _build_peers(self, booted: Booted, make_transport: MakeTransport | None) -> None:
        """What this member has to do with others."""
        config, loop = self.config, self.loop
        files = booted.snapshots
        self._remotes = booted.remotes
        self._peers = PeerList(self.cluster, lambda: self.transport)
        self._heartbeats = HeartbeatWatch(
            config.tick, loop.time, self.telemetry.server.late_heartbeats
        )
        self._blame = Blame(self.raft, self.cluster, config.election_timeout / 1000)
        self._sender = SnapshotSender(
            member=self.id,
            cluster_id=self.cluster.id,
            backend=self.backend,
            loop=loop,
        )
        self._installer = SnapshotInstaller(
            files=files,
            backend=self.backend,
            loop=loop,
            restore=self._take_over,
            done=self.raft.installed,
            failed=self.failed,
            in_progress=self.telemetry.server.snapshot_applying,
        )
        self.host = PeerHost(
            member=self.id,
            cluster=self.cluster,
            raft=self.raft,
            installer=self._installer,
            sender=self._sender,
            directory=files.directory,
            gone=self._leave,
        )
        if make_transport is not None:
            self.raft.transport = make_transport(self.host)

    @property
    def transport(self) -> Transport:
        return self.raft.transport

    def _build_upkeep(self, booted: Booted) -> None:
        """What goes on beside the requests."""
        config, loop = self.config, self.loop
        self.backend.pre_commit = self._before_commit
        self.backend.on_commit = self._after_commit
        self.backend.on_fatal = self.failed
        self.backend.observe = self._metrics.observed
        self.compactions = Compactions(
            self.store,
            batch_limit=config.compaction_batch_limit,
            pause=config.compaction_sleep_interval,
            loop=loop,
            failed=self.failed,
        )
        self.expiry = LeaseExpiry(
            self.lessor, self.proposer, checkpoints=config.feature_gates.enabled("LeaseCheckpoint")
        )
        self.telemetry.lease.expired.follow(lambda: self.expiry.expired)
        self._snapshotter = SnapshotTaker(
            files=booted.snapshots,
            wal=booted.wal,
            disk=self._disk,
            raft=self.raft,
            storage=booted.storage,
            cluster=self.cluster,
            count=config.snapshot_count,
            keep=config.snapshot_catchup_entries,
            last=booted.snapshot_index,
            failed=self.failed,
            holding=lambda: self._sender.holds_log,
        )
        self._publisher = Publisher(
            member=self.id,
            name=config.name,
            client_urls=tuple(str(url) for url in config.advertise_client_urls),
            cluster=self.cluster,
            proposer=self.proposer,
            ready=self.ready.set,
        )
        self._autocompactor = AutoCompactor.of(
            config.auto_compaction_mode, compaction_retention(config), self
        )

    def _build_together(self, booted: Booted, unix_time: Callable[[], float]) -> None:
        """What the members ask of each other."""
        together = self._together = Together(
            self,
            backend=self.backend,
            http=self.http,
            metrics=self.telemetry.server,
            spawn=self._run_task,
            log=lambda: self._snapshotter.entries_since(booted.storage),
            take_snapshot=self._snapshotter.force,
            unix_time=unix_time,
        )
        self.leadership, self.catch_up = together.leadership, together.catch_up
        self.members, self.leases = together.members, together.leases
        self.downgrades = together.downgrades
        self.corruption = corruption_checks(self)

    @property
    def storage_version(self) -> str:
        """The version of what is on disk, "" if it cannot be told."""
        return self._together.storage_version()

    # Starting and stopping

    def start(self) -> None:
        """Replay what the backend does not hold yet, take part in consensus, begin the upkeep."""
        self._peers.meet((*self._remotes, *self.cluster.others()))
        self.raft.start()
        if self.id in self.cluster.removed:
            self._leave_soon()
        others = self.applier.conf_state.voters != (self.id,)
        if others and self.config.initial_election_tick_advance:
            ticks = self.config.election_ticks
            self._run_task(skip_first_ticks(self.raft, self.cluster, ticks))
        if self.store.compactions:
            self.compactions.start()
        self.every(self.config.tick, self._tick)
        self.every(SWEEP_INTERVAL, self._sweep)
        self.every(EXPIRY_INTERVAL, self._together.expire_leases)
        for interval, chore in self._together.chores():
            self.every(interval, chore)
        self.every(PURGE_INTERVAL, self._purge)
        self.every(1.0, lambda: self.hub.tick(self.loop.time()))
        if self._autocompactor is not None:
            self.every(self._autocompactor.interval, self._autocompactor.check)
        self.corruption.start(self._run_task)

    def every(self, seconds: float, work: Callable[[], None]) -> None:
        """Call ``work`` at an interval; a call that was late does not make the next ones early."""
        name = repr(work)

        def call() -> None:
            self._timers[name] = self.loop.call_later(seconds, call)
            work()

        self._timers[name] = self.loop.call_later(seconds, call)

    async def stop(self) -> None:
        """Refuse what is waiting, bring everything to disk, and let the files go.

        Raises:
            WALError, BackendError: not everything came to disk; the files were let go.
        """
        if self._stopping:
            return
        self._stopping = True
        self.proposer.close(errors.Stopped)
        self.reads.close(errors.Stopped)
        if not self.failure.done():
            await hand_over(
                self.raft,
                self.cluster,
                self.loop,
                tick=self.config.tick,
                patience=2 * self.config.election_timeout / 1000,
            )
        for timer in self._timers.values():
            timer.cancel()
        self.raft.stop()
        await self.transport.close()
        await self._installer.stop()
        await self.compactions.stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._own_http is not None:
            await self._own_http.close()
        if self.failure.done():
            with suppress(WALError, BackendError):  # what is wrong with them was reported
                self._files().close()
        else:
            with self._files():
                self.raft.log_state()
                self._disk.close()
                await self.backend.commit()

    def failed(self, error: BaseException) -> None:
        """Something happened after which nothing may be acknowledged any more."""
        if not self.failure.done():
            lg.error("the member cannot go on", error=str(error))
            self._refuse_all()
            self.failure.set_result(error)
            self.backend.refuse_commits(error)

    def _refuse_all(self) -> None:
        """Take part in nothing any more."""
        self.proposer.close(errors.Stopped)
        self.reads.close(errors.Stopped)
        self.raft.stop()

    def _leave_soon(self) -> None:
        """This member was removed. For a moment it goes on, so that the others learn from it that
        they may go on without it."""
        lg.info("removed from the cluster", local_member_id=f"{self.id:x}")
        self._timers["leave"] = self.loop.call_later(LEAVE_SECONDS, self._leave)

    def _leave(self) -> None:
        """This member was removed, and stops."""
        if not self.failure.done():
            error = MemberRemoved()
            lg.warn("server error", error=str(error))
            lg.warn("data-dir used by this member must be removed")
            self._refuse_all()
            self.failure.set_result(error)

    # What the driver of consensus reports

    def leader_changed(self, leader: MemberID, *, is_leader: bool, term: Term) -> None:
        self.header.set_term(term)
        if leader != self._known_leader:
            self._known_leader = leader
            self._heartbeats.reset()
            if leader:
                self._metrics.leader_changed()
            if is_leader:
                self._blame.elected(self.now())
            self._changed()
        if not is_leader and self.lessor.primary:
            self.lessor.demote()
        if leader:
            self._publisher.attempt()
        self._together.leader_changed(is_leader=is_leader)

    def term_begun(self, term: Term) -> None:
        """A leader's first entry was applied. If it is our own, all entries of former terms were
        applied too, and from here on time passes for the leases."""
        leads = self.raft.is_leader and term == self.raft.term
        if leads and not self.lessor.primary:  # raft may put an empty entry in another's place
            self.lessor.promote(self.now(), self.config.election_timeout / 1000)

    def membership_changed(self, change: Change) -> None:
        """The member list is another."""
        self._together.membership_changed()
        self._peers.changed(change)
        self._changed()
        if change.kind == "remove" and change.member == self.id:
            self._leave_soon()

    def _changed(self) -> None:
        for tell in self.on_change:
            tell()

    def version_changed(self, before: Version | None, after: Version | None) -> None:
        """The cluster version is another."""
        self._together.version_changed(before, after)

    def applied(self, counts: dict[str, int], seconds: float) -> None:
        """A batch was applied: show it to those who watch, and start what it made necessary."""
        store = self.store
        self._metrics.applied(counts, seconds)
        self.proposer.crowded = self.backend.pending_ops > MAX_UNCOMMITTED
        if self.applier.index - self._frozen[0] >= MEMORY_COUNT:
            # They may all have changed nothing, but the log is cut at commits only.
            self.backend.commit_later()
        if store.changes:
            changes, store.changes = store.changes, []
            self.hub.notify(changes)
        if store.compactions and not self.compactions.running:
            self.compactions.start()
        self._together.applied()

    def logged(self, times: WriteTimes, size: int) -> None:
        disk = self.telemetry.disk
        disk.wal_write.observe(times.write)
        disk.wal_fsync.observe(times.sync)
        disk.wal_bytes.value += size
        self._sender.logged_bytes += size

    def sending(self, messages: Sequence[Message]) -> None:
        if self.raft.is_leader:
            self._heartbeats.sending(messages)

    def receiving_snapshot(self, snapshot: Snapshot) -> None:
        self._snapshotter.received(snapshot.metadata.index)

    def save_snapshot(self, snapshot: Snapshot) -> None:
        self._snapshotter.files.save(snapshot)

    def install_snapshot(self, snapshot: Snapshot) -> None:
        self._installer.install(snapshot)

    def _take_over(self, snapshot: Snapshot) -> None:
        """The backend has the content of a snapshot of the leader: all else follows it.

        Raises:
            BadDataDirectory: it is not the content that the snapshot promises.
        """
        meta = snapshot.metadata
        index, term = read_applied(self.backend)
        if index < meta.index:
            raise BadDataDirectory(
                f"the database of the snapshot at entry {meta.index} ends at entry {index}"
            )
        self.applier.take_over(index, term, meta.conf_state)
        self.lessor.restore(value for _, value in self.backend.range("lease", b"", None))
        self.store.restore()
        self.hub.restore()
        self.alarms.restore()
        self.applier.load_alarms()
        self._take_over_cluster()
        self.quota.freeze()
        self.quota.refresh()

    def _take_over_cluster(self) -> None:
        before = list(self.cluster.members)
        version = parse_version(self.cluster.version)
        self.cluster.restore()
        self._peers.replaced(before)
        self._together.membership_changed()
        self._changed()
        self.version_changed(version, parse_version(self.cluster.version))

    def _persists_checkpoints(self) -> bool:
        """Members before 3.6 store no checkpoints, and all members must store the same."""
        version = tuple(int(part) for part in (self.cluster.version or "0").split("."))
        gate = self.config.feature_gates.enabled("LeaseCheckpointPersist")
        return gate or version >= (3, 6)

    def _wake_watches(self) -> None:
        self.loop.call_soon(self._sync_watches)

    def _sync_watches(self) -> None:
        if self.hub.sync_step():
            self._wake_watches()

    # The backend's commits

    def _before_commit(self) -> None:
        self.quota.freeze()
        if self._installer.busy:
            return  # nothing is applied now, and the content may be that of the snapshot already
        applier = self.applier
        self._frozen = (applier.index, applier.term, applier.conf_state)
        self._frozen_after = self.backend.commits
        if applier.index:
            write_applied(self.backend, applier.index, applier.term)
        if applier.conf_changed:
            write_conf_state(self.backend, applier.conf_state)
            applier.conf_changed = False

    def _after_commit(self) -> None:
        self.proposer.crowded = False
        self.quota.refresh()
        if self._installer.busy:
            return
        if self.backend.commits > self._frozen_after:  # else the next one is under way already
            index, term, conf_state = self._frozen
            self._snapshotter.committed(index, term, conf_state)

    # Upkeep

    def _tick(self) -> None:
        self.leadership.ticked()
        self.raft.tick()
        self.reads.expire(self.loop.time(), self.config.request_timeout)

    def _sweep(self) -> None:
        now = self.loop.time()
        self.proposer.expire(now - self.config.request_timeout, self._blame.late)
        if self.raft.leader:
            self._publisher.attempt()

    def _purge(self) -> None:
        self._snapshotter.purge(self.config.max_snapshots, self.config.max_wals)

    # What the API asks for

    def now(self) -> float:
        """Monotonic seconds."""
        return self.loop.time()

    def revision(self) -> Revision:
        return self.store.rev

    def is_leader(self) -> bool:
        return self.raft.is_leader

    def compact(self, revision: Revision, done: Callable[[str], None]) -> None:
        """Propose a compaction; ``done`` gets the error, or "" if there was none."""
        request = pb.CompactionRequest(revision=revision)
        self.proposer.propose("compaction", request.SerializeToString(), request, Told(done))

    def raise_no_space(self) -> None:
        """Propose the NOSPACE alarm of this member."""
        request = pb.AlarmRequest(
            memberID=self.id, action=pb.AlarmRequest.ACTIVATE, alarm=pb.NOSPACE
        )
        self.proposer.propose("alarm", request.SerializeToString(), request, Ignored())

    async def defragment(self) -> None:
        """Give the free pages of the database back, while requests go on."""
        lg.info("starting defragment")
        await self.backend.defrag()
        self.quota.refresh()
        lg.info("finished defragment")

    def run(self, caller: Caller, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Carry out a request that takes its time, and tell the caller if it fails."""

        async def guarded() -> None:
            try:
                await work
            except EtcdError as error:
                fail(caller, error)
            except Exception as error:
                lg.warn("failed to carry out a request", error=repr(error))
                caller.fail(Code.UNKNOWN, str(error))

        return self._run_task(guarded())

    def _run_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _min_ttl(config: ServerConfig) -> int:
    """Seconds: one and a half elections, in whole ticks."""
    return math.ceil(3 * config.election_ticks // 2 * config.heartbeat_interval / 1000)
