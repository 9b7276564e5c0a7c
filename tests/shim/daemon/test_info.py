import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from oci.decoding import SpecError
from oci.linux import Seccomp, SeccompSyscalls
from proto.runc_options_pb2 import Options
from proto.runtime_info_pb2 import RuntimeInfo
from shim.daemon.info import runtime_info
from shim.linux import seccomp


def features(options: bytes = b"") -> dict[str, Any]:
    info = RuntimeInfo.FromString(runtime_info(options))
    assert info.name == "io.containerd.pywasm.v1"
    assert info.features.type_url == (
        "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
    )
    found: dict[str, Any] = json.loads(info.features.value)
    return found


def with_runtime(path: Path, script: str) -> bytes:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return with_binary(str(path))


def with_binary(name: str) -> bytes:
    options = Options(binary_name=name)
    value = options.SerializeToString()
    return AnyMessage(type_url=options.DESCRIPTOR.full_name, value=value).SerializeToString()


def maps_ids(options: bytes) -> bool:
    enabled: bool = features(options)["linux"]["mountExtensions"]["idmap"]["enabled"]
    return enabled


def test_what_the_kubelet_looks_for() -> None:
    found = features()
    assert {"rro", "bind", "ro", "idmap"} <= set(found["mountOptions"])
    assert "user" in found["linux"]["namespaces"]


def same_form(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        for name in theirs.keys() - {"annotations", "intelRdt"}:
            same_form(ours[name], theirs[name])
    elif isinstance(ours, list) and theirs:
        assert {type(item) for item in ours} == {type(item) for item in theirs}


def test_they_have_the_form_that_runc_gives_them() -> None:
    same_form(features(), json.loads(subprocess.check_output(["runc", "features"])))


def test_what_a_seccomp_profile_may_say() -> None:
    found = features()["linux"]["seccomp"]
    for action in found["actions"]:
        rules = (SeccompSyscalls(names=("getpid",), action=action),)
        seccomp.compile_filter(Seccomp(default_action="SCMP_ACT_ALLOW", syscalls=rules))
    assert seccomp.flag_bits(Seccomp(default_action="", flags=found["supportedFlags"]))
    machine = ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32")
    seccomp.compile_filter(Seccomp(default_action="SCMP_ACT_ALLOW", architectures=machine))
    assert set(machine) <= set(found["archs"])
    assert "SCMP_ACT_NOTIFY" not in found["actions"]
    with pytest.raises(SpecError):
        seccomp.compile_filter(Seccomp(default_action="SCMP_ACT_NOTIFY"))


def test_the_options_are_given_back() -> None:
    options = with_binary("/nonexistent")
    info = RuntimeInfo.FromString(runtime_info(options))
    assert info.options.SerializeToString() == options


NEW = '{"linux": {"mountExtensions": {"idmap": {"enabled": true}}}}'
UNSAFE = '{"potentiallyUnsafeConfigAnnotations": ["org.systemd.property."]}'


@pytest.mark.parametrize(
    ("script", "can"),
    [
        (f"echo '{NEW}'", True),
        ("echo '{\"linux\": {}}'", False),
        ("echo '[]'", False),
        ("echo nonsense", False),
        (f"echo '{NEW}'; exit 1", False),
    ],
)
def test_mounts_with_mapped_ids_need_a_native_runtime_that_knows_them(
    tmp_path: Path, script: str, can: bool
) -> None:
    assert maps_ids(with_runtime(tmp_path / "runtime", script)) is can


def test_without_a_native_runtime() -> None:
    assert maps_ids(with_binary("/nonexistent/runtime"))
    nonsense = AnyMessage(type_url="a.b.C").SerializeToString()
    assert isinstance(maps_ids(nonsense), bool)


def test_annotations_that_change_what_happens(tmp_path: Path) -> None:
    name = "potentiallyUnsafeConfigAnnotations"
    assert features(with_runtime(tmp_path / "old", "echo '{}'"))[name] == ["dev.pywasm."]
    both = features(with_runtime(tmp_path / "new", f"echo '{UNSAFE}'"))[name]
    assert both == ["dev.pywasm.", "org.systemd.property."]
