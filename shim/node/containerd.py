"""The containerd of this node: program, process, what it says of a configuration (`pywasm`)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import Any

from shim.node.containerd_config import ConfigurationError, runtimes_of_dump

CONFIG = "/etc/containerd/config.toml"
USUAL_PATH = (
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # systemd's for services
)

_CONFIG_FLAG = re.compile(r"\0--?c(?:onfig)?[=\0]([^\0]+)")
_TIMEOUT = 60.0  # seconds


def process(config: str = CONFIG) -> int:
    """The pid of the daemon that has this configuration, or 0."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/comm", "rb") as file:
                if file.read() != b"containerd\n":
                    continue
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                arguments = os.fsdecode(file.read())
        except OSError:
            continue
        given = _CONFIG_FLAG.search(arguments)
        if (given[1] if given else CONFIG) == config:
            return int(entry)
    return 0


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
