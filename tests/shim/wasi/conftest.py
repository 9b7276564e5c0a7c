"""The host functions called as an engine calls them, over a memory that is only bytes."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.wasi import descriptors, errno, filetypes, preview1, rights
from shim.wasi.descriptors import Descriptor
from shim.wasi.program import Program

from .dns import World

PAGE = 65536


class Guest:
    """Stands for a wasm module: a memory, and calls that pass signed numbers."""

    def __init__(self) -> None:
        self.memory = bytearray(PAGE)
        self.program = Program()
        self.program.memory.attach(lambda: memoryview(self.memory))
        self.functions = preview1.bind(self.program)
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


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Where names are looked up."""
    return World(tmp_path)
