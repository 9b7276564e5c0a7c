"""A damaged file in the artifact cache, which must not be loaded as what it was."""

from __future__ import annotations

import os
import struct

from shim.engines.cache import _REFUSAL, Artifact, ArtifactCache, Refusal, _write, write_artifact
from tests.fuzz.source import Source, scratch

_KEY = bytes(range(32))
_ARTIFACT = b"native code" * 3
_DIRECTORY = os.open(scratch(), os.O_RDONLY)


def _files() -> list[bytes]:
    """What the cache itself writes: an artifact, a refusal, and an artifact under another key."""
    found = []
    for key, content in ((_KEY, _ARTIFACT), (_KEY, None), (_KEY[::-1], _ARTIFACT)):
        fd = os.memfd_create("file")
        if content is None:
            _write(fd, _REFUSAL, key, b"too young")
        else:
            write_artifact(fd, key, content)
        found.append(os.pread(fd, 1 << 12, 0))
        os.close(fd)
    return found


_FILES = _files()

SEEDS = [
    b"\0",
    b"\1",
    b"\2",
    b"\0\1\0\5\1x",
    b"\0\1\x28\0\0\0",
    b"\0\3",
    *(struct.pack("<BB", 3, len(file)) + file for file in _FILES),
]


def fuzz(data: bytes) -> None:
    """Take one of the files, or a new one, and edits: an offset, how much goes, what comes."""
    source = Source(data)
    which = source.number() % 4
    file = bytearray(_FILES[which] if which < 3 else source.string())
    while source:
        start = source.number() % (len(file) + 1)
        file[start : start + source.number() % 64] = source.string(64)
    content = bytes(file)
    reports: list[str] = []
    opened = ArtifactCache(_DIRECTORY, report=reports.append)
    name = _KEY.hex()
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o444, dir_fd=_DIRECTORY)
    os.write(fd, content)
    os.close(fd)
    found = opened.load(_KEY)
    if isinstance(found, Artifact):
        loaded = found.read()
        found.close()
        assert content == _FILES[0], "something else than what was stored"
        assert loaded == _ARTIFACT
    elif isinstance(found, Refusal):
        assert content == _FILES[1]
    else:
        assert content not in _FILES[:2]
        assert len(reports) == 1, "why it was thrown away"
        assert name not in os.listdir(_DIRECTORY)
