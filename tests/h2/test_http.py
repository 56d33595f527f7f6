"""Plain HTTP: HTTP/1.1 without sockets, and HTTP/2 requests that are not gRPC."""

from __future__ import annotations

from dataclasses import replace

import hpack
import pytest
from h2wire import Wire, answer
from hypothesis import given, settings
from hypothesis import strategies as st

from kvorum.h2 import frames
from kvorum.h2.http import Answer, BodySource, Headers, HttpRequest, split_target, text_response
from kvorum.h2.http1 import Http1Connection
from kvorum.h2.limits import Limits

LIMITS = Limits()


class Http1Wire:
    """An HTTP/1.1 connection, and a handler that tells of the request or keeps the answer."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.now = 100.0
        self.requests: list[HttpRequest] = []
        self.kept: list[Answer] = []
        self.cancelled = 0
        self.woken = 0
        self.conn = Http1Connection(self._run, limits, self._wake, self.now, peer="here:1")

    def _wake(self) -> None:
        self.woken += 1

    def _run(self, answer: Answer, request: HttpRequest) -> None:
        self.requests.append(request)
        if request.path == "/keep":
            self.kept.append(answer)
            answer.on_cancel = self._cancel
            return
        body = f"{request.method} {request.path}?{request.query} {len(request.body)}".encode()
        answer.begin(200, [("content-type", "text/plain")], len(body))
        answer.write(body)
        answer.end()

    def _cancel(self) -> None:
        self.cancelled += 1

    def send(self, data: bytes) -> str:
        self.conn.receive(data, self.now)
        return self.flush()

    def flush(self) -> str:
        return self.conn.take().decode()

    def tick(self, seconds: float) -> str:
        self.now += seconds
        if self.conn.next_check <= self.now:
            self.conn.tick(self.now)
        return self.flush()


def ok(body: str, *, last: str = "", head: bool = False) -> str:
    lines = ["HTTP/1.1 200 OK", "content-type: text/plain", f"content-length: {len(body)}"]
    if last:
        lines.append(f"connection: {last}")
    return "\r\n".join(lines) + "\r\n\r\n" + ("" if head else body)


HOST = b"Host: x\r\n"


def test_requests_of_one_connection() -> None:
    wire = Http1Wire()
    assert wire.send(b"GET /a?b=1&c HTTP/1.1\r\n" + HOST + b"X-A:  b \r\n\r\n") == ok(
        "GET /a?b=1&c 0"
    )
    assert wire.requests[0].headers == [("host", "x"), ("x-a", "b")]
    assert wire.requests[0].header("x-a") == "b"
    assert wire.requests[0].header("none", "-") == "-"
    assert wire.requests[0].peer == "here:1"
    post = b"POST /p HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhel"
    assert wire.send(post) == ""
    assert wire.send(b"lo") == ok("POST /p? 5")
    assert wire.requests[1].body == b"hello"
    assert not wire.conn.closed


def test_chunked_bodies() -> None:
    wire = Http1Wire()
    head = b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    body = b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nX-Trailer: 1\r\n\r\n"
    assert wire.send(head + body) == ok("POST /? 11")
    assert wire.requests[0].body == b"hello world"
    assert wire.requests[0].header("x-trailer") == ""


def test_head_requests_get_no_body() -> None:
    wire = Http1Wire()
    assert wire.send(b"HEAD /a HTTP/1.1\r\n" + HOST + b"\r\n") == ok("HEAD /a? 0", head=True)


def test_the_absolute_form() -> None:
    wire = Http1Wire()
    wire.send(b"GET http://x:1/a/b?q HTTP/1.1\r\n" + HOST + b"\r\n")
    assert (wire.requests[0].path, wire.requests[0].query) == ("/a/b", "q")
    assert split_target("*") == ("*", "")
    assert split_target("http://host") == ("/", "")


@pytest.mark.parametrize(
    ("head", "last"),
    [
        (b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n", "close"),
        (b"GET / HTTP/1.0\r\n\r\n", "close"),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "keep-alive"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"\r\n", ""),
    ],
)
def test_connections_stay_or_close(head: bytes, last: str) -> None:
    wire = Http1Wire()
    assert wire.send(head) == ok("GET /? 0", last=last)
    assert wire.conn.closed is (last == "close")


def test_pipelined_requests_are_answered_in_order() -> None:
    wire = Http1Wire()
    keep, get = (b"GET /%s HTTP/1.1\r\n" % name + HOST + b"\r\n" for name in (b"keep", b"a"))
    assert wire.send(keep + get + get) == ""
    assert len(wire.requests) == 1
    wire.kept[0].begin(204, [], 0)
    wire.kept[0].end()
    assert wire.woken == 1
    assert wire.flush() == "HTTP/1.1 204 No Content\r\n\r\n" + ok("GET /a? 0") * 2


def test_reading_stops_while_too_much_is_read_ahead() -> None:
    wire = Http1Wire(replace(LIMITS, max_pipelined=3))
    get = b"GET /keep HTTP/1.1\r\n" + HOST + b"\r\n"
    wire.send(get * 4)
    assert not wire.conn.choked
    wire.send(get)
    assert wire.conn.choked
    wire.kept[0].begin(200, [], 0)
    wire.kept[0].end()
    assert not wire.conn.choked


def test_expect_continue() -> None:
    wire = Http1Wire()
    head = b"POST / HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    assert wire.send(head) == "HTTP/1.1 100 Continue\r\n\r\n"
    assert wire.send(b"hi") == ok("POST /? 2")


def test_an_upgrade_is_not_taken() -> None:
    wire = Http1Wire()
    head = b"GET / HTTP/1.1\r\n" + HOST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    settings_header = b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n"
    follow = b"GET /b HTTP/1.1\r\n" + HOST + b"\r\n"
    assert wire.send(head + settings_header + follow) == ok("GET /? 0") + ok("GET /b? 0")


def test_a_growing_answer_is_chunked() -> None:
    wire = Http1Wire()
    wire.send(b"GET /keep HTTP/1.1\r\n" + HOST + b"\r\n")
    kept = wire.kept[0]
    kept.begin(200, [], None)
    kept.write(b"hello")
    kept.write(b"")
    kept.write(b"0123456789abcdef")
    kept.end()
    expected = "5\r\nhello\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n"
    assert wire.flush() == "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + expected
    assert not wire.conn.closed


def test_a_growing_answer_for_http_1_0_ends_with_the_connection() -> None:
    wire = Http1Wire()
    wire.send(b"GET /keep HTTP/1.0\r\n\r\n")
    wire.kept[0].begin(200, [], None)
    wire.kept[0].write(b"hello")
    wire.kept[0].end()
    assert wire.flush() == "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhello"
    assert wire.conn.closed


def test_an_answer_that_breaks_off_closes() -> None:
    wire = Http1Wire()
    wire.send(b"GET /keep HTTP/1.1\r\n" + HOST + b"\r\n")
    wire.kept[0].begin(200, [], None)
    wire.kept[0].write(b"hello")
    wire.kept[0].abort()
    assert wire.flush().endswith("5\r\nhello\r\n")
    assert wire.conn.closed


def test_a_client_that_leaves_cancels_the_answer() -> None:
    wire = Http1Wire()
    wire.send(b"GET /keep HTTP/1.1\r\n" + HOST + b"\r\n")
    wire.conn.lost()
    assert wire.cancelled == 1
    wire.kept[0].begin(200, [], 2)
    wire.kept[0].write(b"no")
    wire.kept[0].end()
    wire.kept[0].abort()
    assert wire.flush() == ""


def test_backlog_while_the_socket_is_full() -> None:
    wire = Http1Wire(replace(LIMITS, max_send_backlog=5000))
    wire.send(b"GET /keep HTTP/1.1\r\n" + HOST + b"\r\n")
    kept = wire.kept[0]
    told = []
    kept.on_writable = lambda: told.append(kept.backlog)
    kept.begin(200, [], None)
    kept.write(b"x" * 1000)
    assert kept.backlog == 0
    wire.conn.hold()
    kept.write(b"x" * 1000)
    assert kept.backlog > 1000
    wire.conn.release()
    assert told == [0]
    wire.conn.hold()
    for _ in range(10):
        kept.write(b"x" * 1000)
    assert wire.conn.closed
    assert len(wire.flush()) < 9000


BIG = b"x" * 70_000


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"bad header\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: a\x00b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b" folded: 1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (
            b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: -5\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", 505),
        (b"GET /" + BIG + b" HTTP/1.1\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + BIG, 431),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X-A: y\r\n" * 20_000, 431),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 9000000\r\n\r\n", 413),
        (
            b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
            b"900000\r\n" + b"x" * 0x900000,
            413,
        ),
    ],
    ids=lambda value: str(value[:40]) if isinstance(value, bytes) else str(value),
)
def test_bad_requests(raw: bytes, status: int) -> None:
    wire = Http1Wire()
    got = ""
    for at in range(0, len(raw), 60_000):
        got += wire.send(raw[at : at + 60_000])
    assert got.startswith(f"HTTP/1.1 {status} ")
    assert "\r\nconnection: close\r\n" in got
    assert wire.conn.closed
    assert wire.requests == []
    assert wire.send(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n") == ""


def test_a_bad_request_after_good_ones_waits_its_turn() -> None:
    wire = Http1Wire()
    keep = b"GET /keep HTTP/1.1\r\n" + HOST + b"\r\n"
    assert wire.send(keep + b"nonsense\r\n\r\n") == ""
    assert wire.send(keep) == ""
    wire.kept[0].begin(200, [], 0)
    wire.kept[0].end()
    first, second = wire.flush().split("HTTP/1.1 ")[1:]
    assert first.startswith("200")
    assert second.startswith("400")
    assert len(wire.requests) == 1
    assert wire.conn.closed


def test_a_slow_head_ends() -> None:
    wire = Http1Wire()
    wire.send(b"GET / HTTP/1.1\r\n")
    for _ in range(5):
        assert wire.tick(LIMITS.header_timeout / 6) == ""
        wire.send(b"X-Slow: 1\r\n")
    assert wire.tick(LIMITS.header_timeout / 3).startswith("HTTP/1.1 408 ")
    assert wire.conn.closed


def test_a_slow_body_and_an_idle_connection_end() -> None:
    wire = Http1Wire()
    head = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 100\r\n\r\n"
    wire.send(head)
    for _ in range(20):
        wire.send(b"x")
        assert wire.tick(LIMITS.header_timeout) == ""
    assert not wire.conn.closed
    while not wire.conn.closed:
        last = wire.tick(LIMITS.header_timeout)
    assert last.startswith("HTTP/1.1 408 ")

    idle = Http1Wire()
    idle.send(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    for _ in range(9):
        assert idle.tick(LIMITS.header_timeout) == ""
    assert not idle.conn.closed
    while not idle.conn.closed:
        assert idle.tick(LIMITS.header_timeout) == ""


def test_time_does_not_pass_while_the_handler_works() -> None:
    wire = Http1Wire()
    wire.send(b"GET /keep HTTP/1.1\r\n" + HOST + b"\r\n")
    for _ in range(100):
        wire.tick(100)
    assert not wire.conn.closed


def test_draining() -> None:
    idle = Http1Wire()
    idle.conn.drain(idle.now)
    assert idle.conn.closed
    busy = Http1Wire()
    busy.send(b"GET /keep HTTP/1.1\r\n" + HOST + b"\r\n")
    busy.conn.drain(busy.now)
    assert not busy.conn.closed
    busy.kept[0].begin(200, [], 0)
    busy.kept[0].end()
    assert busy.flush().startswith("HTTP/1.1 200")
    assert busy.conn.closed


def test_a_thousand_pipelined_requests() -> None:
    wire = Http1Wire()
    get = b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n"
    assert wire.send(get * 3000) == ok("GET /a? 0") * 3000


# --- bodies that come as they arrive -------------------------------------------------------------


class SourceWire(Http1Wire):
    """Bodies of /keep come as they arrive."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        super().__init__(limits)
        self.conn._wants_source = lambda request: request.path == "/keep"

    def source(self) -> BodySource:
        found = self.requests[-1].source
        assert found is not None
        return found


UPLOAD = b"POST /keep HTTP/1.1\r\n" + HOST + b"Content-Length: 10\r\n\r\n"


def test_a_body_that_comes_as_it_arrives() -> None:
    wire = SourceWire()
    told: list[int] = []
    wire.send(UPLOAD)
    source = wire.source()
    source.on_ready = lambda: told.append(source.held)
    assert source.read() == b""
    wire.send(b"abc")
    wire.send(b"de")
    assert told == [3, 5]
    assert source.read() == b"abcde"
    wire.send(b"fghij" + b"GET /next HTTP/1.1\r\n" + HOST + b"\r\n")
    assert source.ended
    assert source.read() == b"fghij"
    wire.kept[0].begin(200, [], 0)
    wire.kept[0].end()
    assert wire.flush().endswith(ok("GET /next? 0"))
    assert not source.lost


def test_a_body_larger_than_the_limit_may_come_as_it_arrives() -> None:
    wire = SourceWire(replace(LIMITS, max_http_body=1000, stream_window=100_000))
    wire.send(UPLOAD.replace(b" 10\r", b" 10000000\r"))
    size = 0
    while size < 10_000_000 - 125_000:
        wire.send(b"x" * 50_000)
        assert not wire.conn.choked
        wire.send(b"x" * 75_000)
        assert wire.conn.choked
        woken = wire.woken
        size += len(wire.source().read())
        assert not wire.conn.choked
        assert wire.woken == woken + 1
        wire.flush()
    source = wire.source()
    wire.send(b"x" * (10_000_000 - size))
    assert source.ended


@pytest.mark.parametrize("how", ["lost", "half-closed", "too slow", "broken"])
def test_a_body_whose_end_never_comes(how: str) -> None:
    wire = SourceWire()
    if how == "broken":
        wire.send(UPLOAD.replace(b"Content-Length: 10", b"Transfer-Encoding: chunked"))
        wire.send(b"zz\r\n")
    else:
        wire.send(UPLOAD + b"abc")
        assert wire.source().read() == b"abc"
    source = wire.source()
    if how == "lost":
        wire.conn.lost()
    elif how == "half-closed":
        assert wire.conn.finish()
    while how == "too slow" and not wire.conn.closed:
        wire.tick(LIMITS.header_timeout)
    assert source.lost
    assert not source.ended


def test_an_answer_before_the_end_of_the_body_ends_the_connection() -> None:
    wire = SourceWire()
    wire.send(UPLOAD + b"abc")
    wire.kept[0].begin(403, [], 0)
    wire.kept[0].end()
    assert "403 Forbidden" in wire.flush()
    assert wire.conn.closed


def test_a_slow_reader_of_a_body_does_not_end_it() -> None:
    wire = SourceWire()
    wire.send(UPLOAD + b"abc")
    for _ in range(100):
        wire.tick(LIMITS.header_timeout)
    assert not wire.conn.closed


def test_expect_continue_for_a_body_that_comes_as_it_arrives() -> None:
    wire = SourceWire()
    head = UPLOAD.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
    assert wire.send(head) == "HTTP/1.1 100 Continue\r\n\r\n"


REQUEST = st.sampled_from(
    [
        b"GET /a?b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"HEAD /h HTTP/1.1\r\nHost: x\r\nX-A: 1\r\n\r\n",
        b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
        b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"GET /u HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"broken\r\n\r\n",
    ]
)


@settings(deadline=None)
@given(st.lists(REQUEST, max_size=6), st.data())
def test_any_cuts_of_http_1_give_the_same_outcome(parts: list[bytes], data: st.DataObject) -> None:
    raw = b"".join(parts)
    whole = Http1Wire()
    expected = whole.send(raw)
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=8).map(sorted))
    cut = Http1Wire()
    got = "".join(cut.send(raw[a:b]) for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True))
    assert got == expected
    assert cut.conn.closed is whole.conn.closed


# --- over HTTP/2 ---------------------------------------------------------------------------------


class Http2Site:
    """Answers plain requests on an HTTP/2 connection."""

    def __init__(self) -> None:
        self.requests: list[HttpRequest] = []
        self.kept: list[Answer] = []

    def __call__(self, answer: Answer, request: HttpRequest) -> None:
        self.requests.append(request)
        if request.path == "/keep":
            self.kept.append(answer)
            return
        headers: Headers = [("Content-Type", "text/plain"), ("Connection", "close")]
        answer.begin(200, headers, len(request.body))
        answer.write(request.body)
        answer.end()


def plain(wire: Wire, sid: int, method: str, path: str, *, end: bool = True) -> bytes:
    fields = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "x")]
    flags = frames.END_HEADERS | (frames.END_STREAM if end else 0)
    return frames.frame(frames.HEADERS, flags, sid, wire.encoder.encode([*fields, ("a", "b")]))


def test_a_plain_request_over_http_2() -> None:
    site = Http2Site()
    wire = Wire(http=site)
    lines = wire.send(plain(wire, 1, "GET", "/health?x=1"))
    assert lines == ["HEADERS 1 END :status=200 content-type=text/plain content-length=0"]
    request = site.requests[0]
    assert (request.method, request.path, request.query) == ("GET", "/health", "x=1")
    assert request.headers == [("host", "x"), ("a", "b")]
    assert request.version == "2"
    raw = plain(wire, 3, "POST", "/p", end=False)
    assert wire.send(raw + wire.data(3, b"hel") + wire.data(3, b"lo", end=True)) == [
        "HEADERS 3 :status=200 content-type=text/plain content-length=5",
        "DATA 3 'hello'",
        "DATA 3 END ''",
    ]
    assert site.requests[1].body == b"hello"
    assert wire.send(wire.request(5)) == answer(5, b"hello")
    assert wire.conn.recv_backlog == 0


def test_a_head_request_over_http_2() -> None:
    wire = Wire(http=Http2Site())
    lines = wire.send(plain(wire, 1, "HEAD", "/"))
    assert lines == ["HEADERS 1 END :status=200 content-type=text/plain content-length=0"]


def test_a_grpc_path_without_grpcs_content_type_is_415() -> None:
    wire = Wire(http=Http2Site())
    assert ":status=415" in wire.send(plain(wire, 1, "POST", "/t.S/Now"))[0]


def test_a_growing_answer_over_http_2() -> None:
    site = Http2Site()
    wire = Wire(http=site)
    wire.send(plain(wire, 1, "GET", "/keep"))
    kept = site.kept[0]
    kept.begin(200, [], None)
    kept.write(b"one")
    assert wire.flush() == ["HEADERS 1 :status=200", "DATA 1 'one'"]
    kept.write(b"two")
    kept.end()
    kept.write(b"three")
    kept.end()
    assert wire.flush() == ["DATA 1 'two'", "DATA 1 END ''"]


def test_an_answer_over_http_2_that_breaks_off() -> None:
    site = Http2Site()
    wire = Wire(http=site)
    wire.send(plain(wire, 1, "GET", "/keep"))
    site.kept[0].begin(200, [], 100)
    site.kept[0].write(b"one")
    site.kept[0].abort()
    assert wire.flush()[-1] == "RST_STREAM 1 INTERNAL_ERROR"


def test_a_client_that_resets_cancels_the_answer() -> None:
    site = Http2Site()
    wire = Wire(http=site)
    wire.send(plain(wire, 1, "GET", "/keep"))
    gone = []
    site.kept[0].on_cancel = lambda: gone.append(1)
    wire.send(frames.rst_stream(1, 8))
    assert gone == [1]
    site.kept[0].begin(200, [], 0)
    assert wire.flush() == []


def test_large_bodies_over_http_2_are_refused() -> None:
    site = Http2Site()
    wire = Wire(http=site, limits=replace(LIMITS, max_http_body=20_000))
    lines = wire.send(plain(wire, 1, "POST", "/p", end=False))
    lines += wire.send(wire.data(1, b"x" * 16_000))
    lines += wire.send(wire.data(1, b"x" * 16_000))
    assert lines == ["HEADERS 1 END :status=413 content-length=0", "RST_STREAM 1 NO_ERROR"]
    assert site.requests == []
    assert wire.conn.recv_backlog == 0


def test_text_answers_look_like_gos() -> None:
    response = text_response(404, "404 page not found")
    assert response.body == b"404 page not found\n"
    assert dict(response.headers) == {
        "content-type": "text/plain; charset=utf-8",
        "x-content-type-options": "nosniff",
    }


def test_answers_are_decoded_with_another_library() -> None:
    """What the tests compare with is not our own decoder."""
    assert isinstance(Wire().reader._decoder, hpack.Decoder)
