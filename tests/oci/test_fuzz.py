"""Any JSON, and any value anywhere in a spec: SpecError is all that comes out.

A shim knows a container by its outline, the guest by the whole: they must not differ.
"""

import json
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oci.decoding import SpecError
from oci.runtime import decode
from tests.fuzz import config
from tests.oci.test_runtime import FULL, places

NUMBERS = st.sampled_from(
    [0, -1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, 1e300]
)
STRINGS = st.text(max_size=5) | st.sampled_from(["\0", "pid", "/proc/1/ns/net", "../..", "x" * 200])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | STRINGS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRINGS, inner, max_size=3),
    max_leaves=8,
)
# What the outline has, too, more often than the rest.
OUTLINED = [
    place
    for place in places(FULL)
    if place[0] in ("annotations", "hooks", "ociVersion", "root")
    or place[:2] in (("linux", "namespaces"), ("linux", "cgroupsPath"), ("linux", "timeOffsets"))
    or place[:2] in (("process", "terminal"), ("process", "consoleSize"))
]


@settings(max_examples=100)
@given(JSON)
def test_any_json(document: Any) -> None:
    config.fuzz(json.dumps(document).encode())


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(places(FULL)) | st.sampled_from(OUTLINED),
            JSON | st.just(...) | STRINGS.map(lambda text: {text: text}),
        ),
        max_size=3,
    )
)
def test_a_spec_with_other_values(changes: list[tuple[tuple[str | int, ...], Any]]) -> None:
    """An ellipsis stands for a value that is missing."""
    document = deepcopy(FULL)
    for path, value in changes:
        inner: Any = document
        try:
            for step in path[:-1]:
                inner = inner[step]
            if value is ...:
                del inner[path[-1]]
            else:
                inner[path[-1]] = value
        except (LookupError, TypeError):
            continue  # an earlier change has taken it away
    config.fuzz(json.dumps(document).encode())


@pytest.mark.parametrize("again", ['"x"', "[1]", '{"sysctl":[]}', "1"])
def test_a_section_given_twice(again: str) -> None:
    """Found by fuzzing: the search for the key at fault went through the other value."""
    with pytest.raises(SpecError, match=r"^linux\.sysctl\[...\]: expected str, got int$"):
        decode(b'{"linux":{"sysctl":{"a":1}},"linux":%s}' % again.encode())
