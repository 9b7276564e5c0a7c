"""Arguments and environment (library; runs in the guest).

Both are handed over the same way, in two calls:

    *_sizes_get(count*, bytes*)      how many strings, and their total size with the NULs
    *_get(array*, buffer*)           array:  | u32 -> s0 | u32 -> s1 | ...
                                     buffer: | s0 NUL | s1 NUL | ...
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate

from shim.wasi.preview1.abi import Ptr, host
from shim.wasi.preview1.memory import Memory
from shim.wasi.preview1.program import Program


def _sizes(memory: Memory, strings: Sequence[bytes], count: int, size: int) -> None:
    memory.write_u32(count, len(strings))
    memory.write_u32(size, sum(map(len, strings)) + len(strings))


def _get(memory: Memory, strings: Sequence[bytes], array: int, buffer: int) -> None:
    data = b"".join(text + b"\0" for text in strings)
    memory.write(buffer, data)  # first: when it fits, no address below can be beyond 2^32
    offsets = accumulate((len(text) + 1 for text in strings), initial=buffer & 0xFFFFFFFF)
    addresses = list(offsets)[:-1]
    memory.write(array, struct.pack(f"<{len(addresses)}I", *addresses))


@host
def args_sizes_get(program: Program, count: Ptr, size: Ptr) -> None:
    """Store the number of arguments and their size."""
    _sizes(program.memory, program.args, count, size)


@host
def args_get(program: Program, array: Ptr, buffer: Ptr) -> None:
    """Store the arguments."""
    _get(program.memory, program.args, array, buffer)


@host
def environ_sizes_get(program: Program, count: Ptr, size: Ptr) -> None:
    """Store the number of environment variables and their size."""
    _sizes(program.memory, program.env, count, size)


@host
def environ_get(program: Program, array: Ptr, buffer: Ptr) -> None:
    """Store the environment, as KEY=VALUE."""
    _get(program.memory, program.env, array, buffer)
