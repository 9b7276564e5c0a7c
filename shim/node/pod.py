"""The pod that installs the runtime on its node, one of a DaemonSet (`pywasm pod`).

Its image holds an installation that brings its own interpreter and libraries (`scripts/bundle`).
The pod is privileged and shares the node's process table: the node's files are below /proc/1/root,
and what changes containerd runs in the node's mount namespace, from the copy that was put there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import ssl
from collections.abc import Callable, Sequence
from http.client import HTTPException, HTTPSConnection
from typing import Final

from shim.linux.clone import setns
from shim.node import processes
from shim.node.containerd import USUAL_PATH
from shim.node.containerd_config import ConfigurationError
from shim.node.registration import installation

LABEL: Final = "pywasm.dev/runtime"
"""What a node with the runtime is labelled with; deploy/install/runtimeclass.yaml selects it."""

ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"

_CLONE_NEWNS: Final = 0x00020000
_TIMEOUT: Final = 30.0  # seconds


def install(arguments: Sequence[str], say: Callable[[str], None], node: int = 1) -> None:
    """Copy this installation to the node, register it there, and label the node.

    The label says that pods can run here: it is not set before the containerd that runs knows the
    runtime. `arguments` are those of `pywasm install`; `node` is a process with the node's files.
    Raises ConfigurationError or OSError.
    """
    own = installation()
    copied = copy(own, f"/proc/{node}/root")
    say(f"{own}: {'copied to the node' if copied else 'is on the node already'}")
    run(node, [f"{own}/bin/pywasm", "install", "--verify", *arguments])
    for path in remove_unused(f"/proc/{node}/root", own):
        say(f"{path}: removed, nothing runs from it")
    label("true")
    say(f"the node is labelled {LABEL}=true")


def uninstall(arguments: Sequence[str], say: Callable[[str], None], node: int = 1) -> None:
    """Undo `install`; fails while containers run. Raises ConfigurationError or OSError."""
    own = installation()
    label(None)  # first of all: nothing more is scheduled here
    say(f"the node is not labelled {LABEL} any more")
    if os.path.exists(f"/proc/{node}/root{own}"):
        run(node, [f"{own}/bin/pywasm", "uninstall", "--purge", *arguments])
    for path in remove_unused(f"/proc/{node}/root", keep=""):
        say(f"{path}: removed")


def copy(source: str, root: str) -> bool:
    """Copy an installation to the same path below `root`, whole or not at all.

    The name of an installation says what is in it: one that is there already is not copied.
    """
    target = root + source
    if os.path.isdir(target):
        return False
    os.makedirs(os.path.dirname(target), exist_ok=True)
    new = f"{target}.{os.getpid()}"
    try:
        shutil.copytree(source, new, symlinks=True)
        os.rename(new, target)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    return True


def run(node: int, command: list[str]) -> None:
    """Run a command in the mount namespace of a process. Raises ConfigurationError if it fails."""
    namespace = os.open(f"/proc/{node}/ns/mnt", os.O_RDONLY)
    child = os.fork()
    if child == 0:
        try:
            setns(namespace, _CLONE_NEWNS)  # and "/" and the working directory are the node's
            os.execve(command[0], command, {"PATH": USUAL_PATH})
        except OSError as error:
            os.write(2, f"pywasm: {command[0]}: {error.strerror}\n".encode())
        finally:
            os._exit(127)
    os.close(namespace)
    _, status = os.waitpid(child, 0)
    if status:
        code = os.waitstatus_to_exitcode(status)
        raise ConfigurationError(f"{' '.join(command[:2])} on the node: failed with {code}")


def remove_unused(root: str, keep: str) -> list[str]:
    """Remove what earlier versions of us copied to the node and no process uses any more."""
    directory = os.path.dirname(installation())
    removed = []
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(root + directory)):
            path = f"{directory}/{name}"
            if path == keep or processes.of(path, processes.SHIM):
                continue
            processes.end_helpers(path)
            shutil.rmtree(root + path)
            removed.append(path)
    return removed


def label(value: str | None) -> None:
    """Set or remove `LABEL` of the node that the environment's NODE_NAME names.

    Without that variable nothing is done. Raises ConfigurationError.
    """
    node = os.environ.get("NODE_NAME")
    if not node:
        return
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{part}", "") for part in ("HOST", "PORT"))
    try:
        with open(f"{ACCOUNT}/token") as file:
            token = file.read().strip()
        context = ssl.create_default_context(cafile=f"{ACCOUNT}/ca.crt")
        server = HTTPSConnection(host, int(port), timeout=_TIMEOUT, context=context)
        server.request(
            "PATCH",
            f"/api/v1/nodes/{node}",
            json.dumps({"metadata": {"labels": {LABEL: value}}}),
            {
                "Authorization": f"Bearer {token}",
                "Content-Type": "application/strategic-merge-patch+json",
            },
        )
        answer = server.getresponse()
        server.close()
    except (OSError, ValueError, HTTPException) as error:
        raise ConfigurationError(f"labelling the node {node}: {error}") from None
    if answer.status != 200:
        raise ConfigurationError(f"labelling the node {node}: {answer.status} {answer.reason}")
