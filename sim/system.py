"""What members see in place of ``os``, ``pathlib``, ``fcntl``, ``shutil``, ``time`` and
``threading``: the same calls, on the disk and the clock of the process that makes them.

Only what is used is here. Anything else is an error, so that nothing reaches the real machine.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import Any, Final

from sim.disk import Directory, File, Node, OpenFile, PowerCut
from sim.process import Process
from sim.world import World

_CONSTANTS: Final = (
    "O_",
    "SEEK_",
    "W_OK",
    "R_OK",
    "X_OK",
    "F_OK",
    "PathLike",
    "fspath",
    "strerror",
)
_PURE: Final = ("join", "basename", "dirname", "samestat", "normpath", "isabs", "splitext")
AnyPath = str | os.PathLike[str]
FREE_SPACE: Final = 1 << 40


class System:
    """All of it for one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._descriptors = 1000
        system = self

        class Path(SimPath):
            """A path on the disk of whoever uses it."""

            __slots__ = ()
            _system = system

        self.Path = Path
        self.os = Os(self)
        self.fcntl = Fcntl(self)
        self.shutil = Shutil(self)
        self.time = Time(self)
        self.threading = Threading()

    @property
    def process(self) -> Process:
        """Whose code is running. An ended one's may no longer do anything: what is left of it is
        cleared away when nobody looks."""
        process = self._world.current
        if process is None:
            raise PowerCut
        return process

    def node(self, fd: int) -> Node:
        return self.description(fd).node

    def description(self, fd: int) -> OpenFile:
        try:
            return self.process.files[fd]
        except KeyError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def file(self, fd: int) -> File:
        node = self.node(fd)
        if not isinstance(node, File):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        return node

    def open(self, path: AnyPath, flags: int) -> int:
        process = self.process
        place = os.fspath(path)
        disk = process.disk
        node = disk.find(place)
        if node is None:
            if not flags & os.O_CREAT:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place)
            node = disk.create(place, File(disk.number()))
        elif flags & os.O_CREAT and flags & os.O_EXCL:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), place)
        elif flags & os.O_TRUNC and isinstance(node, File):
            disk.touched()
            node.resize(0)
        if flags & os.O_DIRECTORY and not isinstance(node, Directory):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), place)
        self._descriptors += 1
        process.files[self._descriptors] = OpenFile(node)
        return self._descriptors

    def open_file(self, path: AnyPath, mode: str = "r", *_: object) -> SimFile:
        """The builtin ``open``."""
        flags = os.O_RDONLY if mode.startswith("r") else os.O_CREAT | os.O_TRUNC
        fd = self.open(path, flags)
        assert "b" in mode, "only files of bytes are simulated"
        return SimFile(self, fd, closefd=True)

    def close(self, fd: int) -> None:
        description = self.description(fd)
        del self.process.files[fd]
        if description.node.lock is description:
            description.node.lock = None

    def lock(self, fd: int) -> bool:
        description = self.description(fd)
        if description.node.lock not in (None, description):
            return False
        description.node.lock = description
        return True


class Os:
    """``os``."""

    def __init__(self, system: System) -> None:
        self._system = system
        pure = {name: getattr(os.path, name) for name in _PURE}
        self.path = SimpleNamespace(exists=self._exists, **pure)

    def __getattr__(self, name: str) -> Any:
        if name.startswith(_CONSTANTS):
            return getattr(os, name)
        raise AttributeError(f"os.{name} is not simulated")

    def _exists(self, path: AnyPath) -> bool:
        return self._system.process.disk.find(os.fspath(path)) is not None

    def open(self, path: AnyPath, flags: int, mode: int = 0o777) -> int:
        return self._system.open(path, flags)

    def close(self, fd: int) -> None:
        self._system.close(fd)

    def fsync(self, fd: int) -> None:
        process = self._system.process
        process.disk.sync(self._system.node(fd), process.sync_cost())

    fdatasync = fsync

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        file, process = self._system.file(fd), self._system.process
        process.disk.touched()
        process.disk.spent += process.write_cost()
        file.write(offset, bytes(data))
        return len(data)

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        return self._system.file(fd).read(offset, count)

    def write(self, fd: int, data: bytes) -> int:
        description = self._system.description(fd)
        self.pwrite(fd, data, description.position)
        description.position += len(data)
        return len(data)

    def read(self, fd: int, count: int) -> bytes:
        description = self._system.description(fd)
        data = self.pread(fd, count, description.position)
        description.position += len(data)
        return data

    def ftruncate(self, fd: int, size: int) -> None:
        self._system.process.disk.touched()
        self._system.file(fd).resize(size)

    def posix_fallocate(self, fd: int, offset: int, size: int) -> None:
        file = self._system.file(fd)
        if offset + size > file.size:
            self._system.process.disk.touched()
            file.resize(offset + size)

    def posix_fadvise(self, fd: int, offset: int, size: int, advice: int) -> None:
        """Nothing is cached for real."""

    def fstat(self, fd: int) -> os.stat_result:
        return _stat(self._system.node(fd))

    def stat(self, path: AnyPath) -> os.stat_result:
        return _stat(self._system.process.disk.need(os.fspath(path)))

    def statvfs(self, path: AnyPath) -> SimpleNamespace:
        return SimpleNamespace(f_bavail=FREE_SPACE // 4096, f_frsize=4096)

    def lseek(self, fd: int, position: int, whence: int) -> int:
        assert whence == os.SEEK_SET, "only seeking from the start is simulated"
        self._system.description(fd).position = position
        return position

    def fdopen(
        self, fd: int, mode: str = "r", buffering: int = -1, closefd: bool = True
    ) -> SimFile:
        return SimFile(self._system, fd, closefd)

    def rename(self, source: AnyPath, target: AnyPath) -> None:
        self._system.process.disk.rename(os.fspath(source), os.fspath(target))

    replace = rename

    def unlink(self, path: AnyPath) -> None:
        self._system.process.disk.remove(os.fspath(path))

    remove = unlink

    def listdir(self, path: AnyPath) -> list[str]:
        node = self._system.process.disk.need(os.fspath(path))
        assert isinstance(node, Directory)
        return sorted(node.entries)

    def access(self, path: AnyPath, mode: int) -> bool:
        return self._exists(path)

    def cpu_count(self) -> int:
        return 1


class SimFile:
    """What ``os.fdopen`` gives."""

    def __init__(self, system: System, fd: int, closefd: bool) -> None:
        self._system = system
        self._fd = fd
        self._closefd = closefd
        self.closed = False

    def fileno(self) -> int:
        return self._fd

    def read(self, count: int = -1) -> bytes:
        count = self._system.file(self._fd).size if count < 0 else count
        return self._system.os.read(self._fd, count)

    def write(self, data: bytes) -> int:
        return self._system.os.write(self._fd, data)

    def flush(self) -> None:
        """Nothing is held back."""

    def seek(self, position: int, whence: int = 0) -> int:
        return self._system.os.lseek(self._fd, position, whence)

    def close(self) -> None:
        if self._closefd and not self.closed:
            self._system.close(self._fd)
        self.closed = True

    def __enter__(self) -> SimFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SimPath(PurePosixPath):
    """``pathlib.Path``."""

    __slots__ = ()
    _system: System

    def exists(self) -> bool:
        return self._node() is not None

    def is_dir(self) -> bool:
        return isinstance(self._node(), Directory)

    def is_file(self) -> bool:
        return isinstance(self._node(), File)

    def iterdir(self) -> Iterator[SimPath]:
        for name in self._system.os.listdir(self):
            yield self / name

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        disk = self._system.process.disk
        if self.exists():
            if not exist_ok:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self))
            return
        if parents and self.parent != self:
            self.parent.mkdir(mode, parents=True, exist_ok=True)
        disk.create(str(self), Directory(disk.number()))

    def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
        flags = os.O_CREAT | (0 if exist_ok else os.O_EXCL)
        self._system.close(self._system.open(self, flags))

    def unlink(self, missing_ok: bool = False) -> None:
        if not (missing_ok and not self.exists()):
            self._system.os.unlink(self)

    def rename(self, target: AnyPath) -> None:
        self._system.os.rename(self, target)

    replace = rename

    def stat(self) -> os.stat_result:
        return self._system.os.stat(self)

    def read_bytes(self) -> bytes:
        node = self._system.process.disk.need(str(self))
        assert isinstance(node, File)
        return node.read(0, node.size)

    def write_bytes(self, data: bytes) -> int:
        fd = self._system.open(self, os.O_CREAT | os.O_TRUNC)
        self._system.os.write(fd, data)
        self._system.close(fd)
        return len(data)

    def open(self, mode: str = "r", buffering: int = -1) -> SimFile:
        return self._system.open_file(self, mode)

    def _node(self) -> Node | None:
        return self._system.process.disk.find(str(self))


class Fcntl:
    """``fcntl``: locks of open file descriptions, which are all that is used."""

    F_WRLCK = 1
    F_OFD_SETLK = 37
    LOCK_EX, LOCK_SH, LOCK_NB, LOCK_UN = 2, 1, 4, 8

    def __init__(self, system: System) -> None:
        self._system = system

    def flock(self, fd: int, operation: int) -> None:
        """Shared locks are never held by two in a simulation, so they are as good as exclusive."""
        if not self._system.lock(fd):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def fcntl(self, fd: int, command: int, argument: object) -> None:
        assert command == self.F_OFD_SETLK
        self.flock(fd, self.LOCK_EX)


class Shutil:
    """``shutil``."""

    def __init__(self, system: System) -> None:
        self._system = system

    def rmtree(self, path: AnyPath, ignore_errors: bool = False) -> None:
        place = self._system.Path(path)
        if ignore_errors and not place.exists():
            return
        for child in place.iterdir():
            if child.is_dir():
                self.rmtree(child)
            else:
                child.unlink()
        self._system.os.unlink(place)

    def copyfile(self, source: AnyPath, target: AnyPath) -> None:
        self._system.Path(target).write_bytes(self._system.Path(source).read_bytes())


class Time:
    """``time``."""

    def __init__(self, system: System) -> None:
        self._system = system

    def time(self) -> float:
        return self._system.process.wall_time()

    def time_ns(self) -> int:
        return int(self.time() * 1e9)

    def monotonic(self) -> float:
        process = self._system.process
        return process.local(process.world.now)

    def perf_counter(self) -> float:
        """Goes on within an event too, by what its writes and syncs cost."""
        process = self._system.process
        return process.world.now + process.disk.spent

    thread_time = perf_counter

    def strftime(self, *arguments: Any) -> str:
        return time.strftime(*arguments)

    def sleep(self, seconds: float) -> None:
        """Only threads sleep, and those take their time as a whole."""


class Threading:
    """``threading``: a thread runs when it is started, to its end."""

    class Thread:
        def __init__(
            self, target: Callable[[], None], name: str = "", daemon: bool = False
        ) -> None:
            self._target = target

        def start(self) -> None:
            self._target()

        def join(self, timeout: float | None = None) -> None:
            """It has ended."""

    class Event:
        def __init__(self) -> None:
            self._set = False

        def set(self) -> None:
            self._set = True

        def is_set(self) -> bool:
            return self._set

    class Lock:
        """There is one thread."""

        def __init__(self) -> None:
            self._held = False

        def acquire(self, blocking: bool = True) -> bool:
            if self._held:
                assert not blocking, "a lock that nobody would release"
                return False
            self._held = True
            return True

        def release(self) -> None:
            self._held = False

        def __enter__(self) -> None:
            self.acquire()

        def __exit__(self, *_: object) -> None:
            self.release()

    class RLock(Lock):
        def acquire(self, blocking: bool = True) -> bool:
            return True


def _stat(node: Node) -> os.stat_result:
    is_file = isinstance(node, File)
    mode = (stat.S_IFREG if is_file else stat.S_IFDIR) | 0o600
    size = node.size if isinstance(node, File) else 0
    return os.stat_result((mode, node.number, 1, 1, 0, 0, size, 0, 0, 0))
