"""What `-info` prints, for the introspection of containerd 2. Runs in: shim (a short-lived one)."""

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError

from proto.runtime_info_pb2 import RuntimeInfo, RuntimeVersion
from shim import __version__


def runtime_info(options: bytes) -> bytes:
    """Encode RuntimeInfo, with the options that came on standard input given back."""
    info = RuntimeInfo(name="io.containerd.pywasm.v1", version=RuntimeVersion(version=__version__))
    if options:
        try:
            info.options.CopyFrom(Any.FromString(options))
        except DecodeError as error:
            raise OSError(f"-info: standard input is not an encoded Any: {error}") from error
    return info.SerializeToString()
