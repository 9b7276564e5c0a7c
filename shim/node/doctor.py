"""What a node needs to run wasm containers, and whether it has it (`pywasm doctor`)."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from shim.node import containerd, crio, running
from shim.node.containerd_config import (
    RUNTIME_TYPE,
    ConfigurationError,
    NoKubernetes,
    load,
    runtimes,
)
from shim.node.registration import SHIM, Node, installed_shim

KUBELETS = ("/var/lib/kubelet", "/var/snap/microk8s/common/var/lib/kubelet")
"""Directories of kubelets: a node that has none of them is no node of Kubernetes, or not yet."""


class Finding(NamedTuple):
    """One line of the report."""

    good: bool | None
    """None: containers run, but something is missing."""
    text: str

    def __str__(self) -> str:
        word = {True: "ok", False: "FAIL", None: "warn"}[self.good]
        return f"{word:4}  {self.text}"


def examine(node: Node, handler: str) -> Iterator[Finding]:
    """Look at this node, one finding at a time."""
    path = containerd.search_path(containerd.process(node.config))
    yield from _kernel()
    yield from _engines()
    yield _settings()
    yield from _directories()
    yield _seccomp()
    yield _runc(path)
    yield _program(path)
    yield _zygote()
    if os.path.exists(crio.DROP_IN) and not os.path.exists(node.config):
        yield Finding(True, f"registered in {crio.DROP_IN}")
    else:
        yield from _registered(node, handler)


def _kernel() -> Iterator[Finding]:
    from shim.linux.cgroups.trees import hierarchies
    from shim.linux.libc import NUMBERS, system_call

    release = os.uname().release
    call = system_call(ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p, ctypes.c_long)
    required = {"clone3": "Linux 5.3", "openat2": "Linux 5.6"}
    for name, since in (required | {"mount_setattr": "Linux 5.12"}).items():
        # Nothing is asked for, in a structure of no size: an error, but never that one.
        missing = call(NUMBERS[name], None, 0, None, 0) < 0 and ctypes.get_errno() == errno.ENOSYS
        if missing:
            good = False if name in required else None
            yield Finding(good, f"kernel {release}: no {name} (since {since})")
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        yield Finding(False, f"kernel {release}: pidfd_open: {error.strerror} (since Linux 5.3)")
    found = hierarchies()
    v2, v1 = (sum(tree.is_v2 is kind for tree in found) for kind in (True, False))
    kind = "hybrid" if v1 and v2 else "v2" if v2 else "v1"
    yield Finding(bool(found), f"kernel {release}, cgroup {kind if found else 'missing'}")


def _engines() -> Iterator[Finding]:
    from shim.engines import engines

    found = engines()
    for engine in found:
        yield Finding(True, f"engine {engine.name} {engine.version}")
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if not found:
        yield Finding(False, f"no engine can be imported by CPython {version}")
    elif found[0].name != "wasmer":
        yield Finding(
            None, f"no wasmer: no libwasmer.so in {sys.prefix}/lib, no wheels for {version}"
        )


def _settings() -> Finding:
    from shim.daemon.config import ConfigError, read

    path = os.environ.get("PYWASM_CONFIG") or "/etc/pywasm/config.toml"
    try:
        read(path)
    except ConfigError as error:
        return Finding(False, str(error))
    return Finding(True, f"settings {path}" if os.path.exists(path) else f"no settings ({path})")


def _directories() -> Iterator[Finding]:
    """Where the shim would refuse to work; it makes them as the first container would."""
    from shim.daemon.address import directory
    from shim.daemon.invocation import STATE_DIRECTORY
    from shim.engines.cache import open_directory
    from shim.launcher.main import RUN_DIRECTORY
    from shim.linux.directories import private_directory

    artifacts = os.path.join(os.environ.get("PYWASM_STATE") or STATE_DIRECTORY, "artifacts")
    run = os.environ.get("PYWASM_RUN") or os.fsdecode(RUN_DIRECTORY)
    try:
        os.close(open_directory(artifacts))
        for path in (run, directory(run)):
            private_directory(path)
            if os.stat(path).st_mode & 0o077:  # there the launcher would not look for a zygote
                raise PermissionError(errno.EACCES, "others may enter it", path)
    except OSError as error:
        yield Finding(False, f"{error.filename or ''}: {error.strerror or error}".lstrip(": "))
    else:
        yield Finding(True, f"compiled modules in {artifacts}")


def _seccomp() -> Finding:
    try:
        ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return Finding(False, "no libseccomp.so.2: containers with a seccomp profile fail")
    return Finding(True, "libseccomp.so.2")


def _runc(path: str) -> Finding:
    found = shutil.which("runc", path=path)
    if found:
        return Finding(True, f"native containers by {found}")
    return Finding(None, f"no runc on containerd's PATH ({path}): no native containers in pods")


def _program(path: str) -> Finding:
    found = shutil.which(SHIM, path=path)
    if not found:
        return Finding(False, f"no {SHIM} on containerd's PATH ({path})")
    if os.path.realpath(found) != os.path.realpath(installed_shim()):
        return Finding(None, f"{found} is of another installation: {os.path.realpath(found)}")
    return Finding(True, f"runtime {RUNTIME_TYPE}: {found}")


def _zygote() -> Finding:
    # `-info` goes all the way: the launcher asks the zygote, which forks a shim that answers.
    try:
        done = subprocess.run(
            [installed_shim(), "-info"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(False, f"the shim does not answer: {error}")
    if done.returncode or RUNTIME_TYPE.encode() not in done.stdout:
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["nothing said"])[-1]
        return Finding(False, f"the shim does not answer: {reason}")
    return Finding(True, "the zygote answers")


def _registered(node: Node, handler: str) -> Iterator[Finding]:
    """As containerd sees it where it can be asked, else as the files say; and if it has seen it."""
    try:
        files = load(node.config)
        binary = containerd.find(node.containerd, node.config)
        if binary:
            found = containerd.runtimes(binary, node.config)
        else:
            found = {name: table for file in files for name, table in runtimes(file).items()}
    except NoKubernetes as error:
        yield Finding(None, f"for ctr, nerdctl and Docker alone: {error}")
        return
    except ConfigurationError as error:
        yield Finding(False, str(error))
        return
    if handler not in found:
        good = False if any(map(os.path.isdir, KUBELETS)) else None
        reason = "no pods of Kubernetes: run `pywasm install`"
        yield Finding(good, f'{node.config}: no runtime "{handler}", so {reason}')
        return
    kind = found[handler].get("runtime_type")
    if kind != RUNTIME_TYPE:
        yield Finding(False, f'{node.config}: runtime "{handler}" has the type {kind}')
        return
    yield Finding(True, f'{node.config}: runtime "{handler}" is registered')
    answer = running.ask(node.config, files, handler)
    yield Finding(answer.knows, answer.text)


def report(node: Node, handler: str, say: Callable[[str], None]) -> bool:
    """Say what was found; return whether containers can run."""
    findings = []
    for finding in examine(node, handler):
        say(str(finding))
        findings.append(finding)
    return all(finding.good is not False for finding in findings)
