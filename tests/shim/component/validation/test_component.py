"""Components that are valid, and what is wrong with others."""

from __future__ import annotations

import pytest

from tests.shim.component.texts import MEMORY, flaw, valid

CORE = """
    (core module $M
        (func (export "nothing"))
        (func (export "takes") (param i32))
        (func (export "returns") (result i32) (i32.const 0))
        (func (export "callback") (param i32 i32 i32) (result i32) (i32.const 0))
        (memory (export "wide") i64 1)
        (global (export "g") i32 (i32.const 0)))
    (core instance $c (instantiate $M))
"""


@pytest.mark.parametrize(
    "text",
    [
        '(import "a" (func $a (param "x" u8))) (export "b" (func $a))',
        '(component $C (type $r (resource (rep i32))) (export "r" (type $r)))',
        # one resource, through an alias and an equality
        """(import "i" (instance $i (export "r" (type $r (sub resource)))))
        (alias export $i "r" (type $r))
        (import "j" (instance (export "s" (type $s (eq $r)))
            (export "f" (func (param "x" (own $s))))))
        """,
        # substituted in what is instantiated
        """(component $C
            (import "r" (type $r (sub resource)))
            (import "f" (func $f (param "x" (borrow $r))))
            (export "g" (func $f)))
        (import "q" (type $q (sub resource)))
        (import "h" (func $h (param "x" (borrow $q))))
        (instance $i (instantiate $C (with "r" (type $q)) (with "f" (func $h))))
        (export "g" (func $i "g"))""",
        # an instance that has more than is asked for
        """(component $C (import "i" (instance (export "f" (func)))))
        (import "i" (instance $i (export "f" (func)) (export "g" (func))))
        (instance (instantiate $C (with "i" (instance $i))))""",
        # a component that is given less than it may have, and gives more
        """(component $C (import "c" (component (import "a" (func)) (export "b" (func)))))
        (component $D (import "f" (func $f)) (export "b" (func $f)))
        (component $E (import "a" (func $f)) (export "b" (func $f)) (export "x" (func $f)))
        (instance (instantiate $C (with "c" (component $E))))""",
        CORE + """(func (export "f") async (result u8)
            (canon lift (core func $c "returns") async (callback (core func $c "callback"))))""",
        CORE + '(func (export "f") async (canon lift (core func $c "nothing") async))',
        # what may be there as long as it is not called
        """(core type $t (func (param i32))) (core module $M (table (export "t") 1 funcref))
        (core instance $m (instantiate $M)) (alias core export $m "t" (core table $f))
        (core func (canon thread.new-indirect $t (core table $f)))
        (core func (canon thread.suspend)) (core func (canon thread.index))""",
    ],
)  # fmt: skip
def test_valid(text: str) -> None:
    valid(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('(import "a" (func)) (import "A" (func))', "conflicts with `a`"),
        ("(type (record))", "a record without a field"),
        ('(type (record (field "a" u8) (field "A" u8)))', "field `A` is there twice"),
        ('(import "r" (type $r (sub resource))) (type (func (result (borrow $r))))', "borrowed"),
        ('(import "r" (type $r (sub resource))) (type (stream (borrow $r)))', "borrowed"),
        ("(type (stream char))", "a stream of char"),
        ("(type $a u8) (type (own $a))", "type 0 is not of a resource"),
        ("(type (component (type (resource (rep i32)))))", "a resource is defined in a type"),
        ("(type (resource (rep i64)))", "unsupported component: type at 0xb: a resource that is"),
        (
            '(import "r" (type $r (sub resource))) (core func (canon resource.new $r))',
            "not defined by the component itself",
        ),
        (
            '(type $r (resource (rep i32))) (import "f" (func (param "x" (own $r))))',
            "the import `f` is made of types that are not visible outside",
        ),
        (
            """(import "r" (type $r (sub resource)))
            (component (alias outer 1 $r (type $s)))""",
            "refers to a resource of its component",
        ),
        (
            '(component $C (import "f" (func))) (instance (instantiate $C))',
            "the func `f` is missing",
        ),
        (
            """(component $C (import "f" (func (param "x" u8))))
            (import "f" (func $f (param "x" u16)))
            (instance (instantiate $C (with "f" (func $f))))""",
            "`f`: parameter `x`, u8 expected, u16 found",
        ),
        (
            """(component $C
                (import "r" (type $r (sub resource))) (import "f" (func (param "x" (own $r)))))
            (import "q" (type $q (sub resource))) (import "p" (type $p (sub resource)))
            (import "f" (func $f (param "x" (own $q))))
            (instance (instantiate $C (with "r" (type $p)) (with "f" (func $f))))""",
            "`f`: parameter `x`, own<p> expected, own<q> found",
        ),
        (
            """(component $C (import "c" (component)))
            (component $D (import "x" (func)))
            (instance (instantiate $C (with "c" (component $D))))""",
            "imports `x`, which is not expected",
        ),
        (
            '(core module $A (import "a" "b" (func))) (core instance (instantiate $A))',
            "the module's import `a` `b` is not given",
        ),
        (
            f"""{CORE} (core module $A (import "a" "takes" (func)))
            (core instance (instantiate $A (with "a" (instance $c))))""",
            "`a` `takes`: [] -> [] expected, [i32] -> [] found",
        ),
        (
            f"""{CORE} (core module $A (import "a" "g" (global (mut i32))))
            (core instance (instantiate $A (with "a" (instance $c))))""",
            "mut i32 expected, i32 found",
        ),
        (
            f"""{MEMORY} (core module $A (import "a" "memory" (memory 2)))
            (core instance (instantiate $A (with "a" (instance $memory))))""",
            "at least 2 expected, at least 1 found",
        ),
        (
            f'{CORE} (func (param "x" u8) (canon lift (core func $c "nothing")))',
            "`lift`: [i32] -> [] expected, [] -> [] found",
        ),
        (
            f'{CORE} (func (canon lift (core func $c "nothing") async))',
            "the canonical option `async` for a function that is not",
        ),
        (
            f'{CORE} (func async (canon lift (core func $c "returns") async))',
            "`lift`: [] -> [] expected, [] -> [i32] found",
        ),
        (
            """(core type $t (func)) (core module $M (table (export "t") 1 funcref))
            (core instance $m (instantiate $M)) (alias core export $m "t" (core table $f))
            (core func (canon thread.new-indirect $t (core table $f)))""",
            "core type 0 is not that of a thread",
        ),
        (
            """(core type $t (func (param i32))) (core module $M (table (export "t") 1 externref))
            (core instance $m (instantiate $M)) (alias core export $m "t" (core table $f))
            (core func (canon thread.new-indirect $t (core table $f)))""",
            "core table 0 is not of functions that start threads",
        ),
        (
            f"""{CORE} (func async (canon lift (core func $c "returns") async
                (callback (core func $c "takes"))))""",
            "`callback`: [i32 i32 i32] -> [i32] expected, [i32] -> [] found",
        ),
        (
            f"""{CORE} (import "f" (func $f (param "x" string)))
            (core func (canon lower (func $f) (memory (core memory $c "wide"))))""",
            "with a memory of 64 bits",
        ),
        (
            '(import "f" (func $f (result string))) (core func (canon lower (func $f)))',
            "the canonical option `memory` is needed",
        ),
        (
            f"""{MEMORY} (import "f" (func $f (result string)))
            (core func (canon lower (func $f) (memory (core memory $m))))""",
            "the canonical option `realloc` is needed",
        ),
        (
            """(import "f" (func $f))
            (core func (canon lower (func $f) (post-return (core func 0))))""",
            "`post-return` does not belong here",
        ),
        ("(core func (canon context.get i32 2))", "of slot 2: there are 2"),
        ("(type $t (stream u8)) (core func (canon future.new $t))", "type 0 is not of a future"),
        (
            '(import "r" (type (sub resource))) (import "[constructor]r" (func (result u8)))',
            "`[constructor]r` does not return `r`",
        ),
        ('(import "[method]r.f" (func))', "no resource `r` before it"),
    ],
)
def test_what_is_wrong(text: str, message: str) -> None:
    found = flaw(text)
    assert message in found
    assert found.startswith(("invalid component: ", "unsupported component: "))


def test_a_component_has_types_for_everything() -> None:
    scope = valid(
        """(component $C (type $r (resource (rep i32))) (export "r" (type $r)))
        (instance $a (instantiate $C)) (instance $b (instantiate $C))
        (alias export $a "r" (type $r)) (alias export $b "r" (type $s))"""
    ).scope
    one, other = scope.spaces["type"]
    assert one.resource is not other.resource
