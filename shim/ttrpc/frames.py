"""Frames: what the bytes of a connection are cut into, in both directions.

Library, no I/O. A frame is ten bytes of header, all numbers big-endian, and then its data:

    | length of data: u32 | stream: u32 | kind: u8 | flags: u8 | data ... |
"""

from struct import Struct
from typing import NamedTuple

from shim.linux import fleeting

HEADER = Struct(">IIBB")
MAX_DATA = 4 << 20


# Kinds. Others may be defined one day, so a reader skips what it does not know.
REQUEST = 1
RESPONSE = 2
DATA = 3

# Flags.
CLOSED = 1  # request or data: the sender will send no (more) data on this stream
OPEN = 2  # request: the sender will send data on this stream
NO_DATA = 4  # data: there is no message in this frame, not even an empty one


class Frame(NamedTuple):
    """One frame, which may be of any kind, with any flags."""

    stream: int
    kind: int
    flags: int
    data: bytes | memoryview


class Oversized(NamedTuple):
    """A frame with more than MAX_DATA bytes of data, which have been thrown away."""

    stream: int
    kind: int
    length: int


def encode(stream: int, kind: int, flags: int, data: bytes) -> bytes:
    """Encode one frame; the caller has made sure that data has at most MAX_DATA bytes."""
    return HEADER.pack(len(data), stream, kind, flags) + data


class Decoder:
    """Cuts a stream of bytes into frames, however the bytes are chunked; keeps the unfinished one.

    It cannot fail: any header is a valid one. What it holds of a frame, at most MAX_DATA bytes, it
    holds where no fork inherits it.
    """

    def __init__(self) -> None:
        self._header = bytearray()
        self._frame = (0, 0, 0)  # stream, kind and flags of the unfinished one
        self._data: memoryview | None = None  # of that, and of it so many bytes:
        self._filled = 0
        self._finished: memoryview | None = None
        self._skip = 0  # bytes still to come of the frame in _skipped
        self._skipped = Oversized(0, 0, 0)

    def feed(self, chunk: bytes | memoryview) -> list[Frame | Oversized]:
        """Take the next chunk and return the frames it completes.

        Their data is not copied: it is the chunk, or a place that `forget` wipes.
        """
        frames: list[Frame | Oversized] = []
        view = memoryview(chunk)
        while view:
            if self._skip:
                skipped = min(self._skip, len(view))
                self._skip -= skipped
                view = view[skipped:]
                if not self._skip:
                    # Reported when it is over: who sends it may not read an answer before.
                    frames.append(self._skipped)
            elif self._data is not None:
                missing = len(self._data) - self._filled
                part, view = view[:missing], view[missing:]
                self._data[self._filled : self._filled + len(part)] = part
                self._filled += len(part)
                if self._filled == len(self._data):
                    frames.append(Frame(*self._frame, self._data))
                    self._data, self._finished = None, self._data
            else:
                missing = HEADER.size - len(self._header)
                self._header += view[:missing]
                view = view[missing:]
                if len(self._header) == HEADER.size:
                    length, stream, kind, flags = HEADER.unpack(self._header)
                    self._header.clear()
                    if length > MAX_DATA:
                        self._skip, self._skipped = length, Oversized(stream, kind, length)
                    elif length <= len(view):
                        frames.append(Frame(stream, kind, flags, view[:length]))
                        view = view[length:]
                    else:
                        self._data, self._filled = fleeting.buffer(length), 0
                        self._frame = (stream, kind, flags)
        return frames

    def forget(self) -> None:
        """Wipe what `feed` has put together. The frames that it returned are void then."""
        if self._finished is not None:
            fleeting.wipe(self._finished)
            self._finished = None
