"""Paths that an image or a spec gives, and a guest follows while it is privileged.

Wherever they lead, it is in the container's root, and none of the kernel's own links is followed.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shim.linux.libc import LIBC
from shim.ttrpc import RpcError
from tests.shim.task_api import Container, Ended, Shim

USERS = [{"uid": 0, "gid": 0}, {"uid": 65532, "gid": 65532}]
NAMESPACES = [{"type": kind} for kind in ("ipc", "uts", "mount")]
HOST_PIDS = {"linux": {"namespaces": NAMESPACES}}
OWN_PIDS = {"linux": {"namespaces": [{"type": "pid"}, *NAMESPACES]}}
WITH_PROC = {
    "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
    "annotations": {"dev.pywasm.kernel-filesystems": "proc"},
}
SECRET = "of the host alone"
IN_OPEN = 0x20  # inotify(7); nothing that is opened with O_PATH counts


@pytest.fixture
async def shim(tmp_path: Path) -> AsyncIterator[Shim]:
    started = Shim(tmp_path, ("probe", "idle", "cwd_turner"))
    (tmp_path / "secret").write_text(SECRET)
    yield started
    await started.close()


def process(*args: str, **more: Any) -> dict[str, Any]:
    return {"process": {"args": list(args), "cwd": "/"} | more}


def annotated(**annotations: str) -> dict[str, Any]:
    return {"annotations": {f"dev.pywasm.{name}": value for name, value in annotations.items()}}


async def run(shim: Shim, **spec: Any) -> Ended:
    id = f"c{len(shim.clients)}"
    shim.bundle(id, **spec)
    return await (await Container.create(shim, id)).run()


async def lines(shim: Shim, **spec: Any) -> list[str]:
    ended = await run(shim, **spec)
    assert ended.status == 0, ended
    return ended.stdout.splitlines()


async def refused(shim: Shim, **spec: Any) -> str:
    with pytest.raises(RpcError) as caught:
        await run(shim, **spec)
    return caught.value.message


class TestWorkingDirectory:
    """`process.cwd`, of a container and of an exec."""

    @pytest.mark.parametrize("user", USERS)
    @pytest.mark.parametrize("cwd", ["/proc/1/root", "/proc/1/cwd", "/link", "/proc/self/root"])
    async def test_a_link_of_the_kernel_is_not_followed(
        self, shim: Shim, user: dict[str, int], cwd: str
    ) -> None:
        (shim.rootfs / "link").symlink_to("proc/1/root")
        probe = process("/probe.wasm", "read", f".{shim.directory}/secret", cwd=cwd, user=user)
        message = await refused(shim, **probe, **WITH_PROC, **HOST_PIDS)
        assert message.startswith(f"process.cwd: {cwd}: ")

    @pytest.mark.parametrize("number", range(3, 12))
    async def test_nor_to_what_the_guest_itself_holds(self, shim: Shim, number: int) -> None:
        probe = process("/probe.wasm", "list", ".", cwd=f"/proc/self/fd/{number}")
        assert "process.cwd" in await refused(shim, **probe, **WITH_PROC, **OWN_PIDS)

    async def test_a_symlink_of_the_image_stays_in_the_root(self, shim: Shim) -> None:
        (shim.rootfs / "real").mkdir()
        (shim.rootfs / "real" / "file").write_text("inside")
        (shim.rootfs / "link").symlink_to("/../../../real")
        assert await lines(shim, **process("/probe.wasm", "read", "file", cwd="/link")) == [
            "inside"
        ]

    async def test_it_is_made_as_in_any_container(self, shim: Shim) -> None:
        root = {"path": "rootfs", "readonly": True}
        probe = process("/probe.wasm", "env", "PWD", cwd="/new/er")
        assert await lines(shim, **probe, root=root) == ["/new/er"]
        assert stat.S_IMODE((shim.rootfs / "new" / "er").stat().st_mode) == 0o755

    @pytest.mark.parametrize("mapped", [False, True])
    async def test_it_is_made_by_who_it_belongs_to(self, shim: Shim, mapped: bool) -> None:
        """And not given away when it is there: it may be something else by then."""
        ids = [{"containerID": 0, "hostID": 200000, "size": 1000}]
        namespaces = [{"type": "pid"}, {"type": "user"}, *NAMESPACES]
        linux = {"namespaces": namespaces, "uidMappings": ids, "gidMappings": ids}
        volume = shim.directory / "volume"
        volume.mkdir()
        mount: dict[str, Any] = {"destination": "/vol", "type": "bind", "options": ["rbind"]}
        mount |= {"source": str(volume)}
        if mapped:  # where the host's root is nobody
            mount |= {"uidMappings": ids, "gidMappings": ids}
        probe = process("/probe.wasm", "write", "file", cwd="/vol/new/er")
        assert await lines(shim, **probe, linux=linux, mounts=[mount]) == ["ok"]
        made = [volume / "new", volume / "new/er", volume / "new/er/file"]
        assert {path.stat().st_uid for path in made} == {0 if mapped else 200000}

    async def test_it_is_made_nowhere_else(self, shim: Shim) -> None:
        (shim.rootfs / "link").symlink_to("proc/1/root")
        cwd = f"/link{shim.directory}/made"
        await refused(shim, **process("/probe.wasm", cwd=cwd), **WITH_PROC, **HOST_PIDS)
        assert not (shim.directory / "made").exists()

    async def test_a_relative_one_is_refused(self, shim: Shim) -> None:
        message = await refused(shim, **process("/probe.wasm", cwd="tmp"))
        assert message == "process.cwd: expected an absolute path, got 'tmp'"

    async def test_a_very_long_one_is_an_error_like_any_other(self, shim: Shim) -> None:
        message = await refused(shim, **process("/probe.wasm", cwd="/" + "x" * 300_000))
        assert message.startswith("process.cwd: /xxx")
        assert message.endswith("x: File name too long")

    async def test_a_file_is_none(self, shim: Shim) -> None:
        message = await refused(shim, **process("/probe.wasm", cwd="/probe.wasm"))
        assert message == "process.cwd: /probe.wasm: Not a directory"

    async def test_of_a_directory_that_the_user_cannot_reach(self, shim: Shim) -> None:
        (shim.rootfs / "closed" / "open").mkdir(parents=True)
        (shim.rootfs / "closed" / "open" / "file").write_text("here")
        (shim.rootfs / "closed").chmod(0o700)
        for cwd, found in (("/closed/open", "here"), ("/closed", "EACCES")):
            probe = process("/probe.wasm", "read", "./file", cwd=cwd, user=USERS[1])
            assert await lines(shim, **probe) == [found]


class TestNarrowed:
    """A working directory is no way around what an annotation has taken away."""

    @pytest.fixture(autouse=True)
    def _tree(self, shim: Shim) -> None:
        for name in ("app", "app/w", "w", "vol", "vol/w"):
            (shim.rootfs / name).mkdir()
        for name in ("app/in", "app/w/in", "w/out", "vol/w/in"):
            (shim.rootfs / name).write_text(name)
        os.symlink("/w", shim.rootfs / "vol" / "link")

    async def test_a_root_that_may_only_be_read(self, shim: Shim) -> None:
        probe = process("/probe.wasm", "read", "out", "write", "new", "write", "/w/new", cwd="/w")
        said = await lines(shim, **probe, **annotated(preopens="/=/:ro"))
        assert said == ["w/out", "EROFS", "EROFS"]
        assert not (shim.rootfs / "w" / "new").exists()

    async def test_another_root(self, shim: Shim) -> None:
        operations = ["read", "in", "read", "out", "write", "new"]
        narrowed = annotated(preopens="/=/app:ro")
        said = await lines(shim, **process("/probe.wasm", *operations, cwd="/w"), **narrowed)
        assert said == ["app/w/in", "ENOENT", "EROFS"]
        # Where it has no such directory there is none, and relative paths begin at its root.
        said = await lines(shim, **process("/probe.wasm", *operations, cwd="/vol"), **narrowed)
        assert said == ["app/in", "ENOENT", "EROFS"]

    async def test_no_root(self, shim: Shim) -> None:
        vol = {"destination": "/vol", "type": "bind", "source": str(shim.rootfs / "vol")}
        vol["options"] = ["rbind"]  # type: ignore[assignment]
        for cwd in ("/w", "/vol/link"):
            probe = process("/probe.wasm", "read", "out", "read", "/w/out", cwd=cwd)
            said = await lines(shim, **probe, **annotated(rootfs="off"), mounts=[vol])
            assert not {"w/out"} & set(said), cwd

    async def test_a_mount_point_that_somebody_has_replaced(self, shim: Shim) -> None:
        """The hook does what another container of the pod can do in a volume that both have."""
        vol, data = shim.directory / "vol", shim.directory / "data"
        for directory in (vol, vol / "data", data):
            directory.mkdir()
        swap = shim.directory / "swap"
        swap.write_text(f"#!/bin/sh\nmv {vol}/data {vol}/gone && ln -s / {vol}/data\n")
        swap.chmod(0o755)
        mounts = [
            {"destination": there, "type": "bind", "source": str(here), "options": ["rbind"]}
            for there, here in (("/vol", vol), ("/vol/data", data))
        ]
        hooks = {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", str(swap)]}]}
        probe = process("/probe.wasm", "preopens", "read", "/vol/data/w/out")
        spec = probe | annotated(rootfs="off") | {"mounts": mounts, "hooks": hooks}
        said = await lines(shim, **spec)
        assert said[0] == "/vol"
        assert said[1] != "w/out"

    @pytest.mark.parametrize("cwd", ["/vol/w", "//vol/w/"])
    async def test_a_preopen_that_may_only_be_read(self, shim: Shim, cwd: str) -> None:
        probe = process("/probe.wasm", "write", "new", cwd=cwd)
        assert await lines(shim, **probe, **annotated(preopens="/vol=/vol:ro")) == ["EROFS"]

    @pytest.mark.parametrize("path", ["/proc/1/root", "/proc/self/cwd", "/link"])
    async def test_a_preopen_is_no_link_of_the_kernel(self, shim: Shim, path: str) -> None:
        os.symlink("proc/1/root", shim.rootfs / "link")
        spec = process("/probe.wasm", "preopens") | HOST_PIDS | WITH_PROC
        spec["annotations"] = spec["annotations"] | annotated(preopens=f"x={path}")["annotations"]
        message = await refused(shim, **spec)
        assert message.startswith(f"annotations: dev.pywasm.preopens: {path}: ")


class TestLeaving:
    """Where the paths of a program lead that leave the directory in which they start."""

    @pytest.fixture(autouse=True)
    def _tree(self, shim: Shim) -> None:
        (shim.directory / "volume").mkdir()
        for name in ("etc", "vol"):
            (shim.rootfs / name).mkdir()
        for name in ("rootfs/etc/file", "volume/file"):
            (shim.directory / name).write_text(name)
        os.symlink("/etc/file", shim.directory / "volume" / "out")
        os.symlink("vol", shim.rootfs / "to-vol")

    OPERATIONS = (
        *("read", "/vol/out", "read", "/vol/../etc/file", "read", "/to-vol/../etc/file"),
        *("read", "/vol/file", "write", "/to-vol/new", "write", "/vol/new"),
    )
    NO, FILE, OUT = "ENOTCAPABLE", "volume/file", "rootfs/etc/file"

    @pytest.mark.parametrize(
        ("annotations", "expected"),
        [
            ({}, [OUT, OUT, OUT, FILE, "ok", "ok"]),
            ({"preopens": "data=/vol:ro"}, [OUT, OUT, OUT, FILE, "ok", "ok"]),
            ({"preopens": "/new=/vol:ro"}, [OUT, OUT, OUT, FILE, "ok", "ok"]),
            ({"rootfs": "off"}, [NO, NO, NO, FILE, NO, "ok"]),
            ({"preopens": "/=/"}, [NO, NO, OUT, FILE, "EROFS", "ok"]),
            ({"preopens": "/=/:ro"}, [NO, NO, OUT, FILE, "EROFS", "ok"]),
            # The root is another mount, and read-only itself.
            ({"preopens": "/vol=/vol:ro"}, [NO, NO, OUT, FILE, "EROFS", "EROFS"]),
            ({"preopens": "/vol=/etc"}, ["ENOENT", NO, OUT, OUT, "EROFS", "EROFS"]),
        ],
    )
    async def test_unless_an_annotation_has_chosen(
        self, shim: Shim, annotations: dict[str, str], expected: list[str]
    ) -> None:
        vol = {"destination": "/vol", "type": "bind", "source": str(shim.directory / "volume")}
        vol["options"] = ["rbind", "rw"]  # type: ignore[assignment]
        root = {"path": "rootfs", "readonly": True}
        probe = process("/probe.wasm", *self.OPERATIONS) | annotated(**annotations)
        said = await lines(shim, **probe, mounts=[vol], root=root)
        if annotations.get("rootfs") == "off":
            said = ["ENOTCAPABLE" if line == "ENOENT" else line for line in said]
        assert said == expected

    @pytest.mark.parametrize("there", ["/vol/", "//vol", "/etc/../vol", "/vol"])
    @pytest.mark.parametrize("name", ["/vol", "//vol/"])
    async def test_however_a_name_is_spelt(self, shim: Shim, there: str, name: str) -> None:
        vol = {"destination": there, "type": "bind", "source": str(shim.directory / "volume")}
        vol["options"] = ["rbind", "rw"]  # type: ignore[assignment]
        probe = process("/probe.wasm", "preopens", *self.OPERATIONS)
        spec = probe | annotated(preopens=f"{name}=/vol:ro")
        spec |= {"mounts": [vol], "root": {"path": "rootfs", "readonly": True}}
        said = await lines(shim, **spec)
        assert said == ["/ /vol", self.NO, self.NO, self.OUT, self.FILE, "EROFS", "EROFS"]

    async def test_a_preopen_of_an_annotation_is_never_left(self, shim: Shim) -> None:
        os.symlink("/etc/file", shim.rootfs / "vol" / "out")
        paths = ("data/out", "data/../etc/file", "data/../vol/file", "/vol/out")
        operations = [word for path in paths for word in ("read", path)]
        probe = process("/probe.wasm", *operations, "write", "data/out")
        said = await lines(shim, **probe, **annotated(preopens="data=/vol:ro"))
        assert said == [self.NO, self.NO, self.NO, self.OUT, self.NO]

    @pytest.mark.parametrize("user", USERS)
    async def test_never_by_a_link_of_the_kernel(self, shim: Shim, user: dict[str, int]) -> None:
        secret = f"{shim.directory}/secret"
        (shim.rootfs / "link").symlink_to("/proc/1/root")
        (shim.rootfs / "vol" / "link").symlink_to(f"/proc/1/root{secret}")
        paths = [
            *(f"/proc/{process}/root{secret}" for process in (1, "self", os.getpid())),
            *(f"/proc/{process}/cwd/..{secret}" for process in (1, "self", os.getpid())),
            *(f"/link{secret}", f"/vol/../link{secret}", "/vol/link", "/vol/../vol/link"),
        ]
        operations = [word for path in paths for word in ("read", path, "write", path)]
        said = await lines(
            shim, **process("/probe.wasm", *operations, user=user), **WITH_PROC, **HOST_PIDS
        )
        assert len(said) == len(operations) // 2
        assert not {SECRET, "ok"} & set(said)
        assert (shim.directory / "secret").read_text() == SECRET


class TestEntrypoint:
    """The program's file, which is looked at before anything is known of it."""

    @pytest.mark.parametrize("user", USERS)
    async def test_not_through_a_link_of_the_kernel(self, shim: Shim, user: dict[str, int]) -> None:
        path = f"/proc/1/root{shim.directory}/secret"
        message = await refused(shim, **process(path, user=user), **WITH_PROC, **HOST_PIDS)
        assert SECRET[:4] not in message
        assert message.endswith((": Too many levels of symbolic links", ": Permission denied"))

    async def test_not_what_its_user_may_not_read(self, shim: Shim) -> None:
        shutil.copy(shim.rootfs / "probe.wasm", shim.rootfs / "closed.wasm")
        (shim.rootfs / "closed.txt.wasm").write_text(SECRET)
        for name in ("closed.wasm", "closed.txt.wasm"):
            (shim.rootfs / name).chmod(0o600)
            message = await refused(shim, **process(f"/{name}", user=USERS[1]))
            assert message == f"entrypoint '/{name}': Permission denied"
        # Root without the capability to read everything is a user like any other.
        os.chown(shim.rootfs / "closed.wasm", 1, 1)
        message = await refused(shim, **process("/closed.wasm", capabilities={}))
        assert message == "entrypoint '/closed.wasm': Permission denied"
        able = {name: ["CAP_DAC_OVERRIDE"] for name in ("bounding", "permitted", "effective")}
        said = await lines(shim, **process("/closed.wasm", "env", "PATH", capabilities=able))
        assert said == ["(unset)"]
        group = {"uid": 65532, "gid": 65532, "additionalGids": [77]}
        os.chown(shim.rootfs / "closed.wasm", 0, 77)
        (shim.rootfs / "closed.wasm").chmod(0o040)
        said = await lines(shim, **process("/closed.wasm", "env", "PATH", user=group))
        assert said == ["(unset)"]

    @pytest.mark.parametrize("name", ["node.wasm", "node"])
    async def test_a_device_is_not_opened(self, shim: Shim, name: str) -> None:
        os.mknod(shim.rootfs / name, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        with open(LIBC.inotify_init1(os.O_NONBLOCK), "rb", buffering=0) as watch:
            path = os.fsencode(shim.rootfs / name)
            assert LIBC.inotify_add_watch(watch.fileno(), path, IN_OPEN) >= 0
            message = await refused(shim, **process(f"/{name}"))
            assert watch.read(4096) is None
        assert "not a regular file" in message


class TestPorts:
    """`dev.pywasm.listen`, of a container in a user namespace."""

    @pytest.mark.parametrize("network", [[], [{"type": "network"}]])
    async def test_a_low_one_of_the_host_is_not_its_own(
        self, shim: Shim, network: list[dict[str, str]]
    ) -> None:
        ids = [{"containerID": 0, "hostID": 200000, "size": 1000}]
        linux = {
            "namespaces": [{"type": "pid"}, {"type": "user"}, *NAMESPACES, *network],
            "uidMappings": ids,
            "gidMappings": ids,
        }
        sets = ("bounding", "permitted", "effective", "inheritable")
        capabilities = {each: ["CAP_NET_BIND_SERVICE"] for each in sets}
        probe = process("/probe.wasm", "env", "A", capabilities=capabilities)
        spec = probe | annotated(listen="tcp://127.0.0.1:83") | {"linux": linux}
        if network:
            assert (await run(shim, **spec)).status == 0
        else:
            assert "listen: tcp://127.0.0.1:83: Permission denied" in await refused(shim, **spec)
