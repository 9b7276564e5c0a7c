"""`scripts/demo`: one WebAssembly container, one ordinary container, and how fast each starts."""

from __future__ import annotations

import os
import sys
from typing import Any

from bench import load
from bench.lab import IMAGE, NATIVE, WASM, Kind, containerd_with, make_image, timed
from bench.spread import compare
from bench.spread import show as show_compared
from shim.engines import select
from tests.integration import keeper
from tests.integration.containerd import Containerd

RUNS = 15


def show(daemon: Containerd, kind: Kind, what: str) -> None:
    """Run one container for the eyes."""
    program = kind.program("hello")
    print(f"\n{what}")
    print(f"$ ctr run --rm --runtime {kind.runtime} {IMAGE} demo {program}")
    _, output = timed(daemon, kind, "hello")
    print("  " + output.replace("\n", "\n  ").rstrip())


def main() -> None:
    """Run the demo; the exit status is 1 if anything was left behind."""
    load.adopt()
    found: dict[str, Any] = {}
    image = make_image("hello")
    with load.observed(found), containerd_with(image) as daemon:
        version = daemon.checked("version").partition("Server:")[2].split("Version:")[1].split()[0]
        print(f"containerd {version}, a private one in {daemon.directory}")
        print(
            f"image {IMAGE}, {len(image.tar) // 1024} KiB: the same C program as wasm and natively"
        )
        engine = select()
        under = f"under containerd-shim-pywasm-v1 and {engine.name} {engine.version}"
        show(daemon, WASM, f"WebAssembly, {under}:")
        show(daemon, NATIVE, "An ordinary container beside it, under runc:")
        ms: dict[str, list[float]] = {"WebAssembly": [], "ordinary": []}
        for _ in range(RUNS):
            for values, kind in zip(ms.values(), (WASM, NATIVE), strict=True):
                values.append(1000 * timed(daemon, kind, "hello")[0])
        left = daemon.leftovers()
        directory, namespace = daemon.directory, daemon.namespace
    print(f"\nctr run --rm from start to end, {RUNS} of each in turns:")
    show_compared(compare(ms, "ms", "ordinary"))
    load.show(found)
    left += [f"mount {point}" for point in keeper.mounts_below(directory)]
    left += [f"cgroup {group}" for group in keeper.cgroups_of(namespace)]
    left += [f"process {pid}: {name}" for pid, name in keeper.descendants(os.getpid()).items()]
    left += [f"directory {directory}"] if os.path.exists(directory) else []
    if left:
        sys.exit("\nleft behind:\n  " + "\n  ".join(left))
    print("\nThe private containerd has ended; no process, mount, cgroup or socket is left.")


if __name__ == "__main__":
    main()
