"""What all methods with one request share: parse it, hand it on, turn an error into a status."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError, Message

from kvorum.errors import Code, EtcdError
from kvorum.h2 import Call, Method
from kvorum.server.proposer import fail

Request = TypeVar("Request", bound=Message)

_CARDINALITY: Final = "cardinality violation: "

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


def one_request(call: Call, request_type: type[Request], run: Callable[[Request], None]) -> None:
    """Set the callbacks of a call that takes one request and answers with a stream. ``run`` may
    raise an `EtcdError`."""
    taken = False

    def take(message: bytes) -> None:
        nonlocal taken
        if taken:
            call.fail(Code.INTERNAL, f"{_CARDINALITY}received multiple request messages")
            if call.on_cancel is not None:
                call.on_cancel()
            return
        taken = True
        request = parse_stream_message(call, request_type, message)
        if request is not None:
            try:
                run(request)
            except EtcdError as error:
                fail(call, error)

    def end() -> None:
        if not taken:
            call.fail(Code.INTERNAL, f"{_CARDINALITY}received no request message")

    call.on_message = take
    call.on_end = end
