"""Which calls are let in at all: what a learner may be asked, and calls that want a leader.

Methods are refused by other handlers in their place, for as long as there is a reason; so that a
voter of a cluster with a leader, which is the usual case, pays nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from google.protobuf.message import DecodeError

from kvorum import errors
from kvorum.h2 import Call, Method
from kvorum.pb import etcdserverpb as pb
from kvorum.server.proposer import fail
from kvorum.server.server import Server

PATIENCE: Final = 3
"""Election time-outs without a leader after which streams that want one are ended, as in etcd."""

_RANGE: Final = "/etcdserverpb.KV/Range"
_OPEN_TO_LEARNERS: Final = frozenset(
    {"/etcdserverpb.Maintenance/Status", "/etcdserverpb.Maintenance/Snapshot"}
)
_WANTS_LEADER: Final = ("hasleader", "true")

Handler = Callable[..., Any]


class Admission:
    """Stands before the methods of a server from when it is made."""

    def __init__(self, server: Server, methods: Mapping[str, Method]) -> None:
        self._server = server
        self._methods = methods
        self._streams: set[Call] = set()
        self._real: dict[str, Handler] = {}
        self._looks_without_leader = 0
        for path, method in methods.items():
            self._real[path] = self._listed(method.handler) if method.streaming else method.handler
        self._choose()
        server.leadership.on_change.append(self._choose)
        server.every(server.config.election_timeout / 1000, self.look)

    # Choosing handlers

    def _choose(self) -> None:
        """To be called when there is another leader, or none, and when the member list changes."""
        learner = self._server.cluster.is_learner()
        leaderless = not self._server.raft.leader
        for path, method in self._methods.items():
            handler = self._real[path]
            if leaderless:
                handler = _leader_wanted(handler)
            if learner and path not in _OPEN_TO_LEARNERS:
                handler = _serializable(handler) if path == _RANGE else _refuse_learner
            method.handler = handler

    # Streams

    def _listed(self, handler: Handler) -> Handler:
        """Remember a stream that wants a leader, as the leader may be lost while it lasts."""

        def note(call: Call) -> None:
            if _WANTS_LEADER in call.metadata:
                self._streams.add(call)
            handler(call)

        return note

    def look(self) -> None:
        """End the streams that want a leader, if there was none for too long. To be called every
        election time-out."""
        self._streams = {call for call in self._streams if not call.done}
        if self._server.raft.leader:
            self._looks_without_leader = 0
            return
        self._looks_without_leader += 1
        if self._looks_without_leader < PATIENCE:
            return
        streams, self._streams = self._streams, set()
        for call in streams:
            fail(call, errors.NoLeader)
            if call.on_cancel is not None:
                call.on_cancel()


def _serializable(handler: Handler) -> Handler:
    """A learner shows what it has, but does not say that it is the newest."""

    def check(call: Call, message: bytes) -> None:
        try:
            allowed = pb.RangeRequest.FromString(message).serializable
        except DecodeError:
            allowed = True  # the handler will say what is wrong with it
        if allowed:
            handler(call, message)
        else:
            _refuse_learner(call)

    return check


def _refuse_learner(call: Call, message: bytes = b"") -> None:
    fail(call, errors.NotSupportedForLearner)


def _leader_wanted(handler: Handler) -> Handler:
    def check(call: Call, *message: bytes) -> None:
        if _WANTS_LEADER in call.metadata:
            fail(call, errors.NoLeader)
        else:
            handler(call, *message)

    return check
