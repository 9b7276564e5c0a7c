"""Process 1 of the node, which makes it, and the process of the checks: started by `main.py`."""

from __future__ import annotations

import os
import shutil
import sys
from typing import NamedTuple

from tests.cluster import checks, machine, node
from tests.cluster.supplies import ROOT

SCRATCH, IMAGES = "scratch", "images"


class Order(NamedTuple):
    """What to do, as arguments of a command."""

    directory: str
    cgroup: str
    binaries: str
    bin_dir: str
    only: str
    keep: str


def main(order: Order) -> None:
    """Make the node, run the checks, and end with 1 if one has failed."""
    paths = (str(ROOT), order.directory, order.binaries, order.bin_dir, order.keep)
    machine.make(f"{order.directory}/{SCRATCH}", order.cgroup, list(filter(None, paths)))
    child = os.fork()
    if child:
        sys.exit(machine.reap(child))
    try:
        passed = checks.run(
            order.binaries, f"{order.directory}/{IMAGES}", order.bin_dir, order.only
        )
    finally:
        if order.keep:
            shutil.copytree(node.LOGS, order.keep, dirs_exist_ok=True)
    sys.exit(not passed)


if __name__ == "__main__":
    main(Order(*sys.argv[1:]))
