"""The HTTP listener through which a test switches failpoints while the server runs.

It has a thread of its own, so that it answers also while the server's loop waits in a point.
"""

from __future__ import annotations

import http.server
import threading
from http import HTTPStatus
from typing import Any, Final

from kvorum import failpoint

MAX_BODY: Final = 1 << 16
"""Bytes. All points with a long term each fit in a tenth of it."""

IDLE_LIMIT: Final = 30.0
"""Seconds a client may say nothing before its connection is closed."""


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


def serve(address: str) -> _Server:
    """Listen on ``host:port`` in a daemon thread. Raises ValueError or OSError."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise ValueError(f'GOFAIL_HTTP: "{address}" is not host:port')
    server = _Server((host.strip("[]"), int(port)), _Handler)
    threading.Thread(target=server.serve_forever, name="failpoint-http", daemon=True).start()
    return server


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_LIMIT

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: standard error belongs to the server's log."""

    def do_GET(self) -> None:
        with failpoint.answering:
            self._answer(*_get(self.path.removeprefix("/")))

    def do_PUT(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY:
            self.close_connection = True
            self._answer(HTTPStatus.BAD_REQUEST, "failed ReadAll in PUT\n")
            return
        body = self.rfile.read(int(length))
        with failpoint.answering:
            self._answer(*_put(self.path.removeprefix("/"), body))

    def do_DELETE(self) -> None:
        with failpoint.answering:
            self._answer(*_delete(self.path.removeprefix("/")))

    def do_POST(self) -> None:
        self.close_connection = True  # its body was not read
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, "Method not allowed\n")

    def _answer(self, status: HTTPStatus, text: str = "") -> None:
        body = text.encode()
        self.send_response(status)
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "DELETE, GET, PUT")
        if status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()


def _get(key: str) -> tuple[HTTPStatus, str]:
    if not key:
        lines = [f"{name}={failpoint.status(name)[0]}\n" for name in sorted(failpoint.NAMES)]
        return HTTPStatus.OK, "".join(lines)
    name = key.removesuffix("/count")
    try:
        terms, count = failpoint.status(name)
    except LookupError as error:
        return HTTPStatus.NOT_FOUND, f"failed to GET: {error}\n"
    if not terms:
        missing = HTTPStatus.INTERNAL_SERVER_ERROR if name != key else HTTPStatus.NOT_FOUND
        return missing, "failed to GET: failpoint: failpoint is disabled\n"
    return HTTPStatus.OK, str(count) if name != key else terms + "\n"


def _put(key: str, body: bytes) -> tuple[HTTPStatus, str]:
    try:
        text = body.decode()
        wanted = failpoint.parse_many(text) if key.lower() == "failpoints" else {key: text}
    except ValueError as error:
        return HTTPStatus.BAD_REQUEST, f"fail to parse failpoint: {error}\n"
    try:
        for name, terms in wanted.items():
            failpoint.enable(name, terms)
    except (LookupError, ValueError) as error:
        return HTTPStatus.BAD_REQUEST, f"fail to set failpoint: {error}\n"
    return HTTPStatus.NO_CONTENT, ""


def _delete(key: str) -> tuple[HTTPStatus, str]:
    try:
        failpoint.disable(key)
    except (LookupError, ValueError) as error:
        return HTTPStatus.BAD_REQUEST, f"failed to delete failpoint {error}\n"
    return HTTPStatus.NO_CONTENT, ""
