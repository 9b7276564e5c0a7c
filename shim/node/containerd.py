"""The containerd of this node: program, process, what it says of a configuration (`pywasm`)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from shim.node import processes
from shim.node.containerd_config import ConfigurationError, File, runtimes_of_dump

CONFIG = "/etc/containerd/config.toml"
USUAL_PATH = (
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # systemd's for services
)

_CONFIG_FLAG = re.compile(r"\0--?c(?:onfig)?[=\0]([^\0]+)")
_ADDRESS_FLAG = re.compile(r"\0--?a(?:ddress)?[=\0]([^\0]+)")
_ADDRESS = "/run/containerd/containerd.sock"
_GRPC = "io.containerd.server.v1.grpc"  # has what was the table `grpc`, since version 4
_TIMEOUT = 60.0  # seconds


def process(config: str = CONFIG) -> int:
    """The pid of the daemon that has this configuration, or one beside it that is made of it; or 0.

    So it is where `config` is the template of a distribution.
    """
    found = {_flag(pid, _CONFIG_FLAG) or CONFIG: pid for pid in processes.named("containerd")}
    beside = (pid for path, pid in found.items() if _directory(path) == _directory(config))
    return found.get(config) or next(beside, 0)


def address(pid: int, files: Sequence[File]) -> str:
    """The path of the socket on which a daemon that has read these files serves gRPC."""
    given = _flag(pid, _ADDRESS_FLAG)
    for file in reversed(files):
        plugins = file.document.get("plugins", {})
        for table in (file.document.get("grpc", {}), plugins.get(_GRPC, {})):
            given = given or table.get("address", "")
    return given or _ADDRESS


def _directory(path: str) -> str:
    return os.path.dirname(os.path.realpath(path))


def _flag(pid: int, pattern: re.Pattern[str]) -> str:
    """What a flag on a daemon's command line says; empty without one."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            found = pattern.search(os.fsdecode(file.read()))
    except OSError:
        return ""
    return found[1] if found else ""


def search_path(pid: int) -> str:
    """The PATH on which a daemon looks for runtimes."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            found = re.search(rb"(?:^|\0)PATH=([^\0]*)", file.read())
    except OSError:
        found = None
    return os.fsdecode(found[1]) if found else USUAL_PATH


def find(program: str, config: str) -> str:
    """The program, which can be asked; empty if none is named and none at hand."""
    # That of the daemon's PATH: k3s has one of its own, and may not be the only one here.
    path = os.pathsep.join([search_path(process(config)), os.environ.get("PATH", "")])
    found = shutil.which(program or "containerd", path=path)
    if program and not found:
        raise ConfigurationError(f"{program}: no such program")
    return found or ""


def runtimes(binary: str, config: str) -> dict[str, Any]:
    """The runtimes that containerd itself sees in a configuration.

    Raises ConfigurationError with what it says if it refuses the configuration.
    """
    command = ["--config", config, "config", "dump"]
    if not os.path.exists(config):
        command = ["config", "default"]
    try:
        done = subprocess.run(
            [binary, *command],
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
            text=True,
            cwd="/",  # the daemon's; 1.6 looks there for what is imported by a relative pattern
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError(f"{binary}: {error}") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ConfigurationError(f"{config}: containerd refuses it: {reason}")
    return runtimes_of_dump(done.stdout)


def newest_version(binary: str) -> int:
    """The newest version of a configuration that both this containerd and we know."""
    done = subprocess.run(
        [binary, "config", "default"], capture_output=True, timeout=_TIMEOUT, check=False, text=True
    )
    found = re.search(r"^version = (\d+)$", done.stdout, re.MULTILINE)
    return min(int(found[1]), 3) if found else 2


def restart(unit: str) -> None:
    """Restart a unit of systemd and wait until it serves. Raises ConfigurationError."""
    try:
        done = subprocess.run(
            ["systemctl", "restart", unit], capture_output=True, check=False, text=True
        )
    except OSError as error:
        raise ConfigurationError(f"systemctl: {error.strerror}") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[0]
        raise ConfigurationError(f"systemctl restart {unit}: {reason}")
