"""What the plain HTTP handlers share."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final
from urllib.parse import parse_qs

from kvorum.h2.http import HttpHandler, HttpRequest, HttpResponse, text_response

PLAIN_TEXT: Final = ("Content-Type", "text/plain; charset=utf-8")
NO_SNIFF: Final = ("X-Content-Type-Options", "nosniff")
MAX_QUERY_FIELDS: Final = 100


def not_found(request: HttpRequest) -> HttpResponse:
    del request
    return text_response(404, "404 page not found")


def method_not_allowed(allowed: str) -> HttpResponse:
    response = text_response(405, "Method Not Allowed")
    response.headers.append(("Allow", allowed))
    return response


def only_get(handler: HttpHandler) -> HttpHandler:
    """The handler, with 405 for every method but GET (for HEAD too, as in etcd)."""

    def check(request: HttpRequest) -> HttpResponse | Awaitable[HttpResponse]:
        if request.method != "GET":
            return method_not_allowed("GET")
        return handler(request)

    return check


def query_of(request: HttpRequest) -> dict[str, list[str]]:
    """The parameters of the query, empty values among them; none of them if they are too many."""
    try:
        return parse_qs(request.query, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS)
    except ValueError:
        return {}
