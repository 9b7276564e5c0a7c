"""containerd's configuration: where a runtime belongs, how to add and remove one (`pywasm`).

The runtime is a block of text between two marks, at the end of one file. What else is in the file
stays as it is, byte for byte, and the file without the block is what it was before. That this is so
is checked on the parsed documents before anything is written.

Which file: containerd reads the main one and then what it imports. Version 1.x takes the whole
table of a plugin from the last file that has one; 2.x merges them key by key. And a file for 1.x
that lists runtimes replaces the list containerd begins with, so that one that lists nothing but
ours would leave the node without its default runtime.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

RUNTIME_TYPE: Final = "io.containerd.pywasm.v1"
DROP_IN: Final = "50-pywasm.toml"

_BEGIN: Final = "# pywasm: begin. Written by `pywasm install`, removed by `pywasm uninstall`."
_END: Final = "# pywasm: end."
_BLOCK: Final = re.compile(rf"(?:(?<=\n)\n)?{re.escape(_BEGIN)}\n.*?{re.escape(_END)}\n", re.DOTALL)

# The CRI plugin's name in files of version 1, 2, and 3 and later.
_PLUGINS: Final = ("cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime")
_HANDLER: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")

Value = str | int | bool


class ConfigurationError(Exception):
    """The configuration cannot be changed; the message says in one line which file and why."""


class NoKubernetes(ConfigurationError):
    """The configuration disables the plugin that a runtime would be registered with."""


class Runtime(NamedTuple):
    """What is registered."""

    handler: str = "pywasm"
    """The name that a RuntimeClass has for it."""
    annotations: tuple[str, ...] = ("dev.pywasm.*", "dev.pywasm.*/*")
    """Patterns of annotations that reach the shim."""
    options: Mapping[str, Value] | None = None
    """The runtime's `options`; None: what has to be as with the default runtime."""
    sandboxer: str = ""
    """Who runs the pods themselves, for containerd 2: "shim", or empty for the usual."""


class File(NamedTuple):
    """One file of the configuration; without text if it does not exist."""

    path: str
    text: str
    document: dict[str, Any]

    @property
    def version(self) -> int:
        """What it says of itself; a file that says nothing has version 1."""
        version = self.document.get("version", 1)
        if not isinstance(version, int) or not 0 < version < 100:
            raise ConfigurationError(f"{self.path}: version: expected a number, got {version!r}")
        return version


class Change(NamedTuple):
    """What a file is to hold; None: it goes."""

    path: str
    text: str | None


def load(path: str) -> list[File]:
    """Read a configuration and what it imports, in containerd's order.

    A main file that is missing is an empty one. Raises ConfigurationError, NoKubernetes.
    """
    files: list[File] = []
    pending = [path]
    while pending:
        current = pending.pop(0)
        if any(file.path == current for file in files):
            continue
        file = _read(current, missing=not files)
        files.append(file)
        for pattern in _imports(file):
            pending += sorted(glob.glob(pattern)) if "*" in pattern else [pattern]
    for file in files:
        disabled = {*_list(file, "disabled_plugins")} & {*_PLUGINS}
        if disabled:
            raise NoKubernetes(
                f"{file.path}: disabled_plugins has {min(disabled)}, without which containerd"
                " serves no Kubernetes"
            )
    return files


def install(files: Sequence[File], runtime: Runtime, *, new_version: int = 2) -> list[Change]:
    """Return what to change so that `runtime` is registered; nothing, if it is already.

    `new_version` is for a configuration that says nothing so far: the newest that both this and the
    installed containerd know. Raises ConfigurationError.
    """
    if not _HANDLER.fullmatch(runtime.handler):
        raise ConfigurationError(f"{runtime.handler}: no name that a RuntimeClass could have")
    bare = [without_block(file) for file in files]
    for file in bare:
        if runtime.handler in runtimes(file):
            raise ConfigurationError(
                f"{file.path}: has a runtime {runtime.handler} that `pywasm install` did not write"
            )
    runtime = complete(bare, runtime)
    target = _target(bare)
    if bare[0].document:
        new_version = bare[0].version
    text = target.text
    if text:
        text += "\n" if text.endswith("\n") else "\n\n"
    text += block(target, runtime, new_version)
    _check(target, text, runtime.handler)
    changes = [Change(target.path, text)]
    # An earlier version of us, or of the configuration, may have had another place for it.
    changes += [change for change in uninstall(files) if change.path != target.path]
    now = {file.path: file.text for file in files}
    return [change for change in changes if now.get(change.path) != change.text]


def uninstall(files: Sequence[File]) -> list[Change]:
    """Return what to change so that nothing of ours is left. Raises ConfigurationError."""
    changes = []
    for file in files:
        bare = without_block(file)
        if bare.text != file.text:
            changes.append(Change(file.path, bare.text or None))
    return changes


def complete(files: Sequence[File], runtime: Runtime) -> Runtime:
    """Fill in the options that `runtime` leaves to the configuration."""
    if runtime.options is not None:
        return runtime
    # Up to 2.4 containerd 2 itself fails pods with a user namespace where a runtime that is not
    # runc's has options, and any pod where the runtime is a sandboxer: so there are none without
    # need.
    return runtime._replace(options={} if runtime.sandboxer else _inherited(files))


def block(file: File, runtime: Runtime, new_version: int = 2) -> str:
    """The text that registers `runtime` at the end of `file`."""
    lines = [_BEGIN]
    version = file.version
    if not file.document:
        version = new_version
        lines.append(f"version = {version}")
    plugin = _plugin(file) or _PLUGINS[min(version, 3) - 1]
    table = f'plugins."{plugin}".containerd.runtimes'
    if version < 3 and not runtimes(file):
        lines += [
            "# containerd's own default, which it forgets when it is told of another runtime.",
            f"[{table}.runc]",
            '  runtime_type = "io.containerd.runc.v2"',
        ]
    lines += [
        f"[{table}.{runtime.handler}]",
        f"  runtime_type = {toml(RUNTIME_TYPE)}",
    ]
    if runtime.sandboxer:
        lines.append(f"  sandboxer = {toml(runtime.sandboxer)}")
    if runtime.annotations:
        patterns = ", ".join(map(toml, runtime.annotations))
        lines += [f"  pod_annotations = [{patterns}]", f"  container_annotations = [{patterns}]"]
    if runtime.options:
        lines.append(f"[{table}.{runtime.handler}.options]")
        lines += [f"  {name} = {toml(value)}" for name, value in runtime.options.items()]
    return "\n".join([*lines, _END, ""])


def without_block(file: File) -> File:
    """The file as it would be without us."""
    text = _BLOCK.sub("", file.text)
    if _BEGIN in text or _END in text:
        raise ConfigurationError(f"{file.path}: the marks of pywasm in it do not belong together")
    return file if text == file.text else _parse(file.path, text)


def is_ours(text: str) -> bool:
    """Whether there is a block of ours in a file."""
    return _BEGIN in text


def runtimes_of_dump(text: str) -> dict[str, Any]:
    """The runtimes in what `containerd config dump` prints. Raises ConfigurationError."""
    return runtimes(_parse("containerd config dump", text))


def _target(files: Sequence[File]) -> File:
    """The file that the block belongs into."""
    main = files[0]
    if main.version >= 3:
        # Only containerd 2 reads that, which merges. So a file of our own is best, if it is read.
        for pattern in _imports(main):
            directory, name = os.path.split(pattern)
            if name == "*.toml" and "*" not in directory:
                own = os.path.join(directory, DROP_IN)
                return next((file for file in files if file.path == own), File(own, "", {}))
        target = main
    else:
        target = next((file for file in reversed(files) if _section(file)), main)
    if "DO NOT EDIT" in target.text[:500]:
        raise ConfigurationError(
            f"{target.path}: is generated (DO NOT EDIT): add what `pywasm install --print` prints"
            " to its template"
        )
    return target


def _inherited(files: Sequence[File]) -> dict[str, Value]:
    """What the default runtime is told that ours must be told, too: its program.

    Not its cgroup driver, which is seen by the form of a container's `cgroupsPath`.
    """
    name = "runc"
    for file in files:
        name = _mapping(file, _section(file), "containerd").get("default_runtime_name", name)
    found: dict[str, Value] = {}
    for file in files:
        options = _mapping(file, _mapping(file, runtimes(file), str(name)), "options")
        program = options.get("BinaryName")
        if program and program != "runc":
            found["BinaryName"] = program
    return found


def _check(file: File, text: str, handler: str) -> None:
    """Make sure that `text` is the file and our runtime, and nothing else."""
    try:
        new = _parse(file.path, text)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{error} (with a runtime added: its runtimes have to be tables, not values)"
        ) from None
    after = runtimes(new)
    if after.pop(handler, {}).get("runtime_type") != RUNTIME_TYPE:
        raise ConfigurationError(f"{file.path}: a table at its end does not become a runtime")
    before = runtimes(file)
    if not before:
        after.pop("runc", None)
    if before != after or _pruned(new.document) != _pruned(file.document):
        raise ConfigurationError(
            f"{file.path}: a table at its end would change more than a runtime"
        )


def _pruned(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document without its version, its runtimes, and tables that are empty then."""

    def prune(value: Any, path: tuple[str, ...]) -> Any:
        if path == ("version",) or (path[:1], path[2:]) == (
            ("plugins",),
            ("containerd", "runtimes"),
        ):
            return None
        if not isinstance(value, dict):
            return value
        items = ((key, prune(item, (*path, key))) for key, item in value.items())
        return {key: item for key, item in items if item not in (None, {})}

    pruned: dict[str, Any] = prune(document, ())
    return pruned


def _read(path: str, *, missing: bool) -> File:
    try:
        with open(path, "rb") as stream:
            text = stream.read().decode()
    except FileNotFoundError as error:
        if missing and not os.path.islink(path):
            return File(path, "", {})
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: not UTF-8") from None
    return _parse(path, text)


def _parse(path: str, text: str) -> File:
    try:
        return File(path, text, msgspec.toml.decode(text))
    except msgspec.DecodeError as error:
        hint = " (a template?)" if "{{" in text else ""
        raise ConfigurationError(f"{path}: not TOML{hint}: {error}") from None


def _plugin(file: File) -> str:
    """The name under which the file has a table of the CRI plugin, if any."""
    plugins = _mapping(file, file.document, "plugins")
    # A file that is imported often has the long name, and no version.
    names = _PLUGINS[2:] if file.version >= 3 else _PLUGINS
    return next((name for name in reversed(names) if name in plugins), "")


def _section(file: File) -> dict[str, Any]:
    return _mapping(file, _mapping(file, file.document, "plugins"), _plugin(file))


def runtimes(file: File) -> dict[str, Any]:
    """The tables of runtimes in a file, by handler."""
    return dict(_mapping(file, _mapping(file, _section(file), "containerd"), "runtimes"))


def _mapping(file: File, table: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise ConfigurationError(f"{file.path}: {key}: expected a table")
    return value


def _imports(file: File) -> list[str]:
    """What the file imports: absolute paths, and patterns of such."""
    directory = os.path.dirname(file.path)
    return [os.path.join(directory, os.path.normpath(name)) for name in _list(file, "imports")]


def _list(file: File, key: str) -> list[str]:
    value = file.document.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigurationError(f"{file.path}: {key}: expected a list of strings")
    return value


def toml(value: Value) -> str:
    """A value as TOML has it."""
    return json.dumps(value, ensure_ascii=False)
