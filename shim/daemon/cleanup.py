"""`delete`: remove what a shim that is no more has left of a container.

Runs in: shim (a short-lived one).

containerd executes it whenever a shim's socket has closed; after an orderly end the launcher
answers by itself. A guest dies with its shim (PR_SET_PDEATHSIG), and its mounts with its namespace;
what can be left is its cgroup and the shim's socket. A native container outlives its shim.
"""

import asyncio
import os
import signal
import time

from oci.bundle import Outline, read_outline
from oci.runtime import SpecError
from proto.task_v2_pb2 import DeleteResponse
from shim.daemon import address
from shim.daemon.api.events import timestamp
from shim.daemon.containers import native
from shim.daemon.containers.container import PID_FILE
from shim.daemon.containers.process import ProcessError
from shim.daemon.invocation import Invocation
from shim.daemon.log import Logger
from shim.daemon.pods import files as pod_files
from shim.daemon.pods import record as pod_record
from shim.guest.placement import Placement
from shim.linux import hooks
from shim.linux.files import read_small


def clean_up(invocation: Invocation, run_directory: str) -> bytes:
    """Return an encoded DeleteResponse, which says that the container was killed."""
    bundle = invocation.bundle
    pid = _read(bundle, PID_FILE)
    response = DeleteResponse(
        pid=int(pid or 0),
        exit_status=128 + signal.SIGKILL,
        exited_at=timestamp(time.time_ns()),
    )
    log = Logger(bundle, debug=invocation.debug, id=invocation.id, namespace=invocation.namespace)
    for id, container in pod_record.containers(bundle):
        _remove(id, container, log)
    _remove(invocation.id, bundle, log)
    pod_files.remove(bundle)
    if socket_address := _read(bundle, "address"):
        address.release_dead(socket_address.removeprefix("unix://"))
    try:
        address.sweep(run_directory)  # where one was killed, others may have been
    except OSError as error:
        log.warning("left behind", error=error)
    return response.SerializeToString()


def _remove(id: str, bundle: str, log: Logger) -> None:
    pid = _read(bundle, PID_FILE)
    try:
        outline = read_outline(bundle)
    except SpecError:
        outline = Outline()  # of a config that no guest was made from
    try:
        runtime = native.abandoned(id, bundle)
    except OSError as error:
        runtime = None
        log.warning("left behind", error=error)
    try:
        path = outline.cgroups_path
        cgroup = Placement.for_path(path).cgroup if path else None
    except OSError:
        cgroup = None  # the same
    if cgroup is not None and cgroup.exists():
        cgroup.kill()
        cgroup.delete()
    if runtime is not None:
        try:
            asyncio.run(native.clean_up(id, bundle, runtime))
        except (OSError, ProcessError) as error:
            log.warning("left behind", error=error)
    elif pid:
        _run_poststop(id, bundle, outline, log)


def _run_poststop(id: str, bundle: str, outline: Outline, log: Logger) -> None:
    state = hooks.State(outline.oci_version, id, "stopped", 0, bundle, outline.annotations)
    for hook in outline.hooks.poststop:
        try:
            hooks.run_here("poststop", [hook], state, bundle)
        except hooks.HookError as error:
            log.warning("hook failed", error=error)


def _read(bundle: str, name: str) -> str:
    try:
        return read_small(os.path.join(bundle, name)).decode()
    except FileNotFoundError:
        return ""
