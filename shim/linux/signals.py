"""Signals for processes that spend their lives in native code (library).

A process that is PID 1 of its namespace gets no signal it has no handler for: the default action
does not apply to it, only SIGKILL from outside does. A Python handler is no remedy, because the
interpreter runs it between two bytecodes, and a guest in its own compiled code never gets there. So
the handler has to be native, and it has to know which signal it was called for to end with the
status a shell would report. libc's `_exit` takes its argument as the status (15, for SIGTERM),
which nobody could tell from the guest's own exit; so we bring our own handler, three instructions
long.
"""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Iterable
from typing import Final

from shim.linux import machine_code
from shim.linux.libc import LIBC, fail

# exit_group(128 + signo), as machine code. Position independent, touches no stack: it also works
# when the guest has used up its own.
_CODE: Final = {
    "x86_64": bytes.fromhex(
        "f30f1efa"  # endbr64, where indirect branches are tracked
        "8dbf80000000"  # lea edi, [rdi + 128]
        "b8e7000000"  # mov eax, 231
        "0f05"  # syscall
    ),
    "aarch64": bytes.fromhex(
        "5f2403d5"  # bti c
        "00000211"  # add w0, w0, #128
        "c80b80d2"  # mov x8, #94
        "010000d4"  # svc #0
    ),
}

FAULTS: Final = frozenset(
    {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP}
)
"""What a processor raises for the instruction it is at; engines turn these into Wasm traps."""

_NO_HANDLER: Final = (None, 1)  # SIG_DFL, as ctypes returns a null pointer, and SIG_IGN
_SA_ONSTACK: Final = 0x08000000
_MASK_BYTES: Final = 128


class _Sigaction(ctypes.Structure):
    """struct sigaction of glibc and musl; both provide the kernel's SA_RESTORER themselves."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_char * _MASK_BYTES),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_sigaction = LIBC.sigaction
_sigaction.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_sigprocmask = LIBC.sigprocmask
_sigprocmask.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)

_handler: int | None = None


def exit_on(signals: Iterable[int]) -> None:
    """End this process with status 128 + signo when one of `signals` arrives, in any code.

    At once and by itself: no Python code runs, no buffer is flushed. Python's own table of handlers
    does not know. Raises OSError (EINVAL for a signal that cannot be caught; EACCES where memory
    may not become executable).
    """
    global _handler
    if _handler is None:
        _handler = machine_code.place(_CODE, "signal handler")
    # On the alternative stack, if the engine made one: the guest's own may be full.
    action = _Sigaction(handler=_handler, flags=_SA_ONSTACK)
    for signo in signals:
        if _sigaction(signo, ctypes.addressof(action), None) < 0:
            fail("sigaction", f"signal {int(signo)}")


Handlers = list[tuple[int, _Sigaction]]


def handlers(signals: Iterable[int]) -> Handlers:
    """The native handlers installed for those of `signals` that have one."""
    found = []
    for signo in signals:
        action = _Sigaction()
        if _sigaction(signo, None, ctypes.addressof(action)) < 0:
            fail("sigaction", f"signal {int(signo)}")
        if action.handler not in _NO_HANDLER:
            found.append((signo, action))
    return found


def restore(saved: Handlers) -> None:
    """Install handlers as `handlers` returned them."""
    for signo, action in saved:
        if _sigaction(signo, ctypes.addressof(action), None) < 0:
            fail("sigaction", f"signal {int(signo)}")


def reset_signals(*, keep: Iterable[int] = FAULTS) -> None:
    """Give every signal but `keep` its default action, unblock all, drop the wakeup descriptor.

    For a child of `os.fork`, and before an exec: ignored signals, such as Python's SIGPIPE, would
    stay ignored. The faults stay as they are: engines install their trap handlers once, when they
    are loaded, and would not do so again.
    """
    signal.set_wakeup_fd(-1)
    default = _Sigaction()
    address = ctypes.addressof(default)
    kept = {*keep, signal.SIGKILL, signal.SIGSTOP}
    for signo in range(1, signal.NSIG):
        if signo not in kept:
            # Fails for the two that libc uses for itself, which is as well.
            _sigaction(signo, address, None)
    _sigprocmask(signal.SIG_SETMASK, bytes(_MASK_BYTES), None)
