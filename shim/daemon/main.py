"""From a fork of the zygote to a shim, or to whatever else the binary was executed for.

Runs in: shim.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence

from oci.bundle import CONFIG, Outline, read_outline
from oci.runtime import SpecError
from shim.daemon import address, config, options
from shim.daemon.api.events import Publisher
from shim.daemon.api.sandbox import SandboxService
from shim.daemon.api.service import TaskService
from shim.daemon.cleanup import clean_up
from shim.daemon.containers.artifacts import Artifacts
from shim.daemon.containers.child import GuestError
from shim.daemon.containers.creation import is_native
from shim.daemon.containers.guest import Guest
from shim.daemon.info import features, runtime_info
from shim.daemon.invocation import Invocation, UsageError
from shim.daemon.log import Logger
from shim.guest import control
from shim.guest.annotations import Forbidden
from shim.launcher.main import RUN_DIRECTORY
from shim.linux import merging
from shim.linux.files import read_small, write_small
from shim.linux.messages import one_line
from shim.linux.peer import peer_of
from shim.linux.title import set_title
from shim.ttrpc import Server

_GRACE = 2.0
_HIGHEST_OOM_SCORE = 1000


def handle(connection: socket.socket, warning: str = "") -> None:
    """Do what the launcher at the other end of `connection` was executed for.

    For a `start` that finds no shim this returns only when the shim has done its work.
    """
    try:
        invocation = Invocation.receive(connection)
        run_directory = os.fsdecode(os.environb.get(b"PYWASM_RUN", RUN_DIRECTORY))
        if invocation.info:
            _answer(connection, runtime_info(invocation.stdin))
        elif invocation.action == "features":
            _answer(connection, features() + b"\n")
        elif invocation.action == "delete":
            _answer(connection, clean_up(invocation, run_directory))
        else:
            _start(connection, run_directory, invocation, warning)
    except (OSError, SpecError, UsageError, config.ConfigError) as error:
        reason = control.reason(error) if isinstance(error, OSError) else str(error)
        message = f"containerd-shim-pywasm-v1: {one_line(reason)}\n"
        _answer(connection, message.encode(), status=1)


def _answer(connection: socket.socket, output: bytes, status: int = 0) -> None:
    with connection:
        connection.sendall(bytes([status]) + output)


def _start(
    connection: socket.socket, run_directory: str, invocation: Invocation, warning: str
) -> None:
    # A pod that CRI has the shim itself hold begins with nothing in its bundle.
    described = os.path.exists(os.path.join(invocation.bundle, CONFIG))
    outline = read_outline(invocation.bundle) if described else Outline()
    settings = config.read(invocation.config)
    runtime = options.of_start(invocation)
    engine = config.preferred(settings, runtime.engine)
    options.check_cgroups_path(runtime, outline.cgroups_path)
    group = address.group(outline.annotations, invocation.id)
    claim = address.claim(run_directory, invocation, group, outline.cgroups_path)
    if claim.listener is None:
        _announce(connection, invocation, claim.address)
        return
    log = Logger(
        invocation.bundle,
        debug=invocation.debug,
        id=invocation.id,
        namespace=invocation.namespace,
        pid=os.getpid(),
        runtime="io.containerd.pywasm.v1",
    )
    try:
        artifacts = Artifacts(
            invocation.state_directory,
            run_directory,
            invocation.namespace,
            engine,
            log,
            settings.unsafe_engines,
        )
        if runtime.shim_cgroup:
            options.join_shim_cgroup(runtime.shim_cgroup)
        if settings.merge_pages:
            merging.allow()
        oom_score = _oom_score(connection)
        _announce(connection, invocation, claim.address)
    except OSError:
        address.release(claim.path)
        raise
    with contextlib.suppress(PermissionError):  # lower than the zygote's, without CAP_SYS_RESOURCE
        write_small("/proc/self/oom_score_adj", b"%d" % oom_score)  # before the guest inherits it
    early = None
    try:
        # At once: what a guest can do alone takes it as long as containerd takes to ask for it.
        if described and not is_native(outline):
            early = Guest(invocation.id, invocation.bundle, outline, artifacts, log)
    except (GuestError, SpecError) as error:
        log.debug("no early guest", error=error)  # Create will meet it too, and can tell somebody
    if warning:
        log.warning(warning)
    os.chdir("/")
    whose = ("-namespace", invocation.namespace, "-id", invocation.id)
    set_title("pywasm-shim", "containerd-shim-pywasm-v1", *whose)
    # Not asyncio.run: this process ends here, and needs no loop taken apart for that.
    asyncio.new_event_loop().run_until_complete(
        serve(claim, invocation, artifacts, early, log, runtime, settings.forbid)
    )


def _announce(connection: socket.socket, invocation: Invocation, where: str) -> None:
    # Until 1.7 containerd finds the shim through this file after its own restart.
    write_small(os.path.join(invocation.bundle, "address"), where.encode())
    _answer(connection, address.write_answer(invocation, where))


async def serve(
    claim: address.Claim,
    invocation: Invocation,
    artifacts: Artifacts,
    early: Guest | None,
    log: Logger,
    runtime: options.Options = options.NONE,
    forbidden: Sequence[Forbidden] = (),
) -> None:
    """Be the shim that listens on `claim`, until containerd shuts it down."""
    publisher = Publisher(invocation.ttrpc_address, invocation.namespace, log)
    namespace = invocation.namespace
    service = TaskService(namespace, publisher, artifacts, log, early, runtime, forbidden)
    service.joining.expect(invocation.id)
    sandbox = SandboxService(service, artifacts, runtime, log)
    server = Server({**service.services(), **sandbox.services()})
    assert claim.listener is not None
    serving = asyncio.create_task(server.serve(claim.listener))
    log.info("serving", address=claim.address)
    await service.shutdown.wait()
    # A `start` of the same pod from now on gets a shim of its own.
    address.release(claim.path)
    server.close()
    await server.wait_closed(_GRACE)
    await publisher.flush(_GRACE)
    await serving
    log.debug("shim ends")


def _oom_score(connection: socket.socket) -> int:
    """Return the score with which the kernel chooses this shim before it chooses containerd.

    containerd's the launcher has inherited; the zygote, ours, has that of whoever asked first.
    """
    launcher = peer_of(connection).pid
    return min(int(read_small(f"/proc/{launcher}/oom_score_adj")) + 1, _HIGHEST_OOM_SCORE)
