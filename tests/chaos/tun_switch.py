"""The wire between the namespaces: a process that carries packets from one TUN device to another.

Not the kernel's own tools, because few kernels have all of them (``netem`` is a module, ``nft`` a
package), and none can be changed without a process for each change. Here every direction between
two hosts can be cut, slowed or made lossy on its own, at once.

Run as ``python tun_switch.py FD ADDRESS FD ADDRESS ...``. On standard input it takes one JSON
object a line, the whole new state: ``{"cut": [[from, to]...], "delay": [least, most], "loss": p}``
with hosts by number, seconds and a share; it answers ``ok`` when that holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import json
import os
import random
import socket
import sys
from typing import Any

_PACKET = 65536
_AT_ONCE = 64
_UNDER_WAY = 20_000
"""Packets that are delayed; what is more is lost, as in a real queue."""


class Switch:
    """Hosts by number; each has a device, and an address by which packets find it."""

    def __init__(self, devices: list[int], addresses: list[str], chance: random.Random) -> None:
        self._devices = devices
        self._numbers = {socket.inet_aton(each): n for n, each in enumerate(addresses)}
        self._chance = chance
        self._cut: set[tuple[int, int]] = set()
        self._delay = (0.0, 0.0)
        self._loss = 0.0
        self._waiting: list[tuple[float, int, int, bytes]] = []
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        for number, device in enumerate(devices):
            self._loop.add_reader(device, self._readable, number)

    def change(self, state: dict[str, Any]) -> None:
        self._cut = {(source, target) for source, target in state["cut"]}
        least, most = state["delay"]
        self._delay = (float(least), float(most))
        self._loss = float(state["loss"])

    def _readable(self, source: int) -> None:
        for _ in range(_AT_ONCE):
            try:
                packet = os.read(self._devices[source], _PACKET)
            except BlockingIOError:
                return
            target = self._numbers.get(packet[16:20]) if packet[0] >> 4 == 4 else None
            if target is not None:
                self._carry(source, target, packet)

    def _carry(self, source: int, target: int, packet: bytes) -> None:
        if (source, target) in self._cut or self._chance.random() < self._loss:
            return
        if not self._delay[1]:
            self._deliver(target, packet)
        elif len(self._waiting) < _UNDER_WAY:
            due = self._loop.time() + self._chance.uniform(*self._delay)
            self._count += 1
            heapq.heappush(self._waiting, (due, self._count, target, packet))
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._waiting[0][0], self._due)

    def _due(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._waiting and self._waiting[0][0] <= now:
            _, _, target, packet = heapq.heappop(self._waiting)
            self._deliver(target, packet)
        if self._waiting:
            self._arm()

    def _deliver(self, target: int, packet: bytes) -> None:
        with contextlib.suppress(OSError):  # the device is down or full: the packet is lost
            os.write(self._devices[target], packet)


async def main(words: list[str]) -> None:
    devices = [int(word) for word in words[::2]]
    for device in devices:
        os.set_blocking(device, False)
    switch = Switch(devices, words[1::2], random.Random())
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        switch.change(json.loads(line))
        print("ok", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
