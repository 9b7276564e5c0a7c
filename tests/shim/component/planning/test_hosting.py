"""What a component imports, and what the host provides."""

from __future__ import annotations

from typing import Any

import pytest

from shim.component import plan
from shim.component.host import Interface, Registry
from shim.component.planning import plan_component
from shim.engines.base import ModuleError
from tests.shim.component.texts import assembled

FILES = Interface("ns:pkg/files", "0.2")
FILES.type("size", "u64")
FILES.type("error", "enum { gone, busy }")
FILES.resource("file")


@FILES.function("[method]file.read", "func(self: borrow<file>, n: size) -> result<list<u8>, error>")
def read(*_: Any) -> None:
    """Read."""


@FILES.function("open", "async func(path: string) -> own<file>")
def open_(*_: Any) -> None:
    """Open."""


OTHERS = Interface("ns:pkg/others", "1")
OTHERS.use(FILES, "file")
OTHERS.resource("thing")


@OTHERS.function("borrow", "func(file: borrow<file>, thing: borrow<thing>)")
def borrow(*_: Any) -> None:
    """Borrow."""


WORLD = Interface("", "")


@WORLD.function("log", "func(m: string)")
def log(*_: Any) -> None:
    """Log."""


REGISTRY = Registry([FILES, OTHERS, WORLD])

IMPORTED = """
    (type $files (instance
        (export "file" (type $file (sub resource)))
        (type $enum (enum "gone" "busy"))
        (export "error" (type $error (eq $enum)))
        (type $list (list u8))
        (type $result (result $list (error $error)))
        (export "[method]file.read"
            (func (param "self" (borrow $file)) (param "n" u64) (result $result)))
        (export "open" (func async (param "path" string) (result (own $file))))))
    (import "ns:pkg/files@0.2.7" (instance $i (type $files)))
    (alias export $i "file" (type $file))
"""


def planned(text: str) -> plan.Plan:
    """Return a plan with what there is."""
    return plan_component(assembled(text), REGISTRY)


def refusal(text: str) -> str:
    """Return why there is no plan."""
    with pytest.raises(ModuleError) as caught:
        planned(text)
    return str(caught.value)


def test_what_is_imported_is_found() -> None:
    made = planned(
        f"""{IMPORTED}
        (import "log" (func (param "m" string)))
        (import "ns:pkg/others@1.5.0" (instance
            (export "file" (type $f (eq $file)))
            (export "thing" (type $t (sub resource)))
            (export "borrow" (func (param "file" (borrow $f)) (param "thing" (borrow $t))))))"""
    )
    files, others = "ns:pkg/files@0.2.7", "ns:pkg/others@1.5.0"
    assert [(each.interface, each.name) for each in made.imports] == [
        (files, "[method]file.read"),
        (files, "open"),
        ("", "log"),
        (others, "borrow"),
    ]
    assert made.resources == [plan.HostResource(files, "file"), plan.HostResource(others, "thing")]
    assert made.function_types[1].is_async


def test_two_versions_are_of_one_resource() -> None:
    made = planned("""
        (import "ns:pkg/files@0.2.0" (instance (export "file" (type (sub resource)))))
        (import "ns:pkg/files@0.2.9" (instance (export "file" (type (sub resource)))))""")
    assert len(made.resources) == 1


def test_the_interface_that_is_implemented() -> None:
    made = planned("""
        (import "mine" (implements "ns:pkg/files@0.2.0") (instance
            (export "file" (type $r (sub resource)))
            (export "open" (func async (param "path" string) (result (own $r))))))""")
    assert made.imports == [plan.Import("ns:pkg/files@0.2.0", "open", 0)]


def test_types_alone_need_not_be_known() -> None:
    assert planned("""
        (import "ns:pkg/files@0.2.0" (instance
            (type $t (record (field "a" u8))) (export "unheard-of" (type (eq $t)))))""")


UNKNOWN = "nobody provides it"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('(import "ns:pkg/no@0.2.0" (instance))', f"unknown import `ns:pkg/no@0.2.0`: {UNKNOWN}"),
        ('(import "ns:pkg/files@0.3.0" (instance))', f"`ns:pkg/files@0.3.0`: {UNKNOWN}"),
        ('(import "ns:pkg/files" (instance))', f"unknown import `ns:pkg/files`: {UNKNOWN}"),
        (
            '(import "ns:pkg/files@0.2.0" (instance (export "close" (func))))',
            f"unknown import `ns:pkg/files@0.2.0`, function `close`: {UNKNOWN}",
        ),
        (
            '(import "ns:pkg/files@0.2.0" (instance (export "dir" (type (sub resource)))))',
            f"unknown import `ns:pkg/files@0.2.0`, resource `dir`: {UNKNOWN}",
        ),
        ('(import "tell" (func))', f"unknown import function `tell`: {UNKNOWN}"),
        (
            '(import "c" (component))',
            "unsupported import component `c`: the host has functions and types",
        ),
        (
            '(import "ns:pkg/files@0.2.0" (instance (export "i" (instance))))',
            "unsupported import `ns:pkg/files@0.2.0`, instance `i`",
        ),
        (
            '(import "log" (func (param "m" (list u8))))',
            "import function `log` is another one: parameter `m`, list<u8> expected, string found",
        ),
        (
            '(import "log" (func (param "text" string)))',
            "func(text: string) expected, func(m: string) found",
        ),
        (
            '(import "log" (func (param "m" string) (result u8)))',
            "the result, u8 expected, nothing found",
        ),
        (
            """(import "ns:pkg/files@0.2.0" (instance
                (export "file" (type $r (sub resource)))
                (export "open" (func (param "path" string) (result (own $r))))))""",
            "func(path: string) -> own<ns:pkg/files.file> expected, async func(path: string) ->",
        ),
        (
            """(import "ns:pkg/files@0.2.0" (instance
                (type $e (enum "gone" "late")) (export "error" (type (eq $e)))))""",
            "type `error` is another one: label 1 of enum, late expected, busy found",
        ),
        (
            f"""{IMPORTED} (import "ns:pkg/others@1.5.0" (instance
                (export "thing" (type $t (eq $file)))))""",
            "resource `thing` is another one: ns:pkg/files.file expected, ns:pkg/others.thing fou",
        ),
    ],
)
def test_what_does_not_fit(text: str, message: str) -> None:
    assert message in refusal(text)


def test_the_difference_is_found_inside_of_a_type() -> None:
    text = IMPORTED.replace('"gone" "busy"', '"gone" "busy" "late"')
    text = text.replace(
        '(export "error" (type $error (eq $enum)))', '(export "e" (type $error (eq $enum)))'
    )
    assert refusal(text) == (
        "import `ns:pkg/files@0.2.7`, function `[method]file.read` is another one: the result, "
        "`error`, label 2 of enum, late expected, nothing found"
    )
