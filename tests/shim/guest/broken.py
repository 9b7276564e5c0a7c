"""Native code in a guest's place: what is left of a container when its wasm sandbox has fallen.

A program, because it is to be what a shim is: alone, and without threads. Its argument is a
directory with a bundle for each guest to be made. The guests are real ones, made by
`shim.daemon.containers.guest.Guest`, only that their engine has no sandbox: to run its modules is
to call the functions of `escapes.py`, each in a child of the guest. What came of them is printed as
JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from oci.bundle import read_outline
from shim import engines
from shim.daemon.containers.artifacts import Artifacts
from shim.daemon.containers.guest import Guest
from shim.daemon.log import Logger
from shim.daemon.streams.stdio import Stdio
from shim.engines.base import Grants, Store
from shim.guest import control
from shim.linux import credentials, readonly
from shim.linux.libc import NUMBERS, system_call
from tests.shim.guest import escapes

_ROOM = 1 << 20  # for all that a guest prints

_add_key = system_call(
    ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int
)
_SESSION_KEYRING = -3


class Native:
    """An engine without a sandbox, which is also its only module."""

    name = "wasmtime"  # one of the names that annotations may have
    version = "0"
    maps = True
    others = ()

    def __init__(self, program: Callable[[], object]) -> None:
        self._program = program
        self.host = engines.select("wasmtime").host

    def fingerprint(self) -> str:
        """As every engine."""
        return "native"

    def compile(self, wasm: bytes | memoryview) -> bytes:
        """As every engine."""
        return bytes(wasm)

    def load(self, artifact: bytes | memoryview) -> Native:
        """As every engine."""
        return self

    def store(self) -> Store:
        """As no component would be."""
        raise NotImplementedError

    def with_stack(self, run: Callable[[], NoReturn]) -> NoReturn:
        """As an engine that is content with any."""
        run()

    def load_file(self, path: str) -> Native:
        """As an engine that maps its artifacts: from the cache, as the container's user."""
        assert Path(path).read_bytes()
        return self

    def check(self, function: str = "_start") -> None:
        """As every module."""

    def run(self, grants: Grants, function: str = "_start") -> NoReturn:
        """Be native code, with what the guest has been granted."""
        self._program()
        os._exit(0)


@contextlib.contextmanager
def running(program: Callable[[], object]) -> Iterator[None]:
    """Make this the only engine."""
    found = engines.engines()
    saved = found[:]
    found[:] = [Native(program)]
    try:
        yield
    finally:
        found[:] = saved


def outcome(attempt: Callable[[], object]) -> str:
    """Try it in a child: the name of its error, or what it returned, or how it died."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            text = f"ok {attempt()}"
        except OSError as error:
            text = errno.errorcode.get(error.errno or 0, str(error))
        except BaseException as error:
            text = repr(error)
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    said = b""
    while chunk := os.read(reader, 1 << 16):
        said += chunk
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    return said.decode() or f"status {os.waitstatus_to_exitcode(status)}"


def attempt_all() -> None:
    """Print what came of each."""
    # So that nothing fails only because it may not look at itself.
    credentials.set_dumpable(True)
    found = {name: outcome(attempt) for name, attempt in escapes.ATTEMPTS.items()}
    os.write(1, json.dumps(found).encode())


class Shim:
    """Guests of this process."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._log = Logger(str(directory), debug=False)
        self._artifacts = Artifacts(
            str(directory / "state"), str(directory / "run"), "n", "", self._log
        )

    async def create(self, id: str, program: Callable[[], object]) -> tuple[Guest, int]:
        """Make the guest of a bundle, ready to run `program`; and the pipe of its output."""
        bundle = str(self._directory / id)
        rootfs = control.Mount("bind", str(self._directory / "rootfs"), "", ["rbind", "rw"])
        stdin, *others = Stdio("", "", "").open()
        reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _ROOM)
        with running(program):
            made = Guest(id, bundle, read_outline(bundle), self._artifacts, self._log)
            made.watch()
            try:
                await made.prepare([rootfs], [stdin, writer, writer])
            except BaseException:
                await made.discard()
                raise
            finally:
                for fd in (stdin, writer, *others):
                    os.close(fd)
        return made, reader

    async def escape(self, id: str) -> Any:
        """Run a guest that tries everything; return what came of it."""
        made, reader = await self.create(id, attempt_all)
        await made.start(hooked=False)
        status = await made.exited
        told = os.read(reader, _ROOM)
        os.close(reader)
        await made.discard()
        return json.loads(told) if status == 0 else f"status {status}: {told.decode()}"


async def main(directory: Path, guests: list[str]) -> None:
    """Run them one after the other, beside a neighbour that does nothing."""
    shim = Shim(directory)
    neighbour, output = await shim.create("neighbour", signal.pause)
    await neighbour.start(hooked=False)
    with socket.socket(socket.AF_UNIX) as abstract, socket.socket() as tcp:
        abstract.bind(f"\0pywasm-{os.getpid()}")
        abstract.listen()
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        key = _add_key(NUMBERS["keyctl"] - 2, b"user", b"host", b"secret", 6, _SESSION_KEYRING)
        escapes.HOST = escapes.Host(
            str(directory),
            os.getpid(),
            neighbour.pid,
            abstract.getsockname(),
            tcp.getsockname()[1],
            key,
        )
        found = {id: await shim.escape(id) for id in guests}
    alive = not neighbour.exited.done()
    await neighbour.discard()
    os.close(output)
    print(json.dumps(found | {"neighbour": alive}))


if __name__ == "__main__":
    readonly.execute_again()
    readonly.return_home()
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2:]))
