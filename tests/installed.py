"""Which engines are installed here.

By their files: pytest's faulthandler has to be in place before the engines' own handlers are, so
nothing may import an engine while tests are collected.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Final

import pytest

LIBWASMER: Final = os.path.exists(os.path.join(sys.prefix, "lib", "libwasmer.so"))
WHEELS: Final = importlib.util.find_spec("wasmer") is not None

ENGINES: Final = ["wasmer", "wasmtime"] if LIBWASMER or WHEELS else ["wasmtime"]

needs_libwasmer: Final = pytest.mark.skipif(
    not LIBWASMER, reason="no libwasmer in .venv/lib: scripts/setup builds it, with Rust"
)
needs_wheels: Final = pytest.mark.skipif(not WHEELS, reason="wasmer has no wheels for this CPython")
