"""containerd's gRPC API, as far as the tests drive it: library.

The stubs are made from the descriptors in `proto/api`, so no generated gRPC code is needed.
grpcio starts threads: only the test process imports this.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterable
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from proto import envelope_pb2, events_pb2, mount_pb2
from proto.api import (
    containers_pb2,
    namespaces_pb2,
    snapshots_pb2,
    tasks_pb2,
    version_pb2,
)
from proto.api import events_pb2 as events_api_pb2
from tests.integration.containerd import RUNC, Containerd

SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
SIGNAL = {"TERM": 15, "KILL": 9}

Spec = dict[str, Any] | bytes
"""A runtime-spec document, or the bytes to take for one, valid or not."""

_EVENTS = {
    f"containerd.events.{name}": getattr(events_pb2, name)
    for name in dir(events_pb2)
    if name.startswith("Task")
}


class Service:
    """One gRPC service; its methods are attributes that take a request and return a response."""

    def __init__(self, client: Connection, file: FileDescriptor, name: str) -> None:
        self._client = client
        self._service = file.services_by_name[name]

    def __getattr__(self, name: str) -> Callable[[Message], Any]:
        method = self._service.methods_by_name[name]

        def call(request: Message) -> Any:
            return self._client.stub(method)(request, timeout=60, metadata=self._client.metadata)

        return call

    def future(self, name: str, request: Message) -> Any:
        """Start a call and return its `grpc.Future`."""
        stub = self._client.stub(self._service.methods_by_name[name])
        return stub.future(request, timeout=60, metadata=self._client.metadata)


class Connection:
    """A connection to one containerd's socket, or to what serves CRI like it."""

    def __init__(self, containerd: Containerd) -> None:
        self.containerd = containerd
        self.metadata = (("containerd-namespace", containerd.namespace),)
        self.channel = self._connect()

    def _connect(self) -> Any:
        return grpc.insecure_channel(
            f"unix://{self.containerd.address}",
            options=[
                ("grpc.default_authority", "localhost"),
                ("grpc.enable_http_proxy", 0),
                ("grpc.use_local_subchannel_pool", 1),  # so that a new channel is a new connection
            ],
        )

    def reconnect(self) -> None:
        """Connect anew, to a containerd that was restarted."""
        self.channel.close()
        self.channel = self._connect()

    def close(self) -> None:
        """Close the connection."""
        self.channel.close()

    def stub(self, method: MethodDescriptor) -> Any:
        """A callable for one method, of one response."""
        return self.channel.unary_unary(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )


class Client(Connection):
    """A connection to one containerd, in its namespace."""

    def __init__(self, containerd: Containerd) -> None:
        super().__init__(containerd)
        self.tasks = Service(self, tasks_pb2.DESCRIPTOR, "Tasks")
        self.containers = Service(self, containers_pb2.DESCRIPTOR, "Containers")
        self.snapshots = Service(self, snapshots_pb2.DESCRIPTOR, "Snapshots")
        namespaces = Service(self, namespaces_pb2.DESCRIPTOR, "Namespaces")
        try:
            namespaces.Create(
                namespaces_pb2.CreateNamespaceRequest(
                    namespace=namespaces_pb2.Namespace(name=containerd.namespace)
                )
            )
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.ALREADY_EXISTS:
                raise

    def version(self) -> str:
        """Version of containerd, such as `1.6.20`."""
        service = Service(self, version_pb2.DESCRIPTOR, "Version")
        return str(service.Version(Empty()).version)

    # --- a container, step by step ----------------------------------------------------------

    def create_container(self, name: str, spec: Spec, runtime: str) -> None:
        """Record a container."""
        value = spec if isinstance(spec, bytes) else json.dumps(spec).encode()
        self.containers.Create(
            containers_pb2.CreateContainerRequest(
                container=containers_pb2.Container(
                    id=name,
                    runtime=containers_pb2.Container.Runtime(name=runtime),
                    spec=AnyMessage(type_url=SPEC_TYPE, value=value),
                )
            )
        )

    def delete_container(self, name: str) -> None:
        """Remove the record."""
        self.containers.Delete(containers_pb2.DeleteContainerRequest(id=name))

    def prepare(self, key: str, chain_id: str) -> list[mount_pb2.Mount]:
        """Make a writable snapshot of an unpacked image; return the mounts it consists of."""
        response = self.snapshots.Prepare(
            snapshots_pb2.PrepareSnapshotRequest(
                snapshotter=self.containerd.snapshotter,
                key=key,
                parent=chain_id,
                labels={"containerd.io/gc.root": "test"},  # nothing else refers to it
            )
        )
        return list(response.mounts)

    def remove_snapshot(self, key: str) -> None:
        """Remove what `prepare` made."""
        self.snapshots.Remove(
            snapshots_pb2.RemoveSnapshotRequest(snapshotter=self.containerd.snapshotter, key=key)
        )

    def create(
        self,
        name: str,
        rootfs: Iterable[mount_pb2.Mount] = (),
        *,
        stdin: str = "",
        stdout: str = "",
        stderr: str = "",
    ) -> int:
        """Create the task; return the pid of its process."""
        request = tasks_pb2.CreateTaskRequest(
            container_id=name, rootfs=list(rootfs), stdin=stdin, stdout=stdout, stderr=stderr
        )
        return int(self.tasks.Create(request).pid)

    def start(self, name: str) -> int:
        """Start the task; return its pid."""
        return int(self.tasks.Start(tasks_pb2.StartRequest(container_id=name)).pid)

    def wait(self, name: str) -> int:
        """Wait for the end of the task; return its exit status."""
        return int(self.tasks.Wait(tasks_pb2.WaitRequest(container_id=name)).exit_status)

    def wait_later(self, name: str) -> Any:
        """Send Wait; return the `grpc.Future` of its response."""
        return self.tasks.future("Wait", tasks_pb2.WaitRequest(container_id=name))

    def kill(self, name: str, signum: int = SIGNAL["KILL"]) -> None:
        """Send the task a signal."""
        self.tasks.Kill(tasks_pb2.KillRequest(container_id=name, signal=signum))

    def delete(self, name: str) -> int:
        """Delete the ended task; return its exit status."""
        request = tasks_pb2.DeleteTaskRequest(container_id=name)
        return int(self.tasks.Delete(request).exit_status)

    def state(self, name: str) -> Any:
        """The `containerd.v1.types.Process` of the task."""
        return self.tasks.Get(tasks_pb2.GetRequest(container_id=name)).process

    def close_stdin(self, name: str) -> None:
        """Tell the shim that no more input will come."""
        self.tasks.CloseIO(tasks_pb2.CloseIORequest(container_id=name, stdin=True))

    def pids(self, name: str) -> list[int]:
        """The pids of the task's processes."""
        request = tasks_pb2.ListPidsRequest(container_id=name)
        return [int(process.pid) for process in self.tasks.ListPids(request).processes]


def discard(client: Client, name: str) -> None:
    """Kill and delete a container of the API, whatever its state."""
    for step in (
        client.kill,
        client.wait,
        client.delete,
        client.delete_container,
        client.remove_snapshot,
    ):
        with contextlib.suppress(grpc.RpcError):
            step(name)


class Events:
    """The task events of a containerd since this was made: `(topic, message)` in order."""

    def __init__(self, client: Client) -> None:
        subscribe = client.channel.unary_stream(
            "/containerd.services.events.v1.Events/Subscribe",
            request_serializer=events_api_pb2.SubscribeRequest.SerializeToString,
            response_deserializer=envelope_pb2.Envelope.FromString,
        )
        self._seen: list[tuple[str, Any]] = []
        self._changed = threading.Condition()
        self._stream = subscribe(
            events_api_pb2.SubscribeRequest(filters=[f"namespace=={client.containerd.namespace}"]),
            metadata=client.metadata,
        )
        self._arrived = 0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        # containerd does not say when a subscription is in force: make events until one arrives.
        for number in range(1000):
            client.create_container(f"probe-{number}", b"{}", RUNC)
            client.delete_container(f"probe-{number}")
            with self._changed:
                if self._changed.wait_for(lambda: self._arrived, 0.02):
                    break

    def _read(self) -> None:
        try:
            for envelope in self._stream:
                kind = _EVENTS.get(envelope.event.type_url)
                with self._changed:
                    self._arrived += 1
                    if kind is not None:
                        self._seen.append((envelope.topic, kind.FromString(envelope.event.value)))
                    self._changed.notify_all()
        except grpc.RpcError:
            pass  # closed, or containerd ended

    def of(self, name: str) -> list[tuple[str, Any]]:
        """What was seen of one container."""
        with self._changed:
            return [(topic, event) for topic, event in self._seen if event.container_id == name]

    def until(self, name: str, topic: str, timeout: float = 20) -> list[tuple[str, Any]]:
        """Wait for an event of a container; return all that was seen of it.

        Raises:
            TimeoutError: it did not come.
        """

        def come() -> bool:
            return any(t == topic and e.container_id == name for t, e in self._seen)

        with self._changed:
            if not self._changed.wait_for(come, timeout):
                raise TimeoutError(f"no {topic} of {name}; seen: {[t for t, _ in self._seen]}")
        return self.of(name)

    def close(self) -> None:
        """End the subscription."""
        self._stream.cancel()
        self._thread.join(10)
