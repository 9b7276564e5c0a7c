"""Compile the test guests (`tests/guests/*.c`) with the C toolchain in the `ziglang` package.

A test calls `build(name)`; a script may run `python -m tests.guests.build DIRECTORY [NAME...]`.
Results are kept in `build/guests/` under a hash of everything that went into them, so a
second run compiles nothing and several runs at once never see half a file.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent
CACHE = SOURCES.parents[1] / "build" / "guests"  # not beside build.py, whose name it would take


def names(sources: Path = SOURCES) -> list[str]:
    """Every guest there is."""
    return sorted(source.stem for source in sources.glob("*.c"))


def build(name: str, *, native: bool = False, sources: Path = SOURCES) -> Path:
    """Compile `<name>.c` to wasm, or to a static executable of this machine; return the file.

    A comment `// build: FLAGS` in the first line replaces the default flags, `-Os -s`.

    Raises:
        subprocess.CalledProcessError: the compiler refused the source; its words are on stderr.
    """
    source = sources / f"{name}.c"
    text = source.read_bytes()
    first, _, _ = text.decode().partition("\n")
    flags = (
        first.removeprefix("// build:").split() if first.startswith("// build:") else ["-Os", "-s"]
    )
    if native:
        flags = ["-target", f"{platform.machine()}-linux-musl", "-static", *flags]
    else:
        flags = ["-target", "wasm32-wasi", *flags]

    version = importlib.metadata.version("ziglang")
    headers = b"".join(header.read_bytes() for header in sorted(sources.glob("*.h")))
    key = hashlib.sha256(repr((version, flags)).encode() + headers + text).hexdigest()[:16]
    result = CACHE / f"{name}-{key}{'' if native else '.wasm'}"
    if result.exists():
        return result

    CACHE.mkdir(parents=True, exist_ok=True)
    # One compilation at a time: the first one also builds libc, which is not worth doing twice.
    with (CACHE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                output = os.path.join(scratch, name)
                command = [sys.executable, "-m", "ziglang", "cc", *flags, "-o", output, str(source)]
                subprocess.run(command, check=True)
                if not native:
                    _drop_debug_sections(output)
                os.rename(output, result)
    return result


def _drop_debug_sections(path: str) -> None:
    """Remove libc's DWARF, a megabyte of it, but not the names of functions.

    The linker can only remove both. A section: | u8 id | LEB128 length | content |; id 0 is a
    custom one, whose content begins with its name, its length before it.
    """
    with open(path, "rb") as file:
        data = file.read()
    kept = data[:8]
    start = 8
    while start < len(data):
        length, content = 0, start + 1
        for shift in range(0, 35, 7):
            length |= (data[content] & 0x7F) << shift
            content += 1
            if data[content - 1] < 0x80:
                break
        end = content + length
        if data[start] != 0 or not data[content + 1 :].startswith(b".debug_"):
            kept += data[start:end]
        start = end
    with open(path, "wb") as file:
        file.write(kept)


def main(arguments: list[str]) -> None:
    """Copy the guests named (default: all) to a directory as `<name>.wasm`."""
    directory, *chosen = arguments
    os.makedirs(directory, exist_ok=True)
    for name in chosen or names():
        shutil.copyfile(build(name), os.path.join(directory, f"{name}.wasm"))


if __name__ == "__main__":
    main(sys.argv[1:])
