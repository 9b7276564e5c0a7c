"""OCI images built from nothing but a dictionary of files: library for tests, demo, benchmark.

The result is an image layout in a tar file (image-spec, image-layout.md), ready for
`ctr images import`, the same bytes every time.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# `ctr run` picks the image's manifest by the platform of the host, so the images here claim to be
# for that, although a wasm module would run anywhere.
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


@dataclass(frozen=True)
class File:
    """One file of an image."""

    data: bytes
    mode: int = 0o644
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True)
class Link:
    """A further name of a file of an image."""

    target: str


@dataclass(frozen=True)
class Image:
    """An image layout, and what a client needs to know to use it without unpacking."""

    name: str
    tar: bytes
    chain_id: str  # names the unpacked snapshot


def build(
    name: str,
    files: Mapping[str, File | Link | bytes],
    *,
    entrypoint: Sequence[str] = (),
    env: Sequence[str] = (),
    cwd: str = "/",
    user: str = "",
) -> Image:
    """Make an image of one layer. `name` is a full reference such as `localhost/hello:1`."""
    return of_layer(name, _layer(files), entrypoint=entrypoint, env=env, cwd=cwd, user=user)


def of_layer(
    name: str,
    layer: bytes,
    *,
    entrypoint: Sequence[str] = (),
    env: Sequence[str] = (),
    cwd: str = "/",
    user: str = "",
) -> Image:
    """Make an image of a layer, which is a tar file."""
    diff_id = _digest(layer)
    config = _json(
        {
            "architecture": ARCHITECTURE,
            "os": "linux",
            "config": {
                "Entrypoint": list(entrypoint),
                "Env": list(env),
                "WorkingDir": cwd,
                "User": user,
            },
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [{"created_by": "tests/integration/images.py"}],
        }
    )
    kind = "application/vnd.oci.image"
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{kind}.manifest.v1+json",
            "config": _descriptor(f"{kind}.config.v1+json", config),
            "layers": [_descriptor(f"{kind}.layer.v1.tar", layer)],
        }
    )
    pointer = _descriptor(f"{kind}.manifest.v1+json", manifest)
    pointer["platform"] = {"architecture": ARCHITECTURE, "os": "linux"}
    pointer["annotations"] = {
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rpartition(":")[2],
    }
    index = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{kind}.index.v1+json",
            "manifests": [pointer],
        }
    )
    content: dict[str, File | Link] = {
        "oci-layout": File(_json({"imageLayoutVersion": "1.0.0"})),
        "index.json": File(index),
    }
    for blob in (config, manifest, layer):
        content["blobs/" + _digest(blob).replace(":", "/")] = File(blob)
    return Image(name, _tar(content), diff_id)


def _layer(files: Mapping[str, File | Link | bytes]) -> bytes:
    return _tar({path: File(f) if isinstance(f, bytes) else f for path, f in files.items()})


def _tar(files: Mapping[str, File | Link]) -> bytes:
    directories = {
        "/".join(parts[:depth])
        for parts in (path.strip("/").split("/") for path in files)
        for depth in range(1, len(parts))
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(directories):
            info = tarfile.TarInfo(path)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        # A link comes after what it is a name of.
        for path, file in sorted(files.items(), key=lambda item: (type(item[1]) is Link, item[0])):
            info = tarfile.TarInfo(path.strip("/"))
            if isinstance(file, Link):
                info.type, info.linkname = tarfile.LNKTYPE, file.target
                data, owner = b"", files[file.target]
            else:
                data, owner = file.data, file
            assert isinstance(owner, File)
            info.size, info.mode, info.uid, info.gid = len(data), owner.mode, owner.uid, owner.gid
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}
