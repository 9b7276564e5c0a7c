"""A container's config.json, or the JSON of an Exec or Update request, of any bytes."""

import json
import os

from oci.bundle import Outline, read_outline, read_spec
from oci.decoding import SpecError
from oci.runtime import Spec, decode_process, decode_resources
from shim.guest import annotations
from tests.fuzz.source import scratch
from tests.oci.test_runtime import FULL

_BUNDLE = scratch()
_CONFIG = os.path.join(_BUNDLE, "config.json")

_PLAIN = {"process": {"args": ["a"], "env": None}, "root": {"path": "r"}}
_OURS = {
    "engine": "wasmer",
    "listen": "tcp://0.0.0.0:80,tcp://[::1]:81?nonblock",
    "memory-pages": "16",
    "time-limit": "1m30s",
    "preopens": "a=/b:ro",
    "kernel-filesystems": "proc,sysfs",
    "network": "on",
    "rootfs": "off",
}

SEEDS = [
    json.dumps(document).encode()
    for document in (
        *(_PLAIN | {"annotations": {f"dev.pywasm.{key}": value}} for key, value in _OURS.items()),
        _PLAIN,
        _PLAIN | {"linux": {"sysctl": {"a": 1}}},
        _PLAIN | {"annotations": {"a": "\0", "\0": "b"}},
        _PLAIN | {"hooks": {"prestart": [{"path": "/h", "timeout": -1}]}},
        FULL,
        FULL["process"],
        FULL["linux"]["resources"],
    )
]


def fuzz(data: bytes) -> None:
    """Decode the input as each of these documents; only SpecError may say no."""
    for decoder in (decode_process, decode_resources):
        try:
            decoder(data)
        except SpecError as error:
            _check(error)
    with open(_CONFIG, "wb") as file:
        file.write(data)
    whole = outline = None
    try:
        whole = read_spec(_BUNDLE)
    except SpecError as error:
        _check(error)
    try:
        outline = read_outline(_BUNDLE)
    except SpecError as error:
        _check(error)
    if whole is not None and not _repeats(data):
        assert outline is not None, "the outline refuses what the whole takes"
        compare(whole, outline)
    if outline is not None:
        try:
            found = annotations.read(outline.annotations)
        except SpecError as error:
            _check(error)
        else:
            assert found.memory_pages is None or 0 < found.memory_pages <= annotations.MAX_PAGES


def compare(whole: Spec, outline: Outline) -> None:
    """Check that a spec and its outline say the same."""
    assert outline.annotations == whole.annotations
    assert outline.cgroups_path == whole.linux.cgroups_path
    assert outline.terminal == whole.process.terminal
    assert outline.console_size == whole.process.console_size
    assert outline.root_path == whole.root.path
    assert outline.oci_version == whole.oci_version
    assert outline.time_offsets == whole.linux.time_offsets
    assert [(n.type, n.path) for n in outline.namespaces] == [
        (n.type, n.path) for n in whole.linux.namespaces
    ]
    for kind in ("prestart", "create_runtime", "poststart", "poststop"):
        assert getattr(outline.hooks, kind) == getattr(whole.hooks, kind)


def _repeats(data: bytes) -> bool:
    """Tell whether a key is given twice: of two values the last counts, but both are judged."""
    repeated = False

    def look(pairs: list[tuple[str, object]]) -> None:
        nonlocal repeated
        repeated |= len(dict(pairs)) < len(pairs)

    try:
        json.loads(data.decode(errors="replace"), object_pairs_hook=look)
    except ValueError:
        return True  # in what is passed over, some things pass that are no JSON
    return repeated


def _check(error: SpecError) -> None:
    assert str(error).isprintable(), "an error is one line"
