"""How many versions of containerd the tests have run with."""

from __future__ import annotations

import pytest

from tests.integration.versions import bin_dirs, version_of


def test_more_than_one_version() -> None:
    versions = {version_of(bin_dir) for bin_dir in bin_dirs()}
    if len(versions) < 2:
        pytest.skip(f"only containerd {', '.join(versions)}: scripts/fetch-containerd gets another")
    assert "missing" not in versions
