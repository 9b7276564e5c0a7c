"""The files of a pod that CRI binds into each of its containers, where we hold the pod ourselves.

Runs in: shim.

CRI looks for `hostname`, `hosts`, `resolv.conf` and `shm` in directories of its own, and gives the
containers of the pod what it finds. With the "shim" sandboxer it leaves the making to the shim:
without these a container could resolve no name, and share no memory with another.
"""

import os
import shutil
from typing import Final

from proto.pod_pb2 import DNSConfig, NamespaceMode, PodSandboxConfig
from shim.linux import mounts
from shim.linux.files import read_small, write_small

_CRI: Final = "io.containerd.grpc.v1.cri"
_NOTE: Final = "pod-files"
"""In the bundle: the directories that were made."""
_SHM: Final = "shm"
_SHM_SIZE: Final = 64 << 20  # bytes


def write(id: str, bundle: str, config: PodSandboxConfig) -> None:
    """Make the files of pod `id`, whose sandbox has this bundle. Raises OSError."""
    # Both kinds of directory are <root>/<plugin>/<namespace>/<id>, the first one behind a link.
    root = _up(os.path.realpath(os.path.join(bundle, "work")))
    state = _up(os.path.realpath(bundle))
    lasting, volatile = (os.path.join(top, _CRI, "sandboxes", id) for top in (root, state))
    write_small(os.path.join(bundle, _NOTE), f"{lasting}\n{volatile}".encode())
    os.makedirs(lasting, mode=0o755, exist_ok=True)
    os.makedirs(volatile, mode=0o755, exist_ok=True)
    hostname = config.hostname or os.uname().nodename
    _write(lasting, "hostname", f"{hostname}\n".encode())
    _write(lasting, "hosts", _of_host("/etc/hosts"))
    given = config.HasField("dns_config")
    text = _resolver(config.dns_config) if given else _of_host("/etc/resolv.conf")
    _write(lasting, "resolv.conf", text)
    if config.linux.security_context.namespace_options.ipc != NamespaceMode.NODE:
        shm = os.path.join(volatile, _SHM)
        os.makedirs(shm, mode=0o700, exist_ok=True)
        flags = mounts.MS_NOEXEC | mounts.MS_NOSUID | mounts.MS_NODEV
        mounts.mount("shm", shm, "tmpfs", flags, f"mode=1777,size={_SHM_SIZE}")


def remove(bundle: str) -> None:
    """Remove what `write` has made for the sandbox of this bundle. Raises OSError."""
    try:
        lasting, volatile = read_small(os.path.join(bundle, _NOTE)).decode().split("\n")
    except FileNotFoundError:
        return
    try:
        mounts.umount(os.path.join(volatile, _SHM), mounts.MNT_DETACH)
    except OSError:
        pass  # not mounted, or not there
    for directory in (lasting, volatile):
        shutil.rmtree(directory, ignore_errors=True)
    os.unlink(os.path.join(bundle, _NOTE))


def _up(directory: str) -> str:
    for _ in range(3):
        directory = os.path.dirname(directory)
    return directory


def _write(directory: str, name: str, text: bytes) -> None:
    path = os.path.join(directory, name)
    write_small(path, text)
    os.chmod(path, 0o644)


def _of_host(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def _resolver(dns: DNSConfig) -> bytes:
    """Return a resolv.conf(5)."""
    lines = [f"search {' '.join(dns.searches)}"] if dns.searches else []
    lines += [f"nameserver {server}" for server in dns.servers]
    lines += [f"options {' '.join(dns.options)}"] if dns.options else []
    return "".join(line + "\n" for line in lines).encode()
