"""The shim's log: logrus text on the bundle's `log` FIFO, for containerd's own log. Runs in: shim.

A logger of the standard library would block on a full FIFO, and this has no lock to fork with.
"""

import os
import time
from typing import Final

from shim.linux.messages import cut

_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._/@^+")


class Logger:
    """Writes to the FIFO `log` in `bundle`; drops a line rather than wait for a reader."""

    def __init__(self, bundle: str, *, debug: bool, **fields: object) -> None:
        self._debug = debug
        self._fields = "".join(f" {name}={_quote(str(value))}" for name, value in fields.items())
        try:
            # Read-write: neither a reader that is away nor its restart ends in SIGPIPE or ENXIO.
            self._fd = os.open(
                os.path.join(bundle, "log"),
                os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW,
            )
        except OSError:
            self._fd = -1

    def fileno(self) -> int:
        """Its descriptor, for a process that keeps few others; -1 where nobody reads."""
        return self._fd

    def debug(self, message: str, **fields: object) -> None:
        """What helps to follow the shim; only written under `-debug`."""
        if self._debug:
            self._write("debug", message, fields)

    def info(self, message: str, **fields: object) -> None:
        """What an operator may want to know of a healthy shim."""
        self._write("info", message, fields)

    def warning(self, message: str, **fields: object) -> None:
        """What works all the same but should not have happened."""
        self._write("warning", message, fields)

    def error(self, message: str, **fields: object) -> None:
        """What failed."""
        self._write("error", message, fields)

    def _write(self, level: str, message: str, fields: dict[str, object]) -> None:
        if self._fd < 0:
            return
        now = _quote(timestamp(time.time_ns()))
        own = "".join(f" {name}={_quote(str(value))}" for name, value in fields.items())
        line = f"time={now} level={level} msg={_quote(message)}{self._fields}{own}\n"
        try:
            os.write(self._fd, line.encode("utf-8", "backslashreplace"))
        except OSError:
            pass


def timestamp(moment: int) -> str:
    """Write a moment, in nanoseconds since the epoch, as the log does."""
    seconds, nanoseconds = divmod(moment, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanoseconds:09d}Z"


def _quote(text: str) -> str:
    """Write a value as logrus does: bare if it is plain, else as a Go string; always one line."""
    text = cut(text)
    if text and _PLAIN.issuperset(text):
        return text
    quoted = []
    for character in text:
        if character in '"\\':
            quoted.append("\\" + character)
        elif character == "\n":
            quoted.append("\\n")
        elif character == "\t":
            quoted.append("\\t")
        elif character.isprintable():
            quoted.append(character)
        else:
            quoted.append(
                character.encode("utf-8", "surrogateescape").decode("latin-1").translate(_HEX)
            )
    return '"' + "".join(quoted) + '"'


_HEX = {code: f"\\x{code:02x}" for code in range(256)}
