"""How an OCI runtime is called, by programs that say how they were."""

import asyncio
import os
from pathlib import Path

import msgspec
import pytest

from shim.daemon.containers.exec_request import ProcessFile
from shim.daemon.containers.oci_runtime import OciRuntime, RuntimeFailedError
from shim.daemon.options import Options
from tests.shim.daemon.patience import until


@pytest.fixture
def runtime(tmp_path: Path) -> OciRuntime:
    return OciRuntime(str(tmp_path / "runtime"), str(tmp_path / "root"))


def program(runtime: OciRuntime, script: str) -> None:
    """What the runtime is; `$log` is the file of its log."""
    path = Path(runtime.binary)
    path.write_text(f"#!/bin/sh\nlog=$4\n{script}\n")
    path.chmod(0o755)


async def reason(runtime: OciRuntime, bundle: Path) -> str:
    with pytest.raises(RuntimeFailedError) as raised:
        await runtime.start("x", str(bundle))
    return str(raised.value)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (r"""printf '%s\n' '{"level":"error","msg":"a\nb  c"}' > $log; exit 1""", "a b c"),
        (
            """for w in info error warning; do echo '{"level":"'$w'","msg":"'$w'"}' > $log; done
            echo more >&2; exit 1""",
            "error",
        ),
        ("echo '{' > $log; echo said >&2; exit 1", "said"),
        ("exit 3", "it ended with status 3"),
        ("kill -9 $$", "it ended with status 137"),
    ],
)
async def test_why_it_failed(
    runtime: OciRuntime, tmp_path: Path, script: str, message: str
) -> None:
    program(runtime, script.replace("> $log", ">> $log"))
    assert await reason(runtime, tmp_path) == f"OCI runtime start failed: {message}"


async def test_what_cannot_be_executed(runtime: OciRuntime, tmp_path: Path) -> None:
    Path(runtime.binary).write_text("#!/none\n")
    assert "no such program" in await reason(runtime, tmp_path)
    Path(runtime.binary).chmod(0o755)
    assert "No such file or directory" in await reason(runtime, tmp_path)
    program(runtime, "")
    assert "No such file or directory" in await reason(runtime, tmp_path / "none")


def is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False  # the listing's own


async def test_what_it_is_given(
    runtime: OciRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/somebody")
    monkeypatch.setenv("LISTEN_FDS", "1")
    program(
        runtime,
        """echo "$@"; pwd; env; ls /proc/$$/fd; grep SigIgn /proc/$$/status; cat; echo error >&2""",
    )
    inherited = {int(fd) for fd in os.listdir("/proc/self/fd") if is_inheritable(int(fd))}
    stdin, stdout = os.memfd_create("in"), os.memfd_create("out")
    os.write(stdin, b"input\n")
    os.lseek(stdin, 0, os.SEEK_SET)
    before = len(os.listdir("/proc/self/fd"))
    for call in ("exec", "create"):
        os.lseek(stdin, 0, os.SEEK_SET)
        os.ftruncate(stdout, 0)
        os.lseek(stdout, 0, os.SEEK_SET)
        fds = (stdin, stdout, stdout)
        files = {"pid_file": "/pid", "console_socket": "/console"}
        if call == "exec":
            await runtime.exec("x", str(tmp_path), stdin, fds, **files)
        else:
            await runtime.create("x", str(tmp_path), fds, **files)
        said = os.pread(stdout, 1 << 16, 0).decode().splitlines()
        assert said[0].startswith(f"--root {runtime.root} --log /proc/{os.getpid()}/fd/")
        assert " --pid-file /pid " in said[0]
        assert " --console-socket /console x" in said[0]
        assert said[1] == str(tmp_path)
        assert not any(line.startswith(("NOTIFY_", "LISTEN_")) for line in said)
        # The shell has its script open, too; and pytest may have been given some to pass on.
        passed = {int(line) for line in said if line.isdigit()} - {0, 1, 2, 10, 11}
        assert passed <= inherited
        ignored = next(line for line in said if line.startswith("SigIgn"))
        assert int(ignored.split()[1], 16) & 0x7FFFFFFF == 0  # but for libc's own
        assert said[-2:] == ["input", "error"]
    os.close(stdin)
    os.close(stdout)
    assert len(os.listdir("/proc/self/fd")) == before - 2


async def test_the_process_of_an_exec_is_in_no_file(runtime: OciRuntime, tmp_path: Path) -> None:
    program(runtime, f"""for a; do case $a in /proc/*) cat $a > {tmp_path}/seen;; esac; done""")
    with ProcessFile(b"secret") as process:
        await runtime.exec(
            "x", str(tmp_path), process.fileno(), (), pid_file="p", console_socket=""
        )
    assert (tmp_path / "seen").read_bytes() == b"secret"


async def test_calls_for_one_container_are_ended(runtime: OciRuntime, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "never")
    program(runtime, f"read line < {tmp_path}/never")
    elsewhere = msgspec.structs.replace(runtime, root=str(tmp_path / "other"))
    calls = [
        asyncio.create_task(of.start(id, str(tmp_path)))
        for of, id in ((runtime, "x"), (runtime, "y"), (elsewhere, "x"))
    ]
    try:
        await until(lambda: len(command_lines(runtime.binary)) == 3)
        runtime.end_calls("x")
        with pytest.raises(RuntimeFailedError, match="status 137"):
            await calls[0]
        assert len(command_lines(runtime.binary)) == 2
    finally:
        runtime.end_calls("y")
        elsewhere.end_calls("x")
        for call in calls[1:]:
            with pytest.raises(RuntimeFailedError, match="status 137"):
                await call


def command_lines(binary: str) -> list[str]:
    """Those of the processes that execute a script."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if binary.encode() in words[:2]:
            found.append(b" ".join(words).decode())
    return found


def test_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYWASM_RUN", "/run/elsewhere")
    assert OciRuntime.chosen(Options(), "k8s.io", systemd_cgroup=False) == OciRuntime(
        "runc", "/run/elsewhere/runc/k8s.io"
    )
    options = Options(
        binary_name="crun", root="/r", systemd_cgroup=True, no_pivot_root=True, no_new_keyring=True
    )
    assert OciRuntime.chosen(options, "n", systemd_cgroup=False) == OciRuntime(
        "crun", "/r/n", True, ("--no-pivot", "--no-new-keyring")
    )
