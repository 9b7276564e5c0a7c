"""Pods with users of their own (`hostUsers: false`): a user namespace, which all in them is in."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.cri.conftest import IMAGE
from tests.cri.kubelet import FIRST_ID, NODE, POD, Kubelet
from tests.cri.node import Node

SANDBOXERS = ("pywasm-plain", "pywasm-shim")
"""Handlers with a sandbox container, and with the Sandbox API."""

KINDS = [("runc", ""), *((handler, suffix) for handler in SANDBOXERS for suffix in ("", ".wasm"))]

SHARED = ("ipc", "net", "user", "uts")


@pytest.fixture(autouse=True)
def supported(node: Node) -> None:
    """Only a containerd that asks a runtime for its features lets it make them, and a new runc."""
    for command, needed in (("containerd", (2, 3, 4)), ("runc", (1, 2, 0))):
        told = subprocess.check_output([command, "--version"], env=node.env, text=True)
        found = re.search(r"\b(\d+)\.(\d+)\.(\d+)", told)
        if found is None or tuple(map(int, found.groups())) < needed:
            pytest.skip(f"needs {command} {'.'.join(map(str, needed))}")


@pytest.mark.parametrize("handler", ["runc", *SANDBOXERS])
def test_what_is_in_one(kubelet: Kubelet, handler: str) -> None:
    sysctls = {"kernel.shm_rmid_forced": "1", "net.ipv4.ip_default_ttl": "33"}
    pod = kubelet.run_pod(handler, own_users=True, hostname="somewhere", sysctls=sysctls)
    programs = ("/idle",) if handler == "runc" else ("/idle", "/idle.wasm")
    containers = [pod.run(IMAGE, program) for program in programs]
    for pid in (pod.pid, *(container.pid for container in containers)):
        assert Path(f"/proc/{pid}/uid_map").read_text().split() == ["0", str(FIRST_ID), "65536"]
        for kind in SHARED:
            own = os.readlink(f"/proc/{pid}/ns/{kind}")
            assert own == os.readlink(f"/proc/{pod.pid}/ns/{kind}"), kind
        there = ["nsenter", "-t", str(pid), "-n", "-u", "-i", "cat"]
        files = ("hostname", "shm_rmid_forced")
        told = [*there, *(f"/proc/sys/kernel/{name}" for name in files)]
        assert subprocess.check_output(told, text=True).split() == ["somewhere", "1"]
        told = [*there, "/proc/sys/net/ipv4/ip_default_ttl"]
        assert subprocess.check_output(told, text=True) == "33\n"
    mounted = Path(f"/proc/{containers[0].pid}/mountinfo").read_text()
    assert re.search(r" /dev/mqueue .* - mqueue ", mounted)
    for container in containers:
        assert f"\nUid:\t{FIRST_ID}\t" in Path(f"/proc/{container.pid}/status").read_text()
        assert Path(f"/proc/{container.pid}/root/etc/hostname").read_text() == "somewhere\n"


@pytest.mark.parametrize("network", [POD, NODE], ids=["own network", "the node's"])
@pytest.mark.parametrize("handler", SANDBOXERS)
def test_lives_in_one(kubelet: Kubelet, handler: str, network: int) -> None:
    pod = kubelet.run_pod(handler, own_users=True, network=network)
    for program, other in (("/hello.wasm", "/exit3.wasm"), ("/hello", "/exit3")):
        assert pod.run(IMAGE, program).finish() == "hello from pywasm\n"
        running = pod.run(IMAGE, program.replace("hello", "idle"))
        assert running.exec_sync(other, "4")[0] == 4
        running.stop()
        assert running.status().exit_code == 137
    pod.stop()
    pod.remove()


@pytest.mark.parametrize("handler", ["runc", *SANDBOXERS])
def test_processes_in_one_namespace(kubelet: Kubelet, handler: str) -> None:
    pod = kubelet.run_pod(handler, own_users=True, pid=POD)
    programs = ("/idle", "/idle") if handler == "runc" else ("/idle", "/idle.wasm")
    pids = [pod.run(IMAGE, program).pid for program in programs]
    assert len({os.readlink(f"/proc/{pid}/ns/pid") for pid in (*pids, pod.pid)}) == 1


@pytest.mark.parametrize(("handler", "suffix"), KINDS)
def test_a_volume(kubelet: Kubelet, tmp_path: Path, handler: str, suffix: str) -> None:
    """What is root's on the node is root's in the pod, and the other way round."""
    (tmp_path / "given").write_text("given\n")
    (tmp_path / "given").chmod(0o600)
    pod = kubelet.run_pod(handler, own_users=True)
    volume = [(str(tmp_path), "/volume", False)]
    command = [f"/mounted{suffix}", "/volume/given", "/volume/made"]
    assert pod.run(IMAGE, *command, mounts=volume).finish() == "given\n"
    made = tmp_path / "made"
    assert made.read_text() == "done\n"
    assert (made.stat().st_uid, made.stat().st_gid) == (0, 0)
