"""Free TCP ports on the loopback address."""

from __future__ import annotations

import os
import random
import socket
from collections import deque

# Below the range from which the kernel takes the ports of outgoing connections, so that a port
# stays free between its choice here and the server's listen. Each test process has a part of its
# own, so that those that run side by side do not choose the same one.
_LOWEST, _PARTS, _SIZE = 11000, 8, 2500
_random = random.Random(os.getpid() * 7919)
_given: deque[int] = deque(maxlen=_SIZE // 2)


def _part() -> tuple[int, socket.socket | None]:
    """The first port of this process's part; the part is ours while we listen there."""
    for lowest in range(_LOWEST, _LOWEST + _PARTS * _SIZE, _SIZE):
        mark = socket.socket()
        try:
            mark.bind(("127.0.0.1", lowest))
            mark.listen(1)
        except OSError:
            mark.close()
            continue
        return lowest, mark
    return _LOWEST + _random.randrange(_PARTS) * _SIZE, None


_lowest, _mark = _part()


def free_port() -> int:
    """A port nobody listens on, and none of those given last."""
    for _ in range(1000):
        port = _random.randrange(_lowest + 1, _lowest + _SIZE)
        if port not in _given and _is_free(port):
            _given.append(port)
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
