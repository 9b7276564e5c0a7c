"""The life of a made-up container, before the first fork: the zygote is its shim. Runs in: zygote.

Much is built when it is first used: frames, attribute caches, protobuf's classes, libc's arenas.
Built here, it is shared by all processes to come; built there, each of them has pages of its own
for it. Measured, before code was packed: 200 page faults and 1.5 ms less for a shim.

And since 3.11 the interpreter writes to the code that it runs: a count here, there what it has
found. So each fork copies every page with code that it runs, and the code of a life, 0.3 MB, is a
tenth of what the imports have left everywhere. One of the lives is watched, to put it together.

The container is a real one, without a cgroup and without a mount outside of it. Where none can be
made, all that leads there has been rehearsed.
"""

import asyncio
import contextlib
import gc
import mmap
import os
import socket
import sys
from collections.abc import Callable
from types import FrameType, FunctionType
from typing import Any

from google.protobuf.empty_pb2 import Empty

from oci.bundle import read_outline, read_spec
from oci.runtime import SpecError
from proto import task_v2_pb2 as api
from proto.events_service_pb2 import ForwardRequest
from shim.daemon import address, config, main
from shim.daemon.containers.artifacts import Artifacts
from shim.daemon.containers.child import GuestError
from shim.daemon.containers.guest import Guest
from shim.daemon.invocation import Invocation
from shim.daemon.log import Logger
from shim.engines import engines
from shim.engines.cache import ArtifactCache, key
from shim.engines.snapshot import digest_now
from shim.guest import control
from shim.linux import credentials, mounts, signals
from shim.linux.cgroups import Cgroup
from shim.linux.files import write_small
from shim.ttrpc import Client, Context, Method, RpcError, Server
from shim.zygote import layout

_CONFIG = b"""
{
  "ociVersion": "1.1.0",
  "process": {
    "user": {"uid": 0, "gid": 0, "additionalGids": [0]},
    "args": ["/rehearsal.wat"],
    "env": ["PATH=/bin"],
    "cwd": "/",
    "capabilities": {"bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"]},
    "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
    "noNewPrivileges": true
  },
  "root": {"path": "rootfs", "readonly": true},
  "mounts": [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}
  ],
  "annotations": {"rehearsal": "yes"},
  "linux": {
    "namespaces": [
      {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}
    ],
    "maskedPaths": ["/proc/acpi"],
    "readonlyPaths": ["/proc/bus"]
  }
}
"""
_MODULE = b"""
(module
  (import "wasi_snapshot_preview1" "fd_write"
    (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))
"""
_SETTINGS = b'engine = ""\n'
_ID = "rehearsal"
_CALLS = (
    ("State", api.StateRequest(id=_ID)),
    ("Start", api.StartRequest(id=_ID)),
    ("Connect", api.ConnectRequest(id=_ID)),
    ("Wait", api.WaitRequest(id=_ID)),
    ("Kill", api.KillRequest(id=_ID)),
    ("Delete", api.DeleteRequest(id=_ID)),
    ("Shutdown", api.ShutdownRequest(id=_ID)),
)
_NOT_REHEARSED = ("shim.linux.cgroups.", "shim.guest.placement", "shim.daemon.main")
"""Modules of which most is needed in a life, but not in this one."""

_PATIENCE = 5.0  # seconds for a life of some milliseconds, and a compilation


def rehearse(run_directory: str) -> None:
    """Do it, in a directory below `run_directory`. Raises whatever goes wrong."""
    directory = os.path.join(run_directory, f"r{os.getpid()}")
    os.mkdir(directory, 0o700)
    try:
        os.mkdir(os.path.join(directory, "rootfs"))
        write_small(os.path.join(directory, "rootfs", "rehearsal.wat"), _MODULE)
        write_small(os.path.join(directory, "config.json"), _CONFIG)
        write_small(os.path.join(directory, "config.toml"), _SETTINGS)
        os.mkfifo(os.path.join(directory, "stdout"))
        _live(directory)  # which has the module compiled
        layout.pack(_functions_of(lambda: _live(directory)))
        # Twice, since some caches are filled by a second use.
        for _ in range(2):
            _live(directory)
    finally:
        os.chdir("/")
        for parent, directories, files in os.walk(directory, topdown=False):
            for name in files:
                os.unlink(os.path.join(parent, name))
            for name in directories:
                os.rmdir(os.path.join(parent, name))
        os.rmdir(directory)


def _functions_of(act: Callable[[], None]) -> list[FunctionType]:
    """Return the functions that an act takes: this process's, then both's, then its forks'."""
    functions = [thing for thing in gc.get_objects() if type(thing) is FunctionType]
    codes = {id(code): code for function in functions for code in layout.codes(function.__code__)}
    numbers = {address: number for number, address in enumerate(codes)}
    here, ran = os.getpid(), mmap.mmap(-1, len(codes))  # which forks share

    def note(frame: FrameType, _event: str, _argument: Any) -> None:
        number = numbers.get(id(frame.f_code))
        if number is not None:
            ran[number] |= 1 if os.getpid() == here else 2

    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(None)

    def where(function: FunctionType) -> int:
        if (function.__module__ or "").startswith(_NOT_REHEARSED):
            return 3
        return max(ran[numbers[id(code)]] for code in layout.codes(function.__code__))

    order = (1, 3, 2)
    return sorted(filter(where, functions), key=lambda function: order.index(where(function)))


def _live(directory: str) -> None:
    _rehearse_shim(directory)
    _rehearse_guest(directory)


def _rehearse_shim(directory: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        arguments = [b"-namespace", b"n", b"-id", _ID.encode(), b"-address", b"/a", b"start"]
        settings = os.path.join(directory, "config.toml")
        here, there = os.fsencode(directory), os.fsencode(settings)
        request = [here, b"events", b"2", here, there, b"7"]
        ours.sendall(b"\0".join([*request, *arguments, b""]))
        ours.shutdown(socket.SHUT_WR)
        invocation = Invocation.receive(theirs)
    outline = read_outline(invocation.bundle)
    Cgroup.for_path("/rehearsal/rehearsal").exists()
    # Relative to it: the path of a socket has 107 bytes at most.
    os.chdir(directory)
    claim = address.claim(".", invocation, invocation.id)
    address.write_answer(invocation, claim.address)
    log = Logger(directory, debug=False, id=invocation.id, pid=os.getpid())
    engine = config.read(invocation.config).engine
    artifacts = Artifacts(invocation.state_directory, ".", invocation.namespace, engine, log)
    early = None
    with contextlib.suppress(GuestError, SpecError):
        early = Guest(invocation.id, invocation.bundle, outline, artifacts, log)
    try:
        conversation = _converse(claim, invocation, artifacts, early, log)
        asyncio.run(asyncio.wait_for(conversation, _PATIENCE))
    finally:
        artifacts.close()


async def _converse(
    claim: address.Claim,
    invocation: Invocation,
    artifacts: Artifacts,
    early: Guest | None,
    log: Logger,
) -> None:
    """Be shim and containerd."""

    async def forward(_request: ForwardRequest, _: Context) -> Empty:
        return Empty()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(invocation.ttrpc_address)
        listener.listen()
        methods = {"Forward": Method(ForwardRequest, forward)}
        containerd = Server({"containerd.services.events.ttrpc.v1.Events": methods})
        taking = asyncio.create_task(containerd.serve(listener))
        serving = asyncio.create_task(main.serve(claim, invocation, artifacts, early, log))
        client = await Client.connect(claim.path)
        bundle = invocation.bundle
        create = api.CreateTaskRequest(id=_ID, bundle=bundle, stdout=os.path.join(bundle, "stdout"))
        for method, message in (("Create", create), *_CALLS):
            with contextlib.suppress(RpcError):  # in this state, or this place, it may not go
                await client.call("containerd.task.v2.Task", method, message, Empty)
        await client.close()
        await serving
        containerd.close()
        await containerd.wait_closed(_PATIENCE)
        await taking
    os.unlink(invocation.ttrpc_address)


def _rehearse_guest(directory: str) -> None:
    spec = read_spec(directory)
    for mount in spec.mounts:
        mounts.parse_options(mount.options)
    signals.exit_on(())
    credentials.last_capability()
    ours, theirs = control.pair()
    with ours, theirs:
        rootfs = control.Mount("overlay", "overlay", "", ["lowerdir=/a:/b"])
        control.send(ours, control.Prepare([rootfs]), [ours.fileno()])
        _, fds = control.receive(theirs)
        control.send(theirs, control.Ready("", ""))
        control.receive(ours)
    here = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    config = os.open("config.json", os.O_RDONLY, dir_fd=here)
    ArtifactCache(here).load(key(digest_now(config), engines()[0].fingerprint()))
    for fd in (*fds, here, config):
        os.close(fd)
