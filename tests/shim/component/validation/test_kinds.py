"""Value types made each only once."""

from __future__ import annotations

import pytest

from shim.component.binary.reader import Flaw
from shim.component.host import Interface
from shim.component.types import U8, Own, Resource, ValueType
from shim.component.types.forms import Form
from shim.component.validation.kinds import MAX_BYTES, Kinds


def test_equal_types_are_one() -> None:
    kinds = Kinds()
    resource = Resource("r")
    one, other = (
        kinds.make(Form("record", (kinds.make(Form("own", resource=resource)),), ("a",)))
        for _ in range(2)
    )
    assert one is other
    foreign = kinds.make(Form("own", resource=Resource("r")))
    assert kinds.make(Form("record", (foreign,), ("a",))) is not one


@pytest.mark.parametrize(
    "text",
    [
        "bool", "s64", "char", "string", "error-context", "list<u8>", "list<string, 3>",
        "map<string, u8>", "record { a: u8, b: list<u8> }", "tuple<u8, f64>",
        "variant { a, b(string) }", "enum { a, b }", "option<option<u8>>", "result",
        "result<u8>", "result<_, string>", "result<u8, string>", "flags { a, b }", "stream",
        "stream<u8>", "future", "future<string>", "own<r>", "borrow<r>",
    ],
)  # fmt: skip
def test_a_type_made_elsewhere_is_the_same(text: str) -> None:
    interface = Interface("a:b/c", "1")
    interface.resource("r")
    kind = interface.type("t", text)
    again = interface.type("t", text)
    kinds = Kinds()
    adopted = kinds.adopt(kind)
    assert adopted is kinds.adopt(again)
    assert str(adopted) == str(kind)
    assert (adopted.size, adopted.alignment, adopted.flat) == (kind.size, kind.alignment, kind.flat)


def test_what_is_in_a_type() -> None:
    kinds = Kinds()
    handle = kinds.adopt(Own(Resource("r")))
    string = kinds.named("string")
    for form, resource, pointer in (
        (Form("tuple", (handle, handle)), True, False),
        (Form("option", (string,)), False, True),
        (Form("stream", (string,)), False, False),
        (Form("future", (handle,)), True, False),
        (Form("list", (kinds.adopt(U8),), number=4), False, False),
        (Form("list", (kinds.adopt(U8),)), False, True),
    ):
        kind = kinds.make(form)
        assert (kinds.has_resource(kind), kinds.has_pointer(kind)) == (resource, pointer), form


def test_a_type_that_doubles_is_refused_before_it_is_written() -> None:
    kinds = Kinds()

    def doubled(kind: ValueType, times: int) -> ValueType:
        return doubled(kinds.make(Form("result", (kind, kind))), times - 1) if times else kind

    assert len(str(doubled(kinds.named("string"), 10))) > 10_000
    with pytest.raises(Flaw, match="letters to write"):
        doubled(kinds.named("string"), 64)


def test_a_type_that_is_too_deep() -> None:
    kinds = Kinds()

    def nested(kind: ValueType, times: int) -> ValueType:
        return nested(kinds.make(Form("option", (kind,))), times - 1) if times else kind

    nested(kinds.named("u8"), 99)
    with pytest.raises(Flaw, match="deeper than 100"):
        nested(kinds.named("u8"), 100)


def test_values_that_are_too_large() -> None:
    kinds = Kinds()
    byte = kinds.named("u8")
    kinds.make(Form("list", (byte,), number=MAX_BYTES - 1))
    with pytest.raises(Flaw, match="are too many"):
        kinds.make(Form("list", (byte,), number=MAX_BYTES))
    with pytest.raises(Flaw, match="are too many"):  # of 16 bytes each, with 64-bit pointers
        kinds.make(Form("list", (kinds.named("string"),), number=MAX_BYTES // 16))
