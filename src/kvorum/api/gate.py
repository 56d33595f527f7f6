"""What a member does not serve in the state it is in (etcd's interceptors).

A learner only answers what needs no part in consensus. A call whose client insists on a leader
(metadata ``hasleader: true``) is refused while there is none, and a stream of such a client ends
when there has been none for three election time-outs.

In the usual state none of this costs a call anything: the handlers of the methods are exchanged
when the state changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from google.protobuf.message import DecodeError

from kvorum import errors
from kvorum.errors import EtcdError
from kvorum.h2 import Call, Method
from kvorum.pb import etcdserverpb as pb
from kvorum.server.proposer import fail
from kvorum.server.server import Server

REQUIRE_LEADER: Final = ("hasleader", "true")
MAX_LEADERLESS: Final = 3
"""Election time-outs without a leader after which streams are ended."""

_RANGE: Final = "/etcdserverpb.KV/Range"
_FOR_LEARNERS: Final = frozenset(
    ("/etcdserverpb.Maintenance/Status", "/etcdserverpb.Maintenance/Snapshot")
)

Handler = Callable[..., Any]
Refusal = Callable[[Call], type[EtcdError] | None]


class Gate:
    """Stands before ``methods``. `update` is to be called when leader or members have changed."""

    def __init__(self, server: Server, methods: Mapping[str, Method]) -> None:
        self._server = server
        self._methods = methods
        self._open = {path: method.handler for path, method in methods.items()}
        self._streams: set[Call] = set()
        self._leaderless = 0
        self._timer: asyncio.TimerHandle | None = None
        for path, method in methods.items():
            if method.streaming:
                self._open[path] = self._noting(method.handler)

    def start(self) -> None:
        """Begin to look, and to listen for changes."""
        self._server.on_change.append(self.update)
        self.update()
        self._look_later()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def update(self) -> None:
        """Have the handlers in place that the state asks for."""
        learner = self._server.cluster.is_learner()
        leaderless = not self._server.raft.leader
        for path, method in self._methods.items():
            handler = self._open[path]
            if leaderless:
                handler = _refusing(handler, _without_leader)
            if learner and path == _RANGE:
                handler = _refusing_linearizable(handler)
            elif learner and path not in _FOR_LEARNERS:
                handler = _refusing(handler, _as_learner)
            method.handler = handler

    # Streams that end without a leader

    def _noting(self, handler: Handler) -> Handler:
        def note(call: Call) -> None:
            if REQUIRE_LEADER in call.metadata:
                self._streams.add(call)
            handler(call)

        return note

    def _look_later(self) -> None:
        seconds = self._server.config.election_timeout / 1000
        self._timer = self._server.loop.call_later(seconds, self._look)

    def _look(self) -> None:
        self._look_later()
        self._streams = {call for call in self._streams if not call.done}
        self._leaderless = 0 if self._server.raft.leader else self._leaderless + 1
        if self._leaderless < MAX_LEADERLESS:
            return
        streams, self._streams = self._streams, set()
        for call in streams:
            fail(call, errors.NoLeader)
            if call.on_cancel is not None:
                call.on_cancel()


def _as_learner(call: Call) -> type[EtcdError] | None:
    return errors.NotSupportedForLearner


def _without_leader(call: Call) -> type[EtcdError] | None:
    return errors.NoLeader if REQUIRE_LEADER in call.metadata else None


def _refusing(handler: Handler, refusal: Refusal) -> Handler:
    def refuse(call: Call, *message: bytes) -> None:
        error = refusal(call)
        if error is None:
            handler(call, *message)
        else:
            fail(call, error)

    return refuse


def _refusing_linearizable(handler: Handler) -> Handler:
    """Of a learner's ranges, let those through that may be out of date."""

    def refuse(call: Call, message: bytes) -> None:
        try:
            serializable = pb.RangeRequest.FromString(message).serializable
        except DecodeError:
            serializable = True  # the handler says what is wrong with it
        if serializable:
            handler(call, message)
        else:
            fail(call, errors.NotSupportedForLearner)

    return refuse
