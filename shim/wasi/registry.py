"""All of WASI that components may import (library)."""

from __future__ import annotations

from typing import Final

from shim.component.host import Registry
from shim.wasi import p2, p3

REGISTRY: Final = Registry([*p2.INTERFACES, *p3.INTERFACES])
