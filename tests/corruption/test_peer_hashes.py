"""Hashes asked of each other: etcd's requests, answers and refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest
from corruption_kit import quiet_lines

from kvorum import errors
from kvorum.h2.http import HttpRequest, HttpResponse
from kvorum.membership import Cluster, Member
from kvorum.mvcc.hash import KeyValueHash
from kvorum.server.cluster import peer_hashes
from kvorum.server.cluster.peer_hashes import ClusterMismatch, HashRoute, PeerHash, PeerHashes
from kvorum.types import MemberID, Revision

ME, B, C = MemberID(0xA), MemberID(0xB), MemberID(0xC)


class NoBuckets:
    def put(self, bucket: str, key: bytes, value: bytes) -> None: ...
    def delete(self, bucket: str, key: bytes) -> None: ...


def cluster_of(*members: Member) -> Cluster:
    cluster = Cluster(0x77, ME, NoBuckets())  # type: ignore[arg-type]
    for member in (Member(ME, ("http://me",)), *members):
        cluster.add(member)
    return cluster


class Store:
    def __init__(self, answer: KeyValueHash | Exception) -> None:
        self.asked: list[int] = []
        self.answer = answer
        self.wait: asyncio.Event | None = None

    async def hash_kv(self, rev: int = 0) -> tuple[KeyValueHash, Revision]:
        self.asked.append(rev)
        if self.wait is not None:
            await self.wait.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer, Revision(9006)


FOUND = KeyValueHash(2757795615, -1, 9000)


def request(body: bytes, *, method: str = "GET", **headers: str) -> HttpRequest:
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return HttpRequest(method, "/members/hashkv", "", named, body, "1.1")


def asked(route: HashRoute, what: HttpRequest) -> tuple[int, Any]:
    response = asyncio.run(route.handle(what))
    return response.status, response.body


# Answering


def test_an_answer_is_etcds_byte_for_byte() -> None:
    store = Store(FOUND)
    response = asyncio.run(HashRoute(cluster_of(), store).handle(request(b'{"revision":9000}')))
    assert (response.status, response.body) == (
        200,
        b'{"header":{"revision":9006},"hash":2757795615,"compact_revision":-1,'
        b'"hash_revision":9000}',
    )
    assert dict(response.headers) == {
        "Content-Type": "application/json",
        "X-Etcd-Cluster-ID": "77",
    }
    assert store.asked == [9000]


def test_zeros_are_left_out() -> None:
    route = HashRoute(cluster_of(), Store(KeyValueHash(0, 0, 9000)))
    body = b'{"header":{"revision":9006},"hash_revision":9000}'
    assert asked(route, request(b"{}")) == (200, body)


@pytest.mark.parametrize(
    ("body", "revision"),
    [(b"{}", 0), (b"null", 0), (b'{"revision":0,"more":1}', 0), (b'{"revision":null}', 0)],
)
def test_no_revision_means_now(body: bytes, revision: int) -> None:
    store = Store(FOUND)
    assert asked(HashRoute(cluster_of(), store), request(body))[0] == 200
    assert store.asked == [revision]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"revision":"9"}',
        b'{"revision":1.5}',
        b'{"revision":true}',
        b'{"revision":9223372036854775808}',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_requests_that_are_none(body: bytes) -> None:
    store = Store(FOUND)
    route = HashRoute(cluster_of(), store)
    assert asked(route, request(body)) == (400, b"error unmarshalling request\n")
    assert store.asked == []


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (errors.Compacted(), b"mvcc: required revision has been compacted\n"),
        (errors.FutureRev(), b"mvcc: required revision is a future revision\n"),
    ],
)
def test_revisions_that_are_not_there(error: Exception, text: bytes) -> None:
    assert asked(HashRoute(cluster_of(), Store(error)), request(b"{}")) == (400, text)


def test_members_of_other_clusters() -> None:
    route = HashRoute(cluster_of(), Store(FOUND))
    for given, status in (("78", 412), ("077", 412), ("77", 200)):
        found = asked(route, request(b"{}", x_etcd_cluster_id=given))
        assert found[0] == status
        if status == 412:
            assert found[1] == b"cluster ID mismatch\n"


def test_other_methods() -> None:
    route = HashRoute(cluster_of(), Store(FOUND))
    response = asyncio.run(route.handle(request(b"{}", method="POST")))
    assert (response.status, response.body) == (405, b"Method Not Allowed\n")
    assert ("Allow", "GET") in response.headers


def test_not_everybody_is_answered_at_once() -> None:
    async def main() -> None:
        store = Store(FOUND)
        store.wait = asyncio.Event()
        route = HashRoute(cluster_of(), store)
        waiting = [
            asyncio.create_task(route.handle(request(b"{}"))) for _ in range(peer_hashes.MAX_HASHES)
        ]
        await asyncio.sleep(0)
        assert (await route.handle(request(b"{}"))).status == 503
        store.wait.set()
        assert {(await task).status for task in waiting} == {200}
        assert (await route.handle(request(b"{}"))).status == 200

    asyncio.run(main())


# Asking


class Reply(NamedTuple):
    status: int
    body: bytes


Answers = dict[str, "Reply | Exception"]


class Http:
    def __init__(self, answers: Answers) -> None:
        self.asked: list[tuple[str, str, str, bytes, dict[str, str], float]] = []
        self._answers = answers

    async def request(
        self,
        method: str,
        url: str,
        path: str,
        *,
        headers: Any = None,
        body: bytes = b"",
        timeout: float,  # noqa: ASYNC109
        max_body: int = 1 << 20,
    ) -> Reply:
        assert max_body >= 1000
        self.asked.append((method, url, path, body, dict(headers), timeout))
        answer = self._answers[url]
        if isinstance(answer, Exception):
            raise answer
        return answer


def ask(answers: Answers, *members: Member, revision: int = 0) -> tuple[list[PeerHash], Http]:
    http = Http(answers)
    peers = PeerHashes(cluster_of(*members), http, 7.0)
    return asyncio.run(peers.ask(revision)), http


def good(**fields: int) -> Reply:
    return Reply(200, json.dumps({"header": {"revision": 9006}, **fields}).encode())


@pytest.mark.parametrize(("revision", "body"), [(0, b"{}"), (123, b'{"revision":123}')])
def test_a_request_is_etcds(revision: int, body: bytes) -> None:
    (found,), http = ask({"http://b": good(hash=1)}, Member(B, ("http://b",)), revision=revision)
    headers = {"Content-Type": "application/json", "X-Etcd-Cluster-ID": "77"}
    assert http.asked == [("GET", "http://b", "/members/hashkv", body, headers, 7.0)]
    assert found == PeerHash(B, ("http://b",), KeyValueHash(1, 0, 0), 9006)


def test_all_others_are_asked() -> None:
    """At the first of their URLs that answers; those without any are passed over."""
    members = (
        Member(C, ("http://c1", "http://c2", "http://c3")),
        Member(B, ("http://b",)),
        Member(MemberID(0xD), ()),
    )
    answers: Answers = {
        "http://b": good(hash=1, compact_revision=-1, hash_revision=9000),
        "http://c1": OSError("refused"),
        "http://c2": good(hash=2, compact_revision=5),
    }
    found, http = ask(answers, *members)
    assert [(peer.member, peer.hash, peer.revision) for peer in found] == [
        (B, KeyValueHash(1, -1, 9000), 9006),
        (C, KeyValueHash(2, 5, 0), 9006),
    ]
    assert sorted(entry[1] for entry in http.asked) == ["http://b", "http://c1", "http://c2"]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Reply(400, b"mvcc: required revision has been compacted\n"), errors.Compacted),
        (Reply(400, b"mvcc: required revision is a future revision\n"), errors.FutureRev),
        (Reply(412, b"cluster ID mismatch\n"), ClusterMismatch),
        (Reply(412, b"something else\n"), ValueError),
        (Reply(500, b"mvcc: required revision has been compacted\n"), ValueError),
        (Reply(404, b"404 page not found\n"), ValueError),
        (Reply(200, b"no json"), ValueError),
        (Reply(200, b"[]"), ValueError),
        (Reply(200, b"{}"), ValueError),
        (Reply(200, b"[" * 60_000), ValueError),
        (Reply(200, b'{"header":{},"hash":"1"}'), ValueError),
        (Reply(200, b'{"header":{"revision":1.5}}'), ValueError),
        (OSError("refused"), OSError),
        (TimeoutError(), TimeoutError),
    ],
)
def test_what_is_no_answer(
    answer: Reply | Exception, kind: type[Exception], capfd: pytest.CaptureFixture[str]
) -> None:
    (found,), _ = ask({"http://b": answer}, Member(B, ("http://b",)))
    assert (found.hash, found.urls) == (None, ("http://b",))
    assert isinstance(found.error, kind)
    assert quiet_lines(capfd) == ["failed hash kv request"]


def test_answers_and_requests_fit_each_other() -> None:
    """The one's answers are what the other takes."""

    class Loop(Http):
        def __init__(self, route: HashRoute) -> None:
            super().__init__({})
            self._route = route

        async def request(self, method: str, url: str, path: str, **more: Any) -> Reply:
            headers = {name.lower(): value for name, value in more["headers"].items()}
            asked = HttpRequest(method, path, "", list(headers.items()), more["body"], "1.1")
            response: HttpResponse = await self._route.handle(asked)
            assert isinstance(response.body, bytes)
            return Reply(response.status, response.body)

    async def hashes(answer: KeyValueHash | Exception) -> PeerHash:
        cluster = cluster_of(Member(B, ("http://b",)))
        http = Loop(HashRoute(cluster, Store(answer)))
        (found,) = await PeerHashes(cluster, http, 7.0).ask(9000)
        return found

    run: Callable[[Awaitable[PeerHash]], PeerHash] = asyncio.run  # type: ignore[assignment]
    assert run(hashes(FOUND)).hash == FOUND
    for error in (errors.Compacted, errors.FutureRev):
        assert isinstance(run(hashes(error())).error, error)
