"""What a member that starts asks the members that run, over the peer port's plain HTTP."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from kvorum.log import get_logger
from kvorum.membership import Member
from kvorum.peer.http_client import HttpClient, HttpReply
from kvorum.types import MemberID

MEMBERS_PATH: Final = "/members"
VERSION_PATH: Final = "/version"
DOWNGRADE_PATH: Final = "/downgrade/enabled"
CLUSTER_ID_HEADER: Final = "x-etcd-cluster-id"
MAX_REPLY: Final = 1 << 20
_ID: Final = re.compile("[0-9a-fA-F]{1,16}")

T = TypeVar("T")

lg = get_logger()


@dataclass(frozen=True, slots=True)
class RunningCluster:
    """A cluster as one of its members describes it; in ascending order of id."""

    id: int
    members: list[Member]

    def member(self, identity: MemberID) -> Member | None:
        return next((m for m in self.members if m.id == identity), None)


class NoCluster(Exception):
    """Nobody that was asked told of a cluster."""


async def ask_cluster(
    http: HttpClient,
    urls: Iterable[str],
    *,
    timeout: float,  # noqa: ASYNC109 - of each request
    quiet: bool = False,
) -> RunningCluster:
    """The cluster of the first URL that answers properly; of an iterator the rest is left. A member
    that has only just begun knows of no cluster yet. Raises NoCluster."""
    why = "could not retrieve cluster information from the given URLs"
    for url in urls:
        try:
            found = _read_cluster(await _get(http, url, MEMBERS_PATH, timeout))
        except (OSError, ValueError, TypeError) as error:
            if not quiet:
                lg.warn("failed to get cluster response", address=url + MEMBERS_PATH, error=error)
            continue
        if found.members:
            return found
        why = "failed to get raft cluster member(s) from the given URLs"
    raise NoCluster(why)


def _read_cluster(reply: HttpReply) -> RunningCluster:
    records = json.loads(reply.body)
    if not isinstance(records, list):
        raise ValueError("the answer is no list of members")
    members = [Member.from_json(json.dumps(record).encode()) for record in records]
    identity = reply.headers.get(CLUSTER_ID_HEADER, "")
    if not _ID.fullmatch(identity):
        raise ValueError(f"failed to parse cluster ID {identity[:100]!r}")
    return RunningCluster(int(identity, 16), sorted(members, key=lambda member: member.id))


async def ask_cluster_version(
    http: HttpClient,
    member: Member,
    *,
    timeout: float,  # noqa: ASYNC109 - of each request
) -> str | None:
    """The cluster's version as a member knows it, None if it cannot be asked."""

    def read(reply: HttpReply) -> str:
        fields: Any = json.loads(reply.body)
        return str(fields["etcdcluster"])

    return await _ask(http, member, VERSION_PATH, read, timeout)


async def ask_downgrade(
    http: HttpClient,
    member: Member,
    *,
    timeout: float,  # noqa: ASYNC109 - of each request
) -> bool | None:
    """Whether the cluster is being downgraded, None if the member cannot be asked."""

    def read(reply: HttpReply) -> bool:
        text = reply.body.decode("ascii").strip().lower()
        if reply.status != 200 or text not in ("true", "false"):
            raise ValueError(f"not true or false: status {reply.status}, {text[:100]!r}")
        return text == "true"

    return await _ask(http, member, DOWNGRADE_PATH, read, timeout)


async def _ask(
    http: HttpClient,
    member: Member,
    path: str,
    read: Callable[[HttpReply], T],
    timeout: float,  # noqa: ASYNC109 - of each request
) -> T | None:
    """What the first of a member's URLs answers."""
    for url in member.peer_urls:
        try:
            return read(await _get(http, url, path, timeout))
        except (OSError, ValueError, KeyError, TypeError) as error:
            lg.warn(
                "failed to reach the peer URL",
                address=url + path,
                remote_member_id=f"{member.id:x}",
                error=error,
            )
    return None


async def _get(http: HttpClient, url: str, path: str, timeout: float) -> HttpReply:  # noqa: ASYNC109
    return await http.request("GET", url, path, timeout=timeout, max_body=MAX_REPLY)
