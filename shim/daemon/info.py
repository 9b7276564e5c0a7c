"""What `-info` prints, for the introspection of containerd 2. Runs in: shim (a short-lived one).

The kubelet learns from it what a runtime class can do: containerd tells it of user namespaces and
recursive read-only mounts where the features below say so, and begins no container without them.
"""

import functools
import json
import subprocess
from typing import Any, Final

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError

from oci.runtime import SpecError
from proto.runtime_info_pb2 import RuntimeInfo, RuntimeVersion
from shim import __version__
from shim.daemon import options
from shim.daemon.oci_runtime import OciRuntime
from shim.linux.mounts import OPTIONS

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
    info.features.value = json.dumps(_features(_native_runtime(chosen))).encode()
    return info.SerializeToString()


def _native_runtime(encoded: AnyMessage) -> str:
    try:
        chosen = options.read(encoded)
    except SpecError:
        chosen = options.NONE  # `start` says what is wrong, to somebody who wants to know
    return OciRuntime.chosen(chosen, "", systemd_cgroup=False).binary


def _features(native_runtime: str) -> dict[str, Any]:
    """Return what config.json may ask for (the runtime-spec's features.md)."""
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.1.0",
        "hooks": [
            *("prestart", "createRuntime", "createContainer"),
            *("startContainer", "poststart", "poststop"),
        ],
        "mountOptions": sorted(OPTIONS),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "cgroup": {"v1": True, "v2": True, "systemd": True},
            "seccomp": {"enabled": True},
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "mountExtensions": {"idmap": {"enabled": _maps_ids(native_runtime)}},
        },
    }


@functools.cache
def _maps_ids(native_runtime: str) -> bool:
    """Whether any container can have id-mapped mounts.

    A wasm one can. runc before 1.2 ignores that a native one asks for them, which would give files
    to the wrong user.
    """
    try:
        done = subprocess.run(
            [native_runtime, "features"], capture_output=True, timeout=_TIMEOUT, check=True
        )
        found = json.loads(done.stdout)
        return bool(found["linux"]["mountExtensions"]["idmap"]["enabled"])
    except FileNotFoundError:
        return True  # then there are none but wasm ones
    except (OSError, subprocess.SubprocessError, ValueError, LookupError, TypeError):
        return False
