"""JSON documents into typed structs, with errors that name the culprit. A library.

msgspec has its own way to name a path (``Expected `str`, got `int` - at `$.process.args[1]` ``),
gives no key for an element of a map, and keeps ``null`` apart from an absent field, which Go, in
which most producers of OCI documents are written, does not. Here is the difference; it costs
nothing while documents are well-formed.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from mmap import mmap
from typing import Any, Generic, TypeAlias, TypeVar

import msgspec

T = TypeVar("T")
Buffer: TypeAlias = bytes | bytearray | memoryview | mmap

_SHOWN = 120  # characters of a foreign string that a message repeats


class SpecError(ValueError):
    """A document that cannot be used; ``str()`` is one line that names the file or the field."""


class DocumentDecoder(Generic[T]):
    """Decodes documents of one type, ``name`` (a file name) being how errors call the whole.

    ``generic`` is the type of the same document without judgement of its fields: all of it, unless
    a part must not be decoded.
    """

    def __init__(self, type: type[T], name: str, generic: Any = Any) -> None:
        self._decoder = msgspec.json.Decoder(type)
        self._generic = msgspec.json.Decoder(generic)
        self._name = name

    def decode(self, data: Buffer) -> T:
        """Return the document in ``data``, or raise `SpecError`."""
        try:
            document = self._attempt(data)
        except msgspec.ValidationError as error:
            raise SpecError(self._describe(str(error), data)) from None
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise SpecError(f"{self._name}: {_syntax(error, data)}") from None
        # No C interface takes a string with a NUL inside; found here it has a path.
        if re.search(rb"\\u0000", data):
            for path in _nul_paths(msgspec.to_builtins(document), ""):
                raise SpecError(f"{path}: contains a NUL character")
        return document

    def _attempt(self, data: Buffer) -> T:
        try:
            return self._decoder.decode(data)
        except msgspec.ValidationError as error:
            if "got `null`" not in str(error):
                raise
        return self._decoder.decode(msgspec.json.encode(self._builtins(data)))

    def _builtins(self, data: Buffer) -> Any:
        return _without_nulls(msgspec.to_builtins(self._generic.decode(data)))

    def _describe(self, error: str, data: Buffer) -> str:
        message, _, where = error.partition(" - at `$")
        path = where.removesuffix("`").removeprefix(".")
        if "[...]" in path:
            path = self._with_key(path, error, data)
        message = (
            message.replace("Object missing", "missing").replace(" | null", "").replace("`", "")
        )
        message = message[0].lower() + message[1:]
        if message.startswith(("expected int >", "expected int <")):
            message = f"out of range, {message}"
        return f"{path or self._name}: {_one_line(message)}"

    def _with_key(self, path: str, error: str, data: Buffer) -> str:
        """Put the key in the place of ``[...]``: the last one of the shortest part that fails."""
        before, _, after = path.partition("[...]")
        *parents, name = before.split(".")
        try:
            document = parent = self._builtins(data)
            for step in parents:
                parent = parent[step]
            entries = list(parent[name].items())
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return path  # something else is wrong further on
        except (LookupError, AttributeError, TypeError):
            return path  # a key is given twice

        def fails(last: int) -> bool:
            parent[name] = dict(entries[: last + 1])
            try:
                self._decoder.decode(msgspec.json.encode(document))
            except msgspec.ValidationError as again:
                return str(again) == error
            return False

        index = bisect_left(range(len(entries)), True, key=fails)
        return before + _key(entries[index][0]) + after if index < len(entries) else path


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _nul_paths(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            plain = key.isidentifier()
            here = (f"{path}.{key}" if path else key) if plain else path + _key(key)
            if "\0" in key:
                yield here
            yield from _nul_paths(item, here)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _nul_paths(item, f"{path}[{index}]")
    elif isinstance(value, str) and "\0" in value:
        yield path


def _syntax(error: Exception, data: Buffer) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeError):
        return "not UTF-8"
    if "truncated" in str(error):
        return f"truncated JSON, it ends at byte {len(data)}"
    reason, _, position = str(error).removeprefix("JSON is malformed: ").partition(" (byte ")
    return f"invalid JSON at byte {position.rstrip(')')}: {reason}"


def _key(key: str) -> str:
    return f"[{msgspec.json.encode(_one_line(key)).decode()}]"


def _one_line(text: str) -> str:
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
