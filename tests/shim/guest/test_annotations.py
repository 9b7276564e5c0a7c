import socket

import pytest

from oci.runtime import SpecError
from shim.guest.annotations import (
    KERNEL_FILESYSTEMS,
    Annotations,
    ExtraPreopen,
    Forbidden,
    Listen,
    read,
)


def one(name: str, value: str) -> Annotations:
    return read({f"dev.pywasm.{name}": value})


def refused(annotations: dict[str, str]) -> str:
    with pytest.raises(SpecError) as caught:
        read(annotations)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_those_of_others_are_not_looked_at() -> None:
    assert read({"io.kubernetes.cri.sandbox-id": "x", "dev.pywasmer": "y"}) == Annotations()


def test_all_at_once() -> None:
    found = read(
        {
            "dev.pywasm.engine": "wasmtime",
            "dev.pywasm.listen": "tcp://0.0.0.0:8080, tcp://[::1]:81?nonblock",
            "dev.pywasm.memory-pages": "16",
            "dev.pywasm.time-limit": "1m30s",
            "dev.pywasm.preopens": "fs=/x:ro,.=/app",
            "dev.pywasm.kernel-filesystems": "proc,sysfs",
        }
    )
    assert found == Annotations(
        engine="wasmtime",
        listen=(Listen(socket.AF_INET, "0.0.0.0", 8080), Listen(socket.AF_INET6, "::1", 81, False)),
        memory_pages=16,
        time_limit=90.0,
        preopens=(ExtraPreopen("fs", "/x", True), ExtraPreopen(".", "/app", False)),
        kernel_filesystems=frozenset(("proc", "sysfs")),
    )
    assert [str(address) for address in found.listen] == ["tcp://0.0.0.0:8080", "tcp://[::1]:81"]


@pytest.mark.parametrize(
    ("value", "seconds"), [("500ms", 0.5), ("2h", 7200), ("1.5s", 1.5), ("1h1m1s", 3661)]
)
def test_durations(value: str, seconds: float) -> None:
    assert one("time-limit", value).time_limit == seconds


@pytest.mark.parametrize(
    ("forbidden", "name", "value"),
    [
        ("handler=native", "handler", "native"),
        ("handler = native", "handler", " native "),
        ("handler", "handler", "auto"),
        ("engine=wasmer", "engine", "wasmer"),
        ("network=off", "network", "off"),
        ("kernel-filesystems", "kernel-filesystems", "mqueue"),
        ("kernel-filesystems=proc", "kernel-filesystems", "all"),
        ("kernel-filesystems=proc", "kernel-filesystems", "mqueue, proc"),
        ("kernel-filesystems=all", "kernel-filesystems", "mqueue"),
        ("kernel-filesystems=sysfs,proc", "kernel-filesystems", "proc"),
        ("listen", "listen", "tcp://[::1]:80"),
        ("preopens", "preopens", "/=/"),
        ("time-limit", "time-limit", "1h"),
    ],
)
def test_what_a_node_forbids(forbidden: str, name: str, value: str) -> None:
    pod = {"io.kubernetes.cri.container-name": "web"}
    for key in (f"dev.pywasm.{name}", f"dev.pywasm.{name}/web"):
        with pytest.raises(SpecError) as caught:
            Forbidden(forbidden).check({**pod, key: value})
        expected = f'the settings of this node forbid it (forbid = ["{forbidden}"])'
        assert str(caught.value) == f"annotations: dev.pywasm.{name}: {expected}"
    # Of another container of the pod, of nobody, and of the sandbox, which asks for nothing.
    Forbidden(forbidden).check({**pod, f"dev.pywasm.{name}/other": value})
    Forbidden(forbidden).check({})
    pod = {"io.kubernetes.cri.container-type": "sandbox"}
    Forbidden(forbidden).check({**pod, f"dev.pywasm.{name}": value})


@pytest.mark.parametrize(
    ("forbidden", "name", "value"),
    [
        ("handler=native", "handler", "wasm"),
        ("handler=native", "handler", "auto"),
        ("engine=wasmer", "engine", "wasmtime"),
        ("kernel-filesystems=proc", "kernel-filesystems", "sysfs,mqueue"),
        ("memory-pages", "time-limit", "1h"),
    ],
)
def test_what_a_node_does_not_forbid(forbidden: str, name: str, value: str) -> None:
    Forbidden(forbidden).check({f"dev.pywasm.{name}": value})


def test_what_holds_for_a_container_is_what_counts() -> None:
    forbidden = Forbidden("handler=native")
    names = ("dev.pywasm.handler", "dev.pywasm.handler/web")
    pod = {"io.kubernetes.cri.container-name": "web"}
    forbidden.check({**pod, **dict(zip(names, ("native", "wasm"), strict=True))})
    with pytest.raises(SpecError):
        forbidden.check({**pod, **dict(zip(names, ("wasm", "native"), strict=True))})


def test_automatic_is_no_engine_in_particular() -> None:
    assert one("engine", "auto").engine == ""
    assert one("handler", "auto").handler == ""


def test_network_off_and_all_kernel_filesystems() -> None:
    assert one("network", "off").network is False
    assert one("network", "on").network is True
    assert one("rootfs", "off").rootfs is False
    assert one("kernel-filesystems", "all").kernel_filesystems == KERNEL_FILESYSTEMS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("engine", "v8"),
        ("engine", ""),
        ("handler", "runc"),
        ("handler", ""),
        ("listen", ""),
        ("listen", "8080"),
        ("listen", "udp://0.0.0.0:1"),
        ("listen", "tcp://localhost:80"),
        ("listen", "tcp://0.0.0.0:0"),
        ("listen", "tcp://0.0.0.0:65536"),
        ("listen", "tcp://300.0.0.1:80"),
        ("listen", "tcp://[::zz]:80"),
        ("listen", "tcp://0.0.0.0:80?nonblocking"),
        ("listen", "tcp://0.0.0.0:80,"),
        ("memory-pages", "0"),
        ("memory-pages", "-1"),
        ("memory-pages", "65537"),
        ("memory-pages", "10000000000000000000000"),
        ("memory-pages", "\u0664"),
        ("memory-pages", "64k"),
        ("time-limit", "30"),
        ("time-limit", "0s"),
        ("time-limit", "-1s"),
        ("time-limit", "1s2"),
        ("time-limit", ""),
        ("network", "yes"),
        ("preopens", "/x"),
        ("preopens", "=/x"),
        ("preopens", "a=x"),
        ("preopens", "a=/x:wo"),
        ("kernel-filesystems", "ext4"),
        ("kernel-filesystems", ""),
    ],
)
def test_a_malformed_one_is_named_with_its_value(name: str, value: str) -> None:
    message = refused({f"dev.pywasm.{name}": value})
    assert f"dev.pywasm.{name}: expected " in message
    assert message.endswith(f", got {value!r}")


def test_an_unknown_one_is_named() -> None:
    message = refused({"dev.pywasm.enigne": "wasmer"})
    assert "dev.pywasm.enigne: unknown" in message
    assert "engine" in message


@pytest.mark.parametrize(
    "mark", ["io.kubernetes.cri.container-name", "io.kubernetes.container.name"]
)
def test_those_of_one_container_of_a_pod(mark: str) -> None:
    pod = {
        "dev.pywasm.engine/web": "wasmtime",
        "dev.pywasm.engine": "wasmer",
        "dev.pywasm.listen/web": "tcp://0.0.0.0:80",
    }
    web = read({**pod, mark: "web"})
    assert web.engine == "wasmtime"
    assert web.listen == (Listen(socket.AF_INET, "0.0.0.0", 80),)
    for other in ({mark: "other"}, {}):
        assert read(pod | other) == Annotations(engine="wasmer")


def test_mistakes_in_those_of_one_container() -> None:
    of_web = {"io.kubernetes.cri.container-name": "web"}
    assert "dev.pywasm.engine/web: expected" in refused(of_web | {"dev.pywasm.engine/web": "v8"})
    assert "dev.pywasm.enigne/other: unknown" in refused({"dev.pywasm.enigne/other": "wasmer"})
    assert "dev.pywasm.engine/: unknown" in refused({"dev.pywasm.engine/": "wasmer"})


def test_listening_without_a_network_is_a_contradiction() -> None:
    message = refused({"dev.pywasm.listen": "tcp://0.0.0.0:80", "dev.pywasm.network": "off"})
    assert "dev.pywasm.listen" in message
