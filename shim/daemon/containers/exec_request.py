"""An Exec request, of which no secret stays in the shim's memory. Runs in: shim.

Its `process` has arguments and an environment, and every guest that the shim clones later has a
copy of what the shim holds. So the JSON goes as it lies from the buffer in which it was received to
a file in memory that nobody can change, for whoever is to run it; the shim reads an outline of it.
"""

from __future__ import annotations

import errno
import io
import os
from typing import Final, NamedTuple

import msgspec

from oci.runtime import ProcessOutline, decode_process_outline
from proto import task_v2_pb2 as api
from shim.engines.snapshot import contents, seal
from shim.ttrpc import Code, RpcError
from shim.ttrpc.wire import cut

_SPEC: Final = api.ExecProcessRequest.SPEC_FIELD_NUMBER
_VALUE: Final = 2  # of google.protobuf.Any


class ProcessFile(io.FileIO):
    """A `process` of the runtime-spec, in JSON, in a sealed file without a name."""

    def __init__(self, *parts: bytes | memoryview) -> None:
        """Write it. Raises OSError."""
        fd = os.memfd_create("process", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        super().__init__(fd, "r+")
        for part in parts:
            if os.write(fd, part) != len(part):
                self.close()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        seal(fd)

    def outline(self) -> ProcessOutline:
        """Return all of it that is no secret. Raises SpecError."""
        with contents(self.fileno(), os.fstat(self.fileno()).st_size) as text:
            return decode_process_outline(text)

    def with_terminal(self, terminal: bool) -> ProcessFile:
        """Return another that has this value of `terminal`. Raises OSError."""
        with contents(self.fileno(), os.fstat(self.fileno()).st_size) as text:
            # Views of the text, all of them, and gone before it is.
            fields = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
            fields["terminal"] = msgspec.Raw(b"true" if terminal else b"false")
            parts: list[bytes | memoryview] = [b"{"]
            for key, value in fields.items():
                parts += [msgspec.json.encode(key), b":", memoryview(value), b","]
            parts[-1] = b"}"
            try:
                return ProcessFile(*parts)
            finally:
                del fields, value
                parts.clear()


class ExecRequest(NamedTuple):
    """A request, and beside it its process, which whoever takes the request closes."""

    fields: api.ExecProcessRequest
    """Without `spec`."""
    process: ProcessFile

    @classmethod
    def FromString(cls, data: memoryview) -> ExecRequest:
        """Decode it, as protobuf's classes do. Raises DecodeError, RpcError."""
        rest, spec = cut(data, _SPEC)
        _, value = cut(spec, _VALUE)
        fields = api.ExecProcessRequest.FromString(rest)
        try:
            return cls(fields, ProcessFile(value))
        except OSError as error:
            raise RpcError(Code.UNKNOWN, f"spec: {error.strerror}") from error
