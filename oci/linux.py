"""The ``linux`` section of a runtime-spec ``config.json``. A library.

Field for field the runtime-spec's config-linux.md (1.3), which explains them. A field whose absence
means something of its own is ``None``; where absent and empty mean the same, it is empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct, field

U16 = Annotated[int, Meta(ge=0, le=2**16 - 1)]
U32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
NO_ID = 2**32 - 1
"""Where a user's or group's id is expected, the kernel takes it for "none", or for "as it is"."""
ID = Annotated[int, Meta(ge=0, le=NO_ID - 1)]
U64 = Annotated[int, Meta(ge=0)]  # msgspec takes no bound above int64; whoever packs it finds out
I64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]

NamespaceType: TypeAlias = Literal[
    "pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"
]


# Trees of frozen values hold no cycles, so the garbage collector need not know them.
class Section(Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    """What every object of the document has in common."""


class Namespace(Section, frozen=True, kw_only=True):
    """A namespace to create, or, with a path, to join."""

    type: NamespaceType
    path: str = ""


class IDMapping(Section, frozen=True, kw_only=True):
    """One line of a uid_map or gid_map."""

    container_id: ID = field(name="containerID", default=0)
    host_id: ID = field(name="hostID", default=0)
    size: U32 = 0

    def __post_init__(self) -> None:
        """Raise ValueError, of which decoding makes an error that names the field."""
        if max(self.container_id, self.host_id) + self.size > NO_ID:
            raise ValueError(f"Out of range, expected ids <= {NO_ID - 1}")


class TimeOffset(Section, frozen=True, kw_only=True):
    """What a time namespace adds to a clock."""

    secs: I64 = 0
    nanosecs: U32 = 0


class Device(Section, frozen=True, kw_only=True):
    """A device node to create in the container."""

    path: str
    type: str
    major: I64 = 0
    minor: I64 = 0
    file_mode: U32 | None = None
    uid: ID | None = None
    gid: ID | None = None


class NetDevice(Section, frozen=True, kw_only=True):
    """The name, in the container, of a network device moved into it."""

    name: str = ""


class DeviceRule(Section, frozen=True, kw_only=True):
    """An entry of the device cgroup; a number that is absent stands for every number."""

    allow: bool = False
    type: str = ""
    major: I64 | None = None
    minor: I64 | None = None
    access: str = ""


class Memory(Section, frozen=True, kw_only=True):
    """Memory limits in bytes; -1 means none."""

    limit: I64 | None = None
    reservation: I64 | None = None
    swap: I64 | None = None
    kernel: I64 | None = None
    kernel_tcp: I64 | None = field(name="kernelTCP", default=None)
    swappiness: U64 | None = None
    disable_oom_killer: bool | None = field(name="disableOOMKiller", default=None)
    use_hierarchy: bool | None = None
    check_before_update: bool | None = None


class CPU(Section, frozen=True, kw_only=True):
    """CPU weight, bandwidth (quotas and periods in microseconds) and placement."""

    shares: U64 | None = None
    quota: I64 | None = None
    burst: U64 | None = None
    period: U64 | None = None
    realtime_runtime: I64 | None = None
    realtime_period: U64 | None = None
    cpus: str = ""
    mems: str = ""
    idle: I64 | None = None


class Pids(Section, frozen=True, kw_only=True):
    """The number of tasks; less than zero means no limit."""

    limit: I64 | None = None


class WeightDevice(Section, frozen=True, kw_only=True):
    """The I/O weight of one device."""

    major: I64 = 0
    minor: I64 = 0
    weight: U16 | None = None
    leaf_weight: U16 | None = None


class ThrottleDevice(Section, frozen=True, kw_only=True):
    """The rate, per second, that one device is limited to."""

    major: I64 = 0
    minor: I64 = 0
    rate: U64 = 0


class BlockIO(Section, frozen=True, kw_only=True):
    """Block I/O weights and limits."""

    weight: U16 | None = None
    leaf_weight: U16 | None = None
    weight_device: tuple[WeightDevice, ...] = ()
    throttle_read_bps_device: tuple[ThrottleDevice, ...] = ()
    throttle_write_bps_device: tuple[ThrottleDevice, ...] = ()
    throttle_read_iops_device: tuple[ThrottleDevice, ...] = field(
        name="throttleReadIOPSDevice", default=()
    )
    throttle_write_iops_device: tuple[ThrottleDevice, ...] = field(
        name="throttleWriteIOPSDevice", default=()
    )


class HugepageLimit(Section, frozen=True, kw_only=True):
    """The most bytes in huge pages of one size, such as ``2MB``."""

    page_size: str
    limit: U64 = 0


class InterfacePriority(Section, frozen=True, kw_only=True):
    """The priority of traffic that leaves through one interface."""

    name: str
    priority: U32 = 0


class Network(Section, frozen=True, kw_only=True):
    """The net_cls and net_prio cgroups."""

    class_id: U32 | None = field(name="classID", default=None)
    priorities: tuple[InterfacePriority, ...] = ()


class Rdma(Section, frozen=True, kw_only=True):
    """Handles and objects of one RDMA device."""

    hca_handles: U32 | None = None
    hca_objects: U32 | None = None


class Resources(Section, frozen=True, kw_only=True):
    """What the container's cgroup allows; ``unified`` is written to cgroup v2 files as it is."""

    devices: tuple[DeviceRule, ...] = ()
    memory: Memory = Memory()
    cpu: CPU = CPU()
    pids: Pids = Pids()
    block_io: BlockIO = field(name="blockIO", default=BlockIO())
    hugepage_limits: tuple[HugepageLimit, ...] = ()
    network: Network = Network()
    rdma: Mapping[str, Rdma] = field(default_factory=dict)
    unified: Mapping[str, str] = field(default_factory=dict)


class SeccompArg(Section, frozen=True, kw_only=True):
    """A condition on one argument of a system call."""

    index: U32
    op: str
    value: U64 = 0
    value_two: U64 = 0


class SeccompSyscalls(Section, frozen=True, kw_only=True):
    """What happens to some system calls when all conditions on their arguments hold."""

    action: str
    names: tuple[str, ...] = ()
    errno_ret: U32 | None = None
    args: tuple[SeccompArg, ...] = ()


class Seccomp(Section, frozen=True, kw_only=True):
    """A seccomp filter, in libseccomp's constants."""

    default_action: str
    default_errno_ret: U32 | None = None
    architectures: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    listener_path: str = ""
    listener_metadata: str = ""
    syscalls: tuple[SeccompSyscalls, ...] = ()


class IntelRdt(Section, frozen=True, kw_only=True):
    """Cache and memory bandwidth allocation through resctrl."""

    clos_id: str = field(name="closID", default="")
    schemata: tuple[str, ...] = ()
    l3_cache_schema: str = field(name="l3CacheSchema", default="")
    mem_bw_schema: str = ""
    enable_monitoring: bool = False
    enable_cmt: bool = field(name="enableCMT", default=False)  # 1.1 and 1.2 only, as the next
    enable_mbm: bool = field(name="enableMBM", default=False)


class MemoryPolicy(Section, frozen=True, kw_only=True):
    """The NUMA policy of set_mempolicy(2)."""

    mode: str
    nodes: str = ""
    flags: tuple[str, ...] = ()


class Personality(Section, frozen=True, kw_only=True):
    """The execution domain of personality(2)."""

    domain: str
    flags: tuple[str, ...] = ()


class Linux(Section, frozen=True, kw_only=True):
    """The whole section."""

    uid_mappings: tuple[IDMapping, ...] = ()
    gid_mappings: tuple[IDMapping, ...] = ()
    sysctl: Mapping[str, str] = field(default_factory=dict)
    resources: Resources = Resources()
    cgroups_path: str = ""
    namespaces: tuple[Namespace, ...] = ()
    devices: tuple[Device, ...] = ()
    net_devices: Mapping[str, NetDevice] = field(default_factory=dict)
    seccomp: Seccomp | None = None
    rootfs_propagation: str = ""
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    mount_label: str = ""
    intel_rdt: IntelRdt | None = None
    memory_policy: MemoryPolicy | None = None
    personality: Personality | None = None
    time_offsets: Mapping[str, TimeOffset] = field(default_factory=dict)
