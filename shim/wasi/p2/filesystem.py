"""wasi:filesystem: descriptors are those of `shim.wasi` (library; runs in the guest)."""

from __future__ import annotations

import errno as linux
import os
from collections.abc import Iterator
from typing import Any, Final

from shim.component.host import Interface
from shim.wasi import files, paths, rights, words
from shim.wasi.descriptors import Descriptor
from shim.wasi.directory_stream import DirectoryStream
from shim.wasi.errors import NotCapable, failure
from shim.wasi.files import Attributes
from shim.wasi.filetypes import DIRECTORY, FILES
from shim.wasi.p2.clocks import WALL
from shim.wasi.p2.io import STREAMS, Error, InputStream, OutputStream
from shim.wasi.program import Program
from shim.wasi.resolution import whole
from shim.wasi.words import Stat

_READ: Final = 1 << 16  # bytes returned at most

Flags = frozenset[str]
NewTime = tuple[str, Any]
Entry = tuple[str, str]  # type and name


class EntryStream:
    """A directory that is being read. It has a position of its own."""

    __slots__ = ("_descriptor", "_entries")

    def __init__(self, directory: Descriptor) -> None:
        directory.need(rights.FD_READDIR)
        flags = os.O_RDONLY | os.O_DIRECTORY
        fd = os.open(b".", flags, dir_fd=directory.fd)
        self._descriptor = Descriptor(fd, DIRECTORY, rights.DIRECTORY)
        self._entries: Iterator[tuple[int, bytes]] = DirectoryStream(fd, _entry).entries(0)

    def next(self) -> Entry | None:
        """Return the next entry but `.` and `..`. Raises UnicodeDecodeError for a name of bytes."""
        for kind, name in self._entries:
            if name not in (b".", b".."):
                return words.TYPES[kind], name.decode()
        return None

    def close(self) -> None:
        """Close the directory."""
        self._descriptor.close()


def _entry(number: int, inode: int, kind: int, name: bytearray) -> tuple[int, bytes]:
    return kind, bytes(name)


TYPES: Final = Interface("wasi:filesystem/types", "0.2", errors=words.file_error)
TYPES.use(STREAMS, "input-stream", "output-stream", "error")
TYPES.use(WALL, "datetime")
TYPES.type("filesize", "u64")
TYPES.type(
    "descriptor-type",
    "enum { unknown, block-device, character-device, directory, fifo, symbolic-link, regular-file,"
    " socket }",
)
TYPES.type(
    "descriptor-flags",
    "flags { read, write, file-integrity-sync, data-integrity-sync, requested-write-sync,"
    " mutate-directory }",
)
TYPES.type("path-flags", "flags { symlink-follow }")
TYPES.type("open-flags", "flags { create, directory, exclusive, truncate }")
TYPES.type("link-count", "u64")
TYPES.type(
    "descriptor-stat",
    "record { type: descriptor-type, link-count: link-count, size: filesize,"
    " data-access-timestamp: option<datetime>, data-modification-timestamp: option<datetime>,"
    " status-change-timestamp: option<datetime> }",
)
TYPES.type("new-timestamp", "variant { no-change, now, timestamp(datetime) }")
TYPES.type("directory-entry", "record { type: descriptor-type, name: string }")
TYPES.type(
    "error-code",
    "enum { access, would-block, already, bad-descriptor, busy, deadlock, quota, exist,"
    " file-too-large, illegal-byte-sequence, in-progress, interrupted, invalid, io, is-directory,"
    " loop, too-many-links, message-size, name-too-long, no-device, no-entry, no-lock,"
    " insufficient-memory, insufficient-space, not-directory, not-empty, not-recoverable,"
    " unsupported, no-tty, no-such-device, overflow, not-permitted, pipe, read-only, invalid-seek,"
    " text-file-busy, cross-device }",
)
TYPES.type("advice", "enum { normal, sequential, random, will-need, dont-need, no-reuse }")
TYPES.type("metadata-hash-value", "record { lower: u64, upper: u64 }")
TYPES.resource("descriptor", Descriptor.close)
TYPES.resource("directory-entry-stream", EntryStream.close)

PREOPENS: Final = Interface("wasi:filesystem/preopens", "0.2")
PREOPENS.use(TYPES, "descriptor")

INTERFACES: Final = (TYPES, PREOPENS)


@PREOPENS.function("get-directories", "func() -> list<tuple<descriptor, string>>")
def get_directories(program: Program) -> list[tuple[Descriptor, str]]:
    """Return the directories that were granted, by name."""
    return [
        (directory.share(), (directory.preopen or b"").decode(errors="replace"))
        for directory in program.preopens
    ]


@TYPES.function("filesystem-error-code", "func(err: borrow<error>) -> option<error-code>")
def filesystem_error_code(program: Program, error: Error) -> str | None:
    """Return why a stream over a file has failed."""
    return words.FILE_ERRORS.get(error.reason.errno or 0)


def _path(text: str) -> bytes:
    return whole(text.encode())


def _file(descriptor: Descriptor, right: int) -> Descriptor:
    """Return a descriptor that has the right, and is of no directory; raises EBADF for one."""
    if descriptor.kind == DIRECTORY:
        raise failure(linux.EBADF)
    descriptor.need(right)
    return descriptor


def _position(descriptor: Descriptor, offset: int) -> int | None:
    """Return where in a descriptor to begin; None where it has no positions."""
    return offset if descriptor.kind in FILES else None


def readable(file: Descriptor, offset: int) -> int | None:
    """Return where a stream begins to read, as `_position`. Raises OSError for what cannot be."""
    if file.kind == DIRECTORY:
        raise failure(linux.EISDIR)
    file.need(rights.FD_READ)
    return _position(file, offset)


def writable(file: Descriptor, offset: int) -> int | None:
    """Return where a stream begins to write, -1 for the end. Raises OSError for what cannot be."""
    return _position(_file(file, rights.FD_WRITE), offset)


@TYPES.function(
    "[method]descriptor.read-via-stream",
    "func(self: borrow<descriptor>, offset: filesize) -> result<input-stream, error-code>",
)
def read_via_stream(program: Program, file: Descriptor, offset: int) -> InputStream:
    """Return a stream that reads from an offset on."""
    return InputStream(file.share(), readable(file, offset))


@TYPES.function(
    "[method]descriptor.write-via-stream",
    "func(self: borrow<descriptor>, offset: filesize) -> result<output-stream, error-code>",
)
def write_via_stream(program: Program, file: Descriptor, offset: int) -> OutputStream:
    """Return a stream that writes from an offset on."""
    return OutputStream(file.share(), writable(file, offset))


@TYPES.function(
    "[method]descriptor.append-via-stream",
    "func(self: borrow<descriptor>) -> result<output-stream, error-code>",
)
def append_via_stream(program: Program, file: Descriptor) -> OutputStream:
    """Return a stream that writes at the end, wherever that is."""
    return OutputStream(file.share(), writable(file, -1))


@TYPES.function(
    "[method]descriptor.advise",
    "func(self: borrow<descriptor>, offset: filesize, length: filesize, advice: advice)"
    " -> result<_, error-code>",
)
def advise(program: Program, file: Descriptor, offset: int, length: int, advice: str) -> None:
    """Tell the kernel how a range will be used."""
    how = files.ADVICE[words.ADVICE[advice]]
    files.advise(_file(file, rights.FD_ADVISE), offset, length, how)


@TYPES.function(
    "[method]descriptor.sync-data", "func(self: borrow<descriptor>) -> result<_, error-code>"
)
def sync_data(program: Program, descriptor: Descriptor) -> None:
    """Write data to the disk."""
    files.synchronize_data(descriptor)


@TYPES.function(
    "[method]descriptor.sync", "func(self: borrow<descriptor>) -> result<_, error-code>"
)
def sync(program: Program, descriptor: Descriptor) -> None:
    """Write data and metadata to the disk."""
    files.synchronize(descriptor)


@TYPES.function(
    "[method]descriptor.get-flags",
    "func(self: borrow<descriptor>) -> result<descriptor-flags, error-code>",
)
def get_flags(program: Program, descriptor: Descriptor) -> Flags:
    """Return what a descriptor may be used for."""
    return words.flags_of(descriptor)


@TYPES.function(
    "[method]descriptor.get-type",
    "func(self: borrow<descriptor>) -> result<descriptor-type, error-code>",
)
def get_type(program: Program, descriptor: Descriptor) -> str:
    """Return what a descriptor is of."""
    return words.TYPES[descriptor.kind]


@TYPES.function(
    "[method]descriptor.set-size",
    "func(self: borrow<descriptor>, size: filesize) -> result<_, error-code>",
)
def set_size(program: Program, file: Descriptor, size: int) -> None:
    """Cut a file off, or extend it with zeros."""
    files.set_size(_file(file, rights.FD_FILESTAT_SET_SIZE), size)


@TYPES.function(
    "[method]descriptor.set-times",
    "func(self: borrow<descriptor>, data-access-timestamp: new-timestamp,"
    " data-modification-timestamp: new-timestamp) -> result<_, error-code>",
)
def set_times(
    program: Program, descriptor: Descriptor, access: NewTime, modification: NewTime
) -> None:
    """Set the times of access and modification."""
    files.set_times_of(descriptor, words.new_time(access), words.new_time(modification))


@TYPES.function(
    "[method]descriptor.read",
    "func(self: borrow<descriptor>, length: filesize, offset: filesize)"
    " -> result<tuple<list<u8>, bool>, error-code>",
)
def read(program: Program, file: Descriptor, length: int, offset: int) -> tuple[bytes, bool]:
    """Return what is at an offset, and whether that is the end."""
    fd = _file(file, rights.FD_READ).fd
    data = os.pread(fd, min(length, _READ), offset)
    return data, not data and length > 0


@TYPES.function(
    "[method]descriptor.write",
    "func(self: borrow<descriptor>, buffer: list<u8>, offset: filesize)"
    " -> result<filesize, error-code>",
)
def write(program: Program, file: Descriptor, buffer: memoryview, offset: int) -> int:
    """Write at an offset; return how much of it was."""
    return os.pwrite(_file(file, rights.FD_WRITE).fd, buffer, offset)


@TYPES.function(
    "[method]descriptor.read-directory",
    "func(self: borrow<descriptor>) -> result<directory-entry-stream, error-code>",
)
def read_directory(program: Program, directory: Descriptor) -> EntryStream:
    """Return the entries of a directory."""
    return EntryStream(directory)


@TYPES.function(
    "[method]directory-entry-stream.read-directory-entry",
    "func(self: borrow<directory-entry-stream>) -> result<option<directory-entry>, error-code>",
)
def read_directory_entry(program: Program, stream: EntryStream) -> Entry | None:
    """Return the next entry, in no order."""
    return stream.next()


@TYPES.function(
    "[method]descriptor.create-directory-at",
    "func(self: borrow<descriptor>, path: string) -> result<_, error-code>",
)
def create_directory_at(program: Program, directory: Descriptor, path: str) -> None:
    """Create a directory."""
    paths.create_directory_at(directory, _path(path))


@TYPES.function(
    "[method]descriptor.stat",
    "func(self: borrow<descriptor>) -> result<descriptor-stat, error-code>",
)
def stat(program: Program, descriptor: Descriptor) -> Stat:
    """Return a file's attributes."""
    return words.stat(files.attributes_of(descriptor))


@TYPES.function(
    "[method]descriptor.stat-at",
    "func(self: borrow<descriptor>, path-flags: path-flags, path: string)"
    " -> result<descriptor-stat, error-code>",
)
def stat_at(program: Program, directory: Descriptor, flags: Flags, path: str) -> Stat:
    """Return a file's attributes."""
    return words.stat(_attributes_at(program, directory, flags, path))


def _attributes_at(program: Program, directory: Descriptor, flags: Flags, path: str) -> Attributes:
    follow = "symlink-follow" in flags
    return paths.attributes_at(program.stdio, directory, _path(path), follow=follow)


@TYPES.function(
    "[method]descriptor.set-times-at",
    "func(self: borrow<descriptor>, path-flags: path-flags, path: string,"
    " data-access-timestamp: new-timestamp, data-modification-timestamp: new-timestamp)"
    " -> result<_, error-code>",
)
def set_times_at(
    program: Program,
    directory: Descriptor,
    flags: Flags,
    path: str,
    access: NewTime,
    modification: NewTime,
) -> None:
    """Set the times of access and modification."""
    times = words.new_time(access), words.new_time(modification)
    paths.set_times_at(directory, _path(path), *times, follow="symlink-follow" in flags)


@TYPES.function(
    "[method]descriptor.link-at",
    "func(self: borrow<descriptor>, old-path-flags: path-flags, old-path: string,"
    " new-descriptor: borrow<descriptor>, new-path: string) -> result<_, error-code>",
)
def link_at(
    program: Program, source: Descriptor, flags: Flags, old: str, target: Descriptor, new: str
) -> None:
    """Give a file another name."""
    follow = "symlink-follow" in flags
    paths.link_at(source, _path(old), target, _path(new), follow=follow)


@TYPES.function(
    "[method]descriptor.open-at",
    "func(self: borrow<descriptor>, path-flags: path-flags, path: string, open-flags: open-flags,"
    " %flags: descriptor-flags) -> result<descriptor, error-code>",
)
def open_at(
    program: Program, directory: Descriptor, how: Flags, path: str, opening: Flags, flags: Flags
) -> Descriptor:
    """Open or create a file or directory."""
    return words.open_at(program.stdio, directory, _path(path), how, opening, flags)


@TYPES.function(
    "[method]descriptor.readlink-at",
    "func(self: borrow<descriptor>, path: string) -> result<string, error-code>",
)
def readlink_at(program: Program, directory: Descriptor, path: str) -> str:
    """Return what a symlink points to. To whom absolute paths say nothing they are not told."""
    points_to = paths.read_link_at(program.stdio, directory, _path(path))
    if points_to.startswith(b"/") and directory.confined:
        raise NotCapable
    return points_to.decode()


@TYPES.function(
    "[method]descriptor.remove-directory-at",
    "func(self: borrow<descriptor>, path: string) -> result<_, error-code>",
)
def remove_directory_at(program: Program, directory: Descriptor, path: str) -> None:
    """Remove an empty directory."""
    paths.remove_directory_at(directory, _path(path))


@TYPES.function(
    "[method]descriptor.rename-at",
    "func(self: borrow<descriptor>, old-path: string, new-descriptor: borrow<descriptor>,"
    " new-path: string) -> result<_, error-code>",
)
def rename_at(program: Program, source: Descriptor, old: str, target: Descriptor, new: str) -> None:
    """Rename a file or directory, over an existing one if there is."""
    paths.rename_at(source, _path(old), target, _path(new))


@TYPES.function(
    "[method]descriptor.symlink-at",
    "func(self: borrow<descriptor>, old-path: string, new-path: string) -> result<_, error-code>",
)
def symlink_at(program: Program, directory: Descriptor, points_to: str, path: str) -> None:
    """Create a symlink."""
    paths.symlink_at(_path(points_to), directory, _path(path))


@TYPES.function(
    "[method]descriptor.unlink-file-at",
    "func(self: borrow<descriptor>, path: string) -> result<_, error-code>",
)
def unlink_file_at(program: Program, directory: Descriptor, path: str) -> None:
    """Remove the name of what is no directory."""
    paths.unlink_file_at(directory, _path(path))


@TYPES.function(
    "[method]descriptor.is-same-object",
    "func(self: borrow<descriptor>, other: borrow<descriptor>) -> bool",
)
def is_same_object(program: Program, one: Descriptor, other: Descriptor) -> bool:
    """Tell whether two descriptors are of one file."""
    return os.path.samestat(os.fstat(one.fd), os.fstat(other.fd))


@TYPES.function(
    "[method]descriptor.metadata-hash",
    "func(self: borrow<descriptor>) -> result<metadata-hash-value, error-code>",
)
def metadata_hash(program: Program, descriptor: Descriptor) -> tuple[int, int]:
    """Return a number for a file, the same for as long as it is the same."""
    return _hash(files.attributes_of(descriptor))


@TYPES.function(
    "[method]descriptor.metadata-hash-at",
    "func(self: borrow<descriptor>, path-flags: path-flags, path: string)"
    " -> result<metadata-hash-value, error-code>",
)
def metadata_hash_at(
    program: Program, directory: Descriptor, flags: Flags, path: str
) -> tuple[int, int]:
    """Return a number for a file, the same for as long as it is the same."""
    return _hash(_attributes_at(program, directory, flags, path))


def _hash(found: Attributes) -> tuple[int, int]:
    device, inode, *_ = found  # which preview 1 tells as they are
    return inode, device
