"""What is needed to clean up behind the containers of a pod, should its shim die. Runs in: shim.

Where containerd has connected a container to its pod's shim by itself (by the Sandbox API, and
since 2.3 otherwise, too), it executes `delete` once, for the sandbox, while it removes the bundles
of the containers. So the sandbox's bundle has hard links to what `delete` wants to know of each.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from oci.bundle import CONFIG
from shim.daemon.containers.container import PID_FILE
from shim.daemon.containers.native import MARK
from shim.linux.files import read_small

_DIRECTORY: Final = "containers"
_SANDBOX: Final = "sandbox"


def sandbox_of(bundle: str) -> str:
    """Return the id of the sandbox to whose shim containerd has connected a container, or ""."""
    try:
        return read_small(os.path.join(bundle, _SANDBOX)).decode()
    except FileNotFoundError:  # it has executed `start`, and will execute `delete`
        return ""


def remember(sandbox: str, id: str, bundle: str) -> None:
    """Note a container in the bundle of the pod's sandbox. Raises OSError."""
    record = os.path.join(sandbox, _DIRECTORY, id)
    os.makedirs(record, mode=0o700)
    for name in (CONFIG, PID_FILE, MARK):
        with suppress(FileNotFoundError):
            os.link(os.path.join(bundle, name), os.path.join(record, name))


def forget(sandbox: str, id: str) -> None:
    """Remove the note of a container that has been deleted in order."""
    shutil.rmtree(os.path.join(sandbox, _DIRECTORY, id), ignore_errors=True)


def containers(sandbox: str) -> Iterator[tuple[str, str]]:
    """Find the ids of the containers that are noted, and for each what is left of its bundle."""
    directory = os.path.join(sandbox, _DIRECTORY)
    with suppress(FileNotFoundError):
        for id in os.listdir(directory):
            yield id, os.path.join(directory, id)
