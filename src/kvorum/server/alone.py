"""The transport of a member that speaks with nobody."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kvorum.raft.types import Message
from kvorum.types import MemberID


class Alone:
    """A `Transport` that loses everything."""

    def send(self, messages: Sequence[Message]) -> None: ...

    def add_peer(self, member: MemberID, urls: Iterable[str]) -> None: ...

    def update_peer(self, member: MemberID, urls: Iterable[str]) -> None: ...

    def remove_peer(self, member: MemberID) -> None: ...

    def active_since(self, member: MemberID) -> float | None:
        return None

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    async def close(self) -> None: ...
