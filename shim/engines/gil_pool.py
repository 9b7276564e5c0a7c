"""A leak in wasmer-python, and its cure (library; runs in the guest).

wasmer-python 1.1.0 is built on PyO3 0.14. There, a call from Python into the extension opens a pool
that owns the temporary Python objects of the call, and a call from the extension back into Python
opens one of its own only if none is open on the thread. `_start` keeps one open for as long as the
guest lives, so the argument tuple of every host function call, some 150 bytes, piles up in it: a
guest that calls the host a thousand times a second would grow by half a gigabyte an hour.

PyO3 knows whether a pool is open from a counter in thread-local storage. If the counter says zero
while the guest runs, each host call opens and drains its own pool, which is what PyO3 itself does
under `Python::allow_threads`. So the counter is set to -1 just before the call into the extension,
which increments it.

The counter has no name, so it is found by what it does: of all the words in the extension's
thread-local storage it is the one that counts 0, 1, 2, 4, 2, 0 when calls nest that deep. If no
word or more than one does, nothing is touched, and the leak stays.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Final

_PT_TLS: Final = 7
_NONE: Final = 2 ** (8 * ctypes.sizeof(ctypes.c_size_t)) - 1  # -1


class _ProgramHeader(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("offset", ctypes.c_uint64),
        ("vaddr", ctypes.c_uint64),
        ("paddr", ctypes.c_uint64),
        ("filesz", ctypes.c_uint64),
        ("memsz", ctypes.c_uint64),
        ("align", ctypes.c_uint64),
    )


class _ObjectInfo(ctypes.Structure):  # struct dl_phdr_info, dl_iterate_phdr(3)
    _fields_ = (
        ("addr", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
        ("headers", ctypes.POINTER(_ProgramHeader)),
        ("count", ctypes.c_uint16),
        ("adds", ctypes.c_ulonglong),
        ("subs", ctypes.c_ulonglong),
        ("tls_module", ctypes.c_size_t),
        ("tls_data", ctypes.c_void_p),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(_ObjectInfo), ctypes.c_size_t, ctypes.c_void_p
)


def _thread_locals(library: str) -> ctypes.Array[ctypes.c_size_t] | None:
    """Return this thread's thread-local storage of a loaded library, as words."""
    found: list[ctypes.Array[ctypes.c_size_t]] = []

    def visit(pointer: Any, _size: int, _data: Any) -> int:
        info = pointer.contents
        if info.name == library.encode() and info.tls_data:
            for header in info.headers[: info.count]:
                if header.type == _PT_TLS:
                    words = ctypes.c_size_t * (header.memsz // ctypes.sizeof(ctypes.c_size_t))
                    found.append(words.from_address(info.tls_data))
        return 0

    ctypes.CDLL(None).dl_iterate_phdr(_Callback(visit), None)
    return found[0] if found else None


class GilPool:
    """The counter of open pools of one extension module, on this thread and in forks of it."""

    def __init__(self, library: str, nest: Callable[[Callable[[], None]], None]) -> None:
        """Find the counter of the extension in the file `library`.

        `nest(look)` must call `look` from within extension calls nested 1, 2, 4 and 2 deep.
        """
        self._words = _thread_locals(library)
        self._index: int | None = None
        if self._words is None:
            return
        words = self._words
        seen = [list(words)]
        nest(lambda: seen.append(list(words)))
        seen.append(list(words))
        counters = [
            i for i, counts in enumerate(zip(*seen, strict=True)) if counts == (0, 1, 2, 4, 2, 0)
        ]
        if len(counters) == 1:
            self._index = counters[0]

    @property
    def found(self) -> bool:
        """Whether the counter is known."""
        return self._index is not None

    def drained(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the extension, and let each host call within release what it used.

        That may be from within one.
        """
        if self._words is None or self._index is None:
            return function(*arguments)
        before = self._words[self._index]
        self._words[self._index] = _NONE
        try:
            return function(*arguments)
        finally:
            self._words[self._index] = before
