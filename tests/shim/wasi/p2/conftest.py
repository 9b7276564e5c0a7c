"""Host functions of 0.2, called as a component's imports are, without an engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shim.wasi.descriptors import Descriptor, inherited
from shim.wasi.p2.io import InputStream, OutputStream
from shim.wasi.program import Program
from tests.shim.wasi.drivers import call, no_descriptors_left

Calls = Callable[..., Any]


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Close in the end what a test has left open."""
    yield from no_descriptors_left()


@pytest.fixture
def program() -> Program:
    """A program that was granted the network and nothing else."""
    return Program()


@pytest.fixture
def calls(program: Program) -> Calls:
    """Call a function: interface, name, arguments. Raises `Failed`."""

    def function(interface: str, name: str, *args: Any) -> Any:
        return call(program, interface, name, *args)

    return function


class Pipe:
    """A pipe, whose ends the program has as streams, and we as descriptors."""

    def __init__(self) -> None:
        reader, writer = os.pipe()
        self.reader, self.writer = os.dup(reader), os.dup(writer)
        self._descriptors: list[Descriptor] = [inherited(reader), inherited(writer)]
        self.input = InputStream(self._descriptors[0].share())
        self.output = OutputStream(self._descriptors[1].share())

    def hang_up(self) -> None:
        """Close all writing ends."""
        self._descriptors[1].close()
        self.output.close()
        os.close(self.writer)

    def stop_reading(self) -> None:
        """Close all reading ends."""
        self._descriptors[0].close()
        self.input.close()
        os.close(self.reader)


@pytest.fixture
def pipe() -> Pipe:
    return Pipe()
