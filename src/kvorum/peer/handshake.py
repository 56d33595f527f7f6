"""What members tell of themselves with every request, and what is checked of it. Pure.

Texts and their order are etcd's: its members compare some of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from kvorum.backend.image import FORMAT
from kvorum.membership import Version, parse_version
from kvorum.types import MemberID
from kvorum.version import ETCD_VERSION, MIN_CLUSTER_VERSION

CLUSTER_ID: Final = "X-Etcd-Cluster-ID"
SERVER_FROM: Final = "X-Server-From"
SERVER_VERSION: Final = "X-Server-Version"
MIN_CLUSTER: Final = "X-Min-Cluster-Version"
RAFT_TO: Final = "X-Raft-To"
PEER_URLS: Final = "X-PeerURLs"
IMAGES: Final = "X-Kvorum-Database"
"""Which database files the member that asks for a stream can use as they are, besides bbolt's; and
with a file, which it is. etcd has no such header and takes no notice of it."""

INCOMPATIBLE_VERSION: Final = "incompatible version"
CLUSTER_ID_MISMATCH: Final = "cluster ID mismatch"
REMOVED_MEMBER: Final = "cannot process message from removed member"

_UNSAID: Final = Version(2, 0)
"""What etcd 2.0 was the last to leave out."""
_OLD_WITH_STREAMS: Final = (Version(2, 1), Version(2, 2), Version(2, 3))
_HEX: Final = re.compile(r"[0-9a-fA-F]{1,64}")

MAX_PEER_URLS: Final = 64
"""URLs of one member that are taken from a header."""


class StreamKind(Enum):
    """The value is the last but one part of the stream's path, ``label`` its name in the logs."""

    MESSAGE = "message"
    MSGAPP = "msgapp"

    @property
    def label(self) -> str:
        return "stream Message" if self is StreamKind.MESSAGE else "stream MsgApp v2"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who we are: the member, the cluster, our peer URLs, and the etcd release that we speak as."""

    local: MemberID
    cluster_id: int
    urls: tuple[str, ...] = ()
    version: str = ETCD_VERSION
    min_cluster: str = MIN_CLUSTER_VERSION

    def __post_init__(self) -> None:
        assert parse_version(self.version) is not None, self.version
        assert parse_version(self.min_cluster) is not None, self.min_cluster

    @property
    def cluster_text(self) -> str:
        return f"{self.cluster_id:x}"

    def request_headers(self) -> dict[str, str]:
        headers = {
            SERVER_FROM: f"{self.local:x}",
            SERVER_VERSION: self.version,
            MIN_CLUSTER: self.min_cluster,
            CLUSTER_ID: self.cluster_text,
        }
        if self.urls:
            headers[PEER_URLS] = ",".join(self.urls)
        return headers

    def stream_headers(self, to: MemberID) -> dict[str, str]:
        return {**self.request_headers(), RAFT_TO: f"{to:x}", IMAGES: FORMAT}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not compatible: ``text`` goes to the sender, ``reason`` into the log."""

    text: str
    reason: str


def check_compatibility(us: Identity, headers: Mapping[str, str]) -> Refusal | None:
    """Versions first, then the cluster id, which is compared as text. Header names are in lower
    case. Only major and minor count; a version that is none is taken for incompatible."""
    sender = headers.get(SERVER_FROM.lower(), "")
    server = _version(headers, SERVER_VERSION)
    min_cluster = _version(headers, MIN_CLUSTER)
    lowest, own = parse_version(us.min_cluster), parse_version(us.version)
    assert lowest is not None
    assert own is not None
    if server is None or min_cluster is None:
        return Refusal(INCOMPATIBLE_VERSION, f"remote version is malformed: remote[{sender}]")
    versions = f"remote[{sender}]={server}, local={us.version}"
    if server < lowest:
        return Refusal(INCOMPATIBLE_VERSION, f"remote version is too low: {versions}")
    if min_cluster > own:
        return Refusal(INCOMPATIBLE_VERSION, f"local version is too low: {versions}")
    if headers.get(CLUSTER_ID.lower(), "") != us.cluster_text:
        return Refusal(CLUSTER_ID_MISMATCH, CLUSTER_ID_MISMATCH)
    return None


def supports_streams(us: Identity, headers: Mapping[str, str]) -> bool:
    """Whether the member that replied with these headers has streams, as all releases since 2.1.

    A release above ours is taken for one that knows ours; one below must be known."""
    version = _version(headers, SERVER_VERSION)
    own = parse_version(us.version)
    assert own is not None
    if version is None:
        return False
    return version >= own or version.major == own.major or version in _OLD_WITH_STREAMS


def _version(headers: Mapping[str, str], name: str) -> Version | None:
    text = headers.get(name.lower(), "")
    return parse_version(text) if text else _UNSAID


def parse_id(text: str) -> MemberID | None:
    """An id in hex; None if it is none."""
    if not _HEX.fullmatch(text):
        return None
    value = int(text, 16)
    return MemberID(value) if 0 <= value < 1 << 64 else None


def sender_of(headers: Mapping[str, str]) -> tuple[MemberID, tuple[str, ...]] | None:
    """The sender's id and peer URLs, if it tells both."""
    sender = parse_id(headers.get(SERVER_FROM.lower(), ""))
    urls = headers.get(PEER_URLS.lower(), "")
    if not sender or not urls:
        return None
    return sender, tuple(urls.split(",")[:MAX_PEER_URLS])
