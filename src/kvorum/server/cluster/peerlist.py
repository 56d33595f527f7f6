"""Keeps those whom the transport speaks with the same as those on the member list."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kvorum.log import get_logger
from kvorum.membership import Cluster, Member
from kvorum.peer.interface import Transport
from kvorum.server.confchange import Change
from kvorum.types import MemberID

lg = get_logger()


class PeerList:
    """``transport`` gives the transport as it is now."""

    def __init__(self, cluster: Cluster, transport: Callable[[], Transport]) -> None:
        self._cluster = cluster
        self._transport = transport

    def meet(self, members: Iterable[Member]) -> None:
        """Begin to speak with all of these; with oneself one does not."""
        for member in members:
            if member.id != self._cluster.local:
                self._add(member.id, member.peer_urls)

    def changed(self, change: Change) -> None:
        """The member list has changed."""
        if change.member == self._cluster.local:
            return
        if change.kind == "add":
            self._add(change.member, change.urls)
        elif change.kind == "update":
            self._update(change.member, change.urls)
        elif change.kind == "remove":
            self._transport().remove_peer(change.member)

    def replaced(self, former: Iterable[MemberID]) -> None:
        """The member list is a new one; these were on the old one."""
        for member in former:
            if member not in self._cluster.members:
                self._transport().remove_peer(member)
        for other in self._cluster.others():
            self._add(other.id, other.peer_urls)
            self._update(other.id, other.peer_urls)

    def _add(self, member: MemberID, urls: tuple[str, ...]) -> None:
        try:
            self._transport().add_peer(member, urls)
        except ValueError as error:
            _complain(member, urls, error)

    def _update(self, member: MemberID, urls: tuple[str, ...]) -> None:
        try:
            self._transport().update_peer(member, urls)
        except ValueError as error:
            _complain(member, urls, error)


def _complain(member: MemberID, urls: tuple[str, ...], error: ValueError) -> None:
    """URLs that only members of another kind let through: they are in the log, and all have to live
    with them until they are updated."""
    lg.error(
        "cannot speak with a member at its peer URLs",
        remote_peer_id=f"{member:x}",
        remote_peer_urls=list(urls),
        error=str(error),
    )
