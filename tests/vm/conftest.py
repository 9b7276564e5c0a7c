"""For tests of what only the machine of scripts/vm-test has; everywhere else they are skipped."""

from __future__ import annotations

import os

import pytest

from tests.integration.conftest import _nothing_left, containerd, image

__all__ = ["_nothing_left", "containerd", "image"]  # an image, and a containerd that has it


@pytest.fixture(autouse=True, scope="session")
def _machine() -> None:
    """Not guessed from what there is: in that machine nothing may be skipped for want of it."""
    if os.environ.get("PYWASM_VM") != "1":
        pytest.skip("only in the machine of scripts/vm-test")
