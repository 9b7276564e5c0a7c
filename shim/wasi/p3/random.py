"""wasi:random 0.3: what 0.2 has, under other names (library; runs in the guest)."""

from __future__ import annotations

from typing import Final

from shim.component.host import Interface
from shim.wasi.p2 import random as p2

RANDOM: Final = Interface("wasi:random/random", "0.3")
INSECURE: Final = Interface("wasi:random/insecure", "0.3")
INSECURE_SEED: Final = Interface("wasi:random/insecure-seed", "0.3")
INTERFACES: Final = (RANDOM, INSECURE, INSECURE_SEED)

_BYTES: Final = "func(max-len: u64) -> list<u8>"
RANDOM.function("get-random-bytes", _BYTES)(p2.random_bytes)
RANDOM.function("get-random-u64", "func() -> u64")(p2.random_u64)
INSECURE.function("get-insecure-random-bytes", _BYTES)(p2.random_bytes)
INSECURE.function("get-insecure-random-u64", "func() -> u64")(p2.random_u64)
INSECURE_SEED.function("get-insecure-seed", "func() -> tuple<u64, u64>")(p2.insecure_seed)
