"""Run one target under atheris: `python -m tests.fuzz TARGET [libFuzzer's arguments]`.

See scripts/fuzz. A target is a module here with `fuzz(data)`, which raises where something is
wrong, and `SEEDS`, inputs to begin with.
"""

from __future__ import annotations

import importlib
import os
import sys


def main(name: str, corpus: str, *arguments: str) -> None:
    """Fuzz until libFuzzer's arguments, or a finding, say that it is enough.

    Where `corpus` is a file, only run the target on that.
    """
    atheris = importlib.import_module("atheris")  # only scripts/fuzz has it
    # Ours alone: what the libraries do is not what is looked for.
    with atheris.instrument_imports(include=["shim", "oci"], enable_loader_override=False):
        target = importlib.import_module(f"tests.fuzz.{name}")
    if os.path.isfile(corpus):
        with open(corpus, "rb") as file:
            target.fuzz(file.read())
        return
    os.makedirs(corpus, exist_ok=True)
    for number, seed in enumerate(target.SEEDS):
        with open(os.path.join(corpus, f"seed-{number}"), "wb") as file:
            file.write(seed)
    atheris.Setup([sys.argv[0], *arguments, corpus], target.fuzz)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
