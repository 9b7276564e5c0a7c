from __future__ import annotations

import pytest

from shim import engines
from tests.installed import ENGINES
from tests.shim.component.guests import Runner


@pytest.fixture(params=ENGINES)
def run(request: pytest.FixtureRequest) -> Runner:
    """A runner for each engine there is."""
    return Runner(engines.select(request.param))
