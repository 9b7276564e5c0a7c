"""A registry that images can be pulled from. Runs as a process: `registry.py DIRECTORY PORT`.

The directory has the files that a client asks for, below the paths it asks for them with
(distribution-spec, "Pulling manifests", "Pulling blobs"); `add` puts an image there.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import sys
import tarfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def add(directory: str, repository: str, tag: str, layout: bytes) -> None:
    """Add the image of a layout in a tar file (image-spec, image-layout.md) under a name."""
    blobs = {}
    with tarfile.open(fileobj=io.BytesIO(layout)) as tar:
        for member in tar:
            if file := tar.extractfile(member):
                blobs[member.name] = file.read()
    (described,) = json.loads(blobs["index.json"])["manifests"]
    manifest = blobs["blobs/" + described["digest"].replace(":", "/")]
    for kind, names in {"manifests": (tag, described["digest"]), "blobs": ()}.items():
        os.makedirs(f"{directory}/v2/{repository}/{kind}", exist_ok=True)
        for name in names:
            _write(f"{directory}/v2/{repository}/{kind}/{name}", manifest)
    for data in blobs.values():
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        _write(f"{directory}/v2/{repository}/blobs/{digest}", data)


def _write(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


class _Handler(SimpleHTTPRequestHandler):
    def guess_type(self, path: str | os.PathLike[str]) -> str:
        return _MANIFEST if "/manifests/" in str(path) else "application/octet-stream"


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # clients pull images at the same time


def main(directory: str, port: str) -> None:
    """Serve a directory on the loopback interface."""
    handler = functools.partial(_Handler, directory=directory)
    _Server(("127.0.0.1", int(port)), handler).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
