"""The members that a new member is told of, and what they must fulfil."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kvorum.config import ServerConfig
from kvorum.config.urls import URL, join, parse_members, render_members, strings
from kvorum.membership import Member, cluster_id, member_id
from kvorum.server.bootstrap.same_urls import UrlMatcher
from kvorum.server.errors import BadInitialCluster
from kvorum.types import MemberID

NamedURLs = dict[str, tuple[URL, ...]]


@dataclass(frozen=True, slots=True)
class InitialCluster:
    """Name to peer URLs of every member; ``name`` is our own. The ids of a new cluster follow from
    the URLs and the token."""

    name: str
    members: NamedURLs
    token: str

    @property
    def own_id(self) -> MemberID:
        return self._identify(self.members[self.name])

    @property
    def cluster_id(self) -> int:
        return cluster_id(map(self._identify, self.members.values()))

    def first_members(self) -> list[Member]:
        """All members of a new cluster, in ascending order of id."""
        made = [
            Member(self._identify(urls), tuple(strings(urls)), name)
            for name, urls in self.members.items()
        ]
        return sorted(made, key=lambda member: member.id)

    def others_urls(self) -> list[str]:
        """The peer URLs of all others, sorted."""
        return sorted(
            str(url) for name, urls in self.members.items() if name != self.name for url in urls
        )

    def _identify(self, urls: tuple[URL, ...]) -> MemberID:
        return member_id(strings(urls), self.token)

    def __str__(self) -> str:
        return render_members(self.members)


def parse_initial(text: str, name: str, token: str) -> InitialCluster:
    """Raises BadInitialCluster for what is no list of ``name=url``."""
    try:
        return InitialCluster(name, parse_members(text), token)
    except ValueError as error:
        raise BadInitialCluster(f"error setting up initial cluster: {error}") from None


def require_sound(initial: InitialCluster) -> None:
    """Raises BadInitialCluster if we are not among the members, or two have a URL in common."""
    if initial.name not in initial.members:
        raise BadInitialCluster(
            f'couldn\'t find local name "{initial.name}" in the initial cluster configuration'
        )
    if has_duplicate_url(initial.members):
        raise BadInitialCluster(f"initial cluster {initial} has duplicate url")


def has_duplicate_url(members: NamedURLs) -> bool:
    every = [url for urls in members.values() for url in urls]
    return len(set(every)) != len(every)


async def require_advertised(
    config: ServerConfig, initial: InitialCluster, matcher: UrlMatcher
) -> None:
    """We must advertise the URLs under which the cluster knows us. Raises BadInitialCluster."""
    listed = initial.members[initial.name]
    told = config.initial_advertise_peer_urls
    why = await matcher.difference(strings(told), strings(listed))
    if not why:
        return
    missing = _without(listed, told)
    if missing:
        entries = ",".join(f"{initial.name}={url}" for url in missing)
        raise BadInitialCluster(
            f"--initial-cluster has {entries} but missing from"
            f" --initial-advertise-peer-urls={join(told)} ({why})"
        )
    given = render_members({initial.name: told})
    surplus = _without(told, listed)
    if surplus:
        raise BadInitialCluster(
            f"--initial-advertise-peer-urls has {','.join(surplus)} but missing from"
            f" --initial-cluster={given}"
        )
    raise BadInitialCluster(
        f"failed to resolve {join(told)} to match --initial-cluster={given} ({why})"
    )


def _without(these: Iterable[URL], those: tuple[URL, ...]) -> list[str]:
    return [str(url) for url in these if url not in those]
