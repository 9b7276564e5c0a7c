"""`wasi_unstable`, snapshot 0, where it is not as preview 1 (library; runs in the guest).

Old compilers made modules for it. The names and types of its functions are the same, and most of
what they do; these lay something out otherwise.

    filestat:     | u64 dev | u64 ino | u8 filetype | pad 3 | u32 nlink | u64 size |
                  | u64 atim | u64 mtim | u64 ctim |                                    56 bytes
    subscription: | u64 userdata | u8 type | pad 7 | 40 bytes by type |                 56 bytes
      a clock:    | u64 identifier | u32 clock | pad 4 | u64 timeout | u64 precision |
                  | u16 flags | pad 6 |
      read/write: | u32 descriptor | pad 36 |
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final

from shim.wasi import files
from shim.wasi.files import Attributes
from shim.wasi.preview1 import fds, poll
from shim.wasi.preview1.abi import S64, U32, Fd, Ptr, Size
from shim.wasi.preview1.filetypes import NUMBERS
from shim.wasi.preview1.paths import attributes_of_path
from shim.wasi.preview1.program import Program

_FILESTAT: Final = struct.Struct("<QQBxxxIQQQQ")
_LINKS: Final = 0xFFFFFFFF  # the most that it can tell of
_SUBSCRIPTION: Final = struct.Struct("<QBxxxxxxxIxxxxIxxxxQQHxxxxxx")
_WHENCE: Final = {0: 1, 1: 2, 2: 0}
"""From the current position, the end and the start, in the numbers of preview 1."""


def fd_seek(program: Program, fd: Fd, offset: S64, whence: U32, result: Ptr) -> None:
    """Move the position; store the new one."""
    fds.fd_seek(program, fd, offset, _WHENCE.get(whence, whence), result)


def fd_filestat_get(program: Program, fd: Fd, result: Ptr) -> None:
    """Store a file's attributes."""
    program.memory.write(result, _filestat(files.attributes_of(program.descriptors.get(fd))))


def path_filestat_get(
    program: Program, fd: Fd, lookup: U32, path: Ptr, size: Size, result: Ptr
) -> None:
    """Store a file's attributes."""
    program.memory.write(result, _filestat(attributes_of_path(program, fd, lookup, path, size)))


def _filestat(found: Attributes) -> bytes:
    device, inode, kind, links, *others = found
    return _FILESTAT.pack(device, inode, NUMBERS[kind], min(links, _LINKS), *others)


def poll_oneoff(
    program: Program, subscriptions: Ptr, events: Ptr, count: Size, result: Ptr
) -> None:
    """Wait for the first of `count` subscriptions; store an event for each that has occurred."""
    wanted = poll.subscribed(program, subscriptions, events, count, _SUBSCRIPTION.size)
    poll.wait_for(program, _subscriptions(wanted), events, result)


def _subscriptions(wanted: memoryview) -> Iterator[tuple[int, ...]]:
    for userdata, kind, fd, clock, *others in _SUBSCRIPTION.iter_unpack(wanted):
        yield userdata, kind, clock if kind == poll.CLOCK else fd, *others


HOSTS: Final[dict[str, Callable[..., None]]] = {
    function.__name__: function
    for function in (fd_seek, fd_filestat_get, path_filestat_get, poll_oneoff)
}
