"""One server that a differential run talks to, and everything it said."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from differential.steps import Kind, Step
from differential.watches import Change, HistorySession, WatchFault, WatchSession
from support.member import Member
from support.rpc import (
    BY_PATH,
    COMPACT,
    KEEP_ALIVE_PATH,
    LEASE_GRANT,
    LEASE_REVOKE,
    PUT,
    RANGE,
    Client,
    Reply,
    RpcFailed,
)

from kvorum.pb import etcdserverpb as pb

WAIT_SECONDS = 15.0
_LOST = {"DEADLINE_EXCEEDED", "UNAVAILABLE"}  # no answer at all: no use in going on


class KeepAlives:
    """A lease keep-alive stream used as request and reply, reopened when it has ended."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._answers: queue.SimpleQueue[Reply] = queue.SimpleQueue()
        self._open()

    def _open(self) -> None:
        self._stream = self._client.stream(KEEP_ALIVE_PATH)
        self._stream.start(lambda body: self._answers.put(Reply(body)), self._answers.put)

    def ask(self, request: bytes) -> Reply:
        self._stream.send(request)
        answer = self._answers.get(timeout=WAIT_SECONDS)
        if not answer.ok:
            self._open()
        return answer

    def close(self) -> None:
        self._stream.close()


class Target:
    """Runs steps one after the other, keeps each step's reply and all watch sessions.

    ``newer``: the server follows 3.7. ``calls`` replaces the unary transport, for tests that
    plant faults.
    """

    def __init__(
        self,
        member: Member,
        *,
        newer: bool = False,
        calls: Callable[[Client, Step], Reply] | None = None,
    ) -> None:
        self.member = member
        self.newer = newer
        self.revision = 1
        self.compacted = 0
        self.fault: Reply | None = None
        self.closed_sessions: list[WatchSession] = []
        self._calls = calls or _plain_call
        self._connect([])

    def _connect(self, history: list[Change]) -> None:
        self.client = Client(self.member.endpoint).wait_connected()
        self.everything = HistorySession(self.client, history)
        self.sessions: dict[int, WatchSession] = {}
        self.keep_alives = KeepAlives(self.client)

    @property
    def all_sessions(self) -> list[WatchSession]:
        """Every watch stream so far, in an order that is the same on both servers."""
        return [self.everything, *self.closed_sessions, *self.sessions.values()]

    def run(self, steps: Sequence[Step]) -> list[Reply]:
        return [self.run_one(step) for step in steps]

    def run_one(self, step: Step) -> Reply:
        """A reply with code FAULT when the server broke a promise; all later ones are then, too."""
        if self.fault is None:
            try:
                if step.new_only and not self.newer:
                    return self._skip(step)
                return self._ACTIONS[step.kind](self, step)
            except (WatchFault, queue.Empty, RpcFailed) as fault:
                self.fault = Reply(b"", "FAULT", f"{type(fault).__name__} {fault}")
        return self.fault

    def _skip(self, step: Step) -> Reply:
        """A step that is not for this server. It has the stream all the same: sessions are paired
        by the order of their beginnings."""
        if step.kind is Kind.WATCH_CREATE:
            self.session(step.stream)
        return Reply(b"")

    def _call(self, step: Step) -> Reply:
        if step.path == COMPACT.path:
            self.settle()  # or it were chance whether a slow watch is cancelled
        reply = self._calls(self.client, step)
        if reply.code in _LOST:
            self.fault = Reply(b"", "FAULT", f"{reply.code}: {reply.details}")
        self._observe(step, reply)
        return reply

    def _observe(self, step: Step, reply: Reply) -> None:
        rpc = BY_PATH.get(step.path)
        if rpc is None or not reply.ok:
            return
        self.revision = max(self.revision, rpc.response.FromString(reply.body).header.revision)
        if rpc is COMPACT:
            self.compacted = max(self.compacted, step.parsed().revision)

    def session(self, number: int) -> WatchSession:
        session = self.sessions.get(number)
        if session is None or session.ended is not None:
            self._retire(number)
            session = self.sessions[number] = self.new_session()
        return session

    def new_session(self) -> WatchSession:
        return WatchSession(self.client, trust_progress=self.newer)

    def _retire(self, number: int) -> None:
        session = self.sessions.pop(number, None)
        if session is not None:
            session.close()
            self.closed_sessions.append(session)

    def _watch_create(self, step: Step) -> Reply:
        return self.session(step.stream).create(step.parsed(), self.compacted)

    def _watch_cancel(self, step: Step) -> Reply:
        session = self.session(step.stream)
        if step.watch_id in session.by_id:
            self._settle_history()
            session.settle(self.everything.history, step.watch_id)
        return session.cancel(step.parsed())

    def _watch_progress(self, step: Step) -> Reply:
        self.session(step.stream).send(step.parsed())
        return Reply(b"")

    def _watch_raw(self, step: Step) -> Reply:
        session = self.session(step.stream)
        self._settle_history()
        session.settle(self.everything.history)
        return session.send_raw(step.request)

    def _watch_close(self, step: Step) -> Reply:
        if step.stream in self.sessions:
            self._settle_history()
            self.sessions[step.stream].settle(self.everything.history)
            self._retire(step.stream)
        return Reply(b"")

    def _keep_alive(self, step: Step) -> Reply:
        return self.keep_alives.ask(step.request)

    def _grant_revoke(self, step: Step) -> Reply:
        """A grant whose id the server may choose; the lease is gone again afterwards."""
        granted = self.client.raw(LEASE_GRANT.path, step.request)
        if not granted.ok:
            return granted
        lease = pb.LeaseGrantResponse.FromString(granted.body)
        self.client.call(LEASE_REVOKE, ID=lease.ID)
        if step.parsed().ID == 0:
            lease.ID = 1 if lease.ID > 0 else -1
        return Reply(lease.SerializeToString())

    def _expire(self, step: Step) -> Reply:
        """Attach keys to a short lease and wait until its end has deleted them."""
        grant = step.parsed()
        self.client.call(LEASE_GRANT, TTL=grant.TTL, ID=grant.ID)
        for name in (b"c", b"a", b"b"):
            key = b"expire/%d/%s" % (grant.ID, name)
            put = self.client.call(PUT, key=key, value=name, lease=grant.ID)
        self.revision = put.header.revision + 1
        self._settle_history()
        return Reply(b"")

    def _barrier(self, step: Step) -> Reply:
        self.settle()
        return Reply(b"")

    def settle(self) -> None:
        """Wait until every open watch has everything up to the current revision."""
        self._settle_history()
        for session in list(self.sessions.values()):
            if session.ended is None:
                session.settle(self.everything.history)

    def _settle_history(self) -> None:
        self.everything.wait_revision(self.revision)

    _ACTIONS: ClassVar[dict[Kind, Callable[[Target, Step], Reply]]] = {
        Kind.CALL: _call,
        Kind.WATCH_CREATE: _watch_create,
        Kind.WATCH_CANCEL: _watch_cancel,
        Kind.WATCH_PROGRESS: _watch_progress,
        Kind.WATCH_RAW: _watch_raw,
        Kind.WATCH_CLOSE: _watch_close,
        Kind.KEEP_ALIVE: _keep_alive,
        Kind.GRANT_REVOKE: _grant_revoke,
        Kind.EXPIRE: _expire,
        Kind.BARRIER: _barrier,
    }

    def everything_now(self) -> Any:
        """All live pairs, for the generator's picture of the store and for final checks."""
        return self.client.call(RANGE, key=b"\0", range_end=b"\0")

    def restart(self) -> None:
        """A clean stop and start on the same folder; watches are cut off."""
        self.settle()
        history = self.everything.history
        for number in list(self.sessions):
            self._retire(number)
        self.everything.close()
        self.closed_sessions.append(self.everything)
        self.close()
        self.member.stop()
        self.member.start()
        self._connect(history)

    def close(self) -> None:
        for session in self.all_sessions:
            session.close()
        self.keep_alives.close()
        self.client.close()


def _plain_call(client: Client, step: Step) -> Reply:
    return client.raw(step.path, step.request)
