"""`scripts/demo`: one WebAssembly container, one ordinary container, and how fast each starts."""

from __future__ import annotations

import os
import statistics
import sys

from bench.lab import IMAGE, NATIVE, WASM, Kind, containerd_with, make_image, timed
from tests.integration import keeper
from tests.integration.containerd import Containerd

RUNS = 5


def show(daemon: Containerd, kind: Kind, what: str) -> float:
    """Run one container for the eyes, some more for the clock; return the median in ms."""
    program = kind.program("hello")
    print(f"\n{what}")
    print(f"$ ctr run --rm --runtime {kind.runtime} {IMAGE} demo {program}")
    _, output = timed(daemon, kind, "hello")
    print("  " + output.replace("\n", "\n  ").rstrip())
    return 1000 * statistics.median(timed(daemon, kind, "hello")[0] for _ in range(RUNS))


def main() -> None:
    """Run the demo; the exit status is 1 if anything was left behind."""
    image = make_image("hello")
    with containerd_with(image) as daemon:
        version = daemon.checked("version").partition("Server:")[2].split("Version:")[1].split()[0]
        print(f"containerd {version}, a private one in {daemon.directory}")
        print(
            f"image {IMAGE}, {len(image.tar) // 1024} KiB: the same C program as wasm and natively"
        )
        wasm = show(daemon, WASM, "WebAssembly, under containerd-shim-pywasm-v1:")
        native = show(daemon, NATIVE, "An ordinary container beside it, under runc:")
        print(f"\nctr run --rm from start to end, median of {RUNS}:")
        print(f"  WebAssembly  {wasm:6.1f} ms")
        print(f"  ordinary     {native:6.1f} ms")
        left = daemon.leftovers()
        directory, namespace = daemon.directory, daemon.namespace
    left += [f"mount {point}" for point in keeper.mounts_below(directory)]
    left += [f"cgroup {group}" for group in keeper.cgroups_of(namespace)]
    left += [f"process {pid}: {name}" for pid, name in keeper.descendants(os.getpid()).items()]
    left += [f"directory {directory}"] if os.path.exists(directory) else []
    if left:
        sys.exit("\nleft behind:\n  " + "\n  ".join(left))
    print("\nThe private containerd has ended; no process, mount, cgroup or socket is left.")


if __name__ == "__main__":
    main()
