"""One step of a differential run: what is sent, to which method, over which stream."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

from support.rpc import BY_PATH, KEEP_ALIVE_PATH, WATCH_PATH, Reply

from kvorum.pb import etcdserverpb as pb


class Kind(Enum):
    """What a step does. Every kind but CALL is a small procedure of the target's."""

    CALL = "call"
    WATCH_CREATE = "watch create"
    WATCH_CANCEL = "watch cancel"
    WATCH_PROGRESS = "watch progress"
    WATCH_RAW = "watch raw bytes"
    WATCH_CLOSE = "close watch stream"
    KEEP_ALIVE = "keep alive"
    GRANT_REVOKE = "grant and revoke"
    EXPIRE = "let a lease expire"
    BARRIER = "wait for all watches"


@dataclass(frozen=True, slots=True)
class Step:
    """A request and where it goes.

    ``new_only``: etcd 3.5 must not get it, because it would crash on it or answers in its own way;
    the reply that newer releases must give is then in ``expected``. The reason is named in
    ``differences.py``.
    """

    kind: Kind
    path: str = ""
    request: bytes = b""
    stream: int = 0
    watch_id: int = 0
    new_only: str = ""
    expected: Reply | None = None

    def describe(self) -> str:
        text = f"{self.kind.value} {self.path} stream={self.stream} watch_id={self.watch_id}"
        message = self.parsed()
        shown = shorten(str(message).replace("\n", " "))
        return f"{text}\n    bytes: {self.request[:400].hex()}\n    {{{shown}}}"

    def parsed(self) -> Any:
        """The request as a message, or None if it is not one on purpose."""
        kind = _request_type(self)
        try:
            return None if kind is None else kind.FromString(self.request)
        except Exception:  # the protobuf library's own exception type is not public
            return None


def shorten(text: str) -> str:
    """Long strings inside ``text`` cut, so that a report stays readable."""
    return re.sub(r'("[^"]{60})[^"]{20,}"', r'\1..."', text)


_STREAM_REQUESTS = {WATCH_PATH: pb.WatchRequest, KEEP_ALIVE_PATH: pb.LeaseKeepAliveRequest}


def _request_type(step: Step) -> Any:
    if step.path in BY_PATH:
        return BY_PATH[step.path].request
    return _STREAM_REQUESTS.get(step.path)
