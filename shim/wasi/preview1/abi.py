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

from shim.wasi import errno
from shim.wasi.errno import FROM_LINUX, Refused
from shim.wasi.memory import Fault
from shim.wasi.program import Program

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


def bind(function: Callable[..., None], program: Program) -> Callable[..., int]:
    """Give `function` its program, and turn what it raises into the number the guest sees.

    Any other exception is a mistake of ours and goes on to the engine, which reports it.
    """
    call: Callable[..., Any] = MethodType(function, program)

    def guarded(*args: int) -> int:
        try:
            call(*args)
        except Refused as refusal:
            number: int = refusal.args[0]
            return number
        except Fault:
            return errno.FAULT
        except OSError as error:
            return FROM_LINUX.get(error.errno or 0, errno.IO)
        except OverflowError:  # a number that no system call takes: a size or time beyond 2^63
            return errno.INVAL
        except MemoryError:
            return errno.NOMEM
        return errno.SUCCESS

    return _SHORTCUTS[function](program, guarded) if function in _SHORTCUTS else guarded
