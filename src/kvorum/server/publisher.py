"""What a member says of itself through the log once there is a leader.

Its name and client URLs, until they are applied: only then does it count as ready.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvorum import failpoint
from kvorum.log import get_logger
from kvorum.membership import Cluster
from kvorum.pb import membershippb
from kvorum.server.proposer import Proposer, Told
from kvorum.types import MemberID

lg = get_logger()


class Publisher:
    """Publishes; `attempt` tries, and tries again after a failure."""

    def __init__(
        self,
        *,
        member: MemberID,
        name: str,
        client_urls: tuple[str, ...],
        cluster: Cluster,
        proposer: Proposer,
        ready: Callable[[], None],
    ) -> None:
        self.published = False
        self._member = member
        self._name = name
        self._client_urls = client_urls
        self._cluster = cluster
        self._proposer = proposer
        self._ready = ready
        self._publishing = False

    def attempt(self) -> None:
        """Propose what is not known yet and not under way. There is a leader; to be called when
        there is a new one, and now and then, as a proposal may be lost."""
        if not self.published and not self._publishing:
            self._publish()

    def _publish(self) -> None:
        if failpoint.active:
            failpoint.hit("beforePublishing")
        self._publishing = True
        attributes = membershippb.Attributes(name=self._name, client_urls=self._client_urls)
        request = membershippb.ClusterMemberAttrSetRequest(
            member_ID=self._member, member_attributes=attributes
        )
        self._propose("cluster_member_attr_set", request, self._publish_done)

    def _publish_done(self, error: str) -> None:
        self._publishing = False
        if error:
            lg.warn("failed to publish local member to cluster through raft", error=error)
            return
        self.published = True
        lg.info(
            "published local member to cluster through raft",
            local_member_id=f"{self._member:x}",
            local_member_attributes={"Name": self._name, "ClientURLs": list(self._client_urls)},
            cluster_id=f"{self._cluster.id:x}",
        )
        self._ready()

    def _propose(self, kind: str, request: Any, done: Callable[[str], None]) -> None:
        self._proposer.propose(kind, request.SerializeToString(), request, Told(done))
