"""Work that may block, in a process of its own: the shim's loop waits for nobody. Runs in: shim."""

import signal
from collections.abc import Callable

from oci.runtime import SpecError
from shim.guest import control
from shim.linux import clone, credentials
from shim.linux.reaping import ended


async def apart(work: Callable[[], None]) -> None:
    """Have a child of the shim, in its namespaces, do `work`. Raises its OSError or SpecError."""
    ours, theirs = control.pair()

    def entry() -> None:
        # It has the shim's descriptors: containerd would not see that the shim has ended.
        credentials.set_pdeathsig(signal.SIGKILL)
        try:
            work()
            control.send(theirs, control.Continue())
        except OSError as error:
            number = error.errno or 0
            failed = control.Failed(control.reason(error), invalid=False, number=number)
            control.send(theirs, failed)
        except SpecError as error:
            control.send(theirs, control.Failed(str(error), invalid=True))

    with ours:
        with theirs:
            child = clone.clone(entry)
        status = await ended(child)
        try:
            message, _ = control.receive(ours)
        except EOFError:
            raise OSError(f"a child of the shim ended with status {status}") from None
    if isinstance(message, control.Failed):
        if message.invalid:
            raise SpecError(message.reason)
        raise OSError(message.number, message.reason)
