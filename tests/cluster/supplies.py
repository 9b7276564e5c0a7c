"""What the cluster pulls: the installer in two versions, the samples' images, guests. Library.

Runs in the process that starts the node: to make an installation takes the network.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import shim
from tests.cri import registry
from tests.cri.node import pause_image
from tests.guests.build import build
from tests.integration import images
from tests.integration.images import File, Link

ROOT = Path(__file__).parents[2]
PREFIX = "/opt/pywasm"

PAUSE = "registry.test/pause:1"
INSTALLER = "registry.test/pywasm-installer"
VERSION, NEXT_VERSION = shim.__version__, f"{shim.__version__}.post1"
GUESTS = "registry.test/guests:1"

_WASM = ("bombs", "cat", "exit3", "hello", "http_listen", "idle", "probe", "spin", "trap")
_NATIVE = ("hello", "http_native")
_SOURCE = (
    *("LICENSE", "pyproject.toml", "requirements.txt", "requirements-dev.txt"),
    *("oci", "proto", "scripts", "shim"),
)

# What is made has to be made at the path where it will be, and /opt may not even be ours to write.
_BUNDLE = f"""\
set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work"
mount -t overlay -o "lowerdir=/opt,upperdir=$1/upper,workdir=$1/work" overlay /opt
mkdir -p {PREFIX}
mount --bind "$2" {PREFIX}
exec "$3/scripts/bundle" {PREFIX}
"""


def provide(directory: str, busybox: str) -> None:
    """Put all images into the directory of a registry; `busybox` is a static one."""
    wasm = {f"{name}.wasm": File(build(name).read_bytes()) for name in _WASM}
    native = {name: File(build(name, native=True).read_bytes(), mode=0o755) for name in _NATIVE}
    content = {"content": File(b"the content\n")}
    # As deploy/samples/Containerfile has it.
    sample = {name: wasm[name] for name in ("http_listen.wasm", "hello.wasm")} | content
    applets = subprocess.run([busybox, "--list"], stdout=subprocess.PIPE, text=True, check=True)
    program = File(Path(busybox).read_bytes(), mode=0o755)
    names = {f"bin/{applet}": Link("bin/busybox") for applet in applets.stdout.split()}
    made = {
        PAUSE: pause_image(),
        "library/wasm-http:1": images.build("any:1", sample, entrypoint=["/http_listen.wasm"]),
        "library/busybox:1.36": images.build(
            "any:1", {**names, "bin/busybox": program}, entrypoint=["sh"], env=["PATH=/bin"]
        ),
        GUESTS: images.build("any:1", {**wasm, **native, **content}),
        **{f"{INSTALLER}:{version}": installer(version) for version in (VERSION, NEXT_VERSION)},
    }
    for name, image in made.items():
        repository, _, tag = name.removeprefix("registry.test/").rpartition(":")
        registry.add(directory, repository, tag, image.tar)


def installer(version: str) -> images.Image:
    """The image that deploy/Containerfile describes, of this source tree under a version."""
    source = ROOT
    if version != VERSION:
        source = ROOT / "build/cluster/source"
        _copy_source(source, version)
    kept, scratch = (ROOT / f"build/cluster/{name}" for name in ("installations", "scratch"))
    for path in (kept, scratch):
        path.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", _BUNDLE, "-", str(scratch), str(kept), str(source)],
        env={**os.environ, "PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    installation = done.stdout.strip()
    for path in kept.glob(f"{version}-*"):
        if path.name != Path(installation).name:
            shutil.rmtree(path)  # of sources that have changed since
    return images.of_layer("any:1", _layer(kept, installation), entrypoint=["/pywasm/bin/pywasm"])


def _copy_source(target: Path, version: str) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in _SOURCE:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, target / name)
    package = target / "shim/__init__.py"
    package.write_text(package.read_text().replace(f'"{VERSION}"', f'"{version}"'))


def _layer(kept: Path, installation: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(kept / Path(installation).name, installation)
        for name, kind, target in (
            ("tmp", tarfile.DIRTYPE, ""),
            ("pywasm", tarfile.SYMTYPE, installation),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode = kind, target, 0o1777
            tar.addfile(info)
    return buffer.getvalue()
