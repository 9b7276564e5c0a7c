"""What a container asks of this runtime beyond the spec: its `dev.pywasm.*` annotations.

Runs in: shim and guest. `docs/annotations.md` is the table for users.

An annotation that is not understood is refused, not ignored: some of them take rights away.
"""

import re
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from oci.runtime import SpecError

PREFIX: Final = "dev.pywasm."
_CONTAINER_NAMES: Final = ("io.kubernetes.cri.container-name", "io.kubernetes.container.name")
"""Annotations that say which of a pod's containers this is: containerd's and CRI-O's."""
MAX_PAGES: Final = 65536  # of 64 KiB each: what 32 bits can address

KERNEL_FILESYSTEMS: Final = frozenset(
    ("proc", "sysfs", "cgroup", "cgroup2", "mqueue", "devpts", "debugfs", "securityfs", "tracefs")
)
"""Types of mounts that a wasm guest is given only if it asks for them.

Nothing in WASI needs them, and they are what escapes are made of.
"""

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER: Final = re.compile(r"[0-9]{1,9}")
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_DURATION_MOST: Final = 64  # characters
_LISTEN: Final = re.compile(r"tcp://(\[[0-9a-fA-F:.]+\]|[0-9.]+):([0-9]{1,5})(\?nonblock)?")
_LISTEN_FORM: Final = "tcp://ADDRESS:PORT or tcp://ADDRESS:PORT?nonblock with a numeric address"


class Listen(NamedTuple):
    """An address to listen on; `family` is an AF_ of `socket`, `host` is numeric."""

    family: int
    host: str
    port: int
    blocking: bool = True
    """Whether `sock_accept` waits. Some runtimes (Go's) poll, and hang in a call that waits."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if self.family == socket.AF_INET6 else self.host
        return f"tcp://{host}:{self.port}"


class ExtraPreopen(NamedTuple):
    """A directory of the container, by the name under which the guest is to find it."""

    name: str
    path: str
    readonly: bool


class Annotations(NamedTuple):
    """The annotations of one container; `read` makes them."""

    engine: str = ""
    """Its name, or empty: any engine that takes the module."""
    handler: str = ""
    """`wasm` or `native`, or empty: as the program's file says."""
    listen: tuple[Listen, ...] = ()
    memory_pages: int | None = None
    """The most that the module's memory may grow to, in pages of 64 KiB."""
    time_limit: float | None = None
    """Seconds from Start after which the guest is killed."""
    network: bool = True
    rootfs: bool = True
    """Whether the root directory is one of the preopens."""
    preopens: tuple[ExtraPreopen, ...] = ()
    kernel_filesystems: frozenset[str] = frozenset()
    """Which of `KERNEL_FILESYSTEMS` are mounted where the spec says so."""


_CRIO_TYPE: Final = "io.kubernetes.cri-o.ContainerType"
_SANDBOX_MARKS: Final = ("io.kubernetes.cri.container-type", _CRIO_TYPE)


class _MalformedError(Exception):
    """What was expected instead."""


def is_sandbox(annotations: Mapping[str, str]) -> bool:
    """Tell whether a container is one that only holds its pod's namespaces."""
    return any(annotations.get(mark) == "sandbox" for mark in _SANDBOX_MARKS)


def is_crio(annotations: Mapping[str, str]) -> bool:
    """Tell whether a container is CRI-O's.

    That hands over all annotations of a pod, so those of containerd's are anybody's there.
    """
    return _CRIO_TYPE in annotations


def read(annotations: Mapping[str, str]) -> Annotations:
    """Return what the `dev.pywasm.*` annotations of a spec ask for.

    Those of a pod are its containers': one that ends in `/NAME` is for the container of that name
    alone, and goes before one that does not. The pod's sandbox asks for nothing. Raises SpecError
    naming the one that is unknown or malformed.
    """
    result = Annotations(**_asked(annotations))
    if result.listen and not result.network:
        raise SpecError(f"annotations: {PREFIX}listen: there is no network to listen on")
    return result


class Forbidden:
    """What a node's settings forbid its containers to ask for.

    `NAME`, the annotation without its prefix, whatever its value; or `NAME=VALUE`, that value, or
    one of those of a list.
    """

    def __init__(self, text: str) -> None:
        """Raises ValueError, in one line, for what nobody could ask for."""
        self._text = text
        self._name, equals, value = (part.strip() for part in text.partition("="))
        if self._name not in _PARSERS:
            raise ValueError(f"no annotation {self._name!r}; there are {', '.join(_PARSERS)}")
        self._field, parse = _PARSERS[self._name]
        self._value: Any = None
        if not equals:
            return
        if self._name not in _WITH_FEW_VALUES:
            raise ValueError(f"{self._name} can only be forbidden as a whole")
        try:
            self._value = parse(value)
        except _MalformedError as expected:
            raise ValueError(f"{self._name}: expected {expected}, got {value!r}") from None
        if self._value == Annotations._field_defaults[self._field]:
            raise ValueError(f"{text}: containers without the annotation have it so")

    def check(self, annotations: Mapping[str, str]) -> None:
        """Raise SpecError if a container with these annotations asks for it."""
        asked = _asked(annotations)
        if self._field not in asked:
            return
        value, those = asked[self._field], self._value
        if value & those if isinstance(those, frozenset) else those in (None, value):
            what = f'the settings of this node forbid it (forbid = ["{self._text}"])'
            raise SpecError(f"annotations: {PREFIX}{self._name}: {what}")


def _asked(annotations: Mapping[str, str]) -> dict[str, Any]:
    """The fields of `Annotations` that these give a value to, as `read` takes them."""
    if is_sandbox(annotations):
        return {}
    found: dict[str, Any] = {}
    this = next(filter(None, map(annotations.get, _CONTAINER_NAMES)), "")
    for key, value in sorted(annotations.items(), key=lambda item: "/" in item[0]):
        if not key.startswith(PREFIX):
            continue
        name, slash, container = key.removeprefix(PREFIX).partition("/")
        parser = _PARSERS.get(name)
        if parser is None or (slash and not container):
            known = ", ".join(sorted(_PARSERS))
            raise SpecError(f"annotations: {key}: unknown; after {PREFIX} there may be {known}")
        if slash and container != this:
            continue
        field, parse = parser
        try:
            found[field] = parse(value.strip())
        except _MalformedError as expected:
            raise SpecError(f"annotations: {key}: expected {expected}, got {value!r}") from None
    return found


def _engine(value: str) -> str:
    if value not in ("auto", "wasmer", "wasmtime"):
        raise _MalformedError("wasmer, wasmtime or auto")
    return "" if value == "auto" else value


def _handler(value: str) -> str:
    if value not in ("auto", "native", "wasm"):
        raise _MalformedError("wasm, native or auto")
    return "" if value == "auto" else value


def _listen(value: str) -> tuple[Listen, ...]:
    return tuple(_listen_address(item) for item in _items(value, _LISTEN_FORM))


def _listen_address(item: str) -> Listen:
    match = _LISTEN.fullmatch(item)
    if match is None or not 0 < int(match[2]) < 1 << 16:
        raise _MalformedError(_LISTEN_FORM)
    host = match[1].strip("[]")
    family = socket.AF_INET6 if match[1].startswith("[") else socket.AF_INET
    try:
        socket.inet_pton(family, host)
    except OSError:
        raise _MalformedError(_LISTEN_FORM) from None
    return Listen(family, host, int(match[2]), blocking=match[3] is None)


def _memory_pages(value: str) -> int:
    if not _NUMBER.fullmatch(value) or not 0 < int(value) <= MAX_PAGES:
        raise _MalformedError(f"a number of 64 KiB pages from 1 to {MAX_PAGES}")
    return int(value)


def _time_limit(value: str) -> float:
    # Not longer than anybody needs: on digits without a unit the search takes quadratic time.
    parts = _DURATION.findall(value[:_DURATION_MOST])
    if not parts or "".join(number + unit for number, unit in parts) != value:
        raise _MalformedError("a duration such as 90s, 1m30s or 500ms")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not 0 < seconds < 1e9:
        raise _MalformedError("a duration longer than nothing, such as 90s")
    return seconds


def _on(value: str) -> bool:
    if value not in ("on", "off"):
        raise _MalformedError("on or off")
    return value == "on"


def _preopens(value: str) -> tuple[ExtraPreopen, ...]:
    found = []
    for item in _items(value, "NAME=PATH"):
        name, equals, path = item.partition("=")
        path, colon, mode = path.partition(":")
        if not (name and equals and path.startswith("/")) or "\0" in item:
            raise _MalformedError("NAME=/PATH or NAME=/PATH:ro, separated by commas")
        if colon and mode not in ("ro", "rw"):
            raise _MalformedError("nothing, :ro or :rw after a path")
        found.append(ExtraPreopen(name, path, mode == "ro"))
    return tuple(found)


def _kernel_filesystems(value: str) -> frozenset[str]:
    found = frozenset(_items(value, "all, or types of filesystems"))
    if found == {"all"}:
        return KERNEL_FILESYSTEMS
    if not found <= KERNEL_FILESYSTEMS:
        raise _MalformedError(f"all, or some of {', '.join(sorted(KERNEL_FILESYSTEMS))}")
    return found


def _items(value: str, what: str) -> list[str]:
    items = [item.strip() for item in value.split(",")]
    if not all(items):
        raise _MalformedError(f"{what}, separated by commas")
    return items


_PARSERS: Final[Mapping[str, tuple[str, Callable[[str], Any]]]] = {
    "engine": ("engine", _engine),
    "handler": ("handler", _handler),
    "kernel-filesystems": ("kernel_filesystems", _kernel_filesystems),
    "listen": ("listen", _listen),
    "memory-pages": ("memory_pages", _memory_pages),
    "network": ("network", _on),
    "preopens": ("preopens", _preopens),
    "rootfs": ("rootfs", _on),
    "time-limit": ("time_limit", _time_limit),
}
_WITH_FEW_VALUES: Final = ("engine", "handler", "kernel-filesystems", "network", "rootfs")
