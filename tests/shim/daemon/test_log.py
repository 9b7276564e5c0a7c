import os
import re
from pathlib import Path

import pytest

from shim.daemon.log import Logger


@pytest.fixture
def fifo(tmp_path: Path) -> int:
    os.mkfifo(tmp_path / "log")
    return os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)


def test_writes_logrus_text(tmp_path: Path, fifo: int) -> None:
    Logger(str(tmp_path), debug=False, id="web", namespace="k8s.io").info("it runs", path="/a b")
    line = os.read(fifo, 4096).decode()
    assert re.fullmatch(
        r'time="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z" level=info msg="it runs" '
        r'id=web namespace=k8s\.io path="/a b"\n',
        line,
    )
    os.close(fifo)


def test_debug_lines_need_the_flag(tmp_path: Path, fifo: int) -> None:
    Logger(str(tmp_path), debug=False).debug("quiet")
    Logger(str(tmp_path), debug=True).debug("loud")
    assert b"quiet" not in (text := os.read(fifo, 4096))
    assert b"level=debug msg=loud" in text
    os.close(fifo)


def test_a_value_cannot_forge_a_line(tmp_path: Path, fifo: int) -> None:
    Logger(str(tmp_path), debug=False).error('a"\nlevel=info msg=forged\x1b[2J', id="x y=z")
    line = os.read(fifo, 4096)
    assert line.count(b"\n") == 1
    assert rb'msg="a\"\nlevel=info msg=forged\x1b[2J" id="x y=z"' in line
    os.close(fifo)


def test_no_reader_is_no_reason_to_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    log = Logger(str(tmp_path), debug=False)
    for _ in range(2000):
        log.info("x" * 100)


def test_no_fifo_is_no_reason_to_fail(tmp_path: Path) -> None:
    Logger(str(tmp_path), debug=False).info("nobody hears")
