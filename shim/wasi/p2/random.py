"""wasi:random: what is insecure there is as good as the rest (library; runs in the guest)."""

from __future__ import annotations

from functools import cache
from typing import Final

from shim.component.errors import Trap
from shim.component.host import Interface
from shim.wasi.program import Program
from shim.wasi.randomness import fill

_MOST: Final = 1 << 28  # bytes; a list cannot be longer

RANDOM: Final = Interface("wasi:random/random", "0.2")
INSECURE: Final = Interface("wasi:random/insecure", "0.2")
INSECURE_SEED: Final = Interface("wasi:random/insecure-seed", "0.2")
INTERFACES: Final = (RANDOM, INSECURE, INSECURE_SEED)


@RANDOM.function("get-random-bytes", "func(len: u64) -> list<u8>")
@INSECURE.function("get-insecure-random-bytes", "func(len: u64) -> list<u8>")
def random_bytes(program: Program, length: int) -> bytearray:
    """Return so many random bytes."""
    if length >= _MOST:
        raise Trap(f"{length} random bytes are too many")
    data = bytearray(length)
    fill(memoryview(data))
    return data


@RANDOM.function("get-random-u64", "func() -> u64")
@INSECURE.function("get-insecure-random-u64", "func() -> u64")
def random_u64(program: Program) -> int:
    """Return a random number."""
    return int.from_bytes(random_bytes(program, 8), "little")


@INSECURE_SEED.function("insecure-seed", "func() -> tuple<u64, u64>")
@cache
def insecure_seed(program: Program) -> tuple[int, int]:
    """Return a seed for hash maps, the same each time."""
    return random_u64(program), random_u64(program)
