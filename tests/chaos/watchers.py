"""Clients that watch, lose their member, and go on at another one where they were."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Final

from chaos.clients import PATIENCE, Connections
from chaos.members import ChaosMember
from chaos.serving import Serving

from kvorum.h2 import RpcError, StreamCall
from kvorum.pb import etcdserverpb as pb
from kvorum.testing.watch_guarantees import Response, Watch
from sim import words

SILENCE: Final = 3.0
"""Seconds without a word after which a watcher asks for progress, and then goes elsewhere."""

ASKED_FOR: Final = -1
"""The watch id of a progress notice for all watches of a stream."""

_PROGRESS: Final = pb.WatchRequest(progress_request=pb.WatchProgressRequest()).SerializeToString()


class Watcher:
    """One range, watched in a chain of watches; ``watches`` has them all, and ``servings`` by
    their names who served them."""

    def __init__(
        self,
        name: str,
        members: Sequence[ChaosMember],
        chance: Random,
        key: bytes,
        end: bytes,
        *,
        start: int,
        prev: bool = False,
    ) -> None:
        self.name = name
        self.stopped = False
        self.watches = [Watch(key, end, start, prev=prev, name=f"{name} #0")]
        self.servings: dict[str, Serving] = {}
        self.errors: list[str] = []
        self._prev = prev
        self._chance = chance
        self._connections = Connections(members, chance)
        self._told = asyncio.Event()

    @property
    def current(self) -> Watch:
        return self.watches[-1]

    async def run(self) -> None:
        try:
            while not self.stopped:
                await self._watch(self.current)
                if not self.stopped:
                    self._connections.move()
                    await asyncio.sleep(PATIENCE)
                    self._succeed()
        finally:
            await self._connections.close()

    async def _watch(self, watch: Watch) -> None:
        """Until the stream ends, or stays silent for too long."""
        create = pb.WatchCreateRequest(
            key=watch.key,
            range_end=watch.end,
            start_revision=watch.start,
            prev_kv=watch.prev,
            progress_notify=self._chance.random() < 0.5,
            fragment=self._chance.random() < 0.3,
        )
        try:
            channel = self._connections.channel()
            self.servings[watch.name] = self._connections.at.serving_now()
            stream = await channel.stream(words.WATCH, timeout=None)
            async with stream:
                await stream.send(pb.WatchRequest(create_request=create).SerializeToString())
                await self._read(stream, watch)
        except RpcError as error:
            self.errors.append(str(error))
        finally:
            self.servings[watch.name].close()

    async def _read(self, stream: StreamCall, watch: Watch) -> None:
        asked = False
        while True:
            try:
                async with asyncio.timeout(SILENCE / 2):
                    message = await stream.recv()
            except TimeoutError:
                if asked:
                    return
                asked = True
                await stream.send(_PROGRESS)
                continue
            if message is None or self._take(watch, message):
                return
            asked = False
            if self._chance.random() < 0.002:
                return  # leaves, and comes back

    def _take(self, watch: Watch, message: bytes) -> bool:
        """Write a response down; whether it is the last."""
        made = pb.WatchResponse.FromString(message)
        if made.watch_id == ASKED_FOR and not self.servings[watch.name].orders_notices():
            return False
        if made.canceled:
            self.errors.append(f"canceled: {made.cancel_reason} {made.compact_revision}")
        watch.responses.append(
            Response(
                made.header.revision,
                tuple(map(words.event, made.events)),
                created=made.created,
                canceled=made.canceled,
                compacted=made.compact_revision,
                fragment=made.fragment,
            )
        )
        self._told.set()
        return bool(made.canceled)

    def _succeed(self) -> None:
        former = self.current
        last = former.responses[-1] if former.responses else None
        if last is not None and last.canceled:
            start, resumes = max(last.compacted, 1), None  # its history is gone
        else:
            while former.responses and former.responses[-1].fragment:
                former.responses.pop()  # a part is as good as nothing
            start, resumes = former.next_start(), former if former.reached() else None
        name = f"{self.name} #{len(self.watches)}"
        made = Watch(former.key, former.end, start, prev=self._prev, resumes=resumes, name=name)
        self.watches.append(made)

    def reached(self) -> int:
        """The revision up to which it has been told everything."""
        return max(watch.reached() for watch in self.watches)

    async def reach(self, revision: int, seconds: float) -> bool:
        """Whether it is told of a revision within some time."""
        try:
            async with asyncio.timeout(seconds):
                while self.reached() < revision:
                    self._told.clear()
                    await self._told.wait()
        except TimeoutError:
            return False
        return True
