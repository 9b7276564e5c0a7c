"""For every test: they mount, clone and start containers, so they need root.

What hypothesis tries is the same each time, so that a change breaks a test or does not.
`--hypothesis-profile search` looks for more.
"""

from __future__ import annotations

import os

import pytest


@pytest.hookimpl(tryfirst=True)  # before the plugin looks for the profile that it was told
def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("hypothesispytest"):
        return
    from hypothesis import HealthCheck, settings

    settings.register_profile("suite", derandomize=True, database=None, deadline=None)
    settings.register_profile(
        "search", max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck)
    )
    settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        for item in items:
            item.add_marker(pytest.mark.skip(reason="needs root"))
