"""The command line of `pywasm`."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Sequence

from shim import __version__

# What else there is of ours is imported where it is needed: `pywasm pod wait` stays on every node.

_CONFIG = "/etc/containerd/config.toml"
_STATE = ("/var/lib/pywasm", "/run/pywasm")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    options, rest = _parser().parse_known_args(arguments)
    if rest and options.command != "pod":
        _parser().error(f"unrecognized arguments: {' '.join(rest)}")
    if options.command == "pod" and options.action == "wait":
        return _wait()
    from shim.node.containerd_config import ConfigurationError

    try:
        return _pod(options.action, rest) if options.command == "pod" else _run(options)
    except (ConfigurationError, OSError) as error:
        print(f"pywasm: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pywasm", description="Look after the wasm runtime of this node.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"pywasm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    where = argparse.ArgumentParser(add_help=False)
    where.add_argument(
        "--config", default=_CONFIG, metavar="FILE", help="containerd's (%(default)s)"
    )
    where.add_argument(
        "--containerd", default="", metavar="PROGRAM", help="the containerd that checks it"
    )
    where.add_argument("--handler", default="pywasm", help="the RuntimeClass's (%(default)s)")
    change = argparse.ArgumentParser(add_help=False)
    change.add_argument(
        "--bin-dir",
        default="/usr/local/bin",
        metavar="DIR",
        help="a directory of containerd's PATH (%(default)s)",
    )
    change.add_argument("--cri-o", action="store_true", help="for CRI-O instead of containerd")
    change.add_argument(
        "--restart",
        nargs="?",
        const="auto",
        default="",
        metavar="UNIT",
        help="restart containerd, or the unit named, if it does not know what is registered",
    )

    install = commands.add_parser(
        "install", parents=[where, change], allow_abbrev=False, help="register the runtime"
    )
    install.add_argument(
        "--option",
        action="append",
        metavar="NAME=VALUE",
        help="such as SystemdCgroup=true; without any, those of the default runtime",
    )
    install.add_argument(
        "--annotations",
        action="append",
        metavar="PATTERN",
        help="annotations of pods that reach the shim (dev.pywasm.* and dev.pywasm.*/*)",
    )
    install.add_argument(
        "--sandboxer",
        default="",
        metavar="NAME",
        help='"shim", and containerd 2 leaves pods to the runtime, too (its Sandbox API)',
    )
    install.add_argument(
        "--verify", action="store_true", help="fail if the one that runs does not know it then"
    )
    install.add_argument(
        "--print", action="store_true", help="print what would be added, and change nothing"
    )
    uninstall = commands.add_parser(
        "uninstall", parents=[where, change], allow_abbrev=False, help="undo install"
    )
    uninstall.add_argument(
        "--purge", action="store_true", help="remove compiled modules, sockets and cgroups, too"
    )
    commands.add_parser(
        "doctor", parents=[where], allow_abbrev=False, help="say what this node has and lacks"
    )
    pod = commands.add_parser(
        "pod", allow_abbrev=False, help="what the pods of deploy/installer run"
    )
    pod.add_argument("action", choices=("install", "uninstall", "wait"))
    return parser


def _wait() -> int:
    # Blocked first: a signal that comes in between is not lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    signal.sigwait((signal.SIGTERM, signal.SIGINT))
    return 0


def _run(options: argparse.Namespace) -> int:
    from shim.compiler import cgroup as of_compilers
    from shim.node import registration
    from shim.node.containerd_config import Runtime
    from shim.zygote import cgroup as of_zygote

    node = registration.Node(options.config, containerd=options.containerd)
    if options.command == "doctor":
        from shim.node import doctor

        return 0 if doctor.report(node, options.handler, _say) else 1
    unit = options.restart
    if unit == "auto":
        unit = "crio" if options.cri_o else "containerd"
    node = node._replace(bin_dir=options.bin_dir, unit=unit)
    if options.command == "uninstall":
        registration.check_unused()
        if options.cri_o:
            registration.unregister_crio(node, _say)
        else:
            registration.unregister(node, _say)
        if options.purge:
            for path in _STATE:
                shutil.rmtree(path, ignore_errors=True)
            of_compilers.remove()
            of_zygote.remove()
        return 0
    if options.cri_o:
        registration.register_crio(node, options.handler, _say, verify=options.verify)
        return 0
    runtime = Runtime(
        options.handler,
        tuple(options.annotations or Runtime().annotations),
        _options(options.option) if options.option else None,
        options.sandboxer,
    )
    if options.print:
        print(registration.preview(node, runtime), end="")
    else:
        registration.register(node, runtime, _say, verify=options.verify)
    return 0


def _pod(action: str, rest: Sequence[str]) -> int:
    from shim.node import pod
    from shim.node.containerd_config import ConfigurationError

    if os.getpid() == 1 or not os.path.isdir("/proc/1/root/proc"):
        raise ConfigurationError("this has to run in a privileged pod with hostPID")
    (pod.install if action == "install" else pod.uninstall)(rest, _say)
    return 0


def _options(given: Sequence[str]) -> dict[str, str | int | bool]:
    from shim.node.containerd_config import ConfigurationError

    found: dict[str, str | int | bool] = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not (name and equals):
            raise ConfigurationError(f"--option {item}: expected NAME=VALUE")
        if value in ("true", "false"):
            found[name] = value == "true"
        else:
            found[name] = int(value) if value.isdecimal() else value
    return found


def _say(line: str) -> None:
    print(line, flush=True)
