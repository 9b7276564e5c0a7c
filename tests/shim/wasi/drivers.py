"""One way to call WASI, whatever the dialect; what fails does so in the words of 0.2."""

from __future__ import annotations

import gc
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any, Final, NamedTuple

from shim.component.calls import Subscribe
from shim.component.streams import DROPPED, HostBuffer, Shared, SharedStream
from shim.component.types import U8
from shim.wasi import p2, p3, rights, words
from shim.wasi.preview1 import errno
from shim.wasi.program import Program
from tests.shim.wasi.preview1.conftest import Guest


class Failed(Exception):
    """A call has failed; the argument is 0.2's word for it."""


class Preopen(NamedTuple):
    """A directory as it is granted."""

    name: str
    path: str
    readonly: bool = False
    confined: bool = True


class Driver(ABC):
    """A program that was granted directories, in one dialect. Handles are its own."""

    args = (b"program", b"argument")
    env = (b"NAME=value", b"EMPTY=")

    def __init__(
        self, program: Program, preopens: list[Preopen], *, cwd: str = "", network: bool = True
    ) -> None:
        flags = os.O_PATH | os.O_DIRECTORY
        program.grant(
            self.args,
            self.env,
            [
                (one.name.encode(), os.open(one.path, flags), one.readonly, one.confined)
                for one in preopens
            ],
            network=network,
            cwd=(b"/cwd", os.open(cwd, flags), False, True) if cwd else None,
        )

    @abstractmethod
    def preopens(self) -> dict[str, Any]:
        """Return handles of the preopened directories by name."""

    @abstractmethod
    def arguments(self) -> list[str]: ...

    @abstractmethod
    def environment(self) -> dict[str, str]: ...

    @abstractmethod
    def open(
        self,
        directory: Any,
        path: str,
        *opening: str,
        read: bool = True,
        write: bool = False,
        follow: bool = False,
    ) -> Any:
        """Open; `opening` is create, directory, exclusive, truncate."""

    @abstractmethod
    def close(self, handle: Any) -> None: ...

    @abstractmethod
    def read(self, handle: Any, size: int, offset: int) -> bytes: ...

    @abstractmethod
    def write(self, handle: Any, data: bytes, offset: int) -> int: ...

    @abstractmethod
    def set_size(self, handle: Any, size: int) -> None: ...

    @abstractmethod
    def advise(self, handle: Any) -> None: ...

    @abstractmethod
    def sync(self, handle: Any) -> None: ...

    @abstractmethod
    def set_times(self, handle: Any, access: int, modification: int) -> None:
        """Set times, in ns."""

    @abstractmethod
    def stat(self, directory: Any, path: str, *, follow: bool = False) -> tuple[str, int, int]:
        """Return type, size and time of modification, in ns."""

    @abstractmethod
    def set_times_at(self, directory: Any, path: str, time: int, *, follow: bool = False) -> None:
        """Set both times, in ns."""

    @abstractmethod
    def names(self, directory: Any) -> set[str]:
        """Return the names in a directory, but `.` and `..`."""

    @abstractmethod
    def create_directory(self, directory: Any, path: str) -> None: ...

    @abstractmethod
    def remove_directory(self, directory: Any, path: str) -> None: ...

    @abstractmethod
    def unlink(self, directory: Any, path: str) -> None: ...

    @abstractmethod
    def rename(self, directory: Any, old: str, new: str) -> None: ...

    @abstractmethod
    def link(self, directory: Any, old: str, new: str, *, follow: bool = False) -> None: ...

    @abstractmethod
    def symlink(self, directory: Any, points_to: str, path: str) -> None: ...

    @abstractmethod
    def read_link(self, directory: Any, path: str) -> str: ...

    @abstractmethod
    def say(self, data: bytes) -> None:
        """Write to standard output."""

    @abstractmethod
    def hear(self, size: int) -> bytes:
        """Read from standard input; nothing is its end."""

    @abstractmethod
    def connect(self, port: int) -> Any:
        """Connect to 127.0.0.1; return a connection, once it is there."""

    @abstractmethod
    def send(self, connection: Any, data: bytes) -> None: ...

    @abstractmethod
    def receive(self, connection: Any, size: int) -> bytes:
        """Wait for data; nothing is the end."""

    @abstractmethod
    def now(self) -> int:
        """Return the monotonic clock's time."""

    @abstractmethod
    def random(self, size: int) -> bytes: ...

    @abstractmethod
    def sleep(self, nanoseconds: int) -> None:
        """Wait for a clock alone."""


class Preview1(Driver):
    """Handles are numbers."""

    _TYPES: Final = (
        *("unknown", "block-device", "character-device", "directory", "regular-file"),
        *("socket", "socket", "symbolic-link"),
    )
    _WORDS: Final = {
        number: {**words.SOCKET_ERRORS, **words.FILE_ERRORS}.get(linux, "io")
        for linux, number in errno.FROM_LINUX.items()
    } | {errno.NOTCAPABLE: "not-permitted"}

    def __init__(self, preopens: list[Preopen], **grants: Any) -> None:
        self.guest = Guest()
        super().__init__(self.guest.program, preopens, **grants)

    def _call(self, name: str, *args: int) -> None:
        self.guest._next = max(self.guest._next, 1024)
        error = self.guest(name, *args)
        if error:
            raise Failed(self._WORDS[error])

    def _path(self, path: str) -> tuple[int, int]:
        if self.guest._next > 40000:
            self.guest._next = 1024
        return self.guest.path(path)

    def preopens(self) -> dict[str, Any]:
        found = {}
        number, place = 3, self.guest.room(8)
        while self.guest("fd_prestat_get", number, place) == 0:
            size = self.guest.u32(place + 4)
            name = self.guest.room(size)
            self._call("fd_prestat_dir_name", number, name, size)
            found[self.guest.memory[name : name + size].decode()] = number
            number += 1
        return found

    def _strings(self, kind: str) -> list[str]:
        count, size = self.guest.room(4), self.guest.room(4)
        self._call(f"{kind}_sizes_get", count, size)
        array = self.guest.room(4 * self.guest.u32(count))
        buffer = self.guest.room(self.guest.u32(size))
        self._call(f"{kind}_get", array, buffer)
        data = bytes(self.guest.memory[buffer : buffer + self.guest.u32(size)])
        return data.decode().split("\0")[:-1]

    def arguments(self) -> list[str]:
        return self._strings("args")

    def environment(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for pair in self._strings("environ"))

    def open(
        self,
        directory: Any,
        path: str,
        *opening: str,
        read: bool = True,
        write: bool = False,
        follow: bool = False,
    ) -> Any:
        places = ("create", "directory", "exclusive", "truncate")
        oflags = sum(1 << places.index(flag) for flag in opening)
        base = rights.ALL & ~(rights.FD_READ | rights.FD_WRITE)
        base |= rights.FD_READ if read else 0
        base |= rights.FD_WRITE if write else 0
        error, number = self.guest.open(
            path, oflags=oflags, base=base, lookup=int(follow), directory=directory
        )
        if error:
            raise Failed(self._WORDS[error])
        return number

    def close(self, handle: Any) -> None:
        self._call("fd_close", handle)

    def read(self, handle: Any, size: int, offset: int) -> bytes:
        place, result = self.guest.room(size), self.guest.room(4)
        self._call("fd_pread", handle, *self.guest.iovecs((place, size)), offset, result)
        return bytes(self.guest.memory[place : place + self.guest.u32(result)])

    def write(self, handle: Any, data: bytes, offset: int) -> int:
        result = self.guest.room(4)
        iovecs = self.guest.iovecs((self.guest.put(data), len(data)))
        self._call("fd_pwrite", handle, *iovecs, offset, result)
        return self.guest.u32(result)

    def set_size(self, handle: Any, size: int) -> None:
        self._call("fd_filestat_set_size", handle, size)

    def advise(self, handle: Any) -> None:
        self._call("fd_advise", handle, 0, 1, 3)

    def sync(self, handle: Any) -> None:
        self._call("fd_datasync", handle)
        self._call("fd_sync", handle)

    def set_times(self, handle: Any, access: int, modification: int) -> None:
        self._call("fd_filestat_set_times", handle, access, modification, 1 | 4)

    def stat(self, directory: Any, path: str, *, follow: bool = False) -> tuple[str, int, int]:
        result = self.guest.room(64)
        self._call("path_filestat_get", directory, int(follow), *self._path(path), result)
        _, _, kind, _, size, _, time, _ = struct.unpack_from(
            "<QQBxxxxxxxQQQQQ", self.guest.memory, result
        )
        return self._TYPES[kind], size, time

    def set_times_at(self, directory: Any, path: str, time: int, *, follow: bool = False) -> None:
        place = self._path(path)
        self._call("path_filestat_set_times", directory, int(follow), *place, time, time, 1 | 4)

    def names(self, directory: Any) -> set[str]:
        size = 4096
        place, result = self.guest.room(size), self.guest.room(4)
        self._call("fd_readdir", directory, place, size, 0, result)
        data = bytes(self.guest.memory[place : place + self.guest.u32(result)])
        found = set()
        while data:
            _, _, length, _ = struct.unpack_from("<QQIB", data)
            found.add(data[24 : 24 + length].decode())
            data = data[24 + length :]
        return found - {".", ".."}

    def create_directory(self, directory: Any, path: str) -> None:
        self._call("path_create_directory", directory, *self._path(path))

    def remove_directory(self, directory: Any, path: str) -> None:
        self._call("path_remove_directory", directory, *self._path(path))

    def unlink(self, directory: Any, path: str) -> None:
        self._call("path_unlink_file", directory, *self._path(path))

    def rename(self, directory: Any, old: str, new: str) -> None:
        self._call("path_rename", directory, *self._path(old), directory, *self._path(new))

    def link(self, directory: Any, old: str, new: str, *, follow: bool = False) -> None:
        places = *self._path(old), directory, *self._path(new)
        self._call("path_link", directory, int(follow), *places)

    def symlink(self, directory: Any, points_to: str, path: str) -> None:
        self._call("path_symlink", *self._path(points_to), directory, *self._path(path))

    def read_link(self, directory: Any, path: str) -> str:
        place, result = self.guest.room(256), self.guest.room(4)
        self._call("path_readlink", directory, *self._path(path), place, 256, result)
        return self.guest.memory[place : place + self.guest.u32(result)].decode()

    def say(self, data: bytes) -> None:
        self._write(1, data)

    def hear(self, size: int) -> bytes:
        return self._read(0, size)

    def _write(self, number: int, data: bytes) -> None:
        iovecs = self.guest.iovecs((self.guest.put(data), len(data)))
        self._call("fd_write", number, *iovecs, self.guest.room(4))

    def _read(self, number: int, size: int) -> bytes:
        place, result = self.guest.room(size), self.guest.room(4)
        self._call("fd_read", number, *self.guest.iovecs((place, size)), result)
        return bytes(self.guest.memory[place : place + self.guest.u32(result)])

    def connect(self, port: int) -> Any:
        result = self.guest.room(4)
        self._call("sock_open", 1, 2, result)
        address = self.guest.put(struct.pack("<II", self.guest.put(b"\x7f\0\0\1"), 4))
        self._call("sock_connect", self.guest.u32(result), address, port)
        return self.guest.u32(result)

    def send(self, connection: Any, data: bytes) -> None:
        self._write(connection, data)

    def receive(self, connection: Any, size: int) -> bytes:
        return self._read(connection, size)

    def now(self) -> int:
        result = self.guest.room(8)
        self._call("clock_time_get", 1, 0, result)
        return self.guest.u64(result)

    def random(self, size: int) -> bytes:
        place = self.guest.room(size)
        self._call("random_get", place, size)
        return bytes(self.guest.memory[place : place + size])

    def sleep(self, nanoseconds: int) -> None:
        clock = struct.pack("<QB7xI4xQQH6x", 7, 0, 1, nanoseconds, 0, 0)
        events, result = self.guest.room(32), self.guest.room(4)
        self._call("poll_oneoff", self.guest.put(clock), events, 1, result)
        assert self.guest.u32(result) == 1


_INTERFACES: Final = {interface.name: interface for interface in p2.INTERFACES}
_INTERFACES_3: Final = {interface.name: interface for interface in p3.INTERFACES}


def call(program: Program, interface: str, name: str, *args: Any) -> Any:
    """Call a host function of 0.2 as a component's import does; raises `Failed`."""
    function = _INTERFACES[f"wasi:{interface}"].functions[name]
    assert len(args) == len(function.type.params)
    try:
        return function.call(program, *args)
    except Exception as error:
        if function.errors is None:
            raise
        raise Failed(function.errors(error)) from error


class P2(Driver):
    """Handles are what represents a resource."""

    def __init__(self, preopens: list[Preopen], **grants: Any) -> None:
        self.program = Program()
        super().__init__(self.program, preopens, **grants)

    def _call(self, interface: str, name: str, *args: Any) -> Any:
        return call(self.program, interface, name, *args)

    def _method(self, handle: Any, name: str, *args: Any) -> Any:
        return self._call("filesystem/types", f"[method]descriptor.{name}", handle, *args)

    def preopens(self) -> dict[str, Any]:
        found = self._call("filesystem/preopens", "get-directories")
        return {name: directory for directory, name in found}

    def arguments(self) -> list[str]:
        found: list[str] = self._call("cli/environment", "get-arguments")
        return found

    def environment(self) -> dict[str, str]:
        return dict(self._call("cli/environment", "get-environment"))

    def open(
        self,
        directory: Any,
        path: str,
        *opening: str,
        read: bool = True,
        write: bool = False,
        follow: bool = False,
    ) -> Any:
        how = frozenset({"symlink-follow"} if follow else ())
        asked = frozenset([flag for flag, is_set in (("read", read), ("write", write)) if is_set])
        return self._method(directory, "open-at", how, path, frozenset(opening), asked)

    def close(self, handle: Any) -> None:
        drop = _INTERFACES["wasi:filesystem/types"].resources["descriptor"].drop
        assert drop is not None
        drop(handle)

    def read(self, handle: Any, size: int, offset: int) -> bytes:
        return bytes(self._method(handle, "read", size, offset)[0])

    def write(self, handle: Any, data: bytes, offset: int) -> int:
        count: int = self._method(handle, "write", memoryview(data), offset)
        return count

    def set_size(self, handle: Any, size: int) -> None:
        self._method(handle, "set-size", size)

    def advise(self, handle: Any) -> None:
        self._method(handle, "advise", 0, 1, "will-need")

    def sync(self, handle: Any) -> None:
        self._method(handle, "sync-data")
        self._method(handle, "sync")

    def set_times(self, handle: Any, access: int, modification: int) -> None:
        self._method(handle, "set-times", _timestamp(access), _timestamp(modification))

    def stat(self, directory: Any, path: str, *, follow: bool = False) -> tuple[str, int, int]:
        how = frozenset({"symlink-follow"} if follow else ())
        kind, _, size, _, (seconds, rest), _ = self._method(directory, "stat-at", how, path)
        return kind, size, seconds * 10**9 + rest

    def set_times_at(self, directory: Any, path: str, time: int, *, follow: bool = False) -> None:
        how = frozenset({"symlink-follow"} if follow else ())
        stamp = _timestamp(time)
        self._method(directory, "set-times-at", how, path, stamp, stamp)

    def names(self, directory: Any) -> set[str]:
        stream = self._method(directory, "read-directory")
        name = "[method]directory-entry-stream.read-directory-entry"
        found = set()
        while (entry := self._call("filesystem/types", name, stream)) is not None:
            found.add(entry[1])
        stream.close()
        return found

    def create_directory(self, directory: Any, path: str) -> None:
        self._method(directory, "create-directory-at", path)

    def remove_directory(self, directory: Any, path: str) -> None:
        self._method(directory, "remove-directory-at", path)

    def unlink(self, directory: Any, path: str) -> None:
        self._method(directory, "unlink-file-at", path)

    def rename(self, directory: Any, old: str, new: str) -> None:
        self._method(directory, "rename-at", old, directory, new)

    def link(self, directory: Any, old: str, new: str, *, follow: bool = False) -> None:
        how = frozenset({"symlink-follow"} if follow else ())
        self._method(directory, "link-at", how, old, directory, new)

    def symlink(self, directory: Any, points_to: str, path: str) -> None:
        self._method(directory, "symlink-at", points_to, path)

    def read_link(self, directory: Any, path: str) -> str:
        found: str = self._method(directory, "readlink-at", path)
        return found

    def say(self, data: bytes) -> None:
        self._write(self._call("cli/stdout", "get-stdout"), data)

    def hear(self, size: int) -> bytes:
        return self._read(self._call("cli/stdin", "get-stdin"), size)

    def _write(self, stream: Any, data: bytes) -> None:
        name = "[method]output-stream.blocking-write-and-flush"
        self._call("io/streams", name, stream, memoryview(data))

    def _read(self, stream: Any, size: int) -> bytes:
        try:
            name = "[method]input-stream.blocking-read"
            return bytes(self._call("io/streams", name, stream, size))
        except Failed as failed:
            if failed.args[0] == ("closed", None):
                return b""
            raise

    def connect(self, port: int) -> Any:
        network = self._call("sockets/instance-network", "instance-network")
        made = self._call("sockets/tcp-create-socket", "create-tcp-socket", "ipv4")
        address = ("ipv4", (port, (127, 0, 0, 1)))
        socket = "[method]tcp-socket"
        self._call("sockets/tcp", f"{socket}.start-connect", made, network, address)
        pollable = self._call("sockets/tcp", f"{socket}.subscribe", made)
        self._call("io/poll", "[method]pollable.block", pollable)
        return self._call("sockets/tcp", f"{socket}.finish-connect", made)

    def send(self, connection: Any, data: bytes) -> None:
        self._write(connection[1], data)

    def receive(self, connection: Any, size: int) -> bytes:
        return self._read(connection[0], size)

    def now(self) -> int:
        time: int = self._call("clocks/monotonic-clock", "now")
        return time

    def random(self, size: int) -> bytes:
        return bytes(self._call("random/random", "get-random-bytes", size))

    def sleep(self, nanoseconds: int) -> None:
        pollable = self._call("clocks/monotonic-clock", "subscribe-duration", nanoseconds)
        assert self._call("io/poll", "poll", [pollable]) == [0]


class P3(P2):
    """What is not a stream is called as in 0.2."""

    def _call(self, interface: str, name: str, *args: Any) -> Any:
        function = _INTERFACES_3[f"wasi:{interface}"].functions[name]
        assert len(args) == len(function.type.params)
        try:
            result = function.call(self.program, *args)
            return self._awaited(result) if function.is_coroutine else result
        except Exception as error:
            if function.errors is None:
                raise
            raise Failed(_word(function.errors(error))) from error

    def _awaited(self, coroutine: Coroutine[Subscribe, None, Any]) -> Any:
        """Run a function of the host that takes its time."""
        while True:
            called: list[bool] = []
            try:
                coroutine.send(None)(partial(called.append, True))
            except StopIteration as end:
                return end.value
            while not called:
                assert self.program.reactor.wait(block=True)

    def _copied(self, shared: Shared, buffer: HostBuffer, *, reading: bool) -> int:
        """Copy as a guest does that waits; returns the result of the copy."""
        while (result := shared.ask(buffer, reading)) is None:
            assert self.program.reactor.wait(block=True)
        return result

    def _all(self, stream: Shared, outcome: Shared, size: int = 1 << 16) -> Any:
        """Read as much, or to the end; raises `Failed` if it went wrong."""
        found: list[Any] = []
        is_bytes = str(stream.type) == "u8"
        while len(found) < size:
            buffer = HostBuffer(is_bytes, size - len(found))
            if self._copied(stream, buffer, reading=True) == DROPPED:
                self._outcome(outcome)
                break
            buffer.turn()
            found += buffer.read(buffer.remaining)
        stream.drop()
        return found

    def _sent(self, data: bytes, send: Callable[[Shared], Shared]) -> int:
        """Write all of it, and wait for how that went."""
        stream = SharedStream(U8)
        outcome = send(stream)
        buffer = HostBuffer(True, len(data))
        buffer.write(data)
        buffer.turn()
        while buffer.remaining:
            if stream.dropped or self._copied(stream, buffer, reading=False) == DROPPED:
                break
        stream.drop()
        self._outcome(outcome)
        return buffer.progress

    def _outcome(self, outcome: Shared) -> None:
        buffer = HostBuffer(False, 1)
        self._copied(outcome, buffer, reading=True)
        buffer.turn()
        ((label, error),) = buffer.read(1)
        if label == "error":
            raise Failed(_word(error))

    def close(self, handle: Any) -> None:
        handle.close()

    def read(self, handle: Any, size: int, offset: int) -> bytes:
        stream, outcome = self._method(handle, "read-via-stream", offset)
        return bytes(self._all(stream, outcome, size))

    def write(self, handle: Any, data: bytes, offset: int) -> int:
        return self._sent(
            data, lambda stream: self._method(handle, "write-via-stream", stream, offset)
        )

    def stat(self, directory: Any, path: str, *, follow: bool = False) -> tuple[str, int, int]:
        kind, size, modified = super().stat(directory, path, follow=follow)
        return _word(kind), size, modified

    def names(self, directory: Any) -> set[str]:
        stream, outcome = self._method(directory, "read-directory")
        return {name for _, name in self._all(stream, outcome)}

    def say(self, data: bytes) -> None:
        self._sent(data, lambda stream: self._call("cli/stdout", "write-via-stream", stream))

    def hear(self, size: int) -> bytes:
        stream, _ = self._call("cli/stdin", "read-via-stream")
        return self._some(stream, size)

    def _some(self, stream: Shared, size: int) -> bytes:
        buffer = HostBuffer(True, size)
        self._copied(stream, buffer, reading=True)
        buffer.turn()
        return bytes(buffer.read(buffer.remaining))

    def connect(self, port: int) -> Any:
        made = self._call("sockets/types", "[static]tcp-socket.create", "ipv4")
        address = ("ipv4", (port, (127, 0, 0, 1)))
        self._call("sockets/types", "[method]tcp-socket.connect", made, address)
        stream, _ = self._call("sockets/types", "[method]tcp-socket.receive", made)
        return made, stream

    def send(self, connection: Any, data: bytes) -> None:
        made, _ = connection
        name = "[method]tcp-socket.send"
        self._sent(data, lambda stream: self._call("sockets/types", name, made, stream))

    def receive(self, connection: Any, size: int) -> bytes:
        return self._some(connection[1], size)

    def sleep(self, nanoseconds: int) -> None:
        self._call("clocks/monotonic-clock", "wait-for", nanoseconds)


def _word(case: Any) -> Any:
    """Return the label of a case that has nothing to it, or what is none."""
    return case[0] if isinstance(case, tuple) and case[1] is None else case


def _timestamp(time: int) -> tuple[str, tuple[int, int]]:
    return "timestamp", divmod(time, 10**9)


def no_descriptors_left() -> Iterator[None]:
    """Close all that is open and was not before; for a fixture."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    gc.collect()  # sockets close themselves, and not later when their numbers are somebody else's
    for fd in set(os.listdir("/proc/self/fd")) - before:
        try:
            os.close(int(fd))
        except OSError:
            pass  # it was the listing's own


DRIVERS: Final = {"preview1": Preview1, "p2": P2, "p3": P3}
