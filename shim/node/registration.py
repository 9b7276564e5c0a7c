"""Registering the runtime on a node, and taking it away (`pywasm install`, `uninstall`).

containerd is asked before and after. What it refuses is undone, and so is what would cost it
another runtime.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from google.protobuf import any_pb2

import shim
from oci.runtime import SpecError
from proto.runtime_options_pb2 import Options as RuntimeOptions
from shim.node import containerd, crio, files, processes, running
from shim.node.containerd_config import (
    RUNTIME_TYPE,
    Change,
    ConfigurationError,
    Runtime,
    Value,
    block,
    complete,
    install,
    is_ours,
    load,
    toml,
    uninstall,
    without_block,
)

SHIM = "containerd-shim-pywasm-v1"

_STARTUP = 60.0
"""Seconds after a restart within which containerd's CRI plugin answers."""


class Node(NamedTuple):
    """Where things are on a node."""

    config: str = containerd.CONFIG
    bin_dir: str = "/usr/local/bin"
    """A directory of containerd's PATH, for a link to the shim."""
    containerd: str = ""
    """The program that checks the configuration; empty: the one that runs or is on PATH, if any."""
    unit: str = ""
    """The unit of systemd that is restarted where it does not know what is registered; or empty."""


def installation() -> str:
    """The directory that this program was installed into."""
    return os.path.dirname(os.path.dirname(shim.__file__))


def installed_shim() -> str:
    """The shim's program in it."""
    return os.path.join(sys.prefix, "bin", SHIM)


def check_unused() -> None:
    """Refuse to go on while containers run. Raises ConfigurationError."""
    running = processes.of(installation(), processes.SHIM)
    if running:
        raise ConfigurationError(
            f"{len(running)} pods still run with this runtime (a shim has the pid {running[0]})"
        )


def register(
    node: Node, runtime: Runtime, say: Callable[[str], None], *, verify: bool = False
) -> None:
    """Link the shim and register the runtime.

    Raises ConfigurationError; the configuration is as before then. Also where the containerd that
    runs still does not know the runtime after a restart or, with `verify`, without one; then the
    registration stays. Where none runs, one that will be started knows it.
    """
    check_options(runtime.options or {})
    binary = containerd.find(node.containerd, node.config)
    version = containerd.newest_version(binary) if binary else 2
    changes = install(load(node.config), runtime, new_version=version)
    _link(node, SHIM, say)
    if changes:
        with _changed(node, binary, changes, say) as after:
            if binary and after.get(runtime.handler) != RUNTIME_TYPE:
                raise ConfigurationError(
                    f"{node.config}: containerd does not see {runtime.handler}"
                )
    else:
        say(f"{node.config}: {runtime.handler} is registered already")
    answer = running.ask(node.config, load(node.config), runtime.handler)
    if answer.knows is False and not changes:
        # Who registered it was stopped before the restart, or had been told of none.
        _restart(node, say)
    running_now = containerd.process(node.config)
    if node.unit and running_now:
        deadline = time.monotonic() + _STARTUP
        while not answer.knows and time.monotonic() < deadline:
            time.sleep(0.1)
            answer = running.ask(node.config, load(node.config), runtime.handler)
    if not answer.knows and running_now and (verify or (node.unit and answer.knows is False)):
        raise ConfigurationError(answer.text)
    say(answer.text)


def unregister(node: Node, say: Callable[[str], None]) -> None:
    """Undo `register`. Raises ConfigurationError; the configuration is as before then."""
    binary = containerd.find(node.containerd, node.config)
    changes = uninstall(load(node.config))
    if changes:
        with _changed(node, binary, changes, say, leaving=RUNTIME_TYPE):
            pass
        for change in changes:
            _drop_backup(change)
    else:
        say(f"{node.config}: nothing of pywasm in it")
    _unlink(node, SHIM, say)
    processes.end_helpers(installation())


def register_crio(
    node: Node, handler: str, say: Callable[[str], None], *, verify: bool = False
) -> None:
    """The same for CRI-O, which does not say what it knows: one that is younger than the file does.

    Raises ConfigurationError.
    """
    _link(node, crio.SHIM, say)
    text = crio.drop_in(handler, os.path.join(node.bin_dir, crio.SHIM))
    if _text(crio.DROP_IN) == text:
        say(f"{crio.DROP_IN}: {handler} is registered already")
    else:
        files.replace(crio.DROP_IN, text)
        say(f"{crio.DROP_IN}: written")
    if not crio.has_read_it():
        _restart(node, say)
    if not crio.has_read_it():
        stale = f"{crio.DROP_IN}: no CRI-O has been started since it was written"
        if verify:
            raise ConfigurationError(stale)
        say(stale)


def unregister_crio(node: Node, say: Callable[[str], None]) -> None:
    """Undo `register_crio`."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(crio.DROP_IN)
        say(f"{crio.DROP_IN}: removed")
        _restart(node, say)
    _unlink(node, crio.SHIM, say)
    processes.end_helpers(installation())


def preview(node: Node, runtime: Runtime) -> str:
    """What `register` would add to the main file: for the template that the file is made from."""
    check_options(runtime.options or {})
    found = load(node.config)
    return block(without_block(found[0]), complete(found, runtime))


def check_options(options: Mapping[str, Value]) -> None:
    """Refuse what the shim would refuse, in every container. Raises ConfigurationError."""
    from shim.daemon.options import read

    body = "".join(f"{name} = {toml(value)}\n" for name, value in options.items())
    message = any_pb2.Any()
    message.Pack(RuntimeOptions(config_body=body.encode()))
    try:
        read(message)
    except SpecError as error:
        raise ConfigurationError(str(error)) from None


@contextlib.contextmanager
def _changed(
    node: Node,
    binary: str,
    changes: Sequence[Change],
    say: Callable[[str], None],
    leaving: str = "",
) -> Iterator[dict[str, str]]:
    """Make changes, and undo them if containerd, the body or a restart does not like them.

    Gives the types of the runtimes that containerd sees then. Those of type `leaving` may go.
    """
    before = _types(binary, node.config)
    old = {change.path: _text(change.path) for change in changes}
    # A new file repeats some of the main one, which may be for its owner alone.
    was = {path: os.stat(path) for path in (*old, node.config) if os.path.exists(path)}
    try:
        for change in changes:
            text = old[change.path]
            if text is not None and change.text is not None and not is_ours(text):
                files.back_up(change.path, text)  # before the first change
            files.restore(change.path, change.text, was.get(node.config))
        after = _types(binary, node.config)
        lost = [name for name in before if name not in after and before[name] != leaving]
        if lost:
            raise ConfigurationError(f"{node.config}: containerd would lose its runtime {lost[0]}")
        yield after
        for change in changes:
            say(f"{change.path}: {'removed' if change.text is None else 'changed'}")
        if not binary:
            say("there is no containerd here to check the configuration with")
        _restart(node, say)
    except BaseException:
        for path, text in old.items():
            if _text(path) != text:
                files.restore(path, text, was.get(path))
        if node.unit:
            with contextlib.suppress(ConfigurationError):
                containerd.restart(node.unit)
        raise


def _types(binary: str, config: str) -> dict[str, str]:
    if not binary:
        return {}
    found = containerd.runtimes(binary, config)
    return {name: str(runtime.get("runtime_type", "")) for name, runtime in found.items()}


def _restart(node: Node, say: Callable[[str], None]) -> None:
    if node.unit:
        containerd.restart(node.unit)
        say(f"{node.unit}: restarted")


def _drop_backup(change: Change) -> None:
    """A backup that is the file again is of no use."""
    backup = os.path.realpath(change.path) + files.BACKUP
    if _text(backup) == change.text and change.text is not None:
        os.unlink(backup)


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _link(node: Node, name: str, say: Callable[[str], None]) -> None:
    path, target = os.path.join(node.bin_dir, name), installed_shim()
    if not os.access(target, os.X_OK):
        raise ConfigurationError(f"{target}: no such program: is this a whole installation?")
    searched = containerd.search_path(containerd.process(node.config))
    if node.bin_dir not in searched.split(os.pathsep):
        raise ConfigurationError(f"{node.bin_dir}: not on containerd's PATH, {searched}")
    if files.link(path, target):
        say(f"{path}: a link to {target}")


def _unlink(node: Node, name: str, say: Callable[[str], None]) -> None:
    path = os.path.join(node.bin_dir, name)
    if os.path.islink(path) and os.path.basename(os.readlink(path)) == SHIM:
        os.unlink(path)
        say(f"{path}: removed")
