"""The zygote's place where systemd gives one."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from shim.linux.cgroups.trees import own
from tests.shim.launching import launch, zygotes


def test_a_zygote_has_a_scope_that_ends_with_it(tmp_path: Path) -> None:
    env = {"PYWASM_RUN": str(tmp_path / "run")}
    wrapper = ["systemd-run", "--quiet", "--scope", "--slice=pywasm-test.slice"]
    assert launch(["-info"], env, wrapper=wrapper).returncode == 0
    (zygote,) = zygotes(tmp_path / "run")
    try:
        (place,) = set(own(zygote).values())
        assert place.startswith("/system.slice/pywasm-")
        unit = os.path.basename(place)
        show = ["systemctl", "show", "--property=TasksMax", "--value", unit]
        assert subprocess.check_output(show, text=True).strip() == "infinity"
        subprocess.run(["systemctl", "stop", "pywasm-test.slice"], check=True)
        assert own(zygote)
    finally:
        os.kill(zygote, signal.SIGTERM)
