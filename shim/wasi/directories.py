"""Reading directories (library; runs in the guest).

fd_readdir fills a buffer with as many entries as fit and cuts the last one off, wherever that is;
a buffer filled to the brim is how the guest learns that there is more. It continues with the
`next` of the last entry it got whole.

    entry: | u64 next | u64 inode | u32 length | u8 filetype | pad 3 | name, without a NUL |
"""

from __future__ import annotations

import os
import struct
from typing import Final

from shim.wasi import rights
from shim.wasi.abi import U64, Fd, Ptr, Size, host
from shim.wasi.descriptors import (
    DIRECTORY,
    REGULAR_FILE,
    SYMBOLIC_LINK,
    Descriptor,
    filetype,
)
from shim.wasi.program import Program

_DIRENT: Final = struct.Struct("<QQIBxxx")
_U64: Final = 0xFFFFFFFFFFFFFFFF


def _kind(entry: os.DirEntry[str]) -> int:
    if entry.is_symlink():  # these three cost no system call
        return SYMBOLIC_LINK
    if entry.is_dir(follow_symlinks=False):
        return DIRECTORY
    if entry.is_file(follow_symlinks=False):
        return REGULAR_FILE
    try:
        return filetype(entry.stat(follow_symlinks=False).st_mode)
    except OSError:  # removed since
        return 0


def _snapshot(directory: Descriptor) -> list[tuple[bytes, int, int]]:
    """Return (name, inode, filetype) of all entries, `.` and `..` first.

    `..` has the inode of the directory itself: the one above may be outside of what the guest may
    see.
    """
    own = os.fstat(directory.fd).st_ino
    entries = [(b".", own, DIRECTORY), (b"..", own, DIRECTORY)]
    # A descriptor of our own, since scanning moves the position that a duplicate would share.
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory.fd)
    try:
        with os.scandir(fd) as found:
            entries += [(os.fsencode(e.name), e.inode(), _kind(e)) for e in found]
    finally:
        os.close(fd)
    return entries


@host
def fd_readdir(program: Program, fd: Fd, buffer: Ptr, size: Size, cookie: U64, result: Ptr) -> None:
    """Store entries from number `cookie` on.

    Cookie 0 reads the directory anew, and the stream then is what it held at that moment: an entry
    removed or created while the guest goes through it is neither skipped nor seen twice.
    """
    directory = program.descriptors.need(fd, rights.FD_READDIR)
    if cookie == 0 or directory.entries is None:
        directory.entries = _snapshot(directory)
    target = program.memory.span(buffer, size)
    used = 0
    for number, (name, inode, kind) in enumerate(
        directory.entries[cookie & _U64 :], start=(cookie & _U64) + 1
    ):
        entry = (_DIRENT.pack(number, inode, len(name), kind) + name)[: len(target) - used]
        target[used : used + len(entry)] = entry
        used += len(entry)
        if used == len(target):
            break
    program.memory.write_u32(result, used)
