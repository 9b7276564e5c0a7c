"""The runtime-spec's ``config.json`` (1.3 and all before it) as typed data. A library.

Field for field config.md; `oci.linux` has the Linux section. Unknown fields are ignored, as the
spec demands, ``null`` is an absent field, and only what nothing can run without is required.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta, defstruct, field

from oci.decoding import Buffer, DocumentDecoder, SpecError
from oci.linux import ID, U32, U64, IDMapping, Linux, Resources, Section

__all__ = [
    "CPUAffinity",
    "Capabilities",
    "ConsoleSize",
    "Hook",
    "Hooks",
    "IOPriority",
    "Mount",
    "Process",
    "ProcessOutline",
    "Rlimit",
    "Root",
    "Scheduler",
    "Spec",
    "SpecError",
    "User",
    "decode",
    "decode_process",
    "decode_process_outline",
    "decode_resources",
]

I32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]


class ConsoleSize(Section, frozen=True, kw_only=True):
    """A terminal's size in characters."""

    height: U32 = 0
    width: U32 = 0


class User(Section, frozen=True, kw_only=True):
    """Credentials; ``umask`` is ``None`` where the runtime's own stays."""

    uid: ID = 0
    gid: ID = 0
    umask: U32 | None = None
    additional_gids: tuple[ID, ...] = ()
    username: str = ""


class Capabilities(Section, frozen=True, kw_only=True):
    """The five sets, by name (``CAP_KILL``); what is absent is empty."""

    bounding: tuple[str, ...] = ()
    effective: tuple[str, ...] = ()
    inheritable: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()


class Rlimit(Section, frozen=True, kw_only=True):
    """A resource limit by name (``RLIMIT_NOFILE``); 2**64-1 is no limit."""

    type: str
    hard: U64 = 0
    soft: U64 = 0


class Scheduler(Section, frozen=True, kw_only=True):
    """The fields of sched_setattr(2); times in nanoseconds."""

    policy: str
    nice: I32 = 0
    priority: I32 = 0
    flags: tuple[str, ...] = ()
    runtime: U64 = 0
    deadline: U64 = 0
    period: U64 = 0


class IOPriority(Section, frozen=True, kw_only=True):
    """The class and level of ioprio_set(2)."""

    class_: str = field(name="class")
    priority: int = 0


class CPUAffinity(Section, frozen=True, kw_only=True):
    """CPU lists for a process that is executed in the container, before and after it joins."""

    initial: str = ""
    final: str = ""


class ProcessOutline(Section, frozen=True, kw_only=True):
    """What somebody may know of a process who must not keep its arguments and environment."""

    terminal: bool = False
    console_size: ConsoleSize | None = None
    user: User = User()
    cwd: str = "/"
    capabilities: Capabilities = Capabilities()
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privileges: bool = False
    apparmor_profile: str = ""
    oom_score_adj: int | None = None
    scheduler: Scheduler | None = None
    selinux_label: str = ""
    io_priority: IOPriority | None = None
    exec_cpu_affinity: CPUAffinity | None = field(name="execCPUAffinity", default=None)


class Process(ProcessOutline, frozen=True, kw_only=True):
    """What runs in the container, and as whom. The request to execute another has this form too."""

    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()


class Root(Section, frozen=True, kw_only=True):
    """The root filesystem; ``path`` is absolute or relative to the bundle."""

    path: str
    readonly: bool = False


class Mount(Section, frozen=True, kw_only=True):
    """A filesystem to mount, in order; ``options`` are those of mount(8) and the spec's own."""

    destination: str
    type: str = ""
    source: str = ""
    options: tuple[str, ...] = ()
    uid_mappings: tuple[IDMapping, ...] = ()
    gid_mappings: tuple[IDMapping, ...] = ()


class Hook(Section, frozen=True, kw_only=True):
    """A program to run; ``timeout`` in seconds."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None


class Hooks(Section, frozen=True, kw_only=True):
    """Programs to run at each point of a container's life, in order."""

    prestart: tuple[Hook, ...] = ()
    create_runtime: tuple[Hook, ...] = ()
    create_container: tuple[Hook, ...] = ()
    start_container: tuple[Hook, ...] = ()
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()


class Spec(Section, frozen=True, kw_only=True):
    """The whole document."""

    process: Process
    root: Root
    oci_version: str = ""
    hostname: str = ""
    domainname: str = ""
    mounts: tuple[Mount, ...] = ()
    hooks: Hooks = Hooks()
    annotations: Mapping[str, str] = field(default_factory=dict)
    linux: Linux = Linux()


_spec = DocumentDecoder(Spec, "config.json")
_process = DocumentDecoder(Process, "process")
_process_outline = DocumentDecoder(
    ProcessOutline,
    "process",
    generic=defstruct(
        "AnyProcess",
        [(name, Any, None) for name in ProcessOutline.__struct_fields__],
        rename=dict(
            zip(
                ProcessOutline.__struct_fields__,
                ProcessOutline.__struct_encode_fields__,
                strict=True,
            )
        ),
    ),
)
_resources = DocumentDecoder(Resources, "resources")


def decode(data: Buffer) -> Spec:
    """Return the spec in the text of a ``config.json``, or raise `SpecError`."""
    return _spec.decode(data)


def decode_process(data: Buffer) -> Process:
    """Return the process that an exec request describes, or raise `SpecError`."""
    return _process.decode(data)


def decode_process_outline(data: Buffer) -> ProcessOutline:
    """Return what is no secret of it, without a copy of the rest, or raise `SpecError`."""
    return _process_outline.decode(data)


def decode_resources(data: Buffer) -> Resources:
    """Return the limits that an update request gives, or raise `SpecError`."""
    return _resources.decode(data)
