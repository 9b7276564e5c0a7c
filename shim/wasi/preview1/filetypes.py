"""Filetypes as preview 1 numbers them: it has no name for a pipe (library)."""

from __future__ import annotations

from typing import Final

from shim.wasi.filetypes import FIFO, UNKNOWN

NUMBERS: Final = (*range(FIFO), UNKNOWN)
"""By the numbers of `shim.wasi.filetypes`."""
