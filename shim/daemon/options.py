"""The options of a runtime, from the `options` table of containerd's configuration. Runs in: shim.

They come with `start` and with Create, as containerd.runc.v1.Options (clients that treat every shim
as runc's), or as runtimeoptions.v1.Options, in which containerd 1.7 and later send the table itself
and every version the path of a file to read instead.

A key that is not understood is refused, not ignored, as in the node's own settings.
"""

import os
import sys
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from google.protobuf import any_pb2
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError

from oci.linux import NO_ID
from oci.runtime import SpecError
from proto.runc_options_pb2 import Options as RuncOptions
from proto.runtime_options_pb2 import Options as RuntimeOptions
from shim.daemon.invocation import Invocation
from shim.engines import select
from shim.engines.base import ModuleError
from shim.guest.placement import names_scope, systemd_runs
from shim.linux.cgroups import Cgroup, trees

# Here and not where it is needed, so that it is the zygote that imports it.
if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LIMIT: Final = 1 << 20  # bytes


class Options(NamedTuple):
    """What may be in the table, under the names that runc's shim has for it, and `Engine`."""

    binary_name: str = ""
    """The OCI runtime of native containers; empty: runc."""
    root: str = ""
    """Where that runtime keeps its state."""
    systemd_cgroup: bool = False
    """Every `cgroupsPath` has to be `slice:prefix:name`."""
    no_pivot_root: bool = False
    no_new_keyring: bool = False
    shim_cgroup: str = ""
    """Path of a cgroup, which exists, for the shim itself."""
    io_uid: int = 0
    io_gid: int = 0
    engine: str = ""
    """The engine that is tried first; before that of the node's settings."""


NONE: Final = Options()

_TYPES: Final[Mapping[str, type[RuntimeOptions] | type[RuncOptions]]] = {
    kind.DESCRIPTOR.full_name: kind for kind in (RuntimeOptions, RuncOptions)
}
_KEYS: Final = {
    "binaryname": "binary_name",
    "root": "root",
    "systemdcgroup": "systemd_cgroup",
    "nopivotroot": "no_pivot_root",
    "nonewkeyring": "no_new_keyring",
    "shimcgroup": "shim_cgroup",
    "iouid": "io_uid",
    "iogid": "io_gid",
    "engine": "engine",
}
_MEANINGLESS: Final = frozenset(
    # Of runtimeoptions.v1.Options itself, and what runc's shim would not need of us either.
    (
        *("typeurl", "configpath", "configbody"),
        *("criupath", "criuimagepath", "criuworkpath", "taskapiaddress", "taskapiversion"),
    )
)
_EXPECTED: Final = {str: "a string", bool: "true or false", int: "a number of 32 bits"}


def of_start(invocation: Invocation) -> Options:
    """Return the options that `start` has on its standard input. Raises SpecError.

    Of the extensions of containerd 2.3 and later it takes the one that it knows.
    """
    try:
        if invocation.bootstrap is None:
            return read(any_pb2.Any.FromString(invocation.stdin))
    except DecodeError as error:
        raise SpecError(f"runtime options: not an encoded Any: {error}") from None
    for extension in invocation.bootstrap.extensions:
        if _name(extension.value) in _TYPES:
            return read(extension.value)
    return NONE


def read(message: any_pb2.Any) -> Options:
    """Return the options in a message, which may be empty. Raises SpecError naming the culprit."""
    name = _name(message)
    if not message.value and name in ("", Empty.DESCRIPTOR.full_name):  # so `ctr sandboxes run`
        return NONE
    if name not in _TYPES:
        raise SpecError(
            f"runtime options: unknown type {message.type_url!r}; expected {' or '.join(_TYPES)}"
        )
    try:
        decoded = _TYPES[name].FromString(message.value)
    except DecodeError as error:
        raise SpecError(f"runtime options: not an encoded {name}: {error}") from None
    found = _of_runc(decoded) if isinstance(decoded, RuncOptions) else _of_runtime(decoded)
    if NO_ID in (found.io_uid, found.io_gid):
        raise SpecError(f"runtime options: IoUid, IoGid: {NO_ID} is no id")
    return found


def check_cgroups_path(options: Options, path: str) -> None:
    """Raise SpecError where this `linux.cgroupsPath` is not for the cgroup driver of the options.

    The other way round is fine: where systemd runs, a `slice:prefix:name` can only mean systemd's.
    """
    if not (options.systemd_cgroup and path):
        return
    if not systemd_runs():
        raise SpecError("linux.cgroupsPath: SystemdCgroup is set, but systemd does not run here")
    if not names_scope(path):
        raise SpecError(
            f"linux.cgroupsPath: SystemdCgroup is set, so it has to be slice:prefix:name, "
            f"got {path!r}"
        )


def join_shim_cgroup(path: str) -> None:
    """Move this process into a cgroup, in all hierarchies that have it, one at least.

    Blocks as `Cgroup.attach`. Raises OSError.
    """
    path = "/" + path.lstrip("/")
    there = [tree for tree in trees.hierarchies() if os.path.isdir(tree.mount + path)]
    if not there:
        raise FileNotFoundError(f"runtime options: ShimCgroup: {path}: no such cgroup")
    Cgroup.for_path(path, there).attach()


def _name(message: any_pb2.Any) -> str:
    return message.type_url.rpartition("/")[2]


def _of_runc(message: RuncOptions) -> Options:
    fields = Options._fields
    return Options(
        **{field.name: value for field, value in message.ListFields() if field.name in fields}
    )


def _of_runtime(message: RuntimeOptions) -> Options:
    path = message.config_path
    if not path:
        return _of_text(message.config_body, "runtime options")
    if not os.path.isabs(path) or "\0" in path:
        raise SpecError(f"runtime options: ConfigPath: not an absolute path: {path!r}")
    try:
        with open(path, "rb") as file:
            return _of_text(file.read(_LIMIT), path)
    except OSError as error:
        raise SpecError(f"runtime options: ConfigPath: {path}: {error.strerror}") from None


def _of_text(text: bytes, where: str) -> Options:
    try:
        table = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{where}: {error}") from None
    return _of_table(table, where)


def _of_table(table: Mapping[str, Any], where: str) -> Options:
    found: dict[str, Any] = {}
    for key, value in table.items():
        folded = key.lower()  # containerd itself does not mind the case
        if folded in _MEANINGLESS:
            continue
        name = _KEYS.get(folded)
        if name is None:
            raise SpecError(f"{where}: {key}: unknown")
        wanted = type(Options._field_defaults[name])
        if type(value) is not wanted or (wanted is int and not 0 <= value < 1 << 32):
            raise SpecError(f"{where}: {key}: expected {_EXPECTED[wanted]}, got {value!r}")
        found[name] = value
    options = Options(**found)
    if options.engine:
        try:
            select(options.engine)
        except ModuleError as error:
            raise SpecError(f"{where}: Engine: {error}") from None
    return options
