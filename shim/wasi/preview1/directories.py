"""Reading directories (library; runs in the guest).

    entry: | u64 next | u64 inode | u32 length | u8 filetype | pad 3 | name, without a NUL |

fd_readdir fills a buffer with as many entries as fit and cuts the last one off, wherever that is;
a buffer filled to the brim is how the guest learns that there is more. It continues with the
`next` of the last entry it got whole.
"""

from __future__ import annotations

import struct
from typing import Final

from shim.wasi import rights
from shim.wasi.directory_stream import DirectoryStream
from shim.wasi.preview1.abi import U64, Fd, Ptr, Size, host
from shim.wasi.preview1.filetypes import NUMBERS
from shim.wasi.preview1.program import Program

_U64: Final = 0xFFFFFFFFFFFFFFFF
_DIRENT: Final = struct.Struct("<QQIBxxx")


def _entry(number: int, inode: int, kind: int, name: bytearray) -> bytes:
    return _DIRENT.pack(number, inode, len(name), NUMBERS[kind]) + name


@host
def fd_readdir(program: Program, fd: Fd, buffer: Ptr, size: Size, cookie: U64, result: Ptr) -> None:
    """Store entries from number `cookie` on; 0 reads the directory anew."""
    directory = program.descriptors.need(fd, rights.FD_READDIR)
    target = program.memory.span(buffer, size)
    cookie &= _U64
    stream = directory.stream
    if stream is None or cookie == 0:
        stream = directory.stream = DirectoryStream(directory.fd, _entry)
    pieces: list[bytes] = []
    used = 0
    for entry in stream.entries(cookie):
        pieces.append(entry)
        used += len(entry)
        if used >= len(target):
            used = len(target)
            break
    target[:used] = b"".join(pieces)[:used]
    program.memory.write_u32(result, used)
