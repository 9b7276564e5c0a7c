"""Where a runtime goes in a configuration, without a containerd."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from shim.node import containerd_config as configuration
from shim.node.containerd_config import Change, ConfigurationError, Runtime
from tests.shim.node import corpus

CRI = 'plugins."io.containerd.grpc.v1.cri".containerd.runtimes'


def write(directory: Path, text: str | None, name: str = "config.toml") -> str:
    path = directory / name
    path.parent.mkdir(exist_ok=True)
    if text is not None:
        path.write_bytes(text.encode())
    return str(path)


def apply(changes: list[Change]) -> None:
    for change in changes:
        if change.text is None:
            Path(change.path).unlink()
        else:
            Path(change.path).write_bytes(change.text.encode())


def install(path: str, runtime: Runtime = Runtime()) -> list[Change]:  # noqa: B008
    changes = configuration.install(configuration.load(path), runtime)
    apply(changes)
    return changes


def runtimes(path: str, plugin: str = "io.containerd.grpc.v1.cri") -> dict[str, dict[str, object]]:
    document = msgspec.toml.decode(Path(path).read_text(), type=dict)
    found: dict[str, dict[str, object]] = document["plugins"][plugin]["containerd"]["runtimes"]
    return found


@pytest.mark.parametrize("name", corpus.OF_VERSION_2)
def test_what_was_there_stays_and_comes_back(tmp_path: Path, name: str) -> None:
    before = corpus.OF_VERSION_2[name]
    path = write(tmp_path, before)
    assert len(install(path)) == 1
    text = Path(path).read_bytes().decode()
    assert text.startswith(before or "")
    assert {"runc", "pywasm"} <= runtimes(path).keys()
    assert install(path) == []
    apply(configuration.uninstall(configuration.load(path)))
    if before:
        newline = "" if before.endswith("\n") else "\n"
        assert Path(path).read_bytes().decode() == before + newline
    else:
        assert not Path(path).exists()
    assert configuration.uninstall(configuration.load(path)) == []


def test_a_block_follows_what_it_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, corpus.KUBEADM)
    install(path)
    options: dict[str, str | int | bool] = {"SystemdCgroup": False, "Engine": "wasmtime"}
    install(path, Runtime("wasm", ("a.*", 'b"'), options))
    assert runtimes(path) == {
        "runc": {"runtime_type": "io.containerd.runc.v2", "options": {"SystemdCgroup": True}},
        "wasm": {
            "runtime_type": "io.containerd.pywasm.v1",
            "pod_annotations": ["a.*", 'b"'],
            "container_annotations": ["a.*", 'b"'],
            "options": options,
        },
    }


def test_of_the_default_runtimes_options_only_the_program_is_taken_over(tmp_path: Path) -> None:
    path = write(tmp_path, corpus.GPU)
    install(path)
    program = {"BinaryName": "/usr/bin/gpu-container-runtime"}
    assert runtimes(path)["pywasm"]["options"] == program
    install(path, Runtime(sandboxer="shim"))
    assert "options" not in runtimes(path)["pywasm"]


def test_an_upgrade_rewrites_an_old_table_of_options(tmp_path: Path) -> None:
    path = write(tmp_path, corpus.KUBEADM)
    install(path, Runtime(options={"SystemdCgroup": True}))
    assert runtimes(path)["pywasm"]["options"] == {"SystemdCgroup": True}
    assert [change.path for change in install(path)] == [path]
    assert "options" not in runtimes(path)["pywasm"]
    assert install(path) == []


def test_the_old_names_for_an_old_file(tmp_path: Path) -> None:
    path = write(tmp_path, corpus.VERSION_1)
    install(path)
    assert runtimes(path, "cri").keys() == {"runc", "pywasm"}


def test_of_what_is_imported_the_last_table_counts_in_version_2(tmp_path: Path) -> None:
    path = write(tmp_path, corpus.KUBEADM.replace("\n\n", '\nimports = ["conf.d/*.toml"]\n', 1))
    write(tmp_path, "[debug]\nlevel = 'info'\n", "conf.d/10.toml")
    last = write(
        tmp_path, f"[{CRI}.gpu]\nruntime_type = 'io.containerd.runc.v2'\n", "conf.d/20.toml"
    )
    write(tmp_path, "oom_score = -999\n", "conf.d/30.toml")
    assert [change.path for change in install(path)] == [last]
    assert runtimes(last).keys() == {"gpu", "pywasm"}
    # A later table hides ours: it has to move, and leaves nothing behind.
    new = write(
        tmp_path, f"[{CRI}.new]\nruntime_type = 'io.containerd.runc.v2'\n", "conf.d/40.toml"
    )
    assert {change.path for change in install(path)} == {last, new}
    assert runtimes(last).keys() == {"gpu"}
    assert runtimes(new).keys() == {"new", "pywasm"}


def test_a_file_of_our_own_where_version_3_imports_one(tmp_path: Path) -> None:
    imports = 'imports = ["conf.d/*.toml"]\n'
    path = write(tmp_path, corpus.VERSION_3.replace("version = 3\n", "version = 3\n" + imports))
    before = Path(path).read_text()
    (tmp_path / "conf.d").mkdir()
    own = tmp_path / "conf.d/50-pywasm.toml"
    assert [change.path for change in install(path)] == [str(own)]
    assert msgspec.toml.decode(own.read_text(), type=dict)["version"] == 3
    assert runtimes(str(own), "io.containerd.cri.v1.runtime") == {
        "pywasm": {
            "runtime_type": "io.containerd.pywasm.v1",
            "pod_annotations": ["dev.pywasm.*", "dev.pywasm.*/*"],
            "container_annotations": ["dev.pywasm.*", "dev.pywasm.*/*"],
        }
    }
    assert Path(path).read_text() == before
    assert install(path) == []
    apply(configuration.uninstall(configuration.load(path)))
    assert not own.exists()


def test_a_generated_file_is_left_alone_but_may_import_ours(tmp_path: Path) -> None:
    head = "# File generated by k3s. DO NOT EDIT. Use config.toml.tmpl instead.\n"
    path = write(tmp_path, head + corpus.KUBEADM)
    with pytest.raises(ConfigurationError, match=r"generated .*--print"):
        install(path)
    imports = f'imports = ["{tmp_path}/config-v3.toml.d/*.toml"]\n'
    path = write(tmp_path, head + imports + corpus.VERSION_3)
    (tmp_path / "config-v3.toml.d").mkdir()
    assert [Path(change.path).name for change in install(path)] == ["50-pywasm.toml"]


REFUSED = {
    "not TOML": ("version = \n", "not TOML"),
    "a template": ('{{ template "base" . }}\n', "not TOML \\(a template\\?\\)"),
    "no CRI": ('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n', "no Kubernetes"),
    "Docker's": ('disabled_plugins = ["cri"]\n', "no Kubernetes"),
    "theirs": (f'version = 2\n[{CRI}.pywasm]\nruntime_type = "x"\n', "did not write"),
    "inline": (
        'version = 2\nplugins."io.containerd.grpc.v1.cri".containerd.runtimes = {runc = {}}\n',
        "have to be tables",
    ),
    "strange version": ('version = "2"\n', "version: expected a number"),
    "no table": ("version = 2\nplugins = 3\n", "plugins: expected a table"),
    "missing import": ('version = 2\nimports = ["nowhere.toml"]\n', "nowhere.toml: No such file"),
    "half a block": ("version = 2\n# pywasm: end.\n", "do not belong together"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    text, message = REFUSED[name]
    path = write(tmp_path, text)
    with pytest.raises(ConfigurationError, match=message) as caught:
        install(path)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert Path(path).read_text() == text


def test_a_handler_has_to_be_a_name_for_kubernetes(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="RuntimeClass"):
        install(write(tmp_path, ""), Runtime("Py_Wasm"))
