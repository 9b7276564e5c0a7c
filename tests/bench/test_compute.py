"""The kernels compute what they say, which a faster compiler must not change."""

from __future__ import annotations

import hashlib
import math
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from itertools import permutations

import pytest

from bench import compute
from tests.guests.build import build, names


def _result(kernel: str, size: int) -> int:
    program = build(kernel, native=True, sources=compute.KERNELS)
    done = subprocess.run([program, str(size)], check=True, capture_output=True, text=True)
    nanoseconds, result = done.stdout.split()
    assert int(nanoseconds) >= 0
    return int(result, 16)


def _double(result: int) -> float:
    return float(struct.unpack("d", struct.pack("Q", result))[0])


def _pseudorandom() -> Iterator[int]:
    state = 2463534242
    while True:
        state ^= state << 13 & 0xFFFFFFFF
        state ^= state >> 17
        state ^= state << 5 & 0xFFFFFFFF
        yield state


def _fannkuch(size: int) -> int:
    most = total = 0
    for order in permutations(range(size)):
        deck, flips = list(order), 0
        while first := deck[0]:
            deck[: first + 1] = reversed(deck[: first + 1])
            flips += 1
        most, total = max(most, flips), total + flips
    return total << 8 | most


def _mandelbrot(size: int) -> int:
    inside = 0
    for row in range(size):
        for column in range(size):
            c = complex(2 * column / size - 1.5, 2 * row / size - 1)
            z, step = 0j, 0
            while step < 50 and z.real * z.real + z.imag * z.imag <= 4:
                z = complex(
                    z.real * z.real - z.imag * z.imag + c.real, 2 * z.real * z.imag + c.imag
                )
                step += 1
            inside += step == 50
    return inside


def _quicksort(size: int) -> int:
    values = _pseudorandom()
    total = 0
    for value in sorted(next(values) for _ in range(size)):
        total = (total * 31 + value) % 2**64
    return total


def _sha256(size: int) -> int:
    blocks = b"".join(block.to_bytes(4, "big") + bytes(60) for block in range(size))
    return int.from_bytes(hashlib.sha256(blocks).digest()[:8], "big")


@pytest.mark.parametrize(
    ("kernel", "size", "expected"),
    [
        ("fannkuch", 7, _fannkuch),
        ("mandelbrot", 60, _mandelbrot),
        ("quicksort", 10_000, _quicksort),
        ("sha256", 300, _sha256),
    ],
)
def test_kernel(kernel: str, size: int, expected: Callable[[int], int]) -> None:
    assert _result(kernel, size) == expected(size)


def test_spectral_norm() -> None:
    # What the norm of the infinite matrix is to nine digits, and that of 100 columns to six.
    assert math.isclose(_double(_result("spectral_norm", 2000)), 1.274224153, rel_tol=1e-8)
    assert math.isclose(_double(_result("spectral_norm", 100)), 1.274220, rel_tol=1e-6)


def test_matrix() -> None:
    size = 20
    values = _pseudorandom()
    drawn = [(next(values) % 1000 / 100, next(values) % 1000 / 100) for _ in range(size * size)]
    expected = sum(
        drawn[row * size + inner][0] * drawn[inner * size + column][1]
        for row in range(size)
        for column in range(size)
        for inner in range(size)
    )
    assert math.isclose(_double(_result("matrix", size)), expected)


def test_nbody_keeps_its_bodies_in_place() -> None:
    """Whoever is on a circle is there again after one turn; so the sum hardly changes at first."""
    at_rest, later = (_double(_result("nbody", size)) for size in (0, 10))
    assert at_rest == pytest.approx(5 + 10 + 15 + 20 + 0.1 + 0.2 + 0.3 + 0.4)
    assert 0 < abs(later - at_rest) < 0.2


def test_beside_native_and_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYWASM_CONTAINERD", raising=False)
    native = build("spectral_norm", native=True, sources=compute.KERNELS)
    # In the place of an engine's command: the same program.
    found = compute.measure(1, [f"wasmtime=sh -c {native}"], ["spectral_norm"])["compute"]
    spreads = found["kernels"]["spectral_norm"]["spread"]
    assert [compute.NATIVE_C, *found["versions"], "wasmtime's command"] == list(spreads)
    assert all(row["samples"] == 1 and row["p50"] > 0 for row in spreads.values())
    assert found["of_command"]["wasmtime"]["spectral_norm"] > 0
    compute.print_found({"compute": found})


def test_another_result_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYWASM_CONTAINERD", raising=False)
    with pytest.raises(RuntimeError, match="spectral_norm"):
        compute.measure(1, ["wasmtime=echo 1"], ["spectral_norm"])


def test_a_command_of_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYWASM_CONTAINERD", raising=False)
    with pytest.raises(SystemExit, match="NAME=COMMAND"):
        compute.measure(1, [f"other={shutil.which('true')}"], ["spectral_norm"])


def test_there_is_a_test_for_each() -> None:
    tested = "fannkuch mandelbrot matrix nbody quicksort sha256 spectral_norm"
    assert names(compute.KERNELS) == tested.split()
