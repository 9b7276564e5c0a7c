from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from shim.linux import signals
from shim.linux.clone import CLONE_NEWPID, Child, clone, wait
from shim.linux.signals import exit_on, handlers, reset_signals, restore

# Calls out once, so that somebody outside knows, and then never leaves native code.
SPIN = """
(module
  (import "host" "spinning" (func $spinning))
  (func (export "spin") call $spinning (loop $again br $again)))
"""
# The same after using up most of a stack: whatever runs on this one has little left.
RECURSE = """
(module
  (import "host" "spinning" (func $spinning))
  (func $down (export "spin") (param i32)
    (if (i32.eqz (local.get 0)) (then call $spinning (loop $again br $again)))
    (call $down (i32.sub (local.get 0) (i32.const 1)))))
"""


def spin_in_wasmer(write: int, artifact: bytes, *arguments: int) -> None:
    import wasmer

    def spinning() -> None:
        os.write(write, b"x")

    store = wasmer.Store(wasmer.engine.JIT(None))
    imports = wasmer.ImportObject()
    function = wasmer.Function(store, spinning, wasmer.FunctionType([], []))
    imports.register("host", {"spinning": function})
    module = wasmer.Module.deserialize(store, artifact)
    wasmer.Instance(module, imports).exports.spin(*arguments)


def spin_in_libwasmer(write: int, artifact: bytes, *arguments: int) -> None:
    import ctypes

    from shim.engines import libwasmer
    from shim.engines.wasmer import Host
    from shim.engines.wasmer_wasi import HostFunction
    from shim.wasi.preview1.abi import Bound

    def spinning() -> int:
        return os.write(write, b"x")

    store = Host().store
    function = HostFunction(store, Bound(spinning, (), ()))
    code = ctypes.create_string_buffer(artifact, len(artifact))
    imports = (ctypes.c_void_p * 1)(function.extern)
    values = (ctypes.c_uint64 * 2)(libwasmer.KINDS["i32"], *arguments)
    vector, exports = libwasmer.Vec, libwasmer.Vec()
    module = libwasmer.module_deserialize(store, vector(len(artifact), ctypes.addressof(code)))
    instance = libwasmer.instance_new(
        store, module, vector(1, ctypes.addressof(imports)), ctypes.c_void_p()
    )
    libwasmer.instance_exports(libwasmer.made(instance), exports)
    entry = libwasmer.extern_as_func(exports.pointers()[0])
    libwasmer.func_call(entry, vector(len(arguments), ctypes.addressof(values)), vector())


def spin_in_wasmtime(write: int, artifact: bytes, *arguments: int) -> None:
    import wasmtime

    def spinning() -> None:
        os.write(write, b"x")

    store = wasmtime.Store()
    function = wasmtime.Func(store, wasmtime.FuncType([], []), spinning)
    module = wasmtime.Module.deserialize(store.engine, artifact)
    instance = wasmtime.Instance(store, module, [function])
    instance.exports(store)["spin"](store, *arguments)  # type: ignore[operator]


ENGINES = {
    "wasmer": spin_in_wasmer,
    "shim.engines.libwasmer": spin_in_libwasmer,
    "wasmtime": spin_in_wasmtime,
}


@pytest.fixture(params=ENGINES)
def spin(
    request: pytest.FixtureRequest, compiled: Callable[[str, str], bytes]
) -> Callable[..., None]:
    """Run a module that writes to a descriptor and then spins."""
    pytest.importorskip(request.param, exc_type=ImportError)
    artifacts = {wat: compiled(request.param, wat) for wat in (SPIN, RECURSE)}
    engine = ENGINES[request.param]

    def spin(write: int, wat: str = SPIN, *arguments: int) -> None:
        engine(write, artifacts[wat], *arguments)

    return spin


def cpu_ticks(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as stat:
        return int(stat.read().rpartition(")")[2].split()[11])


@pytest.fixture
def start() -> Iterator[Callable[[Callable[[int], None]], Child]]:
    """Start PID 1 of a namespace; returns when it has said that it is spinning, and has been."""
    children = []

    def start(entry: Callable[[int], None]) -> Child:
        read, write = os.pipe()
        child = clone(lambda: entry(write), CLONE_NEWPID)
        children.append(child)
        os.close(write)
        assert os.read(read, 1) == b"x"
        os.close(read)
        # It said so from Python. By the time it has used up more of a processor it is in the loop.
        enough = cpu_ticks(child.pid) + 3
        while cpu_ticks(child.pid) < enough:
            time.sleep(0.005)
        return child

    yield start
    for child in children:
        try:
            signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
            wait(child.pidfd)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(child.pidfd)


Start = Callable[[Callable[[int], None]], Child]


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGHUP, signal.SIGRTMAX])
def test_first_process_spinning_in_native_code_ends(
    signo: int, spin: Callable[..., None], start: Start
) -> None:
    def entry(write: int) -> None:
        exit_on([signal.SIGINT, signo])
        spin(write)

    child = start(entry)
    signal.pidfd_send_signal(child.pidfd, signo)
    assert wait(child.pidfd) == 128 + signo


def test_deep_in_the_stack(spin: Callable[..., None], start: Start) -> None:
    def entry(write: int) -> None:
        exit_on([signal.SIGTERM])
        spin(write, RECURSE, 5000)

    child = start(entry)
    signal.pidfd_send_signal(child.pidfd, signal.SIGTERM)
    assert wait(child.pidfd) == 128 + signal.SIGTERM


@pytest.mark.parametrize("has_handler", [False, True])
def test_why_the_handler_is_native(
    has_handler: bool, spin: Callable[..., None], start: Start
) -> None:
    """Without a handler the kernel drops the signal; with Python's, nobody gets around to it."""

    def entry(write: int) -> None:
        if has_handler:
            signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        spin(write)

    child = start(entry)
    signal.pidfd_send_signal(child.pidfd, signal.SIGTERM)
    poll = select.poll()
    poll.register(child.pidfd, select.POLLIN)
    assert poll.poll(100) == []


def test_exits_from_python_code_too(status_of: Callable[..., int]) -> None:
    def entry() -> None:
        exit_on([signal.SIGTERM, signal.SIGUSR1])
        exit_on([signal.SIGUSR1])
        os.kill(os.getpid(), signal.SIGUSR1)
        os._exit(99)

    assert status_of(entry, CLONE_NEWPID) == 128 + signal.SIGUSR1


def mappings() -> list[tuple[int, int, str]]:
    found = []
    with open("/proc/self/maps") as maps:
        for line in maps:
            addresses, permissions, *_ = line.split()
            low, high = (int(address, 16) for address in addresses.split("-"))
            found.append((low, high, permissions))
    return found


def test_no_page_is_writable_and_executable(in_child: Callable[..., None]) -> None:
    def entry() -> None:
        before = [pages for pages in mappings() if "wx" in pages[2]]  # an engine's, if any
        exit_on([signal.SIGTERM])
        ((_, action),) = handlers([signal.SIGTERM])
        after = mappings()
        assert [pages for pages in after if "wx" in pages[2]] == before
        ((_, _, permissions),) = (m for m in after if m[0] <= action.handler < m[1])
        assert permissions == "r-xp"

    in_child(entry)


@pytest.mark.parametrize("signo", [signal.SIGKILL, 0, 65])
def test_signal_that_cannot_be_caught_is_named(signo: int) -> None:
    with pytest.raises(OSError, match=f"signal {signo}"):
        exit_on([signo])


ASSEMBLY = {
    "x86_64": "endbr64; lea 128(%rdi), %edi; mov $231, %eax; syscall",
    "aarch64": "hint #34; add w0, w0, #128; mov x8, #94; svc #0",
}


@pytest.mark.parametrize("machine", ASSEMBLY)
def test_machine_code_is_what_an_assembler_makes_of_it(machine: str, tmp_path: object) -> None:
    pytest.importorskip("ziglang")
    source, object_file = f"{tmp_path}/handler.s", f"{tmp_path}/handler.o"
    with open(source, "w") as file:
        file.write(f".text; {ASSEMBLY[machine]}\n")
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-linux-musl"]
    subprocess.run([*zig, "-c", source, "-o", object_file], check=True)
    with open(object_file, "rb") as file:
        assert signals._CODE[machine] in file.read()


def status(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1], 16) for line in file if line.startswith(field))


def bit(signo: int) -> int:
    return 1 << signo - 1


def test_reset(in_child: Callable[..., None]) -> None:
    def entry() -> None:
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGSEGV, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGRTMAX})
        faults = sum(bit(signo) for signo, _ in handlers(signals.FAULTS))  # an engine's among them
        reset_signals(keep={*signals.FAULTS, signal.SIGPIPE})
        assert faults & bit(signal.SIGSEGV)
        assert status("SigCgt") == faults
        assert status("SigIgn") == bit(signal.SIGPIPE)
        assert status("SigBlk") == 0
        reset_signals(keep=())
        assert (status("SigCgt"), status("SigIgn")) == (0, 0)

    in_child(entry)


def test_handlers_come_back(in_child: Callable[..., None]) -> None:
    def entry() -> None:
        signal.signal(signal.SIGILL, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        saved = handlers([signal.SIGILL, signal.SIGHUP, signal.SIGTERM])
        assert [signo for signo, _ in saved] == [signal.SIGILL]
        reset_signals(keep=())
        restore(saved)
        assert status("SigCgt") == bit(signal.SIGILL)

    in_child(entry)
