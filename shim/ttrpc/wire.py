"""One field of a protobuf message, where it lies. Library, no I/O.

protobuf's own decoder copies all that it reads, and does not wipe what it frees. So what must not
stay in memory is cut out of a message first (encoding: protobuf.dev, "Encoding").
"""

from typing import Final

from google.protobuf.message import DecodeError

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_SIZES: Final = {_FIXED64: 8, _FIXED32: 4}
_SHIFTS: Final = range(0, 70, 7)


def cut(message: memoryview, number: int) -> tuple[bytes, memoryview]:
    """Return a message without a field, and the value of that, empty if the field is not there.

    The field, by its number, is bytes, a string or a message; given more than once, the last
    counts. Raises DecodeError.
    """
    rest, value = [], message[:0]
    kept = position = 0
    size = len(message)
    while position < size:
        start = position
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == _LENGTH:
            length, position = _varint(message, position)
            if tag >> 3 == number:
                value = message[position : position + length]
                rest.append(message[kept:start])
                kept = position + length
            position += length
        elif kind == _VARINT:
            _, position = _varint(message, position)
        elif kind in _SIZES:
            position += _SIZES[kind]
        else:
            raise DecodeError(f"field {tag >> 3} is of no kind that proto3 has")
    if position > size:
        raise DecodeError("truncated")
    rest.append(message[kept:])
    return b"".join(rest), value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Decode a number; returns also where it ends."""
    if position < len(message) and (number := message[position]) < 0x80:  # most are
        return number, position + 1
    number = 0
    for shift, byte in zip(_SHIFTS, message[position:], strict=False):
        number |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return number, position
    raise DecodeError("truncated")
