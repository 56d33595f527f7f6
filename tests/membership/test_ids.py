"""Ids as real etcd computed them."""

from __future__ import annotations

from kvorum.membership import cluster_id, member_id

PEER = "http://127.0.0.1:22380"


def test_bootstrap_ids_are_those_of_etcd() -> None:
    assert member_id([PEER], "tok1") == 0xFCE4CCDB9802DA4A
    assert member_id([PEER], "tokpy") == 0xDD0B5F7DDB13B49
    assert cluster_id([member_id([PEER], "tok1")]) == 0xD0A9ED06DF5D1F3E


def test_the_order_of_urls_and_members_does_not_matter() -> None:
    urls = ["http://127.0.0.1:22480", "http://127.0.0.1:22580"]
    assert member_id(urls, "t") == member_id(reversed(urls), "t")
    members = [member_id([url], "tokR") for url in urls]
    assert members == [0x1C34485C6D2C5344, 0x35CF55299ACA0E71]
    assert cluster_id(members) == cluster_id(reversed(members)) == 0xA0274BDE881E5428


def test_a_later_member_gets_its_id_from_the_time() -> None:
    first = member_id([PEER], "", unix_seconds=1_700_000_000)
    assert first != member_id([PEER], "", unix_seconds=1_700_000_001)
    assert first != member_id([PEER], "")
