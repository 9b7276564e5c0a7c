"""Where the kernel has no AppArmor or SELinux, that it says so; where it has, that it works."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from oci.decoding import SpecError
from shim.linux import security_labels
from shim.linux.procfs import open_proc

Alive = Callable[..., AbstractContextManager[int]]

without_apparmor = pytest.mark.skipif(
    security_labels.apparmor_enabled(), reason="AppArmor is enabled"
)
with_apparmor = pytest.mark.skipif(
    not security_labels.apparmor_enabled() or shutil.which("apparmor_parser") is None,
    reason="AppArmor is not enabled",
)
without_selinux = pytest.mark.skipif(security_labels.selinux_enabled(), reason="SELinux is enabled")

PROFILE = """
profile pywasm-test flags=(attach_disconnected) {
  file,
  signal,
  deny /etc/hostname r,
}
"""


@without_apparmor
def test_apparmor_profile_where_there_is_no_apparmor() -> None:
    with pytest.raises(SpecError) as e:
        security_labels.check("cri-containerd.apparmor.d", "", "")
    assert str(e.value) == (
        "process.apparmorProfile: cri-containerd.apparmor.d: AppArmor is not enabled"
    )


@without_selinux
@pytest.mark.parametrize(
    ("arguments", "field"),
    [(("", "a:b:c:s0", ""), "process.selinuxLabel"), (("", "", "a:b:c:s0"), "linux.mountLabel")],
)
def test_label_where_there_is_no_selinux(arguments: tuple[str, str, str], field: str) -> None:
    with pytest.raises(SpecError) as e:
        security_labels.check(*arguments)
    assert str(e.value) == f"{field}: a:b:c:s0: SELinux is not enabled"


def test_nothing_asked_for() -> None:
    security_labels.check("", "", "")


@without_apparmor
def test_what_the_kernel_refuses_names_the_field() -> None:
    proc = open_proc()
    try:
        with pytest.raises(OSError) as e:
            security_labels.apply_apparmor("profile", proc)
        assert e.value.filename == "process.apparmorProfile"
        with pytest.raises(OSError) as e:
            security_labels.apply_selinux("a:b:c:s0", proc)
        assert e.value.filename == "process.selinuxLabel"
    finally:
        os.close(proc)


@with_apparmor
def test_apparmor_profile(tmp_path: Path, alive: Alive) -> None:
    source = tmp_path / "profile"
    source.write_text(PROFILE)
    subprocess.run(["apparmor_parser", "-r", str(source)], check=True)

    def entry() -> None:
        proc = open_proc()
        with pytest.raises(FileNotFoundError, match="no such profile is loaded"):
            security_labels.apply_apparmor("pywasm-missing", proc)
        security_labels.apply_apparmor("pywasm-test", proc)
        with pytest.raises(PermissionError):
            os.open("/etc/hostname", os.O_RDONLY)

    try:
        with alive(entry) as pid, open(f"/proc/{pid}/attr/current") as file:
            assert file.read() == "pywasm-test (enforce)\n"
    finally:
        subprocess.run(["apparmor_parser", "-R", str(source)], check=True)


def test_mount_label() -> None:
    label = "system_u:object_r:container_file_t:s0:c1,c2"
    quoted = f'context="{label}"'
    assert security_labels.mount_data("tmpfs", "", "") == ""
    assert security_labels.mount_data("tmpfs", "", label) == quoted
    assert security_labels.mount_data("devpts", "gid=5", label) == f"gid=5,{quoted}"
    for fstype in ("proc", "sysfs", "mqueue", "bind"):
        assert security_labels.mount_data(fstype, "x", label) == "x"
