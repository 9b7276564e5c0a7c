"""What only wasmer has: our host functions under it."""

from __future__ import annotations

import pytest

pytest.importorskip("wasmer")

from shim import engines
from shim.engines.wasmer import Wasmer
from shim.wasi import abi
from tests.guests.assemble import CALL, DROP, I32, Function, Import, Type, module

from .conftest import Runner


@pytest.fixture
def engine() -> Wasmer:
    found = engines.select("wasmer")
    assert isinstance(found, Wasmer)
    return found


def test_the_counter_of_pools_is_found(engine: Wasmer) -> None:
    assert engine.host.gil_pool.found


def test_a_mistake_of_ours_is_named(engine: Wasmer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the guest, with a line that names the function, and no Python traceback."""

    def sched_yield(program: object) -> None:
        raise KeyError("mistake")

    monkeypatch.setitem(abi.HOSTS, "sched_yield", sched_yield)
    broken = Wasmer()
    imports = [Import("wasi_snapshot_preview1", "sched_yield", Type((), (I32,)))]
    wasm = module(Function(CALL + b"\0" + DROP, export="_start"), imports=imports)
    result = Runner(broken)(wasm)
    assert result.status == 134
    assert result.stderr == b"pywasm: internal error in sched_yield: KeyError: 'mistake'\n"
