"""gRPC over HTTP/2, and HTTP/1.1 beside it: the serving engine and its client.

Read ``frames``, ``rules`` and ``connection`` for the protocol, ``call`` and ``server_core`` for the
path of a request, ``server`` for the sockets.
"""

from kvorum.h2.call import Call
from kvorum.h2.channel import Backoff, Channel
from kvorum.h2.client_calls import StreamCall
from kvorum.h2.http import HttpHandler, HttpRequest, HttpResponse
from kvorum.h2.limits import Limits
from kvorum.h2.method import Method
from kvorum.h2.responder import chunks
from kvorum.h2.server import GrpcServer
from kvorum.h2.status import RpcError

__all__ = [
    "Backoff",
    "Call",
    "Channel",
    "GrpcServer",
    "HttpHandler",
    "HttpRequest",
    "HttpResponse",
    "Limits",
    "Method",
    "RpcError",
    "StreamCall",
    "chunks",
]
