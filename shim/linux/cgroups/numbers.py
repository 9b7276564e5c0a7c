"""Numbers out of the files of a cgroup (library)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeVar

from google.protobuf.message import Message

from shim.linux.cgroups.files import Directory

UNLIMITED: Final = 2**64 - 1
_HUGE_PAGES: Final = "/sys/kernel/mm/hugepages"
_PAIR: Final = re.compile(r"^(\w+) (\d+)$", re.MULTILINE | re.ASCII)
_UNITS: Final = ((1 << 20, "GB"), (1 << 10, "MB"), (1, "KB"))


Entry = TypeVar("Entry")


def text(directory: Directory, file: str) -> str:
    """The content of a file, empty if this kernel has none. Raises OSError otherwise."""
    try:
        return directory.read(file)
    except FileNotFoundError:
        return ""


def number(directory: Directory, file: str) -> int:
    """A number, or UNLIMITED for "max"; 0 if there is no such file."""
    content = text(directory, file)
    return UNLIMITED if content == "max" else int(content or 0)


def pairs(content: str) -> dict[str, int]:
    """Lines of a key and a number."""
    return {key: int(value) for key, value in _PAIR.findall(content)}


def fill(message: Message, values: Mapping[str, int]) -> None:
    """Set the fields that have these names; a newer kernel tells more than a message has."""
    fields = message.DESCRIPTOR.fields_by_name
    for name, value in values.items():
        field = fields.get(name)
        if field is not None and field.message_type is None:
            setattr(message, name, value)


def page_sizes() -> list[str]:
    """The sizes of huge pages that this kernel has, in the words of its files."""
    try:
        names = os.listdir(_HUGE_PAGES)
    except FileNotFoundError:
        return []
    sizes = []
    for name in sorted(names):  # such as hugepages-2048kB
        kilobytes = int(name.removeprefix("hugepages-").removesuffix("kB"))
        factor, unit = next(pair for pair in _UNITS if kilobytes >= pair[0])
        sizes.append(f"{kilobytes // factor}{unit}")
    return sizes


def rdma_entries(content: str, make: Callable[..., Entry]) -> Iterator[Entry]:
    """What rdma.current and rdma.max hold: lines of a device, its handles and its objects."""
    for line in content.splitlines():
        device, *words = line.split()
        values = dict(word.split("=", 1) for word in words)
        yield make(
            device=device,
            hca_handles=_rdma_number(values.get("hca_handle", "0")),
            hca_objects=_rdma_number(values.get("hca_object", "0")),
        )


def _rdma_number(word: str) -> int:
    return 2**32 - 1 if word == "max" else int(word)
