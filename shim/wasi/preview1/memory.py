"""The guest's linear memory, bounds-checked (library; runs in the guest).

Every address a guest passes is hostile: it arrives as a signed 32-bit number and may point
anywhere. All access goes through this file; what lies outside raises `Fault`, which the guest sees
as EFAULT.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

_IOVEC: Final = struct.Struct("<II")  # iovec: u32 address, u32 length
unpack_iovec: Final = _IOVEC.unpack_from
pack_u32: Final = struct.Struct("<I").pack_into
_pack_u64: Final = struct.Struct("<Q").pack_into
MASK: Final = 0xFFFFFFFF  # makes an address or length of what an engine passes
_MANY: Final = 1024  # IOV_MAX: the kernel refuses more, and a partial transfer is always allowed


class Fault(Exception):
    """The guest passed an address outside of its memory."""


class Memory:
    """A window onto the memory an engine exports.

    `fetch` returns a view of all the memory there is now. The view is kept: an engine grows memory
    in place (it reserves the address space beforehand), so an old view is never wrong, only short.
    It is fetched again when an access lies beyond it, which makes the usual case free.
    """

    __slots__ = ("_fetch", "view")

    def __init__(self) -> None:
        self._fetch: Callable[[], memoryview] | None = None
        self.view = memoryview(bytearray())

    def attach(self, fetch: Callable[[], memoryview]) -> None:
        """Use the memory that `fetch` returns. Before this, every access is a `Fault`."""
        self._fetch = fetch
        self.view = fetch()

    def _reach(self, end: int) -> memoryview:
        """Return a view at least `end` bytes long."""
        if self._fetch is not None and end > len(self.view):
            self.view = self._fetch()
        if end > len(self.view):
            raise Fault
        return self.view

    def span(self, address: int, size: int) -> memoryview:
        """Return the `size` bytes at `address`: writable, not a copy."""
        address &= MASK
        if size < 0:  # a guest's number; what we computed ourselves may be more than 32 bits
            size &= MASK
        end = address + size
        view = self.view
        if end > len(view):
            view = self._reach(end)
        return view[address:end]

    def write_u32(self, address: int, value: int) -> None:
        """Store an unsigned 32-bit number."""
        address &= MASK
        try:
            pack_u32(self.view, address, value)
        except struct.error:  # it ends beyond the view
            pack_u32(self._reach(address + 4), address, value)

    def write_u64(self, address: int, value: int) -> None:
        """Store an unsigned 64-bit number."""
        address &= MASK
        try:
            _pack_u64(self.view, address, value)
        except struct.error:
            _pack_u64(self._reach(address + 8), address, value)

    def write(self, address: int, data: bytes) -> None:
        """Store `data`."""
        self.span(address, len(data))[:] = data

    def buffers(self, address: int, count: int) -> list[memoryview]:
        """Return what an array of iovecs points to.

        address -> | u32 buffer | u32 length | u32 buffer | u32 length | ... (count pairs)
        """
        if count == 1:  # nearly always
            address &= MASK
            view = self.view
            if address + 8 > len(view):
                view = self._reach(address + 8)
            start, size = unpack_iovec(view, address)
            if start + size > len(view):
                view = self._reach(start + size)
            return [view[start : start + size]]
        array = self.span(address, (count & MASK) * 8)  # all of it has to be there
        pairs = _IOVEC.iter_unpack(array[: _MANY * 8])
        return [self.span(start, size) for start, size in pairs]
