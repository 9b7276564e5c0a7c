"""Bytes that may or may not be a module: ModuleError, in one line, is all that comes out."""

from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from shim.engines.base import HEADER, ModuleError, check_header
from shim.engines.text import assembled

CORE, COMPONENT = b"\0asm\1\0\0\0", b"\0asm\x0d\0\1\0"
HEADS = st.sampled_from([b"", b"\0", CORE, COMPONENT, CORE[:6], b"(module)", b" ", b";;", b"(;"])
WORDS = st.sampled_from(
    (
        *("(", ")", "module", "func", "export", "component", "memory", "data", "param", "i32"),
        *('"', '"_start"', "$f", "\\00", ";; x\n", "(;", ";)", "1", "-1", "1e999", "0x", "\ud7ff"),
        *("quote", "binary", "import", "call", "i64.const", "((" * 200, "if" * 50, "\0", "\n"),
    )
)


def explained(error: ModuleError) -> bool:
    return bool(str(error))


@given(HEADS, st.binary(max_size=12))
def test_any_header(head: bytes, rest: bytes) -> None:
    data = head + rest
    for text in (False, True):
        try:
            check_header(data, text=text)
        except ModuleError as error:
            refused = error
        else:
            assert text or data[:HEADER] == CORE
            continue
        assert explained(refused)
        assert data[:HEADER] != CORE


@settings(max_examples=150)
@given(st.lists(WORDS, max_size=12).map(" ".join), st.binary(max_size=3))
def test_any_text(words: str, end: bytes) -> None:
    data = b"(module " + words.encode() + end
    refused = None
    try:
        binary = assembled(data)
    except ModuleError as error:
        refused = error
    else:
        assert binary.startswith(CORE)
    assert refused is None or explained(refused)


def test_text_nested_deeply() -> None:
    with suppress(ModuleError):
        assembled(b"(module (func " + b"(block " * 50_000 + b")" * 50_000 + b"))")
