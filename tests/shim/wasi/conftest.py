from __future__ import annotations

from pathlib import Path

import pytest

from .dns import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Where names are looked up."""
    return World(tmp_path)
