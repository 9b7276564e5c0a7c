"""`scripts/bench wasi`: what WASI calls cost under each engine, beside the same program natively.

One C program, `tests/guests/wasi_calls.c`, is compiled to wasm and natively and times itself, on
the same files. An engine runs it as a guest process does, in a fork that has everything imported.
"""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import wasmtime

from bench.spread import Spread, plus_minus, spread
from shim import engines
from shim.engines.base import Engine, Grants, Preopen
from shim.engines.wasmtime import Wasmtime
from tests.guests.build import build

NATIVE: Final = "native"
ENGINES: Final = ("wasmer", "wasmtime")
ITS_OWN: Final = "its own WASI"
BLOCK: Final = 65536
DATA: Final = 64  # MiB, more than a processor's own caches hold: a file that is read once


class Operation(NamedTuple):
    """What is measured: its name in the program, what it is called here, how often a sample."""

    name: str
    title: str
    times: int
    size: int = 0  # bytes moved by a call

    def speed(self, ns: float) -> str:
        """Return the time of a call for people."""
        if self.size:
            return f"{self.size / ns * 1000:.0f} MB/s"
        return f"{ns / 1000:.2f} µs"


OPERATIONS: Final = (
    Operation("write_byte", "fd_write 1 byte /dev/null", 20_000),
    Operation("read_block", "fd_read 64 KiB", 4_000, BLOCK),
    Operation("write_block", "fd_write 64 KiB", 2_000, BLOCK),
    Operation("pread_block", "fd_pread 64 KiB", 4_000, BLOCK),
    Operation("pwrite_block", "fd_pwrite 64 KiB", 2_000, BLOCK),
    Operation("open_close", "path_open + fd_close", 3_000),
    Operation("list", "fd_readdir of 1000", 30),
    Operation("stat", "path_filestat_get", 5_000),
    Operation("clock", "clock_time_get", 20_000),
    Operation("random", "random_get 16 bytes", 20_000),
    Operation("poll", "poll_oneoff, no wait", 10_000),
)


@contextmanager
def _files() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pywasm-bench-") as name:
        directory = Path(name)
        (directory / "data").write_bytes(os.urandom(DATA << 20))
        (directory / "many").mkdir()
        for number in range(1000):
            (directory / "many" / f"file-{number}").touch()
        yield directory


def _output(work: Callable[[], object]) -> bytes:
    """Return what `work` writes to descriptor 1 in a child, which it may end."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writer, 1)
        try:
            work()
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"the guest ended with {os.waitstatus_to_exitcode(status)}")
    return data


def _native(directory: Path) -> Callable[[list[str]], bytes]:
    program = str(build("wasi_calls", native=True))

    def run(args: list[str]) -> bytes:
        command = [program, *args, str(directory)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout

    return run


def _artifact(engine: Engine) -> bytes:
    wasm = build("wasi_calls").read_bytes()

    def compile_() -> None:
        with open(1, "wb") as out:
            out.write(engine.compile(wasm))

    return _output(compile_)


def _under(engine: Engine, directory: Path) -> Callable[[list[str]], bytes]:
    artifact = _artifact(engine)

    def run(args: list[str]) -> bytes:
        def guest() -> None:
            preopens = [
                Preopen(name, os.open(name, os.O_PATH | os.O_DIRECTORY), confined=False)
                for name in (str(directory), "/dev")
            ]
            argv = [b"guest", *map(str.encode, args), os.fsencode(directory)]
            module = engine.load(artifact)
            module.check()
            module.run(Grants(argv, [], preopens))

        return _output(guest)

    return run


def _under_its_own(directory: Path) -> Callable[[list[str]], bytes]:
    """Run with wasmtime's WASI instead of ours, which is what to compare ours with."""
    artifact = _artifact(engines.select("wasmtime"))

    def run(args: list[str]) -> bytes:
        def guest() -> None:
            config = wasmtime.WasiConfig()
            config.argv = ["guest", *args, str(directory)]
            config.inherit_stdout()
            for name in (str(directory), "/dev"):
                config.preopen_dir(name, name)
            engine = Wasmtime().host.engine
            store = wasmtime.Store(engine)
            store.set_wasi(config)
            linker = wasmtime.Linker(engine)
            linker.define_wasi()
            instance = linker.instantiate(store, wasmtime.Module.deserialize(engine, artifact))
            entry = instance.exports(store)["_start"]
            assert isinstance(entry, wasmtime.Func)
            with contextlib.suppress(wasmtime.ExitTrap):
                entry(store)

        return _output(guest)

    return run


def measure(rounds: int) -> dict[str, Any]:
    """Return ns per call of each operation: native, and under each engine there is here.

    All take turns within each of the `rounds`.
    """
    with _files() as directory:
        runs = {NATIVE: _native(directory)}
        for engine in engines.engines():
            runs[engine.name] = _under(engine, directory)
        runs[ITS_OWN] = _under_its_own(directory)
        gc.freeze()
        samples: dict[str, dict[str, list[float]]] = {
            operation.name: {name: [] for name in runs} for operation in OPERATIONS
        }
        for number in range(rounds):
            for operation in OPERATIONS:
                for name in list(runs) if number % 2 else reversed(runs):
                    ns = int(runs[name]([operation.name, str(operation.times)]))
                    samples[operation.name][name].append(ns / operation.times)
    return {
        "wasi": {
            operation: {name: spread(values) for name, values in by_name.items()}
            for operation, by_name in samples.items()
        }
    }


def print_found(result: Mapping[str, Mapping[str, Mapping[str, Spread]]]) -> None:
    """Print what `measure` found: the time of a call or bytes per second, and native's share."""
    wasi = result["wasi"]
    names = list(next(iter(wasi.values())))
    print(
        "WASI calls of one C program, medians, ± half of what lies between the quartiles; in "
        "brackets: speed relative to the program\ncompiled natively; last: wasmtime with its own "
        "WASI instead of ours"
    )
    print(f"{'':26}" + "".join(f"{name:>13}{'' if name == NATIVE else ' ' * 12}" for name in names))
    for operation in OPERATIONS:
        row = wasi[operation.name]
        line = f"{operation.title:26}"
        for name in names:
            line += f"{operation.speed(row[name]['p50']):>13}"
            if name != NATIVE:
                share = row[NATIVE]["p50"] / row[name]["p50"]
                line += f"{plus_minus(row[name]):>5}{f'[{share:.2f}]':>7}"
        print(line)
