"""The members of a new cluster, told by DNS."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import uvloop
from boot_kit import config_of
from peer_fakes import FakeHttp
from support.dns_server import name_server

from kvorum.config import ServerConfig, parse_urls
from kvorum.membership import member_id
from kvorum.server.bootstrap.booted import Identity
from kvorum.server.bootstrap.discovery_srv import ask_dns
from kvorum.server.bootstrap.names import LookupFailed, SystemNames
from kvorum.server.bootstrap.new_cluster import new_cluster
from kvorum.server.errors import BadInitialCluster

PLAIN, SECURE = "_etcd-server._tcp.example.", "_etcd-server-ssl._tcp.example."
HOSTS = {(f"{name}.example.", "A"): [f"10.0.0.{i}"] for i, name in enumerate("abc", 1)}
THREE = ["0 0 2380 c.example.", "0 0 2380 a.example.", "0 5 2380 b.example."]


def config(folder: Path, advertised: str = "http://b.example:2380", **more: Any) -> ServerConfig:
    settings = {"discovery_srv": "example", "initial_advertise_peer_urls": parse_urls(advertised)}
    return config_of(folder, **(settings | more))


def told(config: ServerConfig, records: Mapping[tuple[str, str], list[str]]) -> str:
    async def ask() -> str:
        async with name_server(HOSTS | dict(records)) as names:
            return await ask_dns(config, names)

    return uvloop.run(ask())


def refused(config: ServerConfig, records: Mapping[tuple[str, str], list[str]]) -> str:
    with pytest.raises(BadInitialCluster) as caught:
        told(config, records)
    text = str(caught.value)
    assert text.startswith("error setting up initial cluster: ")
    return text


def test_every_record_is_a_member(tmp_path: Path) -> None:
    """Ours has our name, whether we advertise a name or an address."""
    expected = "m=http://b.example:2380,0=http://a.example:2380,1=http://c.example:2380"
    for advertised in ("http://b.example:2380", "http://10.0.0.2:2380"):
        assert told(config(tmp_path, advertised), {(PLAIN, "SRV"): THREE}) == expected


def test_the_ids_follow_from_the_names_in_the_records(tmp_path: Path) -> None:
    async def begin() -> Identity:
        async with name_server(HOSTS | {(PLAIN, "SRV"): THREE}) as names:
            return await new_cluster(config(tmp_path, "http://10.0.0.2:2380"), FakeHttp(), names)

    who = asyncio.run(begin())
    ids = {name: member_id([f"http://{name}.example:2380"], "tok1") for name in "abc"}
    assert who.member == ids["b"]
    assert [member.id for member in who.first] == sorted(ids.values())


def test_secure_members(tmp_path: Path) -> None:
    text = told(config(tmp_path, "https://b.example:2380"), {(SECURE, "SRV"): THREE})
    assert text.startswith("m=https://b.example:2380,0=https://a.example:2380")


def test_members_of_both_kinds(tmp_path: Path) -> None:
    records = {(SECURE, "SRV"): THREE[:1], (PLAIN, "SRV"): THREE[2:]}
    assert told(config(tmp_path), records) == "0=https://c.example:2380,m=http://b.example:2380"


def test_a_suffix_of_the_service(tmp_path: Path) -> None:
    made = config(tmp_path, discovery_srv_name="blue")
    records = {("_etcd-server-blue._tcp.example.", "SRV"): THREE[2:]}
    assert told(made, records) == "m=http://b.example:2380"
    assert "_etcd-server-ssl-blue._tcp.example" in refused(made, {(PLAIN, "SRV"): THREE})


def test_no_records(tmp_path: Path) -> None:
    assert refused(config(tmp_path), {}) == (
        "error setting up initial cluster: error querying DNS SRV records for _etcd-server-ssl"
        " lookup _etcd-server-ssl._tcp.example: no such host; error querying DNS SRV records for"
        " _etcd-server lookup _etcd-server._tcp.example: no such host"
    )


def test_a_name_with_other_records_only(tmp_path: Path) -> None:
    assert "no such host" in refused(config(tmp_path), {(PLAIN, "TXT"): ['"hello"']})


def test_none_of_the_records_is_ours(tmp_path: Path) -> None:
    text = refused(config(tmp_path, "http://10.0.0.9:2380"), {(PLAIN, "SRV"): THREE})
    assert text.endswith('cannot find local etcd member "m" in SRV records')


def test_our_record_is_of_the_other_kind(tmp_path: Path) -> None:
    """Nobody could reach us as the record says."""
    text = refused(config(tmp_path), {(SECURE, "SRV"): THREE[2:]})
    assert (
        "bootstrap at https://b.example:2380 from DNS for etcd-server-ssl has scheme mismatch with"
        " expected peer http://b.example:2380"
    ) in text


def test_targets_that_are_unknown_are_passed_over(tmp_path: Path) -> None:
    records = {(PLAIN, "SRV"): ["0 0 2380 z.example.", THREE[2]]}
    assert told(config(tmp_path), records) == "m=http://b.example:2380"
    assert "z.example" in refused(config(tmp_path), {(PLAIN, "SRV"): ["0 0 2380 z.example."]})


def test_our_own_name_is_unknown(tmp_path: Path) -> None:
    assert "initial cluster: lookup z.example" in refused(
        config(tmp_path, "http://z.example:2380"), {(PLAIN, "SRV"): THREE}
    )


def test_a_name_server_that_is_gone(tmp_path: Path) -> None:
    async def ask() -> None:
        async with name_server({}) as names:
            pass
        names._asking.lifetime = 0.2
        with pytest.raises(LookupFailed, match=r"lookup _x\._tcp\.example: "):
            await names.services("x", "example")

    asyncio.run(ask())


def test_hosts_are_asked_of_the_system() -> None:
    assert asyncio.run(SystemNames().address("127.0.0.1")) == "127.0.0.1"
    assert asyncio.run(SystemNames().address("localhost.")) in ("127.0.0.1", "::1")
    with pytest.raises(LookupFailed, match=r"lookup no\.such\.host\.invalid: "):
        asyncio.run(SystemNames().address("no.such.host.invalid"))
