"""Names of imports and exports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.component.binary.definitions import Name
from shim.component.binary.reader import Flaw
from shim.component.validation.names import check, check_labels


@pytest.mark.parametrize(
    "name",
    [
        "a", "A", "a-b", "a1-2-3b", "ABC-d", "a-1A", "[constructor]a-b", "[method]a.b",
        "[static]A-b.c", "a:b/c", "a-b:c-d/e-F", "a:b/c@1.2.3", "a:b/c@0.2.0-rc.1+x-y.z",
        "a:b/c@0.2", "a:b/c@3", "a:b/c@0.0.0",
    ],
)  # fmt: skip
def test_names(name: str) -> None:
    assert check(Name(name), "func").text == name


@pytest.mark.parametrize(
    "name",
    [
        "", "-", "a-", "-a", "a--b", "aB", "Ab", "1a", "a_b", "ä", "a b", "a\n", "[method]a",
        "[method]a.b.c", "[constructor]a.b", "[other]a.b", "a:b", "a:b/", "A:b/c", "a:b/c/d",
        "a:b:c/d", "a:b/c@", "a:b/c@1.2", "a:b/c@01.0.0", "a:b/c@1.0.0-", "a:b/c@1.0.0-01",
        "a.b", "url=<a>", "a:b/c@0",
    ],
)  # fmt: skip
def test_no_names(name: str) -> None:
    with pytest.raises(Flaw):
        check(Name(name), "func")


@given(st.text("aB1-.:/@[]", max_size=20))
def test_any_letters(text: str) -> None:
    try:
        checked = check(Name(text), "func")
    except Flaw:
        return
    assert checked.text == text
    assert check(Name(text), "func").unique == checked.unique


def test_what_has_to_differ() -> None:
    different = [
        "foo", "foo-bar", "[constructor]foo", "[method]foo.bar", "[static]foo.baz", "foo:bar/baz",
    ]  # fmt: skip
    unique = {check(Name(name), "func").unique for name in different}
    assert len(unique) == len(different)
    for same in (
        *("foo", "FOO", "foo-BAR", "[constructor]FOO", "[method]foo.BAR", "[static]foo.bar"),
        *("[method]foo.baz", "[method]foo.foo", "foo:bar/BAZ"),
    ):
        assert check(Name(same), "func").unique in unique, same


def test_only_functions_have_roles() -> None:
    with pytest.raises(Flaw, match="is no function"):
        check(Name("[method]a.b"), "instance")


@pytest.mark.parametrize(
    ("name", "sort", "right"),
    [
        (Name("a", implements="b:c/d@1.0.0"), "instance", True),
        (Name("a", implements="b"), "instance", False),
        (Name("a", implements="b:c/d"), "func", False),
        (Name("a:b/c", implements="b:c/d"), "instance", False),
        (Name("a:b/c@0.2", version_suffix=".6-rc.1"), "instance", True),
        (Name("a:b/c@0.2", version_suffix="x"), "instance", False),
        (Name("a:b/c@0.2.1", version_suffix=""), "instance", False),
        (Name("a", version_suffix=".1"), "instance", False),
    ],
)
def test_attributes(name: Name, sort: str, right: bool) -> None:
    if right:
        check(name, sort)
    else:
        with pytest.raises(Flaw):
            check(name, sort)


def test_labels() -> None:
    check_labels("field", ["a", "b-c"])
    for labels in (["a", "A"], ["a_b"], [""]):
        with pytest.raises(Flaw):
            check_labels("field", labels)
