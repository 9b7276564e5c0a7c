"""UTF-8, and nothing else: what the launcher's interpreter finds as the package `encodings`.

CPython imports `encodings` and `io` before it runs a line. The standard library's bring along
`codecs`, `abc` and a table of 300 aliases, for a quarter of the launcher's life; it runs in UTF-8
mode and reads and writes bytes. Runs in: launcher.
"""

import _codecs


class IncrementalEncoder:
    """For the text layer of the standard streams (`codecs.IncrementalEncoder`)."""

    def __init__(self, errors: str = "strict") -> None:
        self.errors = errors

    def encode(self, text: str, final: bool = False) -> bytes:
        """UTF-8 has no state between two calls of this."""
        return _codecs.utf_8_encode(text, self.errors)[0]

    def reset(self) -> None:
        """Forget nothing."""

    def getstate(self) -> int:
        """Tell that there is none."""
        return 0

    def setstate(self, state: int) -> None:
        """Ignore what cannot matter."""


class IncrementalDecoder:
    """Likewise. Nobody reads text in the launcher, so bytes are decoded in one piece."""

    def __init__(self, errors: str = "strict") -> None:
        self.errors = errors

    def decode(self, data: bytes, final: bool = False) -> str:
        """Take a sequence that is cut off for an error."""
        return _codecs.utf_8_decode(data, self.errors, True)[0]

    def reset(self) -> None:
        """Forget nothing."""

    def getstate(self) -> tuple[bytes, int]:
        """Tell that there is none."""
        return b"", 0

    def setstate(self, state: tuple[bytes, int]) -> None:
        """Ignore what cannot matter."""


class CodecInfo(tuple):  # type: ignore[type-arg]
    """What a search returns: four functions, and attributes that the text layer looks for."""

    _is_text_encoding = True
    name = "utf-8"
    incrementalencoder = IncrementalEncoder
    incrementaldecoder = IncrementalDecoder


_UTF_8 = CodecInfo((_codecs.utf_8_encode, _codecs.utf_8_decode, None, None))


def _search(name: str) -> CodecInfo | None:
    return _UTF_8 if name.replace("_", "-") in ("utf-8", "utf8") else None


_codecs.register(_search)  # type: ignore[arg-type]  # not the standard library's CodecInfo
