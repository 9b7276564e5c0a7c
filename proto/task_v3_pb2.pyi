from google.protobuf import empty_pb2 as _empty_pb2
from proto import task_v2_pb2 as _task_v2_pb2
from google.protobuf import descriptor as _descriptor
from typing import ClassVar as _ClassVar

DESCRIPTOR: _descriptor.FileDescriptor
