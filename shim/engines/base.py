"""What an engine is (library).

Compiling is for the compiler process, loading and running for the guest process; neither happens
anywhere else. An artifact is native code: whoever passes one to `load` vouches for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, Protocol, TypeAlias

from shim.linux.messages import one_line, plain

if TYPE_CHECKING:
    from shim.engines.linking import Provided
    from shim.wasi.program import Program

TRAPPED: Final = 134  # 128 + SIGABRT, what a native program that aborts ends with
START: Final = "_start"

HEADER: Final = 8
"""Bytes of a module that `check_header` looks at."""

_MAGIC: Final = b"\0asm"
_CORE: Final = b"\1\0\0\0"
_COMPONENT: Final = b"\x0d\0\1\0"

_COMPONENT_TEXT: Final = re.compile(rb"(?:\s|;;[^\n]*\n|\(;(?:[^;]|;(?!\)))*;\))*\(\s*component\b")

_FRAMES: Final = 30  # of a backtrace; a stack overflow has tens of thousands

# What code generators ask the CPU for; anything else does not change an artifact.
_FEATURES: Final = (
    "sse3 pni ssse3 sse4_1 sse4_2 popcnt avx avx2 fma bmi1 bmi2 abm lzcnt "
    "avx512f avx512dq avx512vl avx512bw avx512vbmi avx512_bitalg "
    "atomics lse asimd paca pacg flagm fphp asimdhp"
)


class ModuleError(Exception):
    """A module cannot be run; the message names the culprit."""


class TryAgainError(ModuleError):
    """That is not the module's fault: what is in the way now may not be there the next time."""


class Preopen(NamedTuple):
    """A directory the guest may use, under the name by which it will ask for it.

    The descriptor (a directory; O_PATH will do) is taken over by the guest.
    """

    name: str
    fd: int
    readonly: bool = False
    confined: bool = True
    """Whether no path that starts there leads out of it; else it may lead anywhere in the root."""


class Grants(NamedTuple):
    """All that a guest is given besides descriptors 0, 1 and 2. `env` is KEY=VALUE.

    `cwd` is where relative paths begin, named as the container names it; `None` for `/`.
    `listeners` are listening sockets, which the guest finds in front of its preopens, and `network`
    is whether it may make sockets of its own.
    """

    args: Sequence[bytes]
    env: Sequence[bytes]
    preopens: Sequence[Preopen]
    cwd: Preopen | None = None
    listeners: Sequence[int] = ()
    network: bool = True

    def give(self, program: Program) -> None:
        """Hand all of it over to the program."""
        program.grant(
            self.args,
            self.environment(),
            [_plain(preopen) for preopen in self.preopens],
            listeners=self.listeners,
            network=self.network,
            cwd=self.cwd and _plain(self.cwd),
        )

    def environment(self) -> list[bytes]:
        """Return the environment, with PWD if the program is to start elsewhere than in `/`.

        Preview 1 has no working directory: a libc keeps one, and PWD is the one way to tell it.
        """
        if self.cwd is None or any(pair.startswith(b"PWD=") for pair in self.env):
            return list(self.env)
        return [*self.env, b"PWD=" + os.fsencode(self.cwd.name)]


def _plain(preopen: Preopen) -> tuple[bytes, int, bool, bool]:
    return os.fsencode(preopen.name), preopen.fd, preopen.readonly, preopen.confined


class Module(Protocol):
    """A loaded module."""

    def check(self, function: str = START) -> None:
        """Raise ModuleError if `run` could not even begin. Executes no guest code."""

    def run(self, grants: Grants, function: str = START) -> NoReturn:
        """Become the program, which `check` has passed: this process ends with it.

        Exit status 0 when `function` returns, n after `proc_exit(n)`; a trap prints its reason and
        a backtrace on descriptor 2 and ends with 134.
        """


Extern: TypeAlias = object
"""A function, memory, table, global or tag of a store, in the engine's own words."""

MAX_PARAMS: Final = 32
"""How many parameters a host function may have."""


class Trap(Exception):
    """A guest trapped, or there was no room for it: the reason, and a backtrace in lines."""

    def __init__(self, reason: str, frames: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.frames = frames


class Instance(Protocol):
    """An instance of a module in a store, which lives as long as the store."""

    def extern(self, name: str) -> Extern:
        """Return an export, to import it elsewhere. Raises ModuleError where there is none."""

    def function(self, name: str) -> Callable[..., Any]:
        """Return an exported function, to be called with numbers.

        Integers in either sign; it returns a signed one, a float, None or a tuple. It raises Trap;
        an exception of a host function on the way comes out as it is. Raises ModuleError where
        there is none, or it takes or returns what is no number.
        """

    def memory(self, name: str) -> Callable[[], memoryview]:
        """Return what returns a view of all of an exported memory, as long as it is then.

        A view stays right when the memory grows: it does not move. Raises ModuleError where there
        is none, or it is one of which that is not true (of 64 bits), or shared.
        """


class Store(Protocol):
    """Instances of several modules, which import what others export, and host functions.

    All externs that go into one store come from it.
    """

    def instantiate(self, module: Module, imports: Sequence[Extern]) -> Instance:
        """Instantiate a module with what it imports, in the order of its imports.

        The module is one that this engine has loaded; it need not have passed `check`. Its start
        function runs. Raises Trap, also where there is no room for its memory, what host functions
        raise, and ModuleError where an import is not of the type that it is declared with.
        """

    def function(
        self, params: Sequence[str], results: Sequence[str], call: Callable[..., Any]
    ) -> Extern:
        """Make a host function of a type in the names of wasm's types.

        At most `MAX_PARAMS` parameters and one result, all of them numbers. `call` gets integers as
        signed ones, and returns a number, integers in either sign. An exception becomes a trap, and
        is raised where the guest was called from.
        """


class Compiler(Protocol):
    """What makes an artifact of a module or a component."""

    @property
    def name(self) -> str:
        """What annotations and configuration call it."""

    @property
    def version(self) -> str:
        """The version of the package."""

    def fingerprint(self) -> str:
        """Name all that an artifact depends on besides the module: part of its cache key."""

    def compile(self, wasm: bytes | memoryview) -> bytes:
        """Return the native artifact of a module, binary or text. May start threads.

        Raises ModuleError.
        """


class Engine(Compiler, Protocol):
    """A WebAssembly engine."""

    @property
    def maps(self) -> bool:
        """Whether what `load_file` loads is shared by all processes that load the same file."""

    @property
    def others(self) -> Sequence[Engine]:
        """The same engine with other compilers, which only a node's settings can choose."""

    @property
    def host(self) -> Provided:
        """What its modules can import."""

    def load(self, artifact: bytes | memoryview) -> Module:
        """Make a module of an artifact that `compile` returned under the same fingerprint.

        Starts no thread. Raises ModuleError for what is plainly no such artifact.
        """

    def load_file(self, path: str) -> Module:
        """Do the same with an artifact at the beginning of a file, which must never change.

        What follows it there is not looked at. `ModuleError` also where there is no such file.
        """

    def store(self) -> Store:
        """Make a store for modules that are linked by hand. In the guest; starts no thread."""

    def with_stack(self, run: Callable[[], NoReturn]) -> NoReturn:
        """Run where the stack is as deep as guests are promised, which ends this process.

        `Module.run` does so itself; what calls into a store has to be called like this.
        """


def check_header(wasm: bytes | memoryview, *, text: bool = False, component: bool = False) -> None:
    """Raise ModuleError unless this begins like a core module.

    Or with `component` like a component, with `text` like either of them in text.
    """
    head = bytes(wasm[:HEADER])
    if text and _is_text(head):
        return
    if not head:
        raise ModuleError("not a wasm module: the file is empty")
    if len(head) < HEADER and (_MAGIC + _CORE).startswith(head):
        raise ModuleError("truncated wasm module: it ends within the header")
    if not head.startswith(_MAGIC):
        raise ModuleError(f"not a wasm module: it begins with {head[:4]!r} instead of {_MAGIC!r}")
    if head[4:] == _COMPONENT:
        if component:
            return
        raise ModuleError("this is a component, not a core module")
    if head[4:] != _CORE:
        raise ModuleError(f"unknown wasm version {int.from_bytes(head[4:], 'little')}")


def is_component(head: bytes) -> bool:
    """Tell whether what begins like this is a component, if it is anything; also as text."""
    return head[4:HEADER] == _COMPONENT or _COMPONENT_TEXT.match(head) is not None


def _is_text(head: bytes) -> bool:
    """Tell whether this is the beginning of a parenthesis, maybe after spaces and comments."""
    rest = head.lstrip()
    return rest.startswith((b"(", b";;")) or (bool(head) and not rest)


@cache
def cpu() -> str:
    """Name this machine's architecture and those of its CPU features that code depends on."""
    try:
        with open("/proc/cpuinfo", "rb") as file:
            text = file.read(16384).decode(errors="replace")
    except OSError:
        text = ""
    found: Iterable[str] = ()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            found = set(_FEATURES.split()) & set(value.split())
            break
    return " ".join([os.uname().machine, *sorted(found)])


def backtrace(reason: str, frames: Sequence[str]) -> str:
    """Return what to say about a trap."""
    lines = [f"pywasm: wasm trap: {reason}"]
    if frames:
        lines += ["wasm backtrace:", *frames[:_FRAMES]]
    if len(frames) > _FRAMES:
        lines.append(f"    ... and {len(frames) - _FRAMES} more")
    return "\n".join(lines)


def not_instantiated(error: BaseException) -> str:
    """Return what to say where there is no room, say, for a module's memory."""
    return f"pywasm: the module cannot be instantiated: {one_line(error)}"


def internal_error(error: BaseException) -> str:
    """Return what to say about a mistake of ours that a guest ran into."""
    name = type(error).__name__
    return f"pywasm: internal error in {raised_in(error)}: {name}: {one_line(error)}"


def raised_in(error: BaseException) -> str:
    """Return the name of the function that an exception comes from."""
    inner = error.__traceback__
    while inner is not None and inner.tb_next is not None:
        inner = inner.tb_next
    return inner.tb_frame.f_code.co_name if inner is not None else "?"


def trapped(message: str) -> NoReturn:
    """Say on descriptor 2 why the guest ends here, and end."""
    data = "".join(plain(line) + "\n" for line in message.split("\n")).encode()
    try:
        while data:
            data = data[os.write(2, data) :]
    except OSError:
        pass  # nobody is listening, which changes nothing
    os._exit(TRAPPED)
