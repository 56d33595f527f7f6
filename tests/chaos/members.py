"""Members of a cluster as the test sees them: processes, and what they say of themselves."""

from __future__ import annotations

import http.client
import signal
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chaos.network import Place, inside
from chaos.serving import Life, Serving
from support.binaries import etcd_release, is_kvorum
from support.member import Member
from support.rpc import Rpc

from kvorum.errors import Code
from kvorum.h2 import Backoff, Channel, RpcError

ASKING_SECONDS = 0.4
LIFE = 1000


class ChaosMember(Member):
    """A member on a network of namespaces, or without one on the loopback address."""

    def __init__(
        self,
        binary: Path,
        folder: Path,
        *,
        number: int,
        name: str,
        place: Place | None = None,
        flags: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(binary, folder, flags=flags, env=env, name=name)
        self.number = number
        self.place = place
        self.initial = ""
        self.paused = False
        self.failpoint_port = 0
        self.life: Life = deque(maxlen=LIFE)
        self._log_start = 0
        self._channel: Channel | None = None

    @property
    def host(self) -> str:
        return self.place.client if self.place else "127.0.0.1"

    @property
    def endpoint(self) -> str:
        return f"{self.host}:{self.client_port}"

    @property
    def peer_url(self) -> str:
        return f"http://{self.place.peer if self.place else '127.0.0.1'}:{self.peer_port}"

    @property
    def serving(self) -> bool:
        return self.running and not self.paused

    def command(self) -> list[str]:
        client = f"http://{self.endpoint}"
        words = [
            str(self.binary),
            f"--name={self.name}",
            f"--data-dir={self.data_dir}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={self.peer_url}",
            f"--initial-advertise-peer-urls={self.peer_url}",
            f"--initial-cluster={self.initial}",
            *self.flags,
        ]
        return inside(self.place.namespace, words) if self.place else words

    def watch_failpoints(self, port: int) -> None:
        """Have it listen for them; before it starts."""
        self.failpoint_port = port
        self.env["GOFAIL_HTTP"] = f"{self.host}:{port}"

    def set_failpoint(self, name: str, term: str) -> bool:
        """Whether the member took it."""
        connection = http.client.HTTPConnection(self.host, self.failpoint_port, timeout=2.0)
        try:
            connection.request("PUT", f"/{name}", term)
            taken = connection.getresponse().status == 204
        except OSError:
            return False
        finally:
            connection.close()
        if taken:
            self._lived(f"is told {name}={term}")
        return taken

    # Life

    def _lived(self, what: str) -> None:
        self.life.append((time.monotonic(), what))

    def pause(self) -> None:
        assert self.process is not None
        self.paused = True
        self._lived("stands still")
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self._lived("goes on")
        self.process.send_signal(signal.SIGCONT)
        self.paused = False

    def crash(self) -> int:
        """SIGKILL, also of one that is paused."""
        self.paused = False
        self._lived("is killed")
        return self.kill()

    def stop(self) -> int:
        self._lived("is stopped")
        return super().stop()

    def spawn(self, extra_env: Mapping[str, str] | None = None) -> None:
        self._lived("starts")
        self._log_start = self._log_size()
        super().spawn(extra_env)

    def speaks_with_peers(self) -> bool:
        """Whether it has come so far since it was started."""
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            return b"serving peer traffic" in log.read()

    def _log_size(self) -> int:
        return self.log_path.stat().st_size if self.log_path.exists() else 0

    def serving_now(self) -> Serving:
        """What is known of it from now on, while it serves a watch."""
        return Serving(
            self.name,
            etcd_release(self.binary),
            is_kvorum(self.binary),
            self.log_path,
            self.life,
            begin=time.monotonic(),
            log_begin=self._log_size(),
        )

    # Asking

    def channel(self) -> Channel:
        """A connection of a client's own."""
        return Channel(self.host, self.client_port, backoff=Backoff(0.05, 1.6, 0.3))

    async def ask(self, rpc: Rpc, *, timeout: float = ASKING_SECONDS, **fields: Any) -> Any | None:  # noqa: ASYNC109
        """The parsed reply, or None if there was none in time."""
        if not self.serving:
            return None
        if self._channel is None:
            self._channel = self.channel()
        try:
            message = rpc.request(**fields).SerializeToString()
            reply = await self._channel.unary(rpc.path, message, timeout=timeout)
        except RpcError as error:
            if error.code == Code.UNIMPLEMENTED:
                raise
            return None
        return rpc.response.FromString(reply)

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None
