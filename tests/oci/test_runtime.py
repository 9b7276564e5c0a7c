import copy
import json
import subprocess
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oci.linux import Linux, Memory
from oci.runtime import Process, Spec, SpecError, decode, decode_process

MAPPING = {"containerID": 1, "hostID": 100000, "size": 65536}
HOOK = {"path": "/hook", "args": ["hook", "x"], "env": ["A=1"], "timeout": 3}
THROTTLE = {"major": 8, "minor": 1, "rate": 1000}

# Every field the specification has for Linux, with a value that is not its default.
FULL: dict[str, Any] = {
    "ociVersion": "1.3.0",
    "process": {
        "terminal": True,
        "consoleSize": {"height": 24, "width": 80},
        "user": {
            "uid": 1000,
            "gid": 4294967294,
            "umask": 18,
            "additionalGids": [5, 6],
            "username": "bob",
        },
        "args": ["/hello.wasm", "ä"],
        "env": ["TERM=xterm", "EMPTY="],
        "cwd": "/home",
        "capabilities": {
            name: [f"CAP_{name.upper()}"]
            for name in ("bounding", "effective", "inheritable", "permitted", "ambient")
        },
        "rlimits": [{"type": "RLIMIT_CORE", "hard": 2**64 - 1, "soft": 600}],
        "noNewPrivileges": True,
        "apparmorProfile": "acme",
        "oomScoreAdj": -100,
        "scheduler": {
            "policy": "SCHED_DEADLINE",
            "nice": -5,
            "priority": 7,
            "flags": ["SCHED_FLAG_RECLAIM"],
            "runtime": 10,
            "deadline": 20,
            "period": 30,
        },
        "selinuxLabel": "u:r:t:s0",
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 4},
        "execCPUAffinity": {"initial": "0-1", "final": "1"},
    },
    "root": {"path": "rootfs", "readonly": True},
    "hostname": "slartibartfast",
    "domainname": "magrathea",
    "mounts": [
        {
            "destination": "/data",
            "type": "none",
            "source": "/volumes/x",
            "options": ["rbind", "ro"],
            "uidMappings": [MAPPING],
            "gidMappings": [MAPPING],
        }
    ],
    "hooks": {
        name: [HOOK]
        for name in (
            "prestart",
            "createRuntime",
            "createContainer",
            "startContainer",
            "poststart",
            "poststop",
        )
    },
    "annotations": {"dev.pywasm.engine": "wasmer", "a": ""},
    "linux": {
        "uidMappings": [MAPPING],
        "gidMappings": [MAPPING],
        "sysctl": {"net.core.somaxconn": "256"},
        "resources": {
            "devices": [{"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"}],
            "memory": {
                "limit": 536870912,
                "reservation": 1,
                "swap": -1,
                "kernel": 2,
                "kernelTCP": 3,
                "swappiness": 0,
                "disableOOMKiller": False,
                "useHierarchy": False,
                "checkBeforeUpdate": True,
            },
            "cpu": {
                "shares": 1024,
                "quota": -1,
                "burst": 1,
                "period": 500000,
                "realtimeRuntime": 950000,
                "realtimePeriod": 1000000,
                "cpus": "2-3",
                "mems": "0-7",
                "idle": 1,
            },
            "pids": {"limit": 32771},
            "blockIO": {
                "weight": 10,
                "leafWeight": 11,
                "weightDevice": [{"major": 8, "minor": 1, "weight": 500, "leafWeight": 300}],
                "throttleReadBpsDevice": [THROTTLE],
                "throttleWriteBpsDevice": [THROTTLE],
                "throttleReadIOPSDevice": [THROTTLE],
                "throttleWriteIOPSDevice": [THROTTLE],
            },
            "hugepageLimits": [{"pageSize": "2MB", "limit": 209715200}],
            "network": {"classID": 1048577, "priorities": [{"name": "eth0", "priority": 500}]},
            "rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10000}},
            "unified": {"memory.high": "1G"},
        },
        "cgroupsPath": "system.slice:pywasm:x",
        "namespaces": [{"type": "pid", "path": "/proc/1234/ns/pid"}, {"type": "cgroup"}],
        "devices": [
            {
                "path": "/dev/fuse",
                "type": "c",
                "major": 10,
                "minor": 229,
                "fileMode": 438,
                "uid": 0,
                "gid": 5,
            }
        ],
        "netDevices": {"eth0": {"name": "container_eth0"}},
        "seccomp": {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 38,
            "architectures": ["SCMP_ARCH_X86_64"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "listenerPath": "/run/listener",
            "listenerMetadata": "x",
            "syscalls": [
                {
                    "names": ["personality"],
                    "action": "SCMP_ACT_ERRNO",
                    "errnoRet": 1,
                    "args": [
                        {"index": 0, "value": 2**64 - 1, "valueTwo": 8, "op": "SCMP_CMP_MASKED_EQ"}
                    ],
                }
            ],
        },
        "rootfsPropagation": "slave",
        "maskedPaths": ["/proc/kcore"],
        "readonlyPaths": ["/proc/sys"],
        "mountLabel": "u:object_r:t:s0",
        "intelRdt": {
            "closID": "guaranteed",
            "schemata": ["L3:0=7f0"],
            "l3CacheSchema": "L3:0=7f0;1=1f",
            "memBwSchema": "MB:0=20",
            "enableMonitoring": True,
            "enableCMT": True,
            "enableMBM": True,
        },
        "memoryPolicy": {
            "mode": "MPOL_INTERLEAVE",
            "nodes": "0-1",
            "flags": ["MPOL_F_STATIC_NODES"],
        },
        "personality": {"domain": "LINUX32", "flags": ["ADDR_NO_RANDOMIZE"]},
        "timeOffsets": {"monotonic": {"secs": -172800, "nanosecs": 1}},
    },
}
MINIMAL = {"root": {"path": "rootfs"}, "process": {"args": ["/a.wasm"], "cwd": "/"}}


def text(document: Any) -> bytes:
    return json.dumps(document).encode()


def changed(path: list[str | int], value: Any) -> bytes:
    """FULL with the value at a path replaced."""
    document = parent = copy.deepcopy(FULL)
    for step in path[:-1]:
        parent = parent[step]  # type: ignore[index]
    parent[path[-1]] = value  # type: ignore[index]
    return text(document)


def test_every_field_survives_decoding() -> None:
    assert json.loads(msgspec.json.encode(decode(text(FULL)))) == FULL


def test_names_and_types() -> None:
    spec = decode(text(FULL))
    assert spec.process.exec_cpu_affinity is not None
    assert spec.process.exec_cpu_affinity.final == "1"
    assert spec.process.rlimits[0].hard == 2**64 - 1
    assert spec.linux.resources.block_io.throttle_read_iops_device[0].rate == 1000
    assert spec.linux.seccomp is not None
    assert spec.linux.seccomp.syscalls[0].args[0].value == 2**64 - 1
    assert [namespace.type for namespace in spec.linux.namespaces] == ["pid", "cgroup"]


def test_minimal() -> None:
    spec = decode(text(MINIMAL))
    assert spec.process == Process(args=("/a.wasm",))
    assert spec.linux == Linux()
    assert spec.linux.resources.memory == Memory(limit=None)
    assert spec.mounts == ()
    assert spec.annotations == {}


def test_what_containerd_generates() -> None:
    document = subprocess.run(["ctr", "oci", "spec"], check=True, stdout=subprocess.PIPE).stdout
    spec = decode(document)
    assert spec.root.path == "rootfs"
    assert spec.process.capabilities.effective
    assert {"pid", "mount"} <= {namespace.type for namespace in spec.linux.namespaces}
    assert "/proc/kcore" in spec.linux.masked_paths
    assert spec.linux.resources.devices[0].allow is False


def test_unknown_fields_are_ignored() -> None:
    assert decode(changed(["process", "commandLine"], 3)) == decode(text(FULL))
    assert decode(changed(["windows"], {"layerFolders": None})) == decode(text(FULL))


def test_null_is_absence() -> None:
    document = copy.deepcopy(MINIMAL) | {
        "mounts": None,
        "hooks": None,
        "annotations": None,
        "hostname": None,
        "linux": {"resources": None, "seccomp": {"defaultAction": "a", "syscalls": None}},
    }
    spec = decode(text(document))
    assert spec.mounts == ()
    assert spec.annotations == {}
    assert spec.linux.seccomp is not None
    assert spec.linux.seccomp.syscalls == ()
    assert spec.process.args == ("/a.wasm",)


@pytest.mark.parametrize("data", [bytearray, memoryview])
def test_buffers(data: Any) -> None:
    assert decode(data(text(FULL))) == decode(text(FULL))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["process", "args", 1], 3, "process.args[1]: expected str, got int"),
        (["process", "args", 1], None, "process.args[1]: expected str, got null"),
        (["process"], [], "process: expected object, got array"),
        (["process"], None, "config.json: missing required field process"),
        (["process", "user", "uid"], -1, "process.user.uid: out of range, expected int >= 0"),
        (
            ["process", "user", "additionalGids", 0],
            2**32,
            "process.user.additionalGids[0]: out of range, expected int <= 4294967294",
        ),
        *(  # what setresuid(2) and chown(2) take for "as it is": root's
            (path, 2**32 - 1, f"{name}: out of range, expected int <= 4294967294")
            for path, name in (
                (["process", "user", "uid"], "process.user.uid"),
                (["process", "user", "gid"], "process.user.gid"),
                (["process", "user", "additionalGids", 1], "process.user.additionalGids[1]"),
                (["linux", "devices", 0, "uid"], "linux.devices[0].uid"),
                (["linux", "devices", 0, "gid"], "linux.devices[0].gid"),
            )
        ),
        (
            ["linux", "uidMappings", 0],
            {"hostID": 2**32 - 1, "size": 1},
            "linux.uidMappings[0].hostID: out of range, expected int <= 4294967294",
        ),
        (
            ["linux", "gidMappings", 0],
            {"containerID": 5, "hostID": 1, "size": 2**32 - 5},
            "linux.gidMappings[0]: out of range, expected ids <= 4294967294",
        ),
        (
            ["mounts", 0, "uidMappings", 0],
            {"containerID": 0, "hostID": 2**32 - 2, "size": 2},
            "mounts[0].uidMappings[0]: out of range, expected ids <= 4294967294",
        ),
        (["process", "terminal"], "yes", "process.terminal: expected bool, got str"),
        (["root"], {}, "root: missing required field path"),
        (["mounts", 0], {"type": "proc"}, "mounts[0]: missing required field destination"),
        (["annotations", "x"], 1, 'annotations["x"]: expected str, got int'),
        (["annotations", "a"], 1, 'annotations["a"]: expected str, got int'),
        (["annotations", "a\n\N{RIGHT-TO-LEFT OVERRIDE}"], 1, 'annotations["a\ufffd\ufffd"]: '),
        (["annotations", "x" * 9999], 1, f'annotations["{"x" * 120}..."]: expected str, got int'),
        (["linux", "sysctl", "a.b"], {}, 'linux.sysctl["a.b"]: expected str, got object'),
        (
            ["linux", "timeOffsets", "boottime"],
            {"secs": "1"},
            'linux.timeOffsets["boottime"].secs: expected int, got str',
        ),
        (
            ["linux", "resources", "rdma", "mlx5_1", "hcaHandles"],
            -1,
            'linux.resources.rdma["mlx5_1"].hcaHandles: out of range, expected int',
        ),
        (
            ["linux", "namespaces", 1, "type"],
            "n\net",
            "linux.namespaces[1].type: invalid enum value 'n\\net'",
        ),
        (["process", "env", 0], "A=\0", "process.env[0]: contains a NUL character"),
        (["annotations", "b.c"], "\0", 'annotations["b.c"]: contains a NUL character'),
    ],
)
def test_errors_name_the_field(path: list[str | int], value: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        decode(changed(path, value))
    assert str(caught.value).startswith(message)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "config.json: truncated JSON, it ends at byte 0"),
        (text(FULL)[:500], "config.json: truncated JSON, it ends at byte 500"),
        (text(MINIMAL) + b" x", f"config.json: invalid JSON at byte {len(text(MINIMAL)) + 2}: "),
        (b'{"process":[}', "process: expected object, got array"),
        (b"[]", "config.json: expected object, got array"),
        (b"null", "config.json: expected object, got null"),
        (b'{"process":{"args":["\xff"]}}', "config.json: not UTF-8"),
        (b'{"x":' * 1_000_000, "config.json: nested too deeply"),
        (b'{"annotations":{"a":1,"b":', "annotations[...]: expected str, got int"),
        (b'{"annotations":{"a":1},"annotations":{}}', "annotations[...]: expected str, got int"),
    ],
)
def test_errors_of_syntax(data: bytes, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        decode(data)
    assert str(caught.value).startswith(message)


def test_a_process_alone() -> None:
    assert decode_process(text(FULL["process"])) == decode(text(FULL)).process
    with pytest.raises(SpecError, match=r"^args: expected array, got str$"):
        decode_process(b'{"args":"x"}')
    with pytest.raises(SpecError, match=r"^process: truncated JSON, it ends at byte 1$"):
        decode_process(b"{")


def accepts_or_explains(data: bytes) -> None:
    try:
        spec = decode(data)
    except SpecError as error:
        explanation = str(error)
    else:
        assert isinstance(spec, Spec)
        return
    assert explanation.isprintable()
    assert ": " in explanation


@settings(deadline=None)
@given(st.data())
def test_damaged_bytes_never_surprise(data: st.DataObject) -> None:
    document = bytearray(text(FULL))
    start = data.draw(st.integers(0, len(document)))
    document[start : start + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=20))
    accepts_or_explains(bytes(document))


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Return the path of everything in a document."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path] * bool(path) + [
        place for key, item in items for place in places(item, (*path, key))
    ]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(st.sampled_from(places(FULL)), ANYTHING)
def test_foreign_values_never_surprise(path: tuple[str | int, ...], value: Any) -> None:
    accepts_or_explains(changed(list(path), value))
