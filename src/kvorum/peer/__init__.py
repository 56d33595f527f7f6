"""How members speak with each other: etcd's rafthttp, over HTTP/1.1.

Read ``interface`` for what a member and its transport owe each other, ``rafthttp`` and ``peers``
for what belongs to one member, ``handshake`` and the codecs for what is on the wire, ``service``
for the peer port.
"""

from kvorum.peer.http_client import HttpClient, HttpClientError, HttpReply
from kvorum.peer.interface import (
    Host,
    MakeTransport,
    OutgoingSnapshot,
    RemovedMember,
    Transport,
    WrongMember,
)
from kvorum.peer.rafthttp import Rafthttp
from kvorum.peer.service import PEER_LIMITS, PeerService, wants_source

__all__ = [
    "PEER_LIMITS",
    "Host",
    "HttpClient",
    "HttpClientError",
    "HttpReply",
    "MakeTransport",
    "OutgoingSnapshot",
    "PeerService",
    "Rafthttp",
    "RemovedMember",
    "Transport",
    "WrongMember",
    "wants_source",
]
