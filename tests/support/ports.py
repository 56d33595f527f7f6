"""Free TCP ports on the loopback address."""

from __future__ import annotations

import os
import random
import socket

# Below the range from which the kernel takes the ports of outgoing connections, so that a port
# stays free between its choice here and the server's listen.
_LOWEST, _HIGHEST = 11000, 31000
_random = random.Random(os.getpid() * 7919)
_given: set[int] = set()


def free_port() -> int:
    """A port nobody listens on, never the same twice in this process."""
    for _ in range(1000):
        port = _random.randrange(_LOWEST, _HIGHEST)
        if port not in _given and _is_free(port):
            _given.add(port)
            return port
    raise RuntimeError("no free port found in 1000 tries")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
