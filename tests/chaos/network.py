"""A network of namespaces, one for each member, in the test's hands.

Members speak with each other over TUN devices (`tun_switch`), and with the test over a veth pair
each, which stays whole: what a member that was cut off tells its clients is what is to be seen.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x0001 | 0x1000
_PREFIX = "kvchaos"
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a member is: its namespace, and its addresses to the test and to other members."""

    namespace: str
    client: str
    peer: str


class Network:
    """Hosts ``0 .. count - 1``; everything goes with `close`, and with the test's process."""

    def __init__(self, count: int) -> None:
        sweep()
        serial = next(_numbers)
        self._serial = f"{os.getpid()}-{serial}"
        # A /24 each of 10.x.y: different for tests that run at the same time, on most days.
        third = (os.getpid() * 7 + serial) % 0x7F00
        self._net = f"10.{128 + (third >> 8)}.{third & 0xFF}"
        self.places: list[Place] = []
        self._devices: list[int] = []
        self._switch: subprocess.Popen[bytes] | None = None
        self.cut: set[tuple[int, int]] = set()
        self.delay = (0.0, 0.0)
        self.loss = 0.0
        try:
            for number in range(count):
                self._add(number)
            self._run_switch()
        except BaseException:
            self.close()
            raise

    # Making

    def _add(self, number: int) -> None:
        namespace = f"{_PREFIX}-{self._serial}-{number}"
        near, far = (f"{self._net}.{4 * number + end}" for end in (1, 2))
        place = Place(namespace, far, f"{self._net}.{201 + number}")
        short = f"kv{self._serial}{number}".replace("-", ".")[:15]
        _ip("netns", "add", namespace)
        self.places.append(place)
        _ip("link", "add", short, "type", "veth", "peer", "name", "test", "netns", namespace)
        _ip("addr", "add", f"{near}/30", "dev", short)
        _ip("link", "set", short, "up")
        self._tun(number, namespace)
        for device, address in ("lo", None), ("test", f"{far}/30"), ("peers", f"{place.peer}/29"):
            if address:
                _ip("-n", namespace, "addr", "add", address, "dev", device)
            _ip("-n", namespace, "link", "set", device, "up")
        _calm_retransmission(namespace)

    def _tun(self, number: int, namespace: str) -> None:
        """A device that is made here, so that the descriptor is ours, and lives there."""
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        self._devices.append(device)
        name = f"kt{self._serial}{number}".replace("-", ".")[:15]
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN_NO_PI))
        _ip("link", "set", name, "netns", namespace)
        _ip("-n", namespace, "link", "set", name, "name", "peers")

    def _run_switch(self) -> None:
        words: list[str] = []
        for device, place in zip(self._devices, self.places, strict=True):
            words += [str(device), place.peer]
        script = Path(__file__).with_name("tun_switch.py")
        self._switch = subprocess.Popen(
            [sys.executable, str(script), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=self._devices,
        )
        for device in self._devices:
            os.close(device)
        self._devices = []
        self._tell()

    # Disturbing

    def _tell(self) -> None:
        assert self._switch is not None
        assert self._switch.stdin is not None
        assert self._switch.stdout is not None
        state = {"cut": sorted(self.cut), "delay": self.delay, "loss": self.loss}
        self._switch.stdin.write(json.dumps(state).encode() + b"\n")
        self._switch.stdin.flush()
        answer = self._switch.stdout.readline()
        assert answer == b"ok\n", f"the switch said {answer!r}"

    def disturb(
        self,
        *,
        cut: Iterable[tuple[int, int]] = (),
        delay: tuple[float, float] = (0.0, 0.0),
        loss: float = 0.0,
    ) -> None:
        """The network is from now on like this, and whole apart from it. ``cut`` are directions."""
        self.cut, self.delay, self.loss = set(cut), delay, loss
        self._tell()

    def heal(self) -> None:
        self.disturb()

    def close(self) -> None:
        switch, self._switch = self._switch, None
        if switch is not None:
            switch.kill()
            switch.wait()
            for pipe in (switch.stdin, switch.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        for device in self._devices:
            os.close(device)
        for place in self.places:
            subprocess.run(["ip", "netns", "del", place.namespace], check=False)
        self.places, self._devices = [], []


def inside(namespace: str, command: Sequence[str]) -> list[str]:
    """The command that runs another in a namespace, as the same process."""
    return ["ip", "netns", "exec", namespace, *command]


def both_ways(one: int, *others: int) -> set[tuple[int, int]]:
    return {(one, other) for other in others} | {(other, one) for other in others}


def sweep() -> None:
    """Take away what processes left behind that could not clean up."""
    for line in _ip("netns", "list").splitlines():
        name = line.partition(" ")[0]
        parts = name.split("-")
        if parts[0] == _PREFIX and len(parts) == 4 and not Path(f"/proc/{parts[1]}").exists():
            _ip("netns", "del", name)


@functools.cache
def why_not() -> str:
    """What keeps this machine from having such a network; empty if nothing does."""
    try:
        Network(1).close()
    except FileNotFoundError as error:
        return f"no network of namespaces: {error.filename} is missing"
    except OSError as error:
        return f"no network of namespaces: {error}"
    except subprocess.CalledProcessError as error:
        return f"no network of namespaces: {error.stderr.strip()}"
    return ""


def _calm_retransmission(namespace: str) -> None:
    """TCP doubles its patience with each packet that gets no answer, and after a long cut would
    be found waiting long after the wire is whole. Where the kernel can be told, at most 1 s."""
    words = ["sysctl", "-q", "-w", "net.ipv4.tcp_rto_max_ms=1000"]
    subprocess.run(inside(namespace, words), check=False, capture_output=True)


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=True, timeout=30)
    return done.stdout
