"""What all unary methods share: parse the request, hand it on, turn an error into a status."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from kvorum.errors import Code, EtcdError
from kvorum.h2 import Call, Method
from kvorum.server.proposer import fail

Request = TypeVar("Request", bound=Message)

Handler = Callable[[Call, Any, bytes], None]
"""Carries out a request: replies to the call, now or later, or raises an `EtcdError`. The bytes are
the request as it came, for what goes into the log byte for byte."""


def unary(request_type: type[Request], handler: Handler) -> Method:
    """A method that takes one request of a type."""
    parse: Callable[[bytes], Request] = request_type.FromString

    def handle(call: Call, message: bytes) -> None:
        try:
            handler(call, parse(message), message)
        except EtcdError as error:
            fail(call, error)
        except DecodeError as error:
            call.fail(Code.INTERNAL, f"grpc: error unmarshalling request: {error}")

    return Method(handle, streaming=False)


def parse_stream_message(call: Call, request_type: type[Request], message: bytes) -> Request | None:
    """One message of a stream; None if it does not parse, and then the call has failed."""
    try:
        return request_type.FromString(message)
    except DecodeError as error:
        call.fail(Code.INTERNAL, f"grpc: failed to unmarshal the received message: {error}")
        return None
