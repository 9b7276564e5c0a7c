"""The types of files (library). The numbers are those of preview 1, which has none for a pipe."""

from __future__ import annotations

import stat
from typing import Final

UNKNOWN: Final = 0
BLOCK_DEVICE: Final = 1
CHARACTER_DEVICE: Final = 2
DIRECTORY: Final = 3
REGULAR_FILE: Final = 4
SOCKET_DGRAM: Final = 5
SOCKET_STREAM: Final = 6
SYMBOLIC_LINK: Final = 7
FIFO: Final = 8

FILES: Final = (REGULAR_FILE, BLOCK_DEVICE)
"""What bytes have positions in, and what is always ready."""

# Whether a socket is one of datagrams, only the socket knows.
FILETYPES: Final = {
    stat.S_IFBLK: BLOCK_DEVICE,
    stat.S_IFCHR: CHARACTER_DEVICE,
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFIFO: FIFO,
    stat.S_IFREG: REGULAR_FILE,
    stat.S_IFSOCK: SOCKET_STREAM,
    stat.S_IFLNK: SYMBOLIC_LINK,
}
_KIND: Final = 0o170000  # S_IFMT


def filetype(mode: int) -> int:
    """Return the filetype for a `st_mode`."""
    return FILETYPES.get(mode & _KIND, UNKNOWN)
