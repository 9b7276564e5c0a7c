"""Annotations come from whoever may create a container: any text, and none may hold up a shim."""

import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oci.runtime import SpecError
from shim.guest.annotations import _PARSERS, MAX_PAGES, PREFIX, read

PARTS = st.sampled_from(
    (
        *("tcp://", "1.2.3.4", "[::1]", "[1.2.3.4]", ":80", ":0", ":99999", "?nonblock", "a", "/"),
        *(":ro", ":rw", "proc", "all", "wasmer", "on", "off", "h", "m", "s", "ms", ",", "=", " "),
        *("0", "16", "65536", "1.5", "\0", "\n", "\u0661", "\u00b2", "0" * 9, "9" * 400),
    )
)
VALUES = st.text(max_size=8) | st.lists(PARTS, max_size=8).map("".join)


@settings(max_examples=250)
@given(st.dictionaries(st.sampled_from(sorted(_PARSERS)) | st.text(max_size=3), VALUES, max_size=3))
def test_any_annotations(annotations: dict[str, str]) -> None:
    try:
        found = read({PREFIX + key: value for key, value in annotations.items()})
    except SpecError:
        return
    assert found.memory_pages is None or 0 < found.memory_pages <= MAX_PAGES
    assert found.time_limit is None or 0 < found.time_limit < 1e9
    for listen in found.listen:
        assert 0 < listen.port < 1 << 16
        socket.inet_pton(listen.family, listen.host)
    for preopen in found.preopens:
        assert preopen.path.startswith("/")
        assert "\0" not in preopen.name + preopen.path


@pytest.mark.parametrize(
    "value",
    [
        "0000000019999999",  # the first digits alone were looked at
        "000000001" + "0" * 5000,
        "1" * 5000,
    ],
)
def test_many_digits_are_not_a_number_of_pages(value: str) -> None:
    with pytest.raises(SpecError, match="memory-pages: expected a number of 64 KiB pages"):
        read({f"{PREFIX}memory-pages": value})


@pytest.mark.parametrize("key", sorted(_PARSERS))
@pytest.mark.parametrize("piece", ["1", "1.", "a=", "tcp://", "[", ",", "1m", " ", "\0"])
def test_long_values_take_linear_time(key: str, piece: str) -> None:
    """Where they do not, this runs into the time limit of a test: 20,000 digits took 13 s once."""
    with pytest.raises(SpecError):
        read({PREFIX + key: piece * 200_000})
