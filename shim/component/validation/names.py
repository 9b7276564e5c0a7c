"""Names of imports and exports, and of what types are made of (library; runs in the compiler).

Explainer.md, "Import and Export Definitions" and "Name Uniqueness".
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from shim.component.binary.definitions import Name
from shim.component.binary.reader import Flaw

# Of each there is one way to match: to find out that a name is none takes no more than its length.
_WORD: Final = r"(?:[a-z][0-9a-z]*|[A-Z][0-9A-Z]*)"
_LABEL: Final = rf"{_WORD}(?:-(?:{_WORD}|[0-9]+{_WORD}?))*"
_WORDS: Final = r"[a-z][0-9a-z]*(?:-[0-9a-z]+)*"
_NUMBER: Final = r"(?:0|[1-9][0-9]*)"
_PRERELEASE: Final = r"(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_VERSION: Final = (
    rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}"
    rf"(?:-{_PRERELEASE}(?:\.{_PRERELEASE})*)?(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?"
)
_CANONICAL_VERSION: Final = r"(?:[1-9][0-9]*|0\.[1-9][0-9]*|0\.0\.[1-9][0-9]*|0\.0\.0)"

_is_label: Final = re.compile(_LABEL).fullmatch
_is_version: Final = re.compile(_VERSION).fullmatch
_is_canonical_version: Final = re.compile(_CANONICAL_VERSION).fullmatch
_plain: Final = re.compile(
    rf"(?:\[(?P<role>constructor)\]|(?:\[(?P<of>method|static)\](?P<resource>{_LABEL})\.))?"
    rf"(?P<label>{_LABEL})"
).fullmatch
_interface: Final = re.compile(
    rf"{_WORDS}:{_WORDS}/{_LABEL}(?:@(?P<version>{_VERSION}|{_CANONICAL_VERSION}))?"
).fullmatch


class Checked(NamedTuple):
    """A name that is right. `role` is `constructor`, `method` or `static` of a resource."""

    text: str
    role: str
    resource: str
    unique: str
    """What has to differ from that of all other names beside it."""


def check(name: Name, sort: str) -> Checked:
    """Return what a name says of something of that sort. Raises Flaw."""
    text = name.text
    plain, interface = _plain(text), _interface(text)
    if plain is None and interface is None:
        raise Flaw(f"`{text}` is no name of an import or export")
    if name.implements is not None:
        if _interface(name.implements) is None:
            raise Flaw(f"`{name.implements}` is implemented, but no name of an interface")
        if sort != "instance" or plain is None or "[" in text:
            raise Flaw(
                f"`{text}` cannot implement an interface: only an instance with a plain name"
            )
    if name.version_suffix is not None:
        version = "" if interface is None else interface["version"] or ""
        if not (_is_canonical_version(version) and _is_version(version + name.version_suffix)):
            raise Flaw(f"`{text}` with `{name.version_suffix}` is of no version")
    if plain is None:
        base, at, version = text.partition("@")
        return Checked(text, "", "", base.lower() + at + version)
    role = plain["role"] or plain["of"] or ""
    if role and sort != "func":
        raise Flaw(f"`{text}` is no function")
    label = plain["label"].lower()
    if role == "constructor":
        return Checked(text, role, plain["label"], f"[constructor]{label}")
    if not role:
        return Checked(text, "", "", label)
    resource = plain["resource"]
    unique = label if label == resource.lower() else f"{resource.lower()}.{label}"
    return Checked(text, role, resource, unique)


def check_labels(what: str, labels: list[str]) -> None:
    """Check the names of parameters, fields, cases or flags. Raises Flaw."""
    seen: set[str] = set()
    for label in labels:
        if not _is_label(label):
            raise Flaw(f"{what} `{label}` is not named in kebab case")
        if label.lower() in seen:
            raise Flaw(f"{what} `{label}` is there twice, upper and lower case aside")
        seen.add(label.lower())
