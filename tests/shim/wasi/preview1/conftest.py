"""The host functions called as an engine calls them, over a memory that is only bytes."""

from __future__ import annotations

import os
import struct
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from shim.wasi import descriptors, filetypes, preview1, rights
from shim.wasi.descriptors import Descriptor
from shim.wasi.preview1 import errno
from shim.wasi.preview1.program import Program

PAGE = 65536


class Guest:
    """Stands for a wasm module: a memory, and calls that pass signed numbers."""

    def __init__(self) -> None:
        self.memory = bytearray(PAGE)
        self.program = Program()
        self.program.memory.attach(lambda: memoryview(self.memory))
        self.functions = preview1.bind(self.program)
        self.output = -1  # of a guest that has one: where to read it
        self._next = 1024

    def __call__(self, name: str, *args: int) -> int:
        """Call a host function; return its errno."""
        function = self.functions[name]
        signed = [
            (value + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)
            for value, bits in zip(
                args, [64 if kind == "i64" else 32 for kind in function.params], strict=True
            )
        ]
        return function.call(*signed)

    def room(self, size: int) -> int:
        """Return the address of unused, zeroed memory."""
        address = self._next
        self._next += (size + 15) // 8 * 8
        assert self._next <= len(self.memory)
        return address

    def put(self, data: bytes) -> int:
        address = self.room(len(data))
        self.memory[address : address + len(data)] = data
        return address

    def path(self, path: str | bytes) -> tuple[int, int]:
        data = os.fsencode(path)
        return self.put(data), len(data)

    def iovecs(self, *buffers: tuple[int, int]) -> tuple[int, int]:
        return self.put(b"".join(struct.pack("<II", *pair) for pair in buffers)), len(buffers)

    def u32(self, address: int) -> int:
        return int.from_bytes(self.memory[address : address + 4], "little")

    def u64(self, address: int) -> int:
        return int.from_bytes(self.memory[address : address + 8], "little")

    def add(self, fd: int, kind: int, base: int = rights.ALL) -> int:
        return self.program.descriptors.add(
            Descriptor(fd, kind, base & descriptors.applicable(fd, kind))
        )

    def is_open(self, fd: int) -> bool:
        return self("fd_fdstat_get", fd, 0) != errno.BADF

    def open(
        self,
        path: str | bytes,
        *,
        oflags: int = 0,
        base: int = rights.ALL & ~rights.FD_WRITE,
        fdflags: int = 0,
        lookup: int = 1,
        directory: int = 0,
        inheriting: int = rights.ALL,
    ) -> tuple[int, int]:
        """Call path_open; return (errno, new descriptor)."""
        result = self.room(4)
        error = self(
            "path_open",
            directory,
            lookup,
            *self.path(path),
            oflags,
            base,
            inheriting,
            fdflags,
            result,
        )
        return error, self.u32(result)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    """A guest whose descriptor 0 is the preopened directory `/`, which is `tmp_path`."""
    made = Guest()
    made.program.descriptors.add(
        Descriptor(
            os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY),
            filetypes.DIRECTORY,
            rights.DIRECTORY,
            rights.ALL,
            preopen=b"/",
        )
    )
    yield made
    for number in range(64):
        made("fd_close", number)


@pytest.fixture
def readonly(guest: Guest) -> Guest:
    """The same, with the preopen read-only."""
    guest.program.descriptors.get(0).readonly = True
    return guest


InContainer: TypeAlias = Callable[[Callable[[Guest], None]], None]


@pytest.fixture
def in_container(tmp_path: Path) -> InContainer:
    """Call a function in a child whose root is `tmp_path`, and the guest's, with no annotation.

    Its descriptors: pipes for 0 and 1; 3 is `/` and 4 is `/vol`, not confined; 5 is `/vol` as
    `strict`, which is.
    """
    (tmp_path / "vol").mkdir()

    def check(entry: Callable[[Guest], None]) -> None:
        child = os.fork()
        if child == 0:
            try:
                os.chroot(tmp_path)
                os.chdir("/")
                (reader, typing), (reading, writer) = os.pipe(), os.pipe()
                os.write(typing, b"typed")
                os.dup2(reader, 0)
                os.dup2(writer, 1)
                slash, volume, strict = (os.open(p, os.O_PATH) for p in ("/", "/vol", "/vol"))
                made = Guest()
                preopens = [
                    (b"/", slash, False, False),
                    (b"/vol", volume, False, False),
                    (b"strict", strict, False, True),
                ]
                made.program.grant([], [], preopens)
                made.output = reading
                entry(made)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    return check
