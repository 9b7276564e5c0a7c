"""wasi:filesystem 0.3: what is not a stream is 0.2's, in other words (library; in the guest).

No call on a file is awaited: a disk has no readiness to wait for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Final

from shim.component.host import Interface
from shim.component.streams import COMPLETED, DROPPED, AnyBuffer, Promise, Shared, SharedStream
from shim.component.types import U8
from shim.wasi import words
from shim.wasi.descriptors import Descriptor
from shim.wasi.p2 import filesystem as p2
from shim.wasi.p3.bytes import Reading, Writing, nothing
from shim.wasi.p3.clocks import SYSTEM
from shim.wasi.program import Program

_ENTRIES: Final = 64  # that are handed over at a time

Case = tuple[str, Any]


def _error(error: Exception) -> Case:
    label = words.file_error(error)
    # 0.3 has no word for it: whoever has to wait there does.
    return ("other", "would block") if label == "would-block" else (label, None)


TYPES: Final = Interface("wasi:filesystem/types", "0.3", errors=_error)
TYPES.use(SYSTEM, "instant")
TYPES.type("filesize", "u64")
TYPES.type("link-count", "u64")
TYPES.type(
    "descriptor-type",
    "variant { block-device, character-device, directory, fifo, symbolic-link, regular-file,"
    " socket, other(option<string>) }",
)
TYPES.type(
    "descriptor-flags",
    "flags { read, write, file-integrity-sync, data-integrity-sync, requested-write-sync,"
    " mutate-directory }",
)
TYPES.type(
    "descriptor-stat",
    "record { type: descriptor-type, link-count: link-count, size: filesize,"
    " data-access-timestamp: option<instant>, data-modification-timestamp: option<instant>,"
    " status-change-timestamp: option<instant> }",
)
TYPES.type("path-flags", "flags { symlink-follow }")
TYPES.type("open-flags", "flags { create, directory, exclusive, truncate }")
TYPES.type("new-timestamp", "variant { no-change, now, timestamp(instant) }")
_ENTRY: Final = TYPES.type("directory-entry", "record { type: descriptor-type, name: string }")
TYPES.type(
    "error-code",
    "variant { access, already, bad-descriptor, busy, deadlock, quota, exist, file-too-large,"
    " illegal-byte-sequence, in-progress, interrupted, invalid, io, is-directory, loop,"
    " too-many-links, message-size, name-too-long, no-device, no-entry, no-lock,"
    " insufficient-memory, insufficient-space, not-directory, not-empty, not-recoverable,"
    " unsupported, no-tty, no-such-device, overflow, not-permitted, pipe, read-only, invalid-seek,"
    " text-file-busy, cross-device, other(option<string>) }",
)
TYPES.type("advice", "enum { normal, sequential, random, will-need, dont-need, no-reuse }")
TYPES.type("metadata-hash-value", "record { lower: u64, upper: u64 }")
TYPES.resource("descriptor", Descriptor.close)
_RESULT: Final = TYPES.parse("result<_, error-code>")

PREOPENS: Final = Interface("wasi:filesystem/preopens", "0.3")
PREOPENS.use(TYPES, "descriptor")

INTERFACES: Final = (TYPES, PREOPENS)

PREOPENS.function("get-directories", "func() -> list<tuple<descriptor, string>>")(
    p2.get_directories
)


def _type(label: str) -> Case:
    return ("other", None) if label == "unknown" else (label, None)


def _typed(call: Callable[..., str]) -> Callable[..., Case]:
    """Return a function that says a type in the words of 0.3."""

    @wraps(call)
    def typed(*arguments: Any) -> Case:
        return _type(call(*arguments))

    return typed


def _stat(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that says a file's attributes in the words of 0.3."""

    @wraps(call)
    def stat(*arguments: Any) -> Any:
        label, *rest = call(*arguments)
        return _type(label), *rest

    return stat


_AT: Final = "path-flags: path-flags, path: string"
_TIMES: Final = "data-access-timestamp: new-timestamp, data-modification-timestamp: new-timestamp"
_RANGE: Final = "offset: filesize, length: filesize, advice: advice"
_LINK: Final = "old-path-flags: path-flags, old-path: string, new-descriptor: borrow<descriptor>"
_RENAME: Final = "old-path: string, new-descriptor: borrow<descriptor>, new-path: string"

for _name, _parameters, _ok, _call in (
    ("advise", _RANGE, "_", p2.advise),
    ("sync-data", "", "_", p2.sync_data),
    ("get-flags", "", "descriptor-flags", p2.get_flags),
    ("get-type", "", "descriptor-type", _typed(p2.get_type)),
    ("set-size", "size: filesize", "_", p2.set_size),
    ("set-times", _TIMES, "_", p2.set_times),
    ("sync", "", "_", p2.sync),
    ("create-directory-at", "path: string", "_", p2.create_directory_at),
    ("stat", "", "descriptor-stat", _stat(p2.stat)),
    ("stat-at", _AT, "descriptor-stat", _stat(p2.stat_at)),
    ("set-times-at", f"{_AT}, {_TIMES}", "_", p2.set_times_at),
    ("link-at", f"{_LINK}, new-path: string", "_", p2.link_at),
    (
        "open-at",
        f"{_AT}, open-flags: open-flags, %flags: descriptor-flags",
        "descriptor",
        p2.open_at,
    ),
    ("readlink-at", "path: string", "string", p2.readlink_at),
    ("remove-directory-at", "path: string", "_", p2.remove_directory_at),
    ("rename-at", _RENAME, "_", p2.rename_at),
    ("symlink-at", "old-path: string, new-path: string", "_", p2.symlink_at),
    ("unlink-file-at", "path: string", "_", p2.unlink_file_at),
    ("metadata-hash", "", "metadata-hash-value", p2.metadata_hash),
    ("metadata-hash-at", _AT, "metadata-hash-value", p2.metadata_hash_at),
):
    _all = "self: borrow<descriptor>" + (f", {_parameters}" if _parameters else "")
    TYPES.function(
        f"[method]descriptor.{_name}", f"async func({_all}) -> result<{_ok}, error-code>"
    )(_call)

TYPES.function(
    "[method]descriptor.is-same-object",
    "async func(self: borrow<descriptor>, other: borrow<descriptor>) -> bool",
)(p2.is_same_object)


def _refused(error: Exception) -> Shared:
    """Return how a stream went that could not begin."""
    outcome = Promise(_RESULT)
    outcome.keep(("error", _error(error)))
    return outcome.future


@TYPES.function(
    "[method]descriptor.read-via-stream",
    "func(self: borrow<descriptor>, offset: filesize)"
    " -> tuple<stream<u8>, future<result<_, error-code>>>",
)
def read_via_stream(program: Program, file: Descriptor, offset: int) -> tuple[Shared, Shared]:
    """Return what is in a file from an offset on, and how reading it went."""
    try:
        position = p2.readable(file, offset)
    except Exception as error:
        return nothing(U8), _refused(error)
    reading = Reading(program.reactor, file.share(), _RESULT, _error, position)
    return reading.shared, reading.outcome.future


@TYPES.function(
    "[method]descriptor.write-via-stream",
    "func(self: borrow<descriptor>, data: stream<u8>, offset: filesize)"
    " -> future<result<_, error-code>>",
)
def write_via_stream(program: Program, file: Descriptor, data: Shared, offset: int) -> Shared:
    """Write a stream from an offset on; return how that went."""
    return _write(program, file, data, offset)


@TYPES.function(
    "[method]descriptor.append-via-stream",
    "func(self: borrow<descriptor>, data: stream<u8>) -> future<result<_, error-code>>",
)
def append_via_stream(program: Program, file: Descriptor, data: Shared) -> Shared:
    """Write a stream at the end, wherever that is; return how that went."""
    return _write(program, file, data, -1)


def _write(program: Program, file: Descriptor, data: Shared, offset: int) -> Shared:
    try:
        position = p2.writable(file, offset)
    except Exception as error:
        data.drop()
        return _refused(error)
    writing = Writing(program.reactor, file.share(), _RESULT, _error, position)
    writing.drain(data)
    return writing.outcome.future


class _Entries:
    """The entries of a directory."""

    def __init__(self, stream: p2.EntryStream) -> None:
        self.outcome = Promise(_RESULT)
        self._stream: p2.EntryStream | None = stream

    def give(self, buffer: AnyBuffer) -> int:
        """See `Source.give`."""
        if self._stream is None:
            return DROPPED
        entries: list[tuple[Case, str]] = []
        try:
            while len(entries) < min(buffer.remaining, _ENTRIES):
                found = self._stream.next()
                if found is None:
                    break
                entries.append((_type(found[0]), found[1]))
        except Exception as error:
            self._end(("error", _error(error)))
        if not entries and buffer.remaining:
            self._end(("ok", None))
            return DROPPED
        buffer.write(entries)
        return COMPLETED

    def _end(self, outcome: Case) -> None:
        self.outcome.keep(outcome)
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def close(self) -> None:
        """See `Source.close`."""
        self._end(("ok", None))


@TYPES.function(
    "[method]descriptor.read-directory",
    "func(self: borrow<descriptor>)"
    " -> tuple<stream<directory-entry>, future<result<_, error-code>>>",
)
def read_directory(program: Program, directory: Descriptor) -> tuple[Shared, Shared]:
    """Return the entries of a directory, and how reading them went."""
    try:
        entries = _Entries(p2.EntryStream(directory))
    except Exception as error:
        return nothing(_ENTRY), _refused(error)
    return SharedStream(_ENTRY, entries), entries.outcome.future
