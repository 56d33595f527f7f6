"""Every bound of the engine, with the precedent that justifies its size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kvorum.h2.frames import DEFAULT_FRAME_SIZE, DEFAULT_WINDOW, MAX_FRAME_SIZE, MAX_WINDOW

KIB: Final = 1024
MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What one peer may cost us. Sizes are bytes, times are seconds, rates are per second."""

    # --- gRPC -----------------------------------------------------------------------------------
    max_receive_message: int = 2 * MIB
    """Largest request message. etcd: --max-request-bytes (1.5 MiB) plus 512 KiB."""

    max_concurrent_streams: int = 2**32 - 1
    """Open calls a connection may have; etcd's --max-concurrent-streams, unlimited by default (so
    is 0, as in grpc-go). ``STREAM_CEILING`` holds in any case."""

    # --- frames and heads -----------------------------------------------------------------------
    max_frame_size: int = 16 * KIB
    """SETTINGS_MAX_FRAME_SIZE: the protocol's default, as grpc-go announces it."""

    max_header_list: int = 64 * KIB
    """Decoded size of a head. nghttp2 and python-hyper: 64 KiB; grpc-go from 1.82: 8 KiB."""

    max_header_block: int = 64 * KIB
    """Encoded size of a head over all its frames (CVE-2024-27316); no larger than the list."""

    max_continuations: int = 8
    """CONTINUATION frames of one head. nghttp2: 8."""

    head_cache_entries: int = 64
    head_cache_block: int = 1 * KIB
    """Heads remembered by their raw bytes, a connection: so many, none longer than this."""

    # --- receiving ------------------------------------------------------------------------------
    stream_window: int = 1 * MIB
    connection_window: int = 16 * MIB
    """Receive windows. grpc-go grows its windows up to 16 MiB by measuring (bdpLimit)."""

    max_receive_backlog: int = 64 * MIB
    """Request bytes a connection may have waiting in us (incomplete messages, paused streams).
    A stream that goes beyond fails with RESOURCE_EXHAUSTED. Room for 32 largest requests."""

    # --- sending --------------------------------------------------------------------------------
    send_burst: int = 1 * MIB
    """DATA handed to the socket in one loop turn; the rest waits as the stream's backlog."""

    max_send_backlog: int = 256 * MIB
    """Reply bytes waiting for the peer's windows or socket, over all its streams, before the
    connection is cut. One message alone may be larger: a range is as large as its answer."""

    stop_reading: int = 4 * MIB
    """Unsent bytes that are too many: of a peer whose socket is full we read no more, and one
    whose windows do not move for ``write_stall_timeout`` is cut."""

    send_low_water: int = 32 * KIB
    """on_writable fires when a stream's backlog has shrunk to this."""

    write_stall_timeout: float = 60.0
    """A socket that takes no byte for so long is cut. grpc-go relies on TCP_USER_TIMEOUT, 20 s."""

    # --- abuse ----------------------------------------------------------------------------------
    reset_burst: int = 2000
    reset_rate: float = 1000.0
    """Streams reset by the peer, or by us for its faults (CVE-2023-44487, CVE-2025-8671).
    nghttp2: burst 1000, 33 a second. We allow more, as grpc clients reset on every deadline, and
    an overloaded member must not lose its clients' connections on top; an attack has 100,000."""

    nuisance_burst: int = 1000
    nuisance_rate: float = 100.0
    """SETTINGS, PING, PRIORITY, empty DATA and unknown frames (CVE-2019-9512, -9513, -9515, -9518).
    nghttp2: 1000 unanswered SETTINGS or PING, glitches in bursts of 1000, 33 a second."""

    max_lingering: int = 256
    """Streams that we ended before the peer did, remembered so that late frames are ignored."""

    # --- times ----------------------------------------------------------------------------------
    handshake_timeout: float = 20.0
    """Until preface and SETTINGS, or the first HTTP/1.1 byte. grpc-go: 120 s, nginx: 60 s."""

    header_timeout: float = 30.0
    """For a head once its first byte is here. etcd: 5 min, nginx: 60 s, Apache: 20 to 40 s."""

    keepalive_interval: float = 7200.0
    keepalive_timeout: float = 20.0
    """etcd's --grpc-keepalive-interval and -timeout; 0 turns either off."""

    keepalive_min_time: float = 5.0
    """etcd's --grpc-keepalive-min-time: pings more often than this are strikes."""

    permit_without_stream: bool = False
    """Whether pings without an open call are no strikes. etcd: false."""

    # --- HTTP/1.1 and plain HTTP/2 --------------------------------------------------------------
    max_http_head: int = 64 * KIB
    """Request line and headers. nginx: 32 KiB, Go: 1 MiB."""

    max_http_body: int = 8 * MIB
    """Request body; JSON with base64 is a third larger than the largest gRPC request."""

    max_pipelined: int = 16
    """HTTP/1.1 requests read ahead of their answers."""

    http_idle_timeout: float = 300.0
    """An HTTP/1.1 connection without a request, and a body that does not come."""

    def __post_init__(self) -> None:
        """Refuse values that the protocol has no way to announce."""
        if not DEFAULT_FRAME_SIZE <= self.max_frame_size <= MAX_FRAME_SIZE:
            raise ValueError(f"max_frame_size {self.max_frame_size} (RFC 9113 section 6.5.2)")
        for name in ("stream_window", "connection_window"):
            value = getattr(self, name)
            if not 0 < value <= MAX_WINDOW:
                raise ValueError(f"{name} {value} (RFC 9113 section 6.9.1)")
        if self.connection_window < DEFAULT_WINDOW:
            raise ValueError(f"connection_window {self.connection_window}: it can only grow")


STREAM_CEILING: Final = 100_000
"""Open calls on one connection, whatever the configuration says: about 100 MB of call objects."""

MAX_PING_STRIKES: Final = 2  # grpc-go: the third strike ends the connection
IDLE_PING_INTERVAL: Final = 7200.0  # grpc-go: pings without a call may come every two hours


class Bucket:
    """A token bucket: ``burst`` at once, refilled with ``rate`` a second. Time is passed in."""

    __slots__ = ("_burst", "_rate", "_stamp", "_tokens")

    def __init__(self, burst: int, rate: float, now: float) -> None:
        self._burst = burst
        self._rate = rate
        self._tokens = float(burst)
        self._stamp = now

    def take(self, now: float) -> bool:
        """Take one token; False if there was none."""
        tokens = self._tokens + (now - self._stamp) * self._rate
        self._tokens = min(tokens, self._burst) - 1.0
        self._stamp = now
        if self._tokens < 0.0:
            self._tokens = 0.0
            return False
        return True
