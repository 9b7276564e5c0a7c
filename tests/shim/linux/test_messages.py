from __future__ import annotations

import logging
import string
import sys

import pytest

from shim.linux.messages import Formatter, one_line, plain, report


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("/a: No such file", "/a: No such file"),
        ("Größe, 大小", "Größe, 大小"),
        ("a\n\n  Caused by:\n\tb\r\n", "a Caused by: b"),
        ("\x1b[2J\x00\x07\x9b\udcff", "\\x1b[2J\\x00\\x07\\x9b\\udcff"),
        ("a\N{RIGHT-TO-LEFT OVERRIDE}b\N{NO-BREAK SPACE}c", "a\\u202eb c"),
        (OSError(2, "why\nnot"), "[Errno 2] why not"),
        ("", ""),
    ],
)
def test_one_line(message: object, shown: str) -> None:
    assert one_line(message) == shown
    assert shown.isprintable()


def test_the_spaces_of_a_line_stay() -> None:
    assert plain("    at f\t(g)") == "    at f\\t(g)"


@pytest.mark.parametrize("unit", ["x", "\x1b", "\U000e0001", " \n"])
def test_what_is_too_long_says_what_and_why(unit: str) -> None:
    shown = one_line(f"/what/{unit * 5_000_000}: the reason")
    assert len(shown) <= 2005
    assert shown.startswith("/what/")
    assert shown.endswith(": the reason")
    assert shown.isprintable()


def test_what_is_printable_stays() -> None:
    text = string.ascii_letters + string.digits + string.punctuation + " "
    assert one_line(text.strip()) == text.strip()


def test_what_libraries_log_and_tracebacks(capfd: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError("a\x1b[2Jb\nc")
    except ValueError:
        report()
        record = logging.LogRecord("x", logging.ERROR, "", 0, "m\x07", None, sys.exc_info())
    for text in (capfd.readouterr().err, Formatter().format(record)):
        assert "ValueError: a\\x1b[2Jb\n" in text
        assert all(line.isprintable() for line in text.splitlines())
