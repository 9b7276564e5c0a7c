"""Whether a module finds what it imports, in the same words under every engine (library)."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping
from typing import NamedTuple, Protocol

from shim.engines.base import ModuleError
from shim.wasi.preview1.abi import Bound


class Signature(NamedTuple):
    """A function's type, in the names of wasm's types."""

    params: tuple[str, ...]
    results: tuple[str, ...]

    def __str__(self) -> str:
        return f"({', '.join(self.params)}) -> ({', '.join(self.results)})"


def signature_of(function: Bound) -> Signature:
    """Return the type of a host function."""
    return Signature(function.params, function.results)


class Provided(Protocol):
    """What an engine has for modules to import, of us."""

    @property
    def signatures(self) -> Mapping[tuple[str, str], Signature]:
        """The functions, by module and name."""

    @property
    def variants(self) -> Collection[tuple[str, Signature]]:
        """Those that have a name in common with another one, by name and type."""


def link(
    imports: Iterable[tuple[str, str, Signature | None]],
    provided: Mapping[tuple[str, str], Signature],
    variants: Container[tuple[str, Signature]],
) -> dict[str, Signature]:
    """Find a function for each import: module, name and, if it is a function, its type.

    Returns which functions have to be the variants that have a type of their own. Raises
    ModuleError, with the name of an import that finds none.
    """
    plain = set()
    chosen: dict[str, Signature] = {}
    for module, name, asked in imports:
        there = provided.get((module, name))
        if there is None:
            raise ModuleError(f"unknown import `{module}.{name}`: nobody provides it")
        if asked is None:
            raise ModuleError(
                f"import `{module}.{name}` is a function, the module takes it for another"
            )
        if asked == there:
            plain.add(name)
        elif (name, asked) in variants:
            chosen[name] = asked
        else:
            raise ModuleError(
                f"import `{module}.{name}` is {there}, the module takes it for {asked}"
            )
    for name in plain & chosen.keys():
        raise ModuleError(f"import `{name}` is declared twice, with different parameters")
    return chosen


def check_export(name: str, there: bool, signature: Signature | None) -> None:
    """Raise ModuleError unless this export is `there`, and a function that needs no parameters."""
    if not there:
        raise ModuleError(f"the module exports no function `{name}`")
    if signature is None:
        raise ModuleError(f"export `{name}` is not a function")
    if signature.params:
        raise ModuleError(f"export `{name}` is {signature}, it must not take parameters")
