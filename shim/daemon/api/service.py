"""The Task API, versions 2 and 3, which differ in name only. Runs in: shim.

States, answers and events are those of containerd's own runc shim, but for what docs/task-api.md
lists. Methods that are missing from the table are answered with Unimplemented by the server.
"""

import asyncio
import errno
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from google.protobuf.empty_pb2 import Empty

from oci.runtime import SpecError, decode_resources
from proto import events_pb2, runc_options_pb2
from proto import task_v2_pb2 as api
from proto.task_pb2 import Status
from shim.daemon.api.events import Publisher, timestamp
from shim.daemon.api.joining import Joining
from shim.daemon.containers.artifacts import Artifacts
from shim.daemon.containers.container import Container
from shim.daemon.containers.creation import Creator
from shim.daemon.containers.exec_request import ExecRequest
from shim.daemon.containers.execution import Exec
from shim.daemon.containers.guest import Guest
from shim.daemon.containers.process import ProcessError
from shim.daemon.containers.program import Program
from shim.daemon.log import Logger
from shim.daemon.options import NONE, Options
from shim.daemon.pods import record as pod_record
from shim.daemon.streams.stdio import Stdio
from shim.guest import control
from shim.guest.annotations import Forbidden
from shim.ttrpc import Code, Context, Method, RpcError


class TaskService:
    """The containers of one shim."""

    def __init__(
        self,
        namespace: str,
        publisher: Publisher,
        artifacts: Artifacts,
        log: Logger,
        early: Guest | None = None,
        runtime: Options = NONE,
        forbidden: Sequence[Forbidden] = (),
    ) -> None:
        """`early` is the guest of a Create that is still some milliseconds away.

        `runtime` is for a Create that comes without options, `forbidden` what none may ask for.
        """
        self._namespace = namespace
        self._publisher = publisher
        self._log = log
        self._creator = Creator(namespace, artifacts, runtime, forbidden, log)
        self._containers: dict[str, Container] = {}
        self._creating: dict[str, asyncio.Task[Any] | None] = {}
        self._remembered: dict[str, str] = {}
        """Containers that have no `delete` of their own, and the bundle of the sandbox that has."""
        self._early = early
        self.joining = Joining(self._leave)
        """Who is still to come."""
        self.sandbox = ""
        """The bundle of the pod that this shim itself holds, if it does, whatever containers go."""
        self._dismissed = False
        self.shutdown = asyncio.Event()
        """Set once containerd has no more use for this shim."""

    def services(self) -> Mapping[str, Mapping[str, Method]]:
        """What the ttrpc server offers."""
        methods = {
            "Create": Method(api.CreateTaskRequest, self.create),
            "Exec": Method(ExecRequest, self.exec),
            "ResizePty": Method(api.ResizePtyRequest, self.resize_pty),
            "Start": Method(api.StartRequest, self.start),
            "State": Method(api.StateRequest, self.state),
            "Wait": Method(api.WaitRequest, self.wait, cancel_on_disconnect=True),
            "Kill": Method(api.KillRequest, self.kill),
            "Delete": Method(api.DeleteRequest, self.delete),
            "Pids": Method(api.PidsRequest, self.pids),
            "Pause": Method(api.PauseRequest, self.pause),
            "Resume": Method(api.ResumeRequest, self.resume),
            "Update": Method(api.UpdateTaskRequest, self.update),
            "Stats": Method(api.StatsRequest, self.stats),
            "Connect": Method(api.ConnectRequest, self.connect),
            "CloseIO": Method(api.CloseIORequest, self.close_io),
            "Shutdown": Method(api.ShutdownRequest, self.shut_down),
        }
        tasks = {"containerd.task.v2.Task": methods, "containerd.task.v3.Task": methods}
        return {**tasks, **self.joining.services()}

    async def create(self, request: api.CreateTaskRequest, _: Context) -> api.CreateTaskResponse:
        """Make a container and its guest, isolated, loaded and waiting."""
        if request.id in self._containers or request.id in self._creating:
            raise RpcError(Code.ALREADY_EXISTS, f"task {request.id}: already exists")
        for field, text in (("id", request.id), ("bundle", request.bundle)):
            if "\0" in text:  # which no system call takes
                raise RpcError(Code.INVALID_ARGUMENT, f"{field}: contains a NUL character")
        if request.checkpoint:
            raise RpcError(Code.UNIMPLEMENTED, "restoring a checkpoint is not implemented")
        self._creating[request.id] = asyncio.current_task()
        self.joining.arrived(request.id)
        try:
            stdio = self._stdio(request.id, request)
            container = await self._creator.create(request, stdio, self._take_early(request.bundle))
        except ProcessError as error:
            raise RpcError(error.code, str(error)) from error
        except SpecError as error:
            raise RpcError(Code.INVALID_ARGUMENT, str(error)) from error
        except OSError as error:
            raise RpcError(Code.UNKNOWN, control.reason(error)) from error
        else:
            self._containers[request.id] = container
            self._remember(container)
        finally:
            del self._creating[request.id]
            self._leave()  # where it failed, and containerd had given up before
        self._publisher.publish(
            events_pb2.TaskCreate(
                container_id=request.id,
                bundle=request.bundle,
                rootfs=request.rootfs,
                io=events_pb2.TaskIO(
                    stdin=request.stdin,
                    stdout=request.stdout,
                    stderr=request.stderr,
                    terminal=request.terminal,
                ),
                pid=container.pid,
            )
        )
        # Only now: a guest that is gone already must not be reported before it was created.
        container.on_oom(lambda: self._ran_out_of_memory(container))
        container.on_exit(lambda: self._exited(container))
        return api.CreateTaskResponse(pid=container.pid)

    def _stdio(self, id: str, request: api.CreateTaskRequest | api.ExecProcessRequest) -> Stdio:
        return Stdio(
            request.stdin,
            request.stdout,
            request.stderr,
            terminal=request.terminal,
            relayed=isinstance(request, api.ExecProcessRequest),
            logger_env={"CONTAINER_ID": id, "CONTAINER_NAMESPACE": self._namespace},
        )

    def _take_early(self, bundle: str) -> Guest | None:
        early = self._early
        # Of a pod's containers that were started at once, another may be created first.
        if early is None or os.path.realpath(early.bundle) != os.path.realpath(bundle):
            return None
        self._early = None
        early.watch()
        return early

    def _ran_out_of_memory(self, container: Container) -> None:
        self._publisher.publish(events_pb2.TaskOOM(container_id=container.id))
        if container.is_crios:
            container.mark_oom()

    def _exited(self, program: Program) -> None:
        self._log.debug(
            "exited", task=program.container_id, exec=program.id, status=program.exit_status
        )
        self._publisher.publish(
            events_pb2.TaskExit(
                container_id=program.container_id,
                id=program.id,
                pid=program.pid,
                exit_status=program.exit_status,
                exited_at=timestamp(program.exited_at),
            )
        )

    async def exec(self, request: ExecRequest, _: Context) -> Empty:
        """Add a program to a container; Start runs it."""
        fields = request.fields
        try:
            container = self._container(fields.id)
            stdio = self._stdio(fields.id, fields)
            with _named_errors():
                container.execute(fields.exec_id, request.process, stdio)
        except BaseException:
            request.process.close()
            raise
        self._publisher.publish(
            events_pb2.TaskExecAdded(container_id=container.id, exec_id=fields.exec_id)
        )
        return Empty()

    async def start(self, request: api.StartRequest, _: Context) -> api.StartResponse:
        """Run the program of a created container, or a further one."""
        program = self._program(request.id, request.exec_id)
        await program.start()
        if isinstance(program, Exec):
            self._publisher.publish(
                events_pb2.TaskExecStarted(
                    container_id=request.id, exec_id=request.exec_id, pid=program.pid
                )
            )
            program.on_exit(lambda: self._exited(program))
        else:
            self._publisher.publish(events_pb2.TaskStart(container_id=request.id, pid=program.pid))
        return api.StartResponse(pid=program.pid)

    async def state(self, request: api.StateRequest, _: Context) -> api.StateResponse:
        """Tell everything about a program that is not in its spec."""
        program = self._program(request.id, request.exec_id)
        return api.StateResponse(
            id=program.id,
            exec_id=request.exec_id,
            bundle=self._container(request.id).bundle,
            pid=program.pid,
            status=program.status,
            stdin=program.stdio.stdin,
            stdout=program.stdio.stdout,
            stderr=program.stdio.stderr,
            terminal=program.stdio.terminal,
            exit_status=program.exit_status,
            exited_at=timestamp(program.exited_at),
        )

    async def wait(self, request: api.WaitRequest, _: Context) -> api.WaitResponse:
        """Answer when the program has ended."""
        program = self._program(request.id, request.exec_id)
        await program.wait()
        return api.WaitResponse(
            exit_status=program.exit_status, exited_at=timestamp(program.exited_at)
        )

    async def kill(self, request: api.KillRequest, _: Context) -> Empty:
        """Send a signal to a program, or to all of a container."""
        program = self._program(request.id, request.exec_id)
        if program.has_ended and request.signal and self._container(request.id).is_crios:
            # CRI-O does not hear of the end of what it had started before its own restart. It stops
            # that once more, and never removes a pod of which it cannot. A 0 asks whether it lives.
            return Empty()
        if request.all and isinstance(program, Container):
            program.kill_all(request.signal)
        else:
            program.kill(request.signal)
        return Empty()

    async def delete(self, request: api.DeleteRequest, _: Context) -> api.DeleteResponse:
        """Free a program that has ended or was never started; one that is being made, too."""
        if creating := self._creating.get(request.id):
            # containerd has given the Create up. It waits for seconds only, and does not come back.
            creating.cancel()
            await asyncio.wait({creating})
        container = self._container(request.id)
        if request.exec_id:
            return await self._delete_exec(container, request.exec_id)
        await container.delete()
        # Of two Deletes at the same time, one is late.
        if self._containers.pop(request.id, None) is None:
            raise _not_found(request.id)
        self._publisher.publish(
            events_pb2.TaskDelete(
                container_id=container.id,
                pid=container.pid,
                exit_status=container.exit_status,
                exited_at=timestamp(container.exited_at),
            )
        )
        response = api.DeleteResponse(
            pid=container.pid,
            exit_status=container.exit_status,
            exited_at=timestamp(container.exited_at),
        )
        container.bid_farewell(response.SerializeToString())
        self._forget(container)
        return response

    async def _delete_exec(self, container: Container, exec_id: str) -> api.DeleteResponse:
        program = _exec_of(container, exec_id)
        if program.status in (Status.RUNNING, Status.PAUSED):
            raise RpcError(Code.FAILED_PRECONDITION, f"cannot delete a {program.state()} process")
        del container.execs[exec_id]
        await program.discard()
        return api.DeleteResponse(
            pid=program.pid,
            exit_status=program.exit_status,
            exited_at=timestamp(program.exited_at),
        )

    async def resize_pty(self, request: api.ResizePtyRequest, _: Context) -> Empty:
        """Change the size of a program's terminal, if it has one."""
        program = self._program(request.id, request.exec_id)
        try:
            program.stdio.resize(request.width, request.height)
        except OSError as error:
            raise RpcError(Code.FAILED_PRECONDITION, control.reason(error)) from error
        return Empty()

    async def pids(self, request: api.PidsRequest, _: Context) -> api.PidsResponse:
        """List the container's processes."""
        container = self._container(request.id)
        execs = {e.pid: exec_id for exec_id, e in container.execs.items() if e.pid}
        response = api.PidsResponse()
        for pid in container.pids():
            process = response.processes.add(pid=pid)
            if pid in execs:
                details = runc_options_pb2.ProcessDetails(exec_id=execs[pid])
                process.info.type_url = details.DESCRIPTOR.full_name
                process.info.value = details.SerializeToString()
        return response

    async def pause(self, request: api.PauseRequest, _: Context) -> Empty:
        """Stop a container's processes where they stand."""
        container = self._container(request.id)
        with _named_errors():
            await container.pause()
        self._publisher.publish(events_pb2.TaskPaused(container_id=container.id))
        return Empty()

    async def resume(self, request: api.ResumeRequest, _: Context) -> Empty:
        """Let a paused container go on."""
        container = self._container(request.id)
        with _named_errors():
            container.resume()
        self._publisher.publish(events_pb2.TaskResumed(container_id=container.id))
        return Empty()

    async def update(self, request: api.UpdateTaskRequest, _: Context) -> Empty:
        """Change the limits that the request gives; the others stay."""
        container = self._container(request.id)
        with _named_errors():
            await container.update(decode_resources(request.resources.value))
        return Empty()

    async def stats(self, request: api.StatsRequest, _: Context) -> api.StatsResponse:
        """Tell what a container uses, in the form of its machine's version of cgroups."""
        container = self._container(request.id)
        with _named_errors():
            try:
                metrics = container.metrics()
            except FileNotFoundError as error:
                # containerd, which asks for all of them every few seconds, passes over these.
                raise RpcError(Code.NOT_FOUND, control.reason(error)) from error
        response = api.StatsResponse()
        # The bare name: containerd's own shim sends no host before it.
        response.stats.type_url = metrics.DESCRIPTOR.full_name
        response.stats.value = metrics.SerializeToString()
        return response

    async def connect(self, request: api.ConnectRequest, _: Context) -> api.ConnectResponse:
        """Tell this process's pid, and the task's if there is one."""
        container = self._containers.get(request.id)
        return api.ConnectResponse(shim_pid=os.getpid(), task_pid=container.pid if container else 0)

    async def close_io(self, request: api.CloseIORequest, _: Context) -> Empty:
        """End a container's standard input."""
        program = self._program(request.id, request.exec_id)
        if request.stdin:
            program.stdio.close_input()
        return Empty()

    async def shut_down(self, request: api.ShutdownRequest, _: Context) -> Empty:
        """End this shim, unless it still has containers (those of the same pod)."""
        self.dismiss(request.id)
        if self.shutdown.is_set():
            await self.discard_early()
        return Empty()

    def dismiss(self, id: str) -> None:
        """End this shim as soon as it has nothing left; `id` is not waited for."""
        self._dismissed = True
        self.joining.arrived(id)
        if creating := self._creating.get(id):
            creating.cancel()  # see `delete`
        self._leave()

    async def discard_early(self) -> None:
        """End the guest whose Create does not come."""
        early, self._early = self._early, None
        if early is not None:
            early.watch()
            await early.discard()

    def kill_all(self) -> None:
        """End every program of every container."""
        for container in self._containers.values():
            if container.status != Status.STOPPED:
                with suppress(RpcError):  # it was faster
                    container.kill_all(signal.SIGKILL)

    async def delete_all(self) -> None:
        """End and free every container. Raises RpcError, OSError."""
        self.kill_all()
        for id, container in list(self._containers.items()):
            await container.wait()
            await container.delete()
            self._containers.pop(id, None)
            self._forget(container)

    def _remember(self, container: Container) -> None:
        sandbox = self.sandbox
        if not sandbox and len(self._containers) > 1:
            holder = self._containers.get(pod_record.sandbox_of(container.bundle))
            sandbox = holder.bundle if holder else ""
        if not sandbox:
            return
        self._remembered[container.id] = sandbox
        try:
            pod_record.remember(sandbox, container.id, container.bundle)
        except OSError as error:
            self._log.warning("cannot be cleaned up after", task=container.id, error=error)

    def _forget(self, container: Container) -> None:
        if sandbox := self._remembered.pop(container.id, ""):
            pod_record.forget(sandbox, container.id)

    def _leave(self) -> None:
        """End, if that was asked for and is possible now."""
        if self._dismissed and not (
            self._containers or self._creating or self.joining or self.sandbox
        ):
            self.joining.closed = True
            self.shutdown.set()

    def _container(self, id: str) -> Container:
        container = self._containers.get(id)
        if container is None:
            raise _not_found(id)
        return container

    def _program(self, id: str, exec_id: str) -> Container | Exec:
        container = self._container(id)
        return _exec_of(container, exec_id) if exec_id else container


@contextmanager
def _named_errors() -> Iterator[None]:
    """Turn errors of the kernel and of documents into answers that name the culprit."""
    try:
        yield
    except SpecError as error:
        raise RpcError(Code.INVALID_ARGUMENT, str(error)) from error
    except OSError as error:
        code = Code.INVALID_ARGUMENT if error.errno == errno.EINVAL else Code.UNKNOWN
        raise RpcError(code, control.reason(error)) from error


def _exec_of(container: Container, exec_id: str) -> Exec:
    program = container.execs.get(exec_id)
    if program is None:
        raise RpcError(Code.NOT_FOUND, f"process does not exist {exec_id}: not found")
    return program


def _not_found(id: str) -> RpcError:
    return RpcError(Code.NOT_FOUND, f"container {id}: not found")
