import asyncio
import ctypes
import errno
import json
import os
import resource
import select
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shim.compiler import process
from shim.compiler.cgroup import PARENT, CompilerCgroup, remove
from shim.compiler.process import Compilation, Limits, Refused, UnfitError, start
from shim.engines import engines
from shim.engines.base import Engine, ModuleError, TryAgainError
from shim.engines.cache import Artifact, ArtifactCache, key, open_directory, read_artifact
from shim.engines.flaws import known
from shim.engines.snapshot import seal
from shim.engines.text import assembled
from shim.linux import clone, mounts
from shim.linux.cgroups import Cgroup, hierarchies
from tests.guests.build import SOURCES
from tests.installed import ENGINES, LIBWASMER

KEY = key(b"\1" * 32, "test")


class EngineOf:
    """An engine whose compiler is a function."""

    name = "test"
    version = "1"
    host = engines()[0].host

    def __init__(self, compile: Callable[[bytes], bytes]) -> None:
        self.compile = compile

    def fingerprint(self) -> str:
        return "test"


def leb128(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + leb128(rest) if rest else bytes([low])


def function_of(instructions: bytes, times: int) -> bytes:
    """Return a module with a function, of one i32 parameter, that repeats some instructions.

    What it exports, `_start`, does nothing.
    """
    body = b"\0" + instructions * times + b"\x0b"
    sections = {
        1: b"\2\x60\1\x7f\0\x60\0\0",
        3: b"\2\0\1",
        7: b"\1\6_start\0\1",
        10: b"\2" + leb128(len(body)) + body + b"\2\0\x0b",
    }
    return b"\0asm\1\0\0\0" + b"".join(
        bytes([number]) + leb128(len(content)) + content for number, content in sections.items()
    )


ADD = b"\x20\0\x41\7\x6a\x21\0"  # parameter = parameter + 7
BRANCH = b"\x02\x40\x20\0\x0d\0\x0b"  # block: leave it if the parameter is not 0


def module_file(data: bytes) -> int:
    fd = os.memfd_create("module", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    seal(fd)
    return fd


@pytest.fixture
def descriptors() -> Iterator[None]:
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    assert sorted(os.listdir("/proc/self/fd")) == before


def begin(
    compile: Callable[[bytes], bytes],
    wasm: bytes = b"\0asm",
    limits: Limits | None = None,
    owner: int = 0,
) -> Compilation:
    fd = module_file(wasm)
    try:
        engine: Any = EngineOf(compile)
        outputs = [os.memfd_create("artifact")]
        return start(engine, KEY, fd, outputs, owner=owner, limits=limits)
    finally:
        os.close(fd)


def artifact_in(fd: int) -> bytes:
    artifact = read_artifact(fd, KEY)
    try:
        return artifact.read()
    finally:
        artifact.close()


def compiled(
    compile: Callable[[bytes], bytes], wasm: bytes = b"\0asm", limits: Limits | None = None
) -> bytes:
    return artifact_in(begin(compile, wasm, limits).result())


pytestmark = pytest.mark.usefixtures("descriptors")


@pytest.mark.parametrize("wasm", [b"", b"\0asm", os.urandom(3_000_000)])
def test_compiles(wasm: bytes) -> None:
    assert compiled(lambda module: module[::-1], wasm) == wasm[::-1]


async def test_the_loop_is_told_of_the_end() -> None:
    work = begin(lambda module: time.sleep(0.1) or module)  # type: ignore[func-returns-value]
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(work.pidfd, ended.set)
    assert not ended.is_set()
    await asyncio.wait_for(ended.wait(), 10)
    loop.remove_reader(work.pidfd)
    assert artifact_in(work.result()) == b"\0asm"


def test_a_module_that_is_refused() -> None:
    def refuse(module: bytes) -> bytes:
        os.write(2, b"warning: noise of a library\n")
        raise ModuleError("invalid byte at offset 4")

    with pytest.raises(ModuleError, match=r"^invalid byte at offset 4$"):
        compiled(refuse)


def test_a_compiler_that_raises() -> None:
    def fail(module: bytes) -> bytes:
        raise RuntimeError("panicked at\x1b[31m codegen")

    with pytest.raises(ModuleError) as caught:
        compiled(fail)
    message = r"the compiler failed (status 70): RuntimeError: panicked at\x1b[31m codegen"
    assert str(caught.value) == message


def crash(module: bytes) -> bytes:
    ctypes.string_at(0)
    return module


def sleep(module: bytes) -> bytes:
    time.sleep(60)
    return module


def spin(module: bytes) -> bytes:
    while True:
        pass


def test_a_compiler_that_crashes() -> None:
    with pytest.raises(ModuleError, match=r"^the compiler failed \(signal 11\)$"):
        compiled(crash)


def test_a_compiler_that_is_killed() -> None:
    work = begin(sleep)
    work.kill()
    select.select([work.pidfd], [], [])
    work.kill()  # of one that has ended is nothing
    with pytest.raises(TryAgainError, match=r"^the compiler failed \(signal 9\)$"):
        work.result()


def test_limit_of_cpu_time() -> None:
    with pytest.raises(ModuleError, match=r"^compilation exceeded its limit of 1 s of CPU time$"):
        compiled(spin, limits=Limits(cpu=1))


@pytest.mark.parametrize("stopped", [False, True])
def test_limit_of_time(stopped: bool) -> None:
    work = begin(sleep, limits=Limits(time=7))
    if stopped:
        os.kill(work.pid, signal.SIGSTOP)
    assert work.time == 7
    work.expire()
    with pytest.raises(TryAgainError, match=r"^compilation exceeded its limit of 7 s$"):
        work.result()


def rust_alike(module: bytes) -> bytes:
    os.write(2, b"memory allocation of 4294967296 bytes failed\n")
    os.abort()


def panic(module: bytes) -> bytes:
    os.write(2, b"thread panicked at x.rs:1\nregisters ran out\nnote: see the manual\n\n")
    os.abort()


def test_a_compiler_that_panics() -> None:
    with pytest.raises(
        ModuleError, match=r"^the compiler failed \(signal \d+\): registers ran out$"
    ):
        compiled(panic)


@pytest.mark.parametrize("compile", [lambda module: bytes(1 << 30), rust_alike])
def test_limit_of_memory(compile: Callable[[bytes], bytes]) -> None:
    limits = Limits(memory=256 << 20, memory_per_byte=1 << 20)
    with pytest.raises(ModuleError, match=r"^compilation exceeded its limit of 260 MiB of memory$"):
        compiled(compile, limits=limits)
    larger = Limits(memory=256 << 20, memory_per_byte=1 << 30)
    assert compiled(lambda module: bytes(1 << 30)[:1], limits=larger) == b"\0"


def test_limit_of_the_artifact() -> None:
    with pytest.raises(ModuleError, match=r"^compilation exceeded its limit of 1000 bytes of art"):
        compiled(lambda module: bytes(1001), limits=Limits(artifact=1000, artifact_per_byte=0))
    assert (
        len(compiled(lambda module: bytes(1000), limits=Limits(artifact=1000, artifact_per_byte=0)))
        == 1000
    )


@pytest.fixture
def unfiltered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a compiler make any system call: what is behind the filter holds without it."""
    monkeypatch.setattr(process, "confine", lambda: None)


def fork_once(module: bytes) -> bytes:
    try:
        os.fork()
    except BlockingIOError as error:
        raise ModuleError("no more tasks") from error
    return module


@pytest.mark.usefixtures("unfiltered")
@pytest.mark.parametrize("cgroups", [True, False])
def test_limit_of_tasks(monkeypatch: pytest.MonkeyPatch, cgroups: bool) -> None:
    if not cgroups:
        monkeypatch.setattr(Cgroup, "create", no_cgroups)
    with pytest.raises(ModuleError, match=r"^no more tasks$"):
        compiled(fork_once, limits=Limits(tasks=1))


def user_of(pid: int) -> int:
    """Wait until a compiler has given its privileges up."""
    settled(pid)
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (ids,) = {tuple(line.split()[1:]) for line in lines if line.startswith(("Uid", "Gid"))}
    (id,) = set(ids)
    return int(id)


def test_each_is_another_user() -> None:
    work = [begin(sleep), begin(sleep)]
    assert [user_of(each.pid) for each in work] == [0xC0000000 + each.pid for each in work]
    for each in work:
        each.kill()
        with pytest.raises(ModuleError):
            each.result()


@pytest.mark.usefixtures("unfiltered")
def test_whatever_it_started_ends_with_it() -> None:
    def fork(module: bytes) -> bytes:
        os.fork()
        return sleep(module)

    work = begin(fork)
    children: list[str] = []
    while not children:
        children = Path(f"/proc/{work.pid}/task/{work.pid}/children").read_text().split()
    work.kill()
    with pytest.raises(ModuleError, match=r"signal 9"):
        work.result()
    assert not Path(f"/proc/{children[0]}").exists()


def attempt(action: Callable[[], object]) -> str:
    try:
        return repr(action())
    except OSError as error:
        return type(error).__name__ + (f" {error.errno}" if type(error) is OSError else "")


def kind_of(fd: int) -> int:
    try:
        return stat.S_IFMT(os.fstat(fd).st_mode)
    except OSError:
        return 0


def look_around(module: bytes) -> bytes:
    """Report what a compiler can see and do."""
    libc = ctypes.CDLL(None, use_errno=True)
    kinds = [kind for kind in map(kind_of, range(1024)) if kind]
    outside = socket.socket(socket.AF_INET)
    return json.dumps(
        {
            "ids": [os.getresuid(), os.getresgid(), os.getgroups(), os.getpid()],
            "no_new_privs": libc.prctl(39, 0, 0, 0, 0),
            "root": os.listdir("/"),
            "passwd": attempt(lambda: os.open("/etc/passwd", os.O_RDONLY)),
            "proc": attempt(lambda: os.open("/proc/1/environ", os.O_RDONLY)),
            "above": os.stat("/..").st_ino == os.stat("/").st_ino,
            "create": attempt(lambda: os.open("/x", os.O_WRONLY | os.O_CREAT)),
            "chroot": attempt(lambda: os.chroot("/")),
            "setuid": attempt(lambda: os.setuid(0)),
            "mount": attempt(lambda: mounts.mount("x", "/", "tmpfs")),
            "others": attempt(lambda: os.kill(-1, 0)),
            "interfaces": [name for _, name in socket.if_nameindex()],
            "connect": attempt(lambda: outside.connect(("127.0.0.1", 9))),
            "files": [kinds.count(kind) for kind in (stat.S_IFCHR, stat.S_IFREG)],
            "other files": [kind for kind in kinds if kind not in (stat.S_IFCHR, stat.S_IFREG)],
        }
    ).encode()


@pytest.mark.usefixtures("unfiltered")
def test_confinement() -> None:
    host_only = os.open("/etc", os.O_RDONLY)
    listener = socket.socket(socket.AF_INET)
    listener.bind(("127.0.0.1", 0))
    try:
        seen = json.loads(compiled(look_around))
    finally:
        os.close(host_only)
        listener.close()
    uid = seen["ids"][0][0]
    assert uid > 0xC0000000
    assert seen["ids"] == [[uid] * 3, [uid] * 3, [], 1]
    assert seen["no_new_privs"] == 1
    assert seen["root"] == []
    assert seen["passwd"] == seen["proc"] == "FileNotFoundError"
    assert seen["above"] is True
    assert seen["create"] == "OSError 30"
    assert seen["chroot"] == seen["setuid"] == seen["mount"] == "PermissionError"
    assert seen["others"] == "ProcessLookupError"
    assert seen["interfaces"] == ["lo"]
    assert seen["connect"] == "OSError 101"
    # Standard input and output; error output, the module, the artifact.
    assert seen["files"] == [2, 3]
    assert seen["other files"] == []


def test_capabilities_and_limits() -> None:
    work = begin(sleep)
    status = {"Uid": "0"}
    while status["Uid"].startswith("0") or status.get("NoNewPrivs") != "1":
        lines = Path(f"/proc/{work.pid}/status").read_text().splitlines()
        status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert Path(f"/proc/{work.pid}/oom_score_adj").read_text() == "1000\n"
    assert status["Name"] == "pywasm-compiler"
    for name in ("mnt", "pid", "net", "ipc", "uts", "cgroup"):
        assert os.readlink(f"/proc/{work.pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
    work.kill()
    with pytest.raises(ModuleError):
        work.result()


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ArtifactCache]:
    directory = open_directory(str(tmp_path / "artifacts"))
    yield ArtifactCache(directory)
    os.close(directory)


def test_into_the_cache(cache: ArtifactCache) -> None:
    module = module_file(b"\0asm")
    engine: Any = EngineOf(lambda module: module * 2)
    with cache.draft(1000) as draft:
        outputs = [draft, os.memfd_create("artifact")]
        cache.store(KEY, start(engine, KEY, module, outputs).result()).close()
    os.close(module)
    artifact = cache.load(KEY)
    assert isinstance(artifact, Artifact)
    assert artifact.read() == b"\0asm\0asm"
    artifact.close()


@pytest.fixture
def full(tmp_path: Path) -> Iterator[ArtifactCache]:
    """Return a cache on a disk of 32 KiB."""
    mounts.mount("full", str(tmp_path), "tmpfs", 0, "size=32k,mode=700")
    try:
        directory = open_directory(str(tmp_path / "artifacts"))
        yield ArtifactCache(directory)
        os.close(directory)
    finally:
        mounts.umount(str(tmp_path))


def test_disk_full(full: ArtifactCache) -> None:
    module = module_file(b"\0asm")
    engine: Any = EngineOf(lambda module: module * 100_000)
    with full.draft(1000) as draft:
        outputs = [draft, os.memfd_create("artifact")]
        assert artifact_in(start(engine, KEY, module, outputs).result()) == b"\0asm" * 100_000
    with (
        full.draft(1000) as draft,
        pytest.raises(OSError, match=r"artifact: No space left on device") as caught,
    ):
        start(engine, KEY, module, [draft]).result()
    assert caught.value.errno == errno.ENOSPC
    os.close(module)


def test_without_confinement_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.EINVAL, "pivot_root: Invalid argument", ".")

    monkeypatch.setattr(mounts, "pivot_root", fail)
    with pytest.raises(OSError, match=r"cannot confine a compiler: .*pivot_root") as caught:
        compiled(lambda module: module)
    assert caught.value.errno == errno.EPERM


def test_a_clone_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(errno.EAGAIN, "clone3: no more processes")

    monkeypatch.setattr(clone, "clone", fail)
    module = module_file(b"\0asm")
    engine: Any = EngineOf(sleep)
    with pytest.raises(OSError, match="clone3"):
        start(engine, KEY, module, [os.memfd_create("artifact")])
    os.close(module)


def test_system_calls() -> None:
    """No file, socket, process, program or privilege; nor a way around."""

    def look(module: bytes) -> bytes:
        libc = ctypes.CDLL(None, use_errno=True)

        def call(name: str, *arguments: object) -> str:
            ctypes.set_errno(0)
            getattr(libc, name)(*arguments)
            return errno.errorcode.get(ctypes.get_errno(), "")

        tried = {
            "open": attempt(lambda: os.open("/", os.O_RDONLY)),
            "fork": attempt(os.fork),
            "socket": attempt(lambda: socket.socket(socket.AF_UNIX)),
            "execute": attempt(lambda: os.execv("/x", ["x"])),
            "kill": attempt(lambda: os.kill(1, 0)),
            "user": attempt(lambda: os.setuid(0)),
            "limits": attempt(lambda: resource.prlimit(0, resource.RLIMIT_CPU, (1, 1))),
            "memfd": attempt(lambda: os.memfd_create("x")),
            "ptrace": call("ptrace", 0, 0, 0, 0),
            "unshare": call("unshare", 0x10000000),
            "prctl": call("prctl", 38, 1, 0, 0, 0),
            "clone3": call("syscall", 435, None, 0),
            "newer": call("syscall", 1000),
        }
        done: list[int] = []
        thread = threading.Thread(target=lambda: done.append(1))
        thread.start()
        thread.join()
        return json.dumps(tried | {"thread": done}).encode()

    seen = json.loads(compiled(look))
    assert seen.pop("thread") == [1]
    assert (seen.pop("clone3"), seen.pop("newer")) == ("ENOSYS", "ENOSYS")
    assert set(seen.values()) == {"PermissionError", "EPERM"}


def members(work: Compilation) -> dict[str, str]:
    """The cgroup of a compiler in each hierarchy, as the kernel shows it."""
    lines = Path(f"/proc/{work.pid}/cgroup").read_text().splitlines()
    return {name: path for _, name, path in (line.split(":", 2) for line in lines)}


def below_parent() -> set[str]:
    """The names of the cgroups of compilers and their owners, everywhere."""
    walks = [os.walk(tree.mount + PARENT) for tree in hierarchies()]
    return {name for walk in walks for _, names, _ in walk for name in names}


def settled(pid: int) -> None:
    """Wait until a compiler has given its privileges up."""
    while "Seccomp:\t2" not in Path(f"/proc/{pid}/status").read_text():
        time.sleep(0.001)


def test_its_own_cgroup() -> None:
    work = begin(spin)
    settled(work.pid)
    where = {path for path in members(work).values() if path.startswith(PARENT)}
    assert len(where) == 1
    (path,) = where
    memory = next(tree for tree in hierarchies() if tree.is_v2 or "memory" in tree.controllers)
    memory = next((tree for tree in hierarchies() if "memory" in tree.controllers), memory)
    own, node = memory.mount + path, memory.mount + PARENT
    file = "memory.max" if memory.is_v2 else "memory.limit_in_bytes"
    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    assert int(Path(node, file).read_text()) <= half
    assert int(Path(own, file).read_text()) <= min(Limits().memory_for(4), half)
    pids = next((tree for tree in hierarchies() if "pids" in tree.controllers), memory)
    assert Path(pids.mount + path, "pids.max").read_text() == f"{Limits().tasks}\n"
    work.kill()
    with pytest.raises(ModuleError):
        work.result()
    # What could not be removed at once is removed by the next one.
    compiled(lambda module: module)
    assert os.path.basename(path) not in below_parent()


def test_cgroups_of_shims_that_have_gone_are_removed() -> None:
    def shim() -> None:
        begin(sleep)
        os._exit(0)

    before = below_parent()
    child = clone.clone(shim)
    clone.wait(child.pidfd)
    os.close(child.pidfd)
    left = below_parent() - before
    assert left
    while left & below_parent():
        compiled(lambda module: module)


def elsewhere(action: Callable[[], object]) -> int:
    """Do it where this process is nobody: in another PID namespace; return its exit status."""

    def enter() -> None:
        mounts.mount(None, "/", None, mounts.MS_REC | mounts.MS_PRIVATE)
        mounts.mount("proc", "/proc", "proc")
        action()

    child = clone.clone(enter, clone.CLONE_NEWPID | clone.CLONE_NEWNS)
    try:
        return clone.wait(child.pidfd)
    finally:
        os.close(child.pidfd)


def test_others_in_another_pid_namespace_leave_its_cgroup_alone() -> None:
    """Its name would tell them nothing: there, who has made it is nobody, or somebody else."""
    # Nobody is in it, as in the moment before a compiler of cgroup v1 enters it.
    cgroup = CompilerCgroup(0, 1 << 30, 100)
    own = {name for name in below_parent() if name.startswith(f"{os.getpid()}-")}
    assert elsewhere(lambda: compiled(lambda module: module)) == 0
    assert own <= below_parent()
    cgroup.delete()
    assert elsewhere(lambda: CompilerCgroup(0, 1 << 30, 100).delete()) == 0
    assert not own & below_parent()


@pytest.fixture
def stderr(tmp_path: Path) -> Iterator[Path]:
    """This process's, for a while: a log that others write to as well."""
    path = tmp_path / "log"
    path.write_text("what was there before\n")
    kept = os.dup(2)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.dup2(fd, 2)
    os.close(fd)
    yield path
    os.dup2(kept, 2)
    os.close(kept)


@pytest.mark.parametrize("kind", [OSError, RuntimeError])
def test_what_goes_wrong_first_of_all(
    stderr: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    """It is told, and not written over the log of who made the compiler."""

    def fail(self: CompilerCgroup) -> None:
        raise kind("no such cgroup")

    monkeypatch.setattr(CompilerCgroup, "enter", fail)
    with pytest.raises((OSError, ModuleError), match="no such cgroup"):
        compiled(lambda module: module)
    assert stderr.read_text() == "what was there before\n"


def test_who_has_many_compiled_has_no_more_of_the_processors() -> None:
    """The kernel divides between the children of a cgroup, of which each owner is one."""
    owners = (1, 1, 1, 2)
    work = [begin(spin, owner=owner) for owner in owners]
    for each, owner in zip(work, owners, strict=True):
        settled(each.pid)
        (where,) = {path for path in members(each).values() if path.startswith(PARENT)}
        assert os.path.dirname(where) == f"{PARENT}/{owner}"
    for each in work:
        each.kill()
        with pytest.raises(ModuleError):
            each.result()
    while {"1", "2"} & below_parent():
        compiled(lambda module: module)  # as above


def test_what_is_removed_with_the_installation() -> None:
    work = begin(sleep)
    settled(work.pid)
    remove()
    assert Path(f"/proc/{work.pid}").exists()
    assert below_parent()
    work.kill()
    with pytest.raises(ModuleError):
        work.result()
    while any(os.path.exists(tree.mount + PARENT) for tree in hierarchies()):
        remove()  # as above, and other tests may have some


@pytest.mark.usefixtures("unfiltered")
def test_memory_of_all_its_processes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them takes more than one may, but the cgroup counts all."""
    monkeypatch.setattr(Limits, "memory_for", lambda self, size: 64 << 20)

    def hoard(module: bytes) -> bytes:
        child = os.fork()
        kept = bytearray(b"x") * (48 << 20)
        if child == 0:
            time.sleep(60)
        _, status = os.wait()
        raise ModuleError(f"killed {os.waitstatus_to_exitcode(status)} {len(kept)}")

    # The kernel chooses one of the two.
    killed = "compilation exceeded its limit of 64 MiB of memory|killed -9 50331648"
    with pytest.raises(ModuleError, match=f"^({killed})$"):
        compiled(hoard)


def no_cgroups(*arguments: object) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


def test_without_cgroups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cgroup, "create", no_cgroups)
    assert compiled(lambda module: module) == b"\0asm"


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    return next(engine for engine in engines() if engine.name == request.param)


def really_compiled(
    engine: Engine,
    wasm: bytes,
    limits: Limits | None = None,
    *,
    checked: bool = True,
    function: str | None = None,
) -> bytes:
    module = module_file(wasm)
    try:
        outputs = [os.memfd_create("artifact")]
        options: Any = {"limits": limits, "checked": checked, "function": function}
        work = start(engine, KEY, module, outputs, **options)
        return artifact_in(work.result())
    finally:
        os.close(module)


def test_an_engine(engine: Engine) -> None:
    module = engine.load(really_compiled(engine, function_of(ADD, 100)))
    module.check()
    with pytest.raises(ModuleError, match="other"):
        module.check("other")


UNFIT = {
    "no such function": (
        '(module (func (export "main")) {more})',
        "the module exports no function `_start`",
    ),
    "not a function": (
        '(module (memory (export "_start") 1) {more})',
        "export `_start` is not a function",
    ),
    "parameters": (
        '(module (func (export "_start") (param i32)) {more})',
        "export `_start` is (i32) -> (), it must not take parameters",
    ),
    "a foreign import": (
        '(module (import "env" "f" (func)) (func (export "_start")) {more})',
        "unknown import `env.f`: nobody provides it",
    ),
    "another type": (
        '(module (import "wasi_snapshot_preview1" "sched_yield" (func))'
        ' (func (export "_start")) {more})',
        "import `wasi_snapshot_preview1.sched_yield` is () -> (i32), "
        "the module takes it for () -> ()",
    ),
}


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("case", UNFIT)
def test_what_cannot_be_run_is_not_compiled(engine: Engine, case: str, text: bool) -> None:
    """And told in the words of the check after that; but what is no module is told that."""
    source, words = UNFIT[case]
    written = source.format(more="(func (drop (i32.const 1)))").encode()
    wasm = written if text else assembled(written)
    with pytest.raises(ModuleError) as late:
        engine.load(really_compiled(engine, wasm)).check()
    with pytest.raises(UnfitError) as early:
        really_compiled(engine, wasm, function="_start")
    assert str(early.value) == str(late.value) == words


def test_it_takes_no_time_to_find_that_out(engine: Engine) -> None:
    slow, limits = SLOW[engine.name], Limits(cpu=1, per_mib=0)
    with pytest.raises(UnfitError, match="exports no function `other`"):
        really_compiled(engine, slow, limits, function="other")


def test_another_function_of_the_same_module(engine: Engine) -> None:
    wasm = b'(module (func (export "main")))'
    with pytest.raises(UnfitError, match="exports no function `_start`"):
        really_compiled(engine, wasm, function="_start")
    engine.load(really_compiled(engine, wasm, function="main")).check("main")


@pytest.mark.parametrize("at", [8, 20, 40])
def test_what_is_no_module_is_told_that(engine: Engine, at: int) -> None:
    """Whatever it may export."""
    good = assembled(b'(module (func (export "main") (drop (i32.const 1))))')
    wasm = good[:at] + b"\xff" + good[at + 1 :]
    with pytest.raises(Refused) as late:
        really_compiled(engine, wasm)
    with pytest.raises(Refused) as early:
        really_compiled(engine, wasm, function="_start")
    assert str(early.value) == str(late.value)


def test_an_engine_on_what_is_no_module(engine: Engine) -> None:
    for wasm in (b"", b"\x7fELF", function_of(ADD, 100)[:-10]):
        with pytest.raises(ModuleError) as caught:
            really_compiled(engine, wasm)
        assert str(caught.value).isprintable()
        assert "the compiler failed" not in str(caught.value)


@pytest.mark.parametrize("text", [False, True])
def test_what_an_engine_gets_wrong(engine: Engine, text: bool) -> None:
    wasm = (SOURCES / "simd.wat").read_bytes()
    if not text:
        wasm = assembled(wasm)
    if known(engine):
        with pytest.raises(Refused, match=r"is not safe for a module that uses SIMD \("):
            really_compiled(engine, wasm)
    else:
        really_compiled(engine, wasm)
    engine.load(really_compiled(engine, wasm, checked=False)).check()


# What costs the code generator of today much was easy for that in wasmer's wheels.
ADDS, BRANCHES = function_of(ADD, 200_000), function_of(BRANCH, 50_000)
SLOW = {"wasmer": ADDS if LIBWASMER else BRANCHES, "wasmtime": ADDS}
LARGE = {"wasmer": BRANCHES if LIBWASMER else ADDS, "wasmtime": BRANCHES}


def test_a_module_that_is_slow_to_compile(engine: Engine) -> None:
    with pytest.raises(ModuleError, match=r"^compilation exceeded its limit of 1 s of CPU time$"):
        really_compiled(engine, SLOW[engine.name], Limits(cpu=1, per_mib=0))


def test_a_module_that_needs_memory(engine: Engine) -> None:
    limits = Limits(memory=32 << 20, memory_per_byte=0)
    with pytest.raises(ModuleError, match=r"^compilation exceeded its limit of 32 MiB of memory$"):
        really_compiled(engine, LARGE[engine.name], limits)
    assert really_compiled(engine, LARGE[engine.name])


def test_a_larger_module_has_more_time() -> None:
    limits = Limits().for_size(50 << 20)
    assert (limits.cpu, limits.time, limits.artifact) == (260, 750, 1 << 30)
    small = Limits().for_size(1000)
    assert (small.cpu, small.time, small.artifact) == (60, 150, (32 << 20) + 64_000)
