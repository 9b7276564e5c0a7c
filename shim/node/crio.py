"""CRI-O's configuration: a file of our own among its drop-ins (`pywasm`).

CRI-O speaks the same shim API to runtimes of the type "vm". It hands every annotation of a pod
over. Before 1.37 it takes only programs whose name ends in -v2.
"""

import json
import os

from shim.node import processes

DROP_IN = "/etc/crio/crio.conf.d/50-pywasm.conf"
SHIM = "containerd-shim-pywasm-v2"


def drop_in(handler: str, runtime_path: str) -> str:
    """The text of `DROP_IN`."""
    return (
        "# Written by `pywasm install --cri-o`, removed by `pywasm uninstall --cri-o`.\n"
        f"[crio.runtime.runtimes.{handler}]\n"
        '  runtime_type = "vm"\n'
        f"  runtime_path = {json.dumps(runtime_path)}\n"
        '  runtime_root = "/run/pywasm-crio"\n'
    )


def has_read_it() -> bool:
    """Whether a CRI-O runs that was started after `DROP_IN` was written."""
    written = os.stat(DROP_IN).st_mtime
    return any(processes.started(pid) >= written for pid in processes.named("crio"))
