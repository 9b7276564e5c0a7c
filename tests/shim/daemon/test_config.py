import json
from pathlib import Path

import pytest

from shim.daemon import config
from shim.engines import engines


def test_a_node_without_the_file_has_the_defaults(tmp_path: Path) -> None:
    assert config.read(str(tmp_path / "config.toml")) == config.Config(engine="")


def test_the_engine_of_the_node(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    for engine in engines():
        path.write_text(f'# ours\nengine = "{engine.name}"\n')
        assert config.read(str(path)).engine == engine.name


def test_engines_that_may_be_demanded_for_any_module(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("")
    assert config.read(str(path)).unsafe_engines == ()
    names = tuple(engine.name for engine in engines())
    path.write_text(f"unsafe_engines = {json.dumps(names)}\n")
    assert config.read(str(path)).unsafe_engines == names


def test_pages_are_merged_only_where_it_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("")
    assert not config.read(str(path)).merge_pages
    path.write_text("merge_pages = true\n")
    assert config.read(str(path)).merge_pages


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        (b"engine = ", "Invalid value"),
        (b"engine = 3", "engine"),
        (b"merge_pages = 1", "merge_pages"),
        (b'engine = "v8"', "v8"),
        (b'unsafe_engines = "wasmtime"', "unsafe_engines"),
        (b'unsafe_engines = ["wasmtime", "v8"]', "v8"),
        (b'unsafe_engines = [""]', "unsafe_engines"),
        (b'enigne = "wasmer"', "enigne"),
        (b'engine = "\xff"', "0xff"),
        (b'forbid = "handler"', "forbid"),
        (b"forbid = [3]", "forbid[0]"),
        (b'forbid = ["handler", "handel=native"]', "no annotation 'handel'"),
        (b'forbid = ["handler/web"]', "no annotation 'handler/web'"),
        (b'forbid = ["dev.pywasm.handler"]', "no annotation"),
        (b'forbid = ["handler=natve"]', "expected wasm, native or auto, got 'natve'"),
        (b'forbid = ["handler="]', "expected wasm, native or auto, got ''"),
        (b'forbid = ["handler=auto"]', "containers without the annotation have it so"),
        (b'forbid = ["network=on"]', "containers without the annotation have it so"),
        (b'forbid = ["listen=tcp://0.0.0.0:80"]', "listen can only be forbidden as a whole"),
    ],
)
def test_a_mistake_is_an_error_that_names_it(tmp_path: Path, text: bytes, culprit: str) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(text)
    with pytest.raises(config.ConfigError) as caught:
        config.read(str(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert culprit in message
    assert "\n" not in message


def test_a_directory_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match="directory"):
        config.read(str(tmp_path))


def test_an_engine_that_is_not_safe_is_allowed_by_name() -> None:
    name = "wasmer-singlepass"
    for settings, runtime in ((config.Config(engine=name), ""), (config.Config(), name)):
        with pytest.raises(config.ConfigError, match="a module can write beyond its stack"):
            config.preferred(settings, runtime)
    allowed = config.Config(engine=name, unsafe_engines=(name,))
    assert config.preferred(allowed, "") == name
    assert config.preferred(allowed, "wasmtime") == "wasmtime"
