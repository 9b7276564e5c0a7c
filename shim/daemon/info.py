"""What `-info` and `features` print: what this runtime can do. Runs in: shim (a short-lived one).

The kubelet learns from it what a runtime class can do. containerd 2 asks for `-info`, CRI-O for
`features`, as it asks runc; they tell the kubelet of user namespaces and recursive read-only mounts
where the features below say so, and begin no container without them.
"""

import functools
import json
import subprocess
from typing import Any, Final, get_args

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError

from oci.linux import NamespaceType
from oci.runtime import SpecError
from proto.runtime_info_pb2 import RuntimeInfo, RuntimeVersion
from shim import __version__
from shim.daemon import options
from shim.daemon.containers.oci_runtime import OciRuntime
from shim.guest.annotations import PREFIX
from shim.linux import seccomp
from shim.linux.credentials import CAPABILITIES
from shim.linux.mounts import OPTIONS
from shim.linux.scheduling import MEMORY_FLAGS, MEMORY_MODES

_FEATURES: Final = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
_TIMEOUT: Final = 10.0


def runtime_info(encoded: bytes) -> bytes:
    """Encode RuntimeInfo, with the options that came on standard input given back.

    Raises OSError.
    """
    info = RuntimeInfo(name="io.containerd.pywasm.v1", version=RuntimeVersion(version=__version__))
    chosen = AnyMessage()
    if encoded:
        try:
            chosen = AnyMessage.FromString(encoded)
        except DecodeError as error:
            raise OSError(f"-info: standard input is not an encoded Any: {error}") from error
        info.options.CopyFrom(chosen)
    info.features.type_url = _FEATURES
    info.features.value = features(chosen)
    return info.SerializeToString()


def features(encoded: AnyMessage | None = None) -> bytes:
    """Return what config.json may ask for, in JSON (the runtime-spec's features.md).

    That is, what a module can have. The OCI runtime that `encoded` options choose counts where it
    would silently do less for a native container.
    """
    native = _native_features(_native_runtime(encoded or AnyMessage()))
    found = {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.3.0",
        "hooks": [
            *("prestart", "createRuntime", "createContainer"),
            *("startContainer", "poststart", "poststop"),
        ],
        "mountOptions": sorted(OPTIONS),
        "linux": {
            "namespaces": sorted(get_args(NamespaceType)),
            "capabilities": CAPABILITIES,
            "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": False, "rdma": True},
            "seccomp": _seccomp(),
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "intelRdt": {"enabled": False},
            "memoryPolicy": {"modes": list(MEMORY_MODES), "flags": list(MEMORY_FLAGS)},
            "mountExtensions": {"idmap": {"enabled": _maps_ids(native)}},
            "netDevices": {"enabled": False},
        },
        "annotations": {f"{PREFIX}version": __version__},
        "potentiallyUnsafeConfigAnnotations": [PREFIX, *_unsafe_annotations(native)],
    }
    return json.dumps(found).encode()


def _seccomp() -> dict[str, Any]:
    if not seccomp.library_version():
        return {"enabled": False}
    return {
        "enabled": True,
        "actions": sorted(seccomp.ACTIONS),
        "operators": sorted(seccomp.OPERATORS),
        "archs": seccomp.architectures(),
        "knownFlags": sorted(seccomp.FLAGS),
        "supportedFlags": sorted(seccomp.FLAGS),
    }


def _native_runtime(encoded: AnyMessage) -> str:
    try:
        chosen = options.read(encoded)
    except SpecError:
        chosen = options.NONE  # `start` says what is wrong, to somebody who wants to know
    return OciRuntime.chosen(chosen, "", systemd_cgroup=False).binary


@functools.cache
def _native_features(runtime: str) -> Any:
    """What an OCI runtime prints, whatever that is; None where there is no such program."""
    try:
        done = subprocess.run(
            [runtime, "features"], capture_output=True, timeout=_TIMEOUT, check=True
        )
        return json.loads(done.stdout)
    except FileNotFoundError:
        return None
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}


def _maps_ids(native: Any) -> bool:
    """Whether any container can have id-mapped mounts.

    A wasm one can. runc before 1.2 ignores that a native one asks for them, which would give files
    to the wrong user.
    """
    if native is None:
        return True  # then there are none but wasm ones
    try:
        return bool(native["linux"]["mountExtensions"]["idmap"]["enabled"])
    except (LookupError, TypeError):
        return False


def _unsafe_annotations(native: Any) -> list[str]:
    """Those that change what an OCI runtime does: with CRI-O anybody's, as ours are."""
    try:
        return [str(name) for name in native["potentiallyUnsafeConfigAnnotations"]]
    except (LookupError, TypeError):
        return []
