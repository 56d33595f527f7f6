"""Hashes of the store, which members ask of each other: ``/members/hashkv``, as etcd has it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from kvorum import errors
from kvorum.errors import EtcdError
from kvorum.h2.http import HttpRequest, HttpResponse, text_response
from kvorum.log import get_logger
from kvorum.membership import Cluster, Member
from kvorum.mvcc.hash import KeyValueHash
from kvorum.server.cluster.to_leader import Reply, Requests
from kvorum.types import MemberID, Revision

HASH_PATH: Final = "/members/hashkv"
CLUSTER_ID: Final = "X-Etcd-Cluster-ID"

MAX_HASHES: Final = 16
"""Requests that may be under way at once; each reads the whole store."""
MAX_REPLY: Final = 64 << 10
MISMATCH: Final = "cluster ID mismatch"

_JSON: Final = ("Content-Type", "application/json")
_MIN_INT64: Final = -(1 << 63)
_MAX_INT64: Final = (1 << 63) - 1

lg = get_logger()


class Hashes(Protocol):
    """A store that can be hashed."""

    async def hash_kv(self, rev: int = 0) -> tuple[KeyValueHash, Revision]: ...


class HashRoute:
    """Answers others. Revision 0, or none, means now."""

    def __init__(self, cluster: Cluster, store: Hashes) -> None:
        self._cluster = cluster
        self._store = store
        self._running = 0

    async def handle(self, request: HttpRequest) -> HttpResponse:
        if request.method != "GET":
            refusal = text_response(405, "Method Not Allowed")
            refusal.headers.append(("Allow", "GET"))
            return refusal
        given = request.header(CLUSTER_ID.lower())
        if given and given != f"{self._cluster.id:x}":
            return text_response(412, MISMATCH)
        try:
            revision = _asked_revision(request.body)
        except ValueError:
            return text_response(400, "error unmarshalling request")
        if self._running >= MAX_HASHES:
            return text_response(503, errors.RequestTooManyRequests.message)
        self._running += 1
        try:
            found, current = await self._store.hash_kv(revision)
        except EtcdError as error:
            lg.warn("failed to get hashKV", requested_revision=revision, error=str(error))
            return text_response(400, _bare(type(error)))
        finally:
            self._running -= 1
        headers = [_JSON, (CLUSTER_ID, f"{self._cluster.id:x}")]
        return HttpResponse(200, _encode(found, current), headers)


def _asked_revision(body: bytes) -> int:
    """Raises ValueError."""
    return _int64(_parsed(body) or {}, "revision")


def _parsed(body: bytes) -> dict[str, Any] | None:
    """An object of JSON, or null. Raises ValueError."""
    try:
        fields = json.loads(body)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if fields is not None and not isinstance(fields, dict):
        raise ValueError(f"no object: {body[:200]!r}")
    return fields


def _int64(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name) or 0
    if type(value) is not int or not _MIN_INT64 <= value <= _MAX_INT64:
        raise ValueError(f"{name} is {value!r:.100}")
    return value


def _encode(found: KeyValueHash, current: Revision) -> bytes:
    """In the order of Go's fields, and without those that are 0."""
    numbers = {
        "hash": found.hash,
        "compact_revision": found.compact_rev,
        "hash_revision": found.rev,
    }
    given = {name: number for name, number in numbers.items() if number}
    return json.dumps({"header": {"revision": current}, **given}, separators=(",", ":")).encode()


def _bare(error: type[EtcdError]) -> str:
    """The text as the store itself has it."""
    return error.message.removeprefix("etcdserver: ")


@dataclass(frozen=True, slots=True)
class PeerHash:
    """What another member answered: ``hash`` and its newest ``revision``; or, with ``hash`` None,
    why there is no answer."""

    member: MemberID
    urls: tuple[str, ...]
    hash: KeyValueHash | None = None
    revision: int = 0
    error: Exception | None = None


class ClusterMismatch(Exception):
    """The other member belongs to another cluster."""

    def __init__(self) -> None:
        super().__init__(MISMATCH)


class PeerHashes:
    """Asks others. ``timeout`` is in seconds for each URL of a member."""

    def __init__(self, cluster: Cluster, http: Requests, timeout: float) -> None:
        self._cluster = cluster
        self._http = http
        self._timeout = timeout

    async def ask(self, revision: int) -> list[PeerHash]:
        """All other members at once, in ascending order of id."""
        others = [member for member in self._cluster.others() if member.peer_urls]
        return list(await asyncio.gather(*(self._ask(member, revision) for member in others)))

    async def _ask(self, member: Member, revision: int) -> PeerHash:
        failure: Exception | None = None
        for url in member.peer_urls:
            try:
                found, current = _decode(await self._request(url, revision))
            except (OSError, ValueError, EtcdError, ClusterMismatch) as error:
                failure = error
                lg.warn(
                    "failed hash kv request",
                    local_member_id=f"{self._cluster.local:x}",
                    requested_revision=revision,
                    remote_peer_endpoint=url,
                    error=str(error) or type(error).__name__,
                )
            else:
                return PeerHash(member.id, member.peer_urls, found, current)
        return PeerHash(member.id, member.peer_urls, error=failure)

    async def _request(self, url: str, revision: int) -> Reply:
        asked = {"revision": revision} if revision else {}
        return await self._http.request(
            "GET",
            url,
            HASH_PATH,
            headers={"Content-Type": "application/json", CLUSTER_ID: f"{self._cluster.id:x}"},
            body=json.dumps(asked, separators=(",", ":")).encode(),
            timeout=self._timeout,
            max_body=MAX_REPLY,
        )


_REFUSALS: Final[Sequence[tuple[int, str, type[Exception]]]] = (
    (400, _bare(errors.Compacted), errors.Compacted),
    (400, _bare(errors.FutureRev), errors.FutureRev),
    (412, MISMATCH, ClusterMismatch),
)


def _decode(reply: Reply) -> tuple[KeyValueHash, int]:
    """The hash and the newest revision.

    Raises:
        errors.Compacted, errors.FutureRev, ClusterMismatch: it refused.
        ValueError: it answered something else.
    """
    if reply.status != 200:
        text = reply.body.decode(errors="replace").strip()
        for status, part, error in _REFUSALS:
            if reply.status == status and part in text:
                raise error()
        raise ValueError(f"unknown error: {reply.status} {text[:200]}")
    fields = _parsed(reply.body) or {}
    if not isinstance(fields.get("header"), dict):
        raise ValueError(f"not a hash: {reply.body[:200]!r}")
    found = KeyValueHash(
        _int64(fields, "hash"), _int64(fields, "compact_revision"), _int64(fields, "hash_revision")
    )
    return found, _int64(fields["header"], "revision")
