"""How a Python function becomes a host function (library).

    @host
    def fd_seek(program: Program, fd: Fd, offset: S64, whence: U32, result: Ptr) -> None: ...

The names of the parameter types are the signature: a parameter is an `i64` if its type is S64 or
U64 and an `i32` otherwise. Engines pass both as *signed* Python numbers, whatever the name says:
`Memory` masks addresses and lengths, functions mask the other unsigned numbers whose sign matters.
A function returns nothing for success, and raises for everything else.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from shim.wasi.errors import NotCapable
from shim.wasi.preview1 import errno
from shim.wasi.preview1.errno import FROM_LINUX, Refused
from shim.wasi.preview1.memory import Fault
from shim.wasi.preview1.program import Program

Fd: TypeAlias = int
Ptr: TypeAlias = int
Size: TypeAlias = int
U32: TypeAlias = int
U64: TypeAlias = int
S64: TypeAlias = int

Params: TypeAlias = tuple[str, ...]  # of "i32" and "i64"

HOSTS: Final[dict[str, Callable[..., None]]] = {}

Shortcut: TypeAlias = Callable[[Program, Callable[..., int]], Callable[..., int]]
_SHORTCUTS: Final[dict[Callable[..., None], Shortcut]] = {}

_NUMBERS: Final = (
    (NotCapable, errno.NOTCAPABLE),
    (Fault, errno.FAULT),
    (OverflowError, errno.INVAL),  # a number that no system call takes: beyond 2^63
    (MemoryError, errno.NOMEM),
)

_F = TypeVar("_F", bound=Callable[..., None])


class Bound(NamedTuple):
    """A host function ready for an engine: call it with signed numbers, get an error number."""

    call: Callable[..., int]
    params: Params
    results: Params


def host(function: _F) -> _F:
    """Register a function under its name, which is the name guests import it by."""
    HOSTS[function.__name__] = function
    return function


def shortcut(function: Callable[..., None], bind: Shortcut) -> None:
    """Give a host function a way around itself.

    `bind(program, whole)` returns what an engine calls instead; `whole` is what it would have
    called, and serves what the shortcut does not.
    """
    _SHORTCUTS[function] = bind


def params(function: Callable[..., None]) -> Params:
    """Return the wasm types of a host function's parameters."""
    names = list(function.__annotations__.items())[1:-1]  # without the program and the result
    return tuple("i64" if kind in ("S64", "U64") else "i32" for _, kind in names)


def number_of(error: Exception) -> int:
    """Return the number that a guest sees of what was raised.

    Any other exception is a mistake of ours, raised again for the engine, which reports it.
    """
    if isinstance(error, Refused):
        number: int = error.args[0]
        return number
    if isinstance(error, OSError):
        return FROM_LINUX.get(error.errno or 0, errno.IO)
    for kind, number in _NUMBERS:
        if isinstance(error, kind):
            return number
    raise error


def bind(function: Callable[..., None], program: Program) -> Callable[..., int]:
    """Give `function` its program, and turn what it raises into the number the guest sees."""
    call: Callable[..., Any] = MethodType(function, program)

    def guarded(*args: int) -> int:
        try:
            call(*args)
        except Exception as error:
            return number_of(error)
        return errno.SUCCESS

    return _SHORTCUTS[function](program, guarded) if function in _SHORTCUTS else guarded
