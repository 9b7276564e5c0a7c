"""Frames: what the bytes of a connection are cut into, in both directions.

Library, no I/O. A frame is ten bytes of header, all numbers big-endian, and then its data:

    | length of data: u32 | stream: u32 | kind: u8 | flags: u8 | data ... |
"""

from struct import Struct
from typing import NamedTuple

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
    data: bytes


class Oversized(NamedTuple):
    """A frame with more than MAX_DATA bytes of data, which have been thrown away."""

    stream: int
    kind: int
    length: int


def encode(stream: int, kind: int, flags: int, data: bytes) -> bytes:
    """Encode one frame; the caller has made sure that data has at most MAX_DATA bytes."""
    return HEADER.pack(len(data), stream, kind, flags) + data


class Decoder:
    """Cuts a stream of bytes into frames, however the bytes are chunked; keeps the unfinished rest.

    It cannot fail: any header is a valid one. It holds at most MAX_DATA bytes and one chunk.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = 0  # bytes still to come of the frame in _skipped
        self._skipped = Oversized(0, 0, 0)

    def feed(self, chunk: bytes) -> list[Frame | Oversized]:
        """Take the next chunk and return the frames it completes."""
        if self._skip > len(chunk):
            self._skip -= len(chunk)
            return []
        frames: list[Frame | Oversized] = []
        start = 0
        buffer = self._buffer
        buffer += chunk
        with memoryview(buffer) as view:
            while True:
                if self._skip:
                    if self._skip > len(view) - start:
                        self._skip -= len(view) - start
                        start = len(view)
                        break
                    start += self._skip
                    self._skip = 0
                    frames.append(self._skipped)
                data = start + HEADER.size
                if data > len(view):
                    break
                length, stream, kind, flags = HEADER.unpack_from(view, start)
                if length > MAX_DATA:
                    # Reported when it is over: who sends it may not read an answer before.
                    self._skip, self._skipped = length, Oversized(stream, kind, length)
                    start = data
                    continue
                if data + length > len(view):
                    break
                start = data + length
                frames.append(Frame(stream, kind, flags, bytes(view[data:start])))
        del buffer[:start]
        return frames
