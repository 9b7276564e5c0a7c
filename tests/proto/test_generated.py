"""proto/: the committed modules are those of the .proto files, and both say what the wire says."""

import subprocess
from pathlib import Path

import pytest
from google.protobuf.message import Message

from proto import (
    bootstrap_pb2,
    cgroups_v1_pb2,
    cgroups_v2_pb2,
    envelope_pb2,
    events_pb2,
    events_service_pb2,
    mount_pb2,
    pod_pb2,
    runc_options_pb2,
    runtime_info_pb2,
    runtime_options_pb2,
    sandbox_pb2,
    task_pb2,
    task_v2_pb2,
    task_v3_pb2,
    ttrpc_pb2,
)
from proto.api import containers_pb2, content_pb2, snapshots_pb2, tasks_pb2

ROOT = Path(__file__).parents[2]


def generated(root: Path) -> dict[Path, bytes]:
    return {
        path.relative_to(root): path.read_bytes()
        for path in (root / "proto").rglob("*_pb2.py*")
        if path.suffix in {".py", ".pyi"}
    }


def test_committed_modules_are_fresh(tmp_path: Path) -> None:
    subprocess.run([ROOT / "scripts/proto", tmp_path], check=True)
    fresh, committed = generated(tmp_path), generated(ROOT)
    assert len(fresh) > 40
    assert committed.keys() == fresh.keys()
    assert [str(path) for path in fresh if committed[path] != fresh[path]] == []


# Encoded by hand from the encoding rules (protobuf.dev/programming-guides/encoding): a field begins
# with number << 3 | wire type, where 0 is a varint, 1 eight bytes, 2 a length and that many bytes.
WIRE: list[tuple[Message, str]] = [
    (
        ttrpc_pb2.Request(
            service="s",
            method="m",
            payload=b"p",
            timeout_nano=300,
            metadata=[ttrpc_pb2.KeyValue(key="k", value="v")],
        ),
        "0a0173 12016d 1a0170 20ac02 2a06 0a016b 120176",
    ),
    (
        ttrpc_pb2.Response(status=ttrpc_pb2.Status(code=5, message="no"), payload=b"p"),
        "0a06 0805 12026e6f 120170",
    ),
    (
        task_v2_pb2.CreateTaskRequest(
            id="c",
            bundle="/b",
            rootfs=[mount_pb2.Mount(type="t", source="s", target="d", options=["ro", "x"])],
            terminal=True,
            stdin="0",
            stdout="1",
            stderr="2",
        ),
        "0a0163 12022f62 1a10 0a0174 120173 1a0164 2202726f 220178 2001 2a0130 320131 3a0132",
    ),
    (
        task_v2_pb2.StateResponse(pid=7, status=task_pb2.STOPPED, exit_status=137, exec_id="e"),
        "1807 2003 488901 5a0165",
    ),
    (task_v2_pb2.KillRequest(id="c", exec_id="e", signal=9, all=True), "0a0163 120165 1809 2001"),
    (task_v2_pb2.UpdateTaskRequest(annotations={"k": "v"}), "1a06 0a016b 120176"),
    (task_v2_pb2.ConnectResponse(shim_pid=1, task_pid=2, version="3"), "0801 1002 1a0133"),
    (
        events_service_pb2.ForwardRequest(
            envelope=envelope_pb2.Envelope(namespace="n", topic="/tasks/oom")
        ),
        "0a0f 12016e 1a0a2f7461736b732f6f6f6d",
    ),
    (
        events_pb2.TaskExit(container_id="c", id="c", pid=7, exit_status=3),
        "0a0163 120163 1807 2003",
    ),
    (events_pb2.TaskDelete(container_id="c", pid=7, id="e"), "0a0163 1007 2a0165"),
    (
        events_pb2.TaskCreate(container_id="c", io=events_pb2.TaskIO(terminal=True), pid=7),
        "0a0163 2202 2001 3007",
    ),
    (
        bootstrap_pb2.BootstrapParams(
            instance_id="i", log_level=bootstrap_pb2.LOG_LEVEL_DEBUG, socket_dir=""
        ),
        "0a0169 18fcffffffffffffffff01 4a00",
    ),
    (
        bootstrap_pb2.BootstrapResult(version=3, address="a", protocol="ttrpc"),
        "0803 120161 1a057474727063",
    ),
    (
        runtime_info_pb2.RuntimeInfo(
            name="n", version=runtime_info_pb2.RuntimeVersion(version="1", revision="2")
        ),
        "0a016e 1206 0a0131 120132",
    ),
    (runc_options_pb2.Options(systemd_cgroup=True, io_uid=1000), "20e807 4801"),
    (runtime_options_pb2.Options(config_body=b"x"), "1a0178"),
    (
        sandbox_pb2.CreateSandboxRequest(sandbox_id="s", bundle_path="/b", netns_path="/n"),
        "0a0173 12022f62 2a022f6e",
    ),
    (sandbox_pb2.WaitSandboxResponse(exit_status=137), "088901"),
    (
        sandbox_pb2.SandboxStatusResponse(sandbox_id="s", pid=7, state="R", info={"k": "v"}),
        "0a0173 1007 1a0152 2206 0a016b 120176",
    ),
    (
        sandbox_pb2.PlatformResponse(
            platform=sandbox_pb2.Platform(os="l", architecture="a", variant="v")
        ),
        "0a09 0a016c 120161 1a0176",
    ),
    (sandbox_pb2.SandboxMetricsResponse(metrics=sandbox_pb2.Metric(id="s")), "0a03 120173"),
    (
        pod_pb2.PodSandboxConfig(
            metadata=pod_pb2.Metadata(name="n", uid="u", namespace="s"),
            hostname="h",
            dns_config=pod_pb2.DNSConfig(servers=["1"], searches=["2"], options=["3"]),
            annotations={"k": "v"},
        ),
        "0a09 0a016e 120175 1a0173 120168 2209 0a0131 120132 1a0133 3a06 0a016b 120176",
    ),
    (
        pod_pb2.Linux(
            cgroup_parent="p",
            security_context=pod_pb2.SecurityContext(
                namespace_options=pod_pb2.NamespaceOption(
                    network=pod_pb2.NODE,
                    pid=pod_pb2.CONTAINER,
                    ipc=pod_pb2.NODE,
                    userns_options=pod_pb2.UserNamespace(
                        mode=pod_pb2.NODE,
                        uids=[pod_pb2.IDMapping(host_id=1, container_id=2, length=3)],
                        gids=[pod_pb2.IDMapping(length=4)],
                    ),
                ),
                run_as_user=pod_pb2.Int64Value(value=5),
                supplemental_groups=[6, 7],
                run_as_group=pod_pb2.Int64Value(value=8),
            ),
            sysctls={"k": "v"},
        ),
        "0a0170 1224"
        "0a16 0802 1001 1802 2a0e 0802 1206 0801 1002 1803 1a02 1804"
        "1a02 0805 2a02 0607 4202 0808"
        "1a06 0a016b 120176",
    ),
    (
        cgroups_v1_pb2.Metrics(
            memory=cgroups_v1_pb2.MemoryStat(usage=cgroups_v1_pb2.MemoryEntry(usage=5))
        ),
        "2205 8a0202 1005",
    ),
    (
        cgroups_v2_pb2.Metrics(
            memory=cgroups_v2_pb2.MemoryStat(usage=5),
            cpu=cgroups_v2_pb2.CPUStat(
                psi=cgroups_v2_pb2.PSIStats(some=cgroups_v2_pb2.PSIData(avg10=0.5))
            ),
        ),
        "120d 3a0b 0a09 09000000000000e03f 2203 800205",
    ),
    (
        containers_pb2.Container(
            id="c", runtime=containers_pb2.Container.Runtime(name="r"), snapshot_key="k"
        ),
        "0a0163 2203 0a0172 3a016b",
    ),
    (
        tasks_pb2.CreateTaskRequest(container_id="c", stdout="1", terminal=True),
        "0a0163 2a0131 3801",
    ),
    (content_pb2.WriteContentRequest(action=content_pb2.COMMIT, ref="r"), "0802 120172"),
    (snapshots_pb2.Info(name="n", kind=snapshots_pb2.COMMITTED), "0a016e 1803"),
]


@pytest.mark.parametrize(("message", "wire"), WIRE)
def test_wire(message: Message, wire: str) -> None:
    assert message.SerializeToString(deterministic=True) == bytes.fromhex(wire)


def test_type_urls() -> None:
    """The names containerd finds these by when they arrive in an Any."""
    assert [
        descriptor.full_name
        for descriptor in (
            events_pb2.TaskExit.DESCRIPTOR,
            runc_options_pb2.Options.DESCRIPTOR,
            runc_options_pb2.ProcessDetails.DESCRIPTOR,
            runtime_options_pb2.Options.DESCRIPTOR,
            cgroups_v1_pb2.Metrics.DESCRIPTOR,
            cgroups_v2_pb2.Metrics.DESCRIPTOR,
        )
    ] == [
        "containerd.events.TaskExit",
        "containerd.runc.v1.Options",
        "containerd.runc.v1.ProcessDetails",
        "runtimeoptions.v1.Options",
        "io.containerd.cgroups.v1.Metrics",
        "io.containerd.cgroups.v2.Metrics",
    ]


def test_services() -> None:
    v2 = task_v2_pb2.DESCRIPTOR.services_by_name["Task"]
    v3 = task_v3_pb2.DESCRIPTOR.services_by_name["Task"]
    events = events_service_pb2.DESCRIPTOR.services_by_name["Events"]
    assert v2.full_name == "containerd.task.v2.Task"
    assert v3.full_name == "containerd.task.v3.Task"
    assert events.full_name == "containerd.services.events.ttrpc.v1.Events"
    assert [(m.name, m.input_type, m.output_type) for m in v2.methods] == [
        (m.name, m.input_type, m.output_type) for m in v3.methods
    ]
    names = (
        "State Create Start Delete Pids Pause Resume Checkpoint Kill Exec ResizePty CloseIO Update"
        " Wait Stats Connect Shutdown"
    )
    assert " ".join(m.name for m in v2.methods) == names
