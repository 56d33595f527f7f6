"""Runs etcdctl against a server and takes out of its output what may differ between servers."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from support.member import Member
from support.rpc import STATUS, Client
from support.wait import wait_for

from kvorum.pb import etcdserverpb as pb

RUN_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Run:
    """One etcdctl command line.

    ``save``: a name for the first id in the output, used as ``{name}`` in later commands.
    ``during``: commands to run while this one waits, once the server has noticed it (``noticed``
    tells how); it is then interrupted when it has printed ``lines`` lines, if it does not end.
    ``blind``: patterns of text that may differ here and only here. ``unordered``: lines and the
    parts of comma lists may come in any order (that of random ids, for example).
    """

    args: tuple[str, ...]
    stdin: str | None = None
    save: str = ""
    during: tuple[Run, ...] = ()
    noticed: str = ""
    lines: int = 0
    blind: tuple[str, ...] = ()
    unordered: bool = False


def run(*args: str, **options: object) -> Run:
    return Run(args, **options)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Output:
    """What a command printed and how it ended, normalised."""

    code: int
    stdout: str
    stderr: str


# What may differ anywhere: times, durations, addresses of Go values, table column widths.
_ALWAYS = [
    (r'"ts":("[^"]*"|[0-9.]+)', '"ts":"<time>"'),
    (r"0x?[0-9a-f]{8,12}/", "<pointer>/"),
    (r"etcd-endpoints://0xc[0-9a-f]+/", "etcd-endpoints://<pointer>/"),
    (r"\b\d+(\.\d+)?(ns|µs|ms|s)\b", "<duration>"),
    (r'"raft_?[tT]erm":\d+', '"raft_term":<n>'),
    (r'"RaftTerm" : \d+', '"RaftTerm" : <n>'),
    (r"-{3,}", "---"),
    (r" {2,}", " "),
]


@dataclass(slots=True)
class Side:
    """One server, the etcdctl that talks to it, and the ids it has made up."""

    etcdctl: Path
    member: Member
    folder: Path
    saved: dict[str, str] = field(default_factory=dict)
    _known: list[tuple[str, str]] = field(default_factory=list)

    def learn_ids(self) -> None:
        """The ids every reply may hold, as decimal and as hex."""
        with Client(self.member.endpoint) as client:
            header = client.call(STATUS).header
        self._remember("member", header.member_id)
        self._remember("cluster", header.cluster_id)
        self._known.append((self.member.endpoint, "<endpoint>"))
        self._known.append((f"127.0.0.1:{self.member.peer_port}", "<peer>"))

    def _remember(self, name: str, number: int) -> None:
        signed = number - (1 << 64) if number >> 63 else number
        for text in (str(number), str(signed), f"{number:016x}", f"{number:x}"):
            self._known.append((text, f"<{name}>"))

    def command(self, args: Sequence[str]) -> list[str]:
        filled = [arg.format_map(_Filling(self.saved)) for arg in args]
        return [str(self.etcdctl), f"--endpoints={self.member.endpoint}", *filled]

    def play(self, step: Run) -> list[Output]:
        """The outputs of the command and of those run during it."""
        if not step.during and not step.lines:
            return [self._finish(step, self._run(step))]
        return self._play_waiting(step)

    def _run(self, step: Run) -> tuple[int, bytes, bytes]:
        done = subprocess.run(
            self.command(step.args),
            input=(step.stdin or "").encode(),
            capture_output=True,
            timeout=RUN_SECONDS,
            cwd=self.folder,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def _play_waiting(self, step: Run) -> list[Output]:
        before = self._noticed(step.noticed)
        waiting = Waiting(self.command(step.args), step.stdin, self.folder)
        try:
            if step.noticed:
                wait_for(
                    lambda: self._noticed(step.noticed) > before or waiting.ended,
                    f"{step.noticed} to grow",
                )
            others = [output for other in step.during for output in self.play(other)]
            waiting.wait_lines(step.lines)
        finally:
            ended = waiting.interrupt()
        return [self._finish(step, ended), *others]

    def _noticed(self, what: str) -> float:
        """A number that the server raises when it knows of the waiting command."""
        if not what:
            return 0
        if what == "revision":
            with Client(self.member.endpoint) as client:
                return float(client.call(STATUS).header.revision)
        _, body = self.member.http("/metrics")
        found = re.search(rf"^{what}(?:{{[^}}]*}})? ([0-9.e+]+)$", body.decode(), re.MULTILINE)
        assert found is not None, f"no metric {what}"
        return float(found[1])

    def _finish(self, step: Run, ended: tuple[int, bytes, bytes]) -> Output:
        code, stdout, stderr = ended
        if step.save:
            self._save(step.save, stdout.decode())
        text = _as_text(step.args, stdout)
        text = self.normal(text, step.blind)
        return Output(
            code,
            "\n".join(sorted(re.split('[\n,"]', text))) if step.unordered else text,
            self.normal(stderr.decode("utf-8", "backslashreplace"), step.blind),
        )

    def _save(self, name: str, text: str) -> None:
        """The first id printed, in hex words or as a JSON number."""
        found = re.search(r"\b([0-9a-f]{14,16})\b|\"ID\":(\d+)", text)
        assert found is not None, f"no id in {text!r}"
        self.saved[name] = found[1] or f"{int(found[2]):x}"
        self._remember(name, int(self.saved[name], 16))

    def normal(self, text: str, blind: Sequence[str] = ()) -> str:
        for known, label in self._known:
            text = text.replace(known, label)
        for pattern in blind:
            text = re.sub(pattern, "<blind>", text, flags=re.MULTILINE)
        for pattern, label in _ALWAYS:
            text = re.sub(pattern, label, text)
        return text


_MESSAGES = {
    "put": pb.PutResponse,
    "get": pb.RangeResponse,
    "del": pb.DeleteRangeResponse,
    "txn": pb.TxnResponse,
    "member": pb.MemberListResponse,
}


def _as_text(args: Sequence[str], stdout: bytes) -> str:
    """The output as text; a binary message in the text form, its varying ids as numbers."""
    if "protobuf" in args and stdout:
        message = _MESSAGES[args[0]].FromString(stdout)
        message.header.raft_term = 0
        return str(message)
    return stdout.decode("utf-8", "backslashreplace")


class _Filling(dict[str, str]):
    """Leaves alone what is in braces but no saved name."""

    def __missing__(self, key: str) -> str:
        return "{" + key + "}"


class Waiting:
    """An etcdctl that prints as things happen, until it is interrupted."""

    def __init__(self, command: list[str], stdin: str | None, folder: Path) -> None:
        self._lines = threading.Condition()
        self._stdout = bytearray()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._process.stdin is not None
        if stdin is not None:
            self._process.stdin.write(stdin.encode())
            self._process.stdin.flush()

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def _read(self) -> None:
        assert self._process.stdout is not None
        while data := self._process.stdout.read1():
            with self._lines:
                self._stdout += data
                self._lines.notify_all()
        with self._lines:
            self._lines.notify_all()

    def wait_lines(self, count: int) -> None:
        with self._lines:
            enough = self._lines.wait_for(
                lambda: self._stdout.count(b"\n") >= count or self.ended, RUN_SECONDS
            )
        assert enough, f"only {self._stdout!r} instead of {count} lines"

    def interrupt(self) -> tuple[int, bytes, bytes]:
        if not self.ended:
            self._process.send_signal(signal.SIGINT)
        assert self._process.stdin is not None
        assert self._process.stderr is not None
        # Its input stays open until it is gone: the end of it would be an error to some commands.
        code = self._process.wait(RUN_SECONDS)
        stderr = self._process.stderr.read()
        self._process.stdin.close()
        self._reader.join(RUN_SECONDS)
        return code, bytes(self._stdout), stderr
