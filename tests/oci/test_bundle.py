import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from oci.bundle import MAX_SIZE, Outline, OutlineNamespace, read_outline, read_spec
from oci.decoding import SpecError

CONFIG = {
    "ociVersion": "1.2.0",
    "process": {"terminal": True, "args": ["/a.wasm", 7], "env": ["A=1"], "cwd": "/"},
    "root": {"path": "rootfs", "readonly": True},
    "annotations": {"io.kubernetes.cri.sandbox-id": "abc"},
    "linux": {
        "namespaces": [{"type": "pid"}, {"type": "network", "path": "/proc/1/ns/net"}],
        "cgroupsPath": "/k8s.io/abc",
    },
}


def bundle(tmp_path: Path, config: object) -> str:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


def test_outline_does_not_judge_the_rest(tmp_path: Path) -> None:
    assert read_outline(bundle(tmp_path, CONFIG)) == Outline(
        annotations={"io.kubernetes.cri.sandbox-id": "abc"},
        namespaces=(
            OutlineNamespace(type="pid"),
            OutlineNamespace(type="network", path="/proc/1/ns/net"),
        ),
        cgroups_path="/k8s.io/abc",
        terminal=True,
        root_path="rootfs",
        oci_version="1.2.0",
    )
    with pytest.raises(SpecError, match=r"^process.args\[1\]: expected str, got int$"):
        read_spec(str(tmp_path))


def test_directory_descriptor(tmp_path: Path) -> None:
    directory = os.open(
        bundle(tmp_path, MINIMAL := {"process": {}, "root": {"path": "x"}}), os.O_PATH
    )
    try:
        assert read_outline(directory) == Outline(root_path="x")
        assert read_spec(directory).root.path == MINIMAL["root"]["path"]
    finally:
        os.close(directory)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"annotations": None, "linux": None, "process": None, "root": None},
        {"linux": {"namespaces": None, "cgroupsPath": None}, "process": {"terminal": None}},
    ],
)
def test_outline_of_nothing(tmp_path: Path, config: object) -> None:
    assert read_outline(bundle(tmp_path, config)) == Outline()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"annotations": {"a": "", "b": 1}}, 'annotations["b"]: expected str, got int'),
        ({"annotations": {"b": 1}, "process": 1}, "annotations[...]: expected str, got int"),
        ({"annotations": None, "process": 1}, "process: expected object, got int"),
        ({"linux": {"namespaces": [{}, {"path": 1}]}}, "linux.namespaces[1].path: expected str"),
        ({"linux": {"cgroupsPath": "a\0b"}}, "linux.cgroupsPath: contains a NUL character"),
        ([], "config.json: expected object, got array"),
    ],
)
def test_outline_errors(tmp_path: Path, config: object, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_outline(bundle(tmp_path, config))
    assert str(caught.value).startswith(message)


def test_files_that_are_no_config(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    with pytest.raises(SpecError, match=f"^config.json: No such file or directory in {tmp_path}$"):
        read_outline(str(tmp_path))
    os.mkfifo(config)  # would block whoever opened it plainly
    with pytest.raises(SpecError, match=r"^config.json: not a regular file$"):
        read_spec(str(tmp_path))
    config.unlink()
    config.touch()
    with pytest.raises(SpecError, match=r"^config.json: empty$"):
        read_outline(str(tmp_path))
    os.truncate(config, MAX_SIZE + 1)
    with pytest.raises(SpecError, match=r"^config.json: larger than 16777216 bytes$"):
        read_outline(str(tmp_path))


# Looks for a string, given backwards, in all memory of the process itself.
SEARCH = """
import re, sys
from oci import bundle
read, path, backwards = sys.argv[1:]
try:
    result = getattr(bundle, read)(path)
except bundle.SpecError as error:
    result = error
del sys.argv[3]
found = 0
with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
    for line in maps:
        start, end = (int(x, 16) for x in line.split()[0].split("-"))
        if "w" in line.split()[1]:
            memory.seek(start)
            content = memory.read(end - start)
            for match in re.findall(rb"s3cr3t-[0-9a-f]{32}", content):
                found += match[::-1].decode() == backwards
            del content
print(found)
"""


@pytest.mark.parametrize(
    ("read", "annotations", "found"),
    [
        ("read_spec", {"a": "b"}, True),  # the search does find what is there
        ("read_outline", {"a": "b"}, False),
        ("read_outline", None, False),
        ("read_outline", {"a": 1}, False),
        ("read_outline", {"a": "\0"}, False),
    ],
)
def test_secrets_stay_out_of_memory(
    tmp_path: Path, read: str, annotations: object, found: bool
) -> None:
    secret = "s3cr3t-" + os.urandom(16).hex()
    process = {"args": [secret], "env": [f"A={secret}", "B=\N{SNOWMAN}" + secret], secret: secret}
    path = bundle(tmp_path, {**CONFIG, "process": process, "annotations": annotations})
    result = subprocess.run(
        [sys.executable, "-c", SEARCH, read, path, secret[::-1]], check=True, stdout=subprocess.PIPE
    )
    assert (int(result.stdout) > 0) is found
