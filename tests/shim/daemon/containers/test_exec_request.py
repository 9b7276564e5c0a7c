"""The parts of an Exec request."""

import json
import os

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from oci.runtime import SpecError, decode_process, decode_process_outline
from proto import task_v2_pb2 as api
from shim.daemon.containers.exec_request import ExecRequest, ProcessFile


def content(file: ProcessFile) -> bytes:
    return os.pread(file.fileno(), 1 << 20, 0)


def test_all_but_the_process_is_as_it_was() -> None:
    message = api.ExecProcessRequest(
        id="x", exec_id="e", terminal=True, stdin="in", stdout="out", stderr="err"
    )
    message.spec.type_url = "some type"
    message.spec.value = b'{"args": ["secret"]}'
    request = ExecRequest.FromString(memoryview(message.SerializeToString()))
    with request.process:
        assert content(request.process) == message.spec.value
        with pytest.raises(PermissionError):
            os.ftruncate(request.process.fileno(), 0)
    message.ClearField("spec")
    assert request.fields == message


@pytest.mark.parametrize("spec", [None, AnyMessage(), AnyMessage(type_url="x")])
def test_without_a_process(spec: AnyMessage | None) -> None:
    message = api.ExecProcessRequest(id="x", spec=spec).SerializeToString()
    request = ExecRequest.FromString(memoryview(message))
    with request.process, pytest.raises(SpecError, match=r"process: truncated JSON"):
        request.process.outline()


@pytest.mark.parametrize(
    ("process", "terminal"),
    [
        ({"args": ["a"], "env": ["A=\N{SNOWMAN}"], "cwd": "/"}, True),
        ({"terminal": True, "args": ["a"]}, False),
        ({"args": ["a"], "terminal": False, 'a key, "': {"terminal": 1}}, True),
        ({}, True),
    ],
)
def test_another_terminal(process: dict[str, object], terminal: bool) -> None:
    with ProcessFile(json.dumps(process).encode()) as file, file.with_terminal(terminal) as other:
        assert json.loads(content(other)) == process | {"terminal": terminal}


def test_the_outline_is_the_process_but_for_arguments_and_environment() -> None:
    text = json.dumps(
        {
            "args": ["a"],
            "env": ["A=b"],
            "cwd": "/x",
            "user": {"uid": 5},
            "execCPUAffinity": {"initial": "0"},
            "rlimits": None,
            "consoleSize": {"height": 2, "width": 3},
        }
    ).encode()
    outline, process = decode_process_outline(text), decode_process(text)
    for field in outline.__struct_fields__:
        assert getattr(outline, field) == getattr(process, field), field
    assert set(process.__struct_fields__) - set(outline.__struct_fields__) == {"args", "env"}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"", "process: truncated JSON"),
        (b"[]", "process: expected object, got array"),
        (b'{"args": [1,}', "process: invalid JSON at byte"),
        (b'{"args": ["a"], "rlimits": null, "cwd": 1}', "cwd: expected str, got int"),
        (b'{"args": ["a"], "user": {"uid": -1}}', "user.uid: "),
    ],
)
def test_what_is_wrong_with_it(text: bytes, error: str) -> None:
    with ProcessFile(text) as file, pytest.raises(SpecError, match=error):
        file.outline()
