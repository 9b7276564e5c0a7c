"""The last step into a PID namespace that others are in. Runs in: guest.

What is in a PID namespace is in sight of everybody there, and for who has CAP_SYS_PTRACE in reach:
root directory, descriptors, memory. So a guest prepares itself in the shim's namespace, and is born
into the container's when it has the container's root and privileges, and nothing of the host's.
"""

import os
import socket

from shim.guest import control
from shim.linux import clone


def arrive(channel: socket.socket) -> None:
    """Go on as a sibling of this process, in the PID namespace that was entered for children.

    With a session of its own. Raises OSError; EOFError if the shim is gone.
    """
    never, held = os.pipe()
    try:
        sibling = clone.sibling()
    except OSError as error:
        raise OSError(error.errno, error.strerror, "the container's PID namespace") from None
    if sibling is not None:
        control.send(channel, control.Arrived(), [sibling.pidfd])
        # The shim ends it, when it has heard of the other: this end must not pass for the guest's.
        os.read(never, 1)
        os._exit(0)
    for fd in (never, held):
        os.close(fd)
    os.setsid()
    if not isinstance(control.receive(channel)[0], control.Continue):
        raise EOFError
