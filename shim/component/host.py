"""What a host provides: interfaces, declared beside the functions that implement them (library).

    TYPES = Interface("wasi:filesystem/types", "0.2", errors=error_code)
    TYPES.type("error-code", "enum { access, would-block, ... }")
    TYPES.resource("descriptor", Descriptor.close)

    @TYPES.function("[method]descriptor.open-at", "func(self: borrow<descriptor>, ...) -> ...")
    def open_at(program, directory, flags, path, how, access): ...

A type is written as in WIT (WIT.md), but with no name of its own. Everything is declared when a
module is imported, before any fork; a component's imports are compared with it in the compiler, and
its values lifted and lowered by it in the guest.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple, TypeVar

from shim.component.types import (
    Borrow,
    Enum,
    FixedList,
    Flags,
    FunctionType,
    Future,
    List,
    Map,
    Option,
    Own,
    Record,
    Resource,
    Result,
    Stream,
    Tuple,
    ValueType,
    Variant,
)
from shim.component.types.forms import NAMED

_TOKENS: Final = re.compile(r"->|[%a-z0-9][a-z0-9-]*|[<>(){}:,_]", re.ASCII)
_F = TypeVar("_F", bound=Callable[..., Any])


class Function(NamedTuple):
    """A function of a host: `call` takes the program, and the arguments in the words of `types`.

    It returns the result, but of a `result` only what is ok: for an error it raises. One of async
    type may be a coroutine function.
    """

    type: FunctionType
    call: Callable[..., Any]
    errors: Callable[[Exception], Any] | None
    """Returns the `error` of the result for what was raised, or raises it again."""
    is_coroutine: bool
    """Whether it may take its time."""


class Interface:
    """An interface at one version, `0.2` for all of `0.2.x`.

    `errors` turns an exception into the error of a function's result.
    """

    def __init__(
        self, name: str, version: str, errors: Callable[[Exception], Any] | None = None
    ) -> None:
        self.name = name
        self.version = version
        self.types: dict[str, ValueType] = {}
        self.resources: dict[str, Resource] = {}
        self.functions: dict[str, Function] = {}
        self._errors = errors

    def type(self, name: str, text: str) -> ValueType:
        """Declare a type."""
        self.types[name] = kind = self.parse(text)
        return kind

    def parse(self, text: str) -> ValueType:
        """Return a type that has no name."""
        return _Parser(text, self).whole_type()

    def resource(self, name: str, drop: Callable[[Any], None] | None = None) -> Resource:
        """Declare a resource; `drop` is called with the object that represents a dropped one."""
        self.resources[name] = resource = Resource(f"{self.name}.{name}", drop)
        return resource

    def use(self, other: Interface, *names: str) -> None:
        """Know types and resources of another interface by the same names."""
        for name in names:
            if name in other.resources:
                self.resources[name] = other.resources[name]
            else:
                self.types[name] = other.types[name]

    def function(
        self, name: str, text: str, errors: Callable[[Exception], Any] | None = None
    ) -> Callable[[_F], _F]:
        """Declare the function that is decorated."""
        kind = _Parser(text, self).whole_function()

        def declared(call: _F) -> _F:
            takes_time = inspect.iscoroutinefunction(call)
            self.functions[name] = Function(kind, call, errors or self._errors, takes_time)
            return call

        return declared


class Registry:
    """The interfaces that a component may import from."""

    def __init__(self, interfaces: Iterable[Interface] = ()) -> None:
        self._interfaces = {(each.name, each.version): each for each in interfaces}

    def fingerprint(self) -> str:
        """Name all that there is, with its types."""
        told = hashlib.sha256()
        for (name, version), interface in sorted(self._interfaces.items()):
            told.update(f"{name}@{version}\n".encode())
            for function, found in sorted(interface.functions.items()):
                told.update(f"{function}: {found.type}\n".encode())
            for kind, value in sorted(interface.types.items()):
                told.update(f"{kind} = {value}\n".encode())
        return told.hexdigest()[:16]

    def find(self, name: str) -> Interface | None:
        """Return the interface for an import's name, `wasi:io/poll@0.2.6`."""
        base, _, version = name.partition("@")
        return self._interfaces.get((base, compatible(version)))


def compatible(version: str) -> str:
    """Return how much of a version has to be the same (Explainer.md, "canonversion")."""
    if "-" in version:
        return version  # a prerelease is compatible with nothing else
    parts = version.partition("+")[0].split(".")
    for count, part in enumerate(parts, 1):
        if part != "0":
            return ".".join(parts[:count])
    return version


class _Parser:
    """Reads a type, with what is to be known in an interface. ValueError where it is none."""

    def __init__(self, text: str, interface: Interface) -> None:
        self._text = text
        self._interface = interface
        self._tokens: list[str] = _TOKENS.findall(text)
        if "".join(self._tokens) != re.sub(r"\s+", "", text):
            raise ValueError(f"{text!r} has more than a type is made of")
        self._position = 0

    def whole_type(self) -> ValueType:
        kind = self._type()
        self._end()
        return kind

    def whole_function(self) -> FunctionType:
        is_async = self._skip("async")
        self._need("func")
        self._need("(")
        params = []
        while not self._skip(")"):
            name = self._next()
            self._need(":")
            params.append((name.removeprefix("%"), self._type()))
            if not self._skip(","):
                self._need(")")
                break
        result = self._type() if self._skip("->") else None
        self._end()
        return FunctionType(params, result, is_async)

    def _type(self) -> ValueType:
        word = self._next()
        if word in NAMED:
            return NAMED[word]
        compound = getattr(self, f"_{word}", None)
        if compound is not None:
            kind: ValueType = compound()
            return kind
        word = word.removeprefix("%")
        if word in self._interface.types:
            return self._interface.types[word]
        if word in self._interface.resources:
            return Own(self._interface.resources[word])
        raise ValueError(f"{word!r} in {self._text!r} is no type")

    def _record(self) -> Record:
        return Record([(name, kind) for name, kind in self._members(":") if kind is not None])

    def _variant(self) -> Variant:
        return Variant(list(self._members("(")))

    def _enum(self) -> Enum:
        return Enum([name for name, _ in self._members("")])

    def _flags(self) -> Flags:
        return Flags([name for name, _ in self._members("")])

    def _members(self, before: str) -> Iterator[tuple[str, ValueType | None]]:
        """Read `{ name: type, ... }`, or with what there is else between the two."""
        self._need("{")
        while not self._skip("}"):
            name, kind = self._next().removeprefix("%"), None
            if before and self._skip(before):
                kind = self._type()
                if before == "(":
                    self._need(")")
            yield name, kind
            if not self._skip(","):
                self._need("}")
                break

    def _tuple(self) -> Tuple:
        return Tuple(self._parameters())

    def _list(self) -> ValueType:
        self._need("<")
        element, length = self._type(), self._next() if self._skip(",") else ""
        self._need(">")
        return FixedList(element, int(length)) if length else List(element)

    def _map(self) -> Map:
        return Map(*self._parameters())

    def _option(self) -> Option:
        return Option(*self._parameters())

    def _result(self) -> Result:
        if not self._skip("<"):
            return Result(None, None)
        ok = None if self._skip("_") else self._type()
        error = self._type() if self._skip(",") else None
        self._need(">")
        return Result(ok, error)

    def _stream(self) -> Stream:
        return Stream(self._type_in() if self._skip("<") else None)

    def _future(self) -> Future:
        return Future(self._type_in() if self._skip("<") else None)

    def _own(self) -> Own:
        return Own(self._resource())

    def _borrow(self) -> Borrow:
        return Borrow(self._resource())

    def _resource(self) -> Resource:
        self._need("<")
        resource = self._interface.resources[self._next().removeprefix("%")]
        self._need(">")
        return resource

    def _type_in(self) -> ValueType:
        kind = self._type()
        self._need(">")
        return kind

    def _parameters(self) -> list[ValueType]:
        self._need("<")
        kinds = [self._type()]
        while self._skip(","):
            kinds.append(self._type())
        self._need(">")
        return kinds

    def _next(self) -> str:
        if self._position == len(self._tokens):
            raise ValueError(f"{self._text!r} ends too early")
        self._position += 1
        return self._tokens[self._position - 1]

    def _skip(self, token: str) -> bool:
        found = self._tokens[self._position : self._position + 1] == [token]
        self._position += found
        return found

    def _need(self, token: str) -> None:
        if self._next() != token:
            raise ValueError(f"expected {token!r} before the end of {self._text!r}")

    def _end(self) -> None:
        if self._position != len(self._tokens):
            raise ValueError(f"{self._text!r} goes on after a type")
