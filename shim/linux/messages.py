"""What we say to people, made fit to be shown. A library, for every process.

A message repeats names, paths and keys that the author of a pod or of a module has chosen. It is
shown in terminals, logs and the events of a cluster, where none of them may begin a line, move a
cursor or end a string. So it is cleaned where it leaves us, and may hold anything until then.
"""

import logging
import os
import traceback
from typing import Final

_HEAD, _TAIL = 1500, 500  # characters: what failed is said first, and why at the end
_CUT: Final = " ... "
_LINES: Final = 60


def one_line(message: object) -> str:
    """Return a message on one line, of some 2000 characters at most, all of them printable."""
    return plain(" ".join(str(message).split()))


def plain(line: str) -> str:
    """The same, for what is a line already; spaces stay."""
    # Twice: an escape is longer than what it stands for, and a message may have megabytes.
    return cut("".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut(line)))


def report() -> None:
    """Write the traceback of the exception that is being handled to descriptor 2."""
    os.write(2, _lines(traceback.format_exc()).encode())


class Formatter(logging.Formatter):
    """Of what libraries log."""

    def format(self, record: logging.LogRecord) -> str:
        """Return it, each of its lines fit to be shown."""
        return _lines(super().format(record)).rstrip("\n")


def _lines(text: str) -> str:
    # The last lines say what it was; of a recursion there are thousands.
    return "".join(plain(line) + "\n" for line in text.splitlines()[-_LINES:])


def cut(text: str) -> str:
    """Return a text with something in its middle left out, if it is too long to be read."""
    if len(text) <= _HEAD + len(_CUT) + _TAIL:
        return text
    return text[:_HEAD] + _CUT + text[-_TAIL:]
