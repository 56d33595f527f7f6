"""What members answer each other over plain HTTP, against what etcd was seen to answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from members_kit import ME, TWO, Bench, Reply, member, on_a_loop

from kvorum import errors
from kvorum.h2.http import HttpRequest, HttpResponse
from kvorum.lease.lessor import Lessor
from kvorum.membership import changes
from kvorum.pb import etcdserverpb as pb
from kvorum.pb import leasepb
from kvorum.server import catchup
from kvorum.server.cluster.lease_forward import Leases
from kvorum.server.cluster.peer_routes import MAX_LEASE_REQUEST, peer_routes
from kvorum.types import Index, LeaseID, MemberID

LEASE = 7


class RoutesBench(Bench):
    def __init__(self, **settings: Any) -> None:
        super().__init__([member(ME), member(TWO, learner=True)], **settings)
        self.storage_version = "3.7.0"
        self.lessor = Lessor(lambda key, value: None, lambda key: None)
        self.leases = Leases(
            lessor=self.lessor,
            proposer=self.proposer,
            leadership=self.leadership,
            catch_up=self.catch_up,
            to_leader=self.to_leader,
            fast=True,
            now=lambda: 0.0,
            loop=self.loop,
        )
        self.routes = peer_routes(self)

    async def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> HttpResponse:
        prefix = "/members/promote/"
        handler = self.routes[prefix if path.startswith(prefix) else path]
        request = HttpRequest(method, path, "", list(headers.items()), body, "1.1")
        answer = handler(request)
        return answer if isinstance(answer, HttpResponse) else await answer


def seen(response: HttpResponse) -> tuple[int, bytes | Any]:
    return response.status, response.body


def header(response: HttpResponse, name: str) -> str:
    return {key.lower(): value for key, value in response.headers}.get(name.lower(), "")


@on_a_loop
async def test_the_members() -> None:
    bench = RoutesBench()
    response = await bench.ask("GET", "/members")
    assert seen(response) == (
        200,
        b'[{"id":161,"peerURLs":["http://a1.test:2380"],"name":"one"},'
        b'{"id":178,"peerURLs":["http://b2.test:2380"],"isLearner":true,"name":"two"}]\n',
    )
    assert header(response, "Content-Type") == "application/json"
    assert header(response, "X-Etcd-Cluster-ID") == "77"


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/members", "GET"),
        ("/members/promote/1", "POST"),
        ("/version", "GET"),
        ("/downgrade/enabled", "GET"),
    ],
)
@on_a_loop
async def test_other_methods(path: str, method: str) -> None:
    bench = RoutesBench()
    for other in ("GET", "POST", "PUT", "HEAD"):
        if other != method:
            response = await bench.ask(other, path)
            assert seen(response) == (405, b"Method Not Allowed\n")
            assert header(response, "Allow") == method


@on_a_loop
async def test_versions() -> None:
    bench = RoutesBench()
    response = await bench.ask("GET", "/version")
    assert seen(response) == (
        200,
        b'{"etcdserver":"3.7.1","etcdcluster":"not_decided","storage":"3.7.0"}',
    )
    assert header(response, "Content-Type") == "application/json"


@on_a_loop
async def test_whether_a_downgrade_is_under_way() -> None:
    bench = RoutesBench()
    response = await bench.ask("GET", "/downgrade/enabled")
    assert seen(response) == (200, b"false")
    assert header(response, "Content-Type") == "text/plain"
    assert header(response, "X-Etcd-Cluster-ID") == "77"
    bench.cluster.set_downgrade(True, "3.6.0")
    assert seen(await bench.ask("GET", "/downgrade/enabled")) == (200, b"true")
    bench.reads.close(errors.Timeout)
    response = await bench.ask("GET", "/downgrade/enabled")
    assert seen(response) == (500, b"failed linearized read: etcdserver: request timed out\n")


# Promotion


@on_a_loop
async def test_a_promotion() -> None:
    bench = RoutesBench()
    bench.raft.match = {ME: 10, TWO: 10}
    task = asyncio.ensure_future(bench.ask("POST", f"/members/promote/{TWO}"))
    change, caller = await bench.change()
    assert change == changes.promoting(TWO)
    bench.cluster.promote(TWO)
    caller.reply(b"")
    response = await task
    assert response.status == 200
    assert b"isLearner" not in response.body  # type: ignore[operator]
    assert header(response, "Content-Type") == "application/json"
    assert header(response, "X-Etcd-Cluster-ID") == "77"


@pytest.mark.parametrize("text", ["x", "", "-1", "+1", str(1 << 64), "1/2", "%31x", "\u0661"])
@on_a_loop
async def test_what_is_no_member_id(text: str) -> None:
    bench = RoutesBench()
    response = await bench.ask("POST", f"/members/promote/{text}")
    assert response.status == 404
    assert b"not found in cluster\n" in response.body  # type: ignore[operator]


@pytest.mark.parametrize(
    ("member_id", "match", "expected"),
    [
        (MemberID(5), 10, (404, b"membership: ID not found\n")),
        (TWO, 1, (412, f"{errors.LearnerNotReady.message}\n".encode())),
    ],
)
@on_a_loop
async def test_promotions_that_are_refused(
    member_id: MemberID, match: int, expected: tuple[int, bytes]
) -> None:
    bench = RoutesBench()
    bench.raft.match = {ME: 10, TWO: match}
    response = await bench.ask("POST", f"/members/promote/{member_id}")
    assert seen(response) == expected
    assert header(response, "X-Etcd-Cluster-ID") == "77"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.MemberNotLearner, (412, b"membership: can only promote a learner member\n")),
        (errors.MemberNotFound, (404, b"membership: ID not found\n")),
        (errors.Timeout, (500, b'{"message":"Internal Server Error"}')),
    ],
)
@on_a_loop
async def test_promotions_that_the_log_refuses(
    error: type[errors.EtcdError], expected: tuple[int, bytes]
) -> None:
    bench = RoutesBench()
    bench.raft.match = {ME: 10, TWO: 10}
    task = asyncio.ensure_future(bench.ask("POST", f"/members/promote/{TWO}"))
    _, caller = await bench.change()
    caller.fail(error.code, error.message)
    assert seen(await task) == expected


@on_a_loop
async def test_a_promotion_is_passed_on_with_its_token() -> None:
    bench = RoutesBench()
    bench.cluster.promote(TWO)
    bench.led_by(TWO)
    bench.http.answer = lambda asked: Reply(200, b"[]")
    response = await bench.ask("POST", "/members/promote/5", authorization="secret")
    assert seen(response) == (200, b"[]\n")
    assert [asked.headers for asked in bench.http.asked] == [{"Authorization": "secret"}]


# Leases


def primary() -> RoutesBench:
    bench = RoutesBench()
    bench.lessor.grant(LeaseID(LEASE), 30, 0.0)
    bench.lessor.attach(LeaseID(LEASE), b"k2")
    bench.lessor.attach(LeaseID(LEASE), b"k1")
    bench.lessor.promote(0.0, 1.0)
    return bench


def renewal(lease: int) -> bytes:
    return pb.LeaseKeepAliveRequest(ID=lease).SerializeToString()


def question(lease: int, *, keys: bool = False) -> bytes:
    request = leasepb.LeaseInternalRequest()
    request.LeaseTimeToLiveRequest.ID = lease
    request.LeaseTimeToLiveRequest.keys = keys
    return request.SerializeToString()


@on_a_loop
async def test_a_renewal() -> None:
    bench = primary()
    response = await bench.ask("POST", "/leases", renewal(LEASE))
    assert seen(response) == (200, b"\x10\x07\x18\x1e")
    assert header(response, "Content-Type") == "application/protobuf"
    assert seen(await bench.ask("POST", "/leases", renewal(8))) == (404, b"lease not found\n")


@on_a_loop
async def test_the_remaining_time() -> None:
    bench = primary()
    response = await bench.ask("POST", "/leases/internal", question(LEASE))
    assert seen(response) == (200, bytes.fromhex("0a080a001007181f201e"))
    response = await bench.ask("POST", "/leases/internal", question(LEASE, keys=True))
    found = leasepb.LeaseInternalResponse.FromString(response.body)  # type: ignore[arg-type]
    assert list(found.LeaseTimeToLiveResponse.keys) == [b"k1", b"k2"]
    response = await bench.ask("POST", "/leases/internal", question(8))
    assert seen(response) == (404, b"lease not found\n")


@on_a_loop
async def test_who_is_not_primary_says_so() -> None:
    bench = primary()
    bench.lessor.demote()
    bench.led_by(TWO)
    expected = (400, b"not a primary lessor\n")
    assert seen(await bench.ask("POST", "/leases", renewal(LEASE))) == expected
    response = await bench.ask("POST", "/leases/internal", question(LEASE))
    assert seen(response) == (500, b"not a primary lessor\n")


@pytest.mark.parametrize("path", ["/leases", "/leases/internal"])
@on_a_loop
async def test_bad_requests_about_leases(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catchup, "PATIENCE", 0.01)
    bench = primary()
    assert seen(await bench.ask("GET", path)) == (405, b"Method Not Allowed\n")
    assert header(await bench.ask("GET", path), "Allow") == ""
    expected: tuple[int, bytes] = (400, b"error unmarshalling request\n")
    assert seen(await bench.ask("POST", path, b"\xff")) == expected
    large = b"\x0a" * (MAX_LEASE_REQUEST + 1)
    assert seen(await bench.ask("POST", path, large)) == (413, b"request body too large\n")
    bench.raft.committed = Index(5)
    expected = (408, b"waiting for node to catch up its applied index has timed out\n")
    assert seen(await bench.ask("POST", path, b"")) == expected


@on_a_loop
async def test_a_request_without_a_question() -> None:
    bench = primary()
    assert seen(await bench.ask("POST", "/leases/internal", b"")) == (404, b"lease not found\n")


@on_a_loop
async def test_what_one_member_asks_another_understands() -> None:
    """Both ends, without sockets between them."""
    leader, follower = primary(), RoutesBench()
    follower.cluster.promote(TWO)
    follower.led_by(TWO)

    async def request(method: str, url: str, path: str, **fields: Any) -> Reply:
        response = await leader.ask(method, path, fields["body"])
        return Reply(response.status, response.body)  # type: ignore[arg-type]

    follower.http.request = request  # type: ignore[assignment,method-assign]
    assert await follower.leases.renew(LeaseID(LEASE)) == 30
    assert await follower.leases.renew(LeaseID(8)) == 0
    found = await follower.leases.time_to_live(LeaseID(LEASE), keys=True)
    assert (found.TTL, found.grantedTTL, list(found.keys)) == (30, 30, [b"k1", b"k2"])
    assert (await follower.leases.time_to_live(LeaseID(8), keys=True)).TTL == -1
