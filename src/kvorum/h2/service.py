"""What all connections of a server share: its methods, and the request heads met before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from kvorum.h2.deadlines import Deadlines
from kvorum.h2.heads import RequestHead, build_head
from kvorum.h2.hpack import Field
from kvorum.h2.http import Answer, HttpRequest
from kvorum.h2.method import Method
from kvorum.h2.status import decode_timeout

# Heads that all connections share: so many, of fields no longer than this.
_SHARED_HEADS: Final = 1024
_SHARED_HEAD_SIZE: Final = 2048


class Service:
    """``http`` gets complete requests that are not gRPC; ``report`` what handlers raise."""

    def __init__(
        self,
        methods: Mapping[str, Method],
        deadlines: Deadlines,
        *,
        http: Callable[[Answer, HttpRequest], None] | None = None,
        report: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.methods = methods
        self.deadlines = deadlines
        self.http = http
        self.report = report
        self._heads: dict[tuple[Field, ...], RequestHead] = {}

    def head(self, sid: int, fields: list[Field]) -> RequestHead:
        """The checked head for these fields, found again if it was seen before. Deadlines are kept
        apart, as clients that have one send another value with each call."""
        at = len(fields) - 1
        while at >= 0 and fields[at][0] != b"grpc-timeout":
            at -= 1
        if at < 0:
            return self._known(sid, fields)
        # A pseudo-header field after it would be malformed, which only the full check sees.
        if at + 1 == len(fields) or fields[at + 1][0][:1] != b":":
            rest = fields[:at] + fields[at + 1 :]
            head = self._heads.get(tuple(rest)) or self._known(sid, rest)
            if head.method is not None and head.timeout is None:
                timeout = decode_timeout(fields[at][1])
                if timeout is not None and timeout > 0:
                    return head.with_timeout(timeout)
        return self._build(sid, fields)

    def _known(self, sid: int, fields: list[Field]) -> RequestHead:
        key = tuple(fields)
        head = self._heads.get(key)
        if head is None:
            head = self._build(sid, fields)
            if sum(len(name) + len(value) for name, value in fields) <= _SHARED_HEAD_SIZE:
                if len(self._heads) >= _SHARED_HEADS:
                    self._heads.clear()
                self._heads[key] = head
        return head

    def _build(self, sid: int, fields: list[Field]) -> RequestHead:
        return build_head(sid, fields, self.methods, http=self.http is not None)
