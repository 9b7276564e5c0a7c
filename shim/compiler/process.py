"""Process 5: one module's bytes in, its native artifact out.

A compiler is a large program that reads hostile input, so it runs where a bug in it is of little
use: without files, network, user or privilege, with few system calls, with a bounded share of the
machine, and as the first process of a PID namespace, so that whatever it starts ends with it.
`start` and `Compilation` are its foreman's side of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import select
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NoReturn, cast

from shim.compiler.cgroup import CompilerCgroup
from shim.compiler.filter import confine
from shim.engines import flaws
from shim.engines.base import Compiler, Engine, ModuleError, TryAgainError, check_header
from shim.engines.cache import read_artifact, write_artifact
from shim.engines.interface import interface_of
from shim.engines.limits import limit_memory
from shim.engines.snapshot import contents
from shim.engines.text import assembled
from shim.linux import clone, credentials, files, mounts
from shim.linux.messages import one_line
from shim.linux.title import set_title

_NAMESPACES: Final = (
    clone.CLONE_NEWNS
    | clone.CLONE_NEWPID
    | clone.CLONE_NEWNET
    | clone.CLONE_NEWIPC
    | clone.CLONE_NEWUTS
    | clone.CLONE_NEWCGROUP
)
# Whom nobody can be: Kubernetes' and containerd's ids end below 2**31. With the pid added (below
# 2**22) no two compilers are the same user, and so none may signal or look into another, and a
# user's limits are its own.
_FIRST_ID: Final = 0xC0000000
_DESCRIPTORS: Final = 64
_REPORT_BYTES: Final = 4096
_REASON_CHARACTERS: Final = 500

# Exit statuses; the reason is on stderr.
_REFUSED: Final = 3
_NO_MEMORY: Final = 4
_NO_SPACE: Final = 5
_NOT_CONFINED: Final = 6
_UNFIT: Final = 7

_OUT_OF_MEMORY: Final = re.compile("memory allocation of|out of memory|annot allocate memory")
_NO_REASON: Final = ("note:", "stack backtrace:")  # how a Rust panic ends


class Refused(ModuleError):
    """The engine's verdict on the module, which it would give again."""


class UnfitError(ModuleError):
    """The module cannot be run as it was asked to, and was not compiled.

    Another of its functions may be; and another version of ours may have what it imports.
    """


@dataclass(frozen=True)
class Limits:
    """What one compilation may use. Times are in seconds, sizes in bytes."""

    cpu: int = 60
    time: int = 150
    per_mib: int = 4  # seconds of CPU more for each of the module; half of it is usual
    memory: int = 4 << 30  # address space; threads reserve some of it and never use it
    memory_per_byte: int = 128  # of the module; cranelift was seen to take 100
    artifact: int = 32 << 20
    artifact_per_byte: int = 64  # of the module; 10 is usual, 55 was made of empty functions
    artifact_at_most: int = 1 << 30
    tasks: int = 512  # of them one for each processor

    def for_size(self, size: int) -> Limits:
        """Return the limits for a module of `size` bytes: more of all for a larger one."""
        more = self.per_mib * size >> 20
        artifact = min(self.artifact + self.artifact_per_byte * size, self.artifact_at_most)
        return replace(self, cpu=self.cpu + more, time=self.time + 3 * more, artifact=artifact)

    def memory_for(self, size: int) -> int:
        """Return what a module of `size` bytes may take, beyond what its foreman has mapped."""
        return self.memory + self.memory_per_byte * size


@dataclass
class Compilation:
    """A compiler at work. Its end makes `pidfd` readable; then `result` is due, once.

    Whoever waits for that is to call `expire` after `time` seconds: CPU time, which has a limit of
    its own, does not pass in a deadlock, nor while somebody has stopped the process.
    """

    pid: int
    pidfd: int
    time: int
    _key: bytes
    _outputs: Sequence[int]
    _report: int
    _limits: Limits
    _memory: int
    _cgroup: CompilerCgroup | None
    _expired: bool = False

    def expire(self) -> None:
        """End it because its time is up."""
        self._expired = True
        self.kill()

    def kill(self) -> None:
        """End it early. `result` is due all the same."""
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def result(self) -> int:
        """Reap the compiler; return the one output that holds the artifact, for `store`.

        Every other descriptor of the compilation is closed. If there is no artifact, raises, in one
        line, Refused, UnfitError or, where a limit was the reason, ModuleError; TryAgainError if it
        is because of what others do, OSError if it is because of the machine.
        Blocks if the compiler has not ended.
        """
        unused = [*self._outputs, self._report, self.pidfd]
        try:
            _, status, usage = os.wait4(self.pid, 0)
            clone.waited(self.pid)
            report = os.pread(self._report, _REPORT_BYTES, 0).decode(errors="replace")
            exit_code = os.waitstatus_to_exitcode(status)
            if exit_code != 0:
                self._explain(exit_code, usage.ru_utime + usage.ru_stime, report)
            for fd in self._outputs:
                try:
                    read_artifact(fd, self._key)
                except ValueError:
                    continue
                unused.remove(fd)
                return fd
            raise ModuleError("the compiler left no artifact")
        finally:
            for fd in unused:
                os.close(fd)
            if self._cgroup is not None:
                self._cgroup.delete()

    def _explain(self, exit_code: int, cpu: float, report: str) -> None:
        """Raise the error that tells why the compiler did not end well."""
        reason = _one_line(report)
        if exit_code == _REFUSED:
            raise Refused(reason)
        if exit_code == _UNFIT:
            raise UnfitError(reason)
        if exit_code == _NO_SPACE:
            raise OSError(errno.ENOSPC, reason)
        if exit_code == _NOT_CONFINED:
            raise OSError(errno.EPERM, f"cannot confine a compiler: {reason}")
        if exit_code == -signal.SIGKILL and cpu >= self._limits.cpu - 0.5:
            raise ModuleError(f"compilation exceeded its limit of {self._limits.cpu} s of CPU time")
        if self._expired:
            # How much it does in that time others decide, who want the processors, too.
            raise TryAgainError(f"compilation exceeded its limit of {self.time} s")
        if exit_code == _NO_MEMORY or _OUT_OF_MEMORY.search(report):
            raise ModuleError(_too_large(self._memory))
        killed = exit_code == -signal.SIGKILL
        if killed and self._cgroup is not None and self._cgroup.ran_out_of_memory():
            raise TryAgainError(_too_large(self._cgroup.memory))
        how = f"signal {-exit_code}" if exit_code < 0 else f"status {exit_code}"
        kind = TryAgainError if killed else ModuleError
        raise kind(f"the compiler failed ({how})" + (f": {reason}" if reason else ""))


def _too_large(memory: int) -> str:
    return f"compilation exceeded its limit of {memory >> 20} MiB of memory"


def start(
    engine: Compiler,
    key: bytes,
    wasm: int,
    outputs: Sequence[int],
    *,
    owner: int = 0,
    function: str | None = None,
    memory_pages: int | None = None,
    part: tuple[int, int] | None = None,
    checked: bool = True,
    limits: Limits | None = None,
) -> Compilation:
    """Clone a compiler for the module in the file `wasm`, which does not change, such as a memfd.

    The artifact goes to the first of `outputs`, empty files, whose disk can take it: a draft of the
    cache, then a memfd. They are taken over; `wasm` is not. `owner` is the tenant, who shares
    the processors with others (`CompilerCgroup`). `function` is what is to be run of the module,
    which is not compiled if it could not be. `memory_pages` is a bound for the
    module's memory (`limit_memory`). `part`, an offset and a length in bytes, is a core module of
    a component. `checked` refuses what the engine is known to compile wrongly
    (`flaws.check`). The conditions and errors of `clone` apply.
    """
    size = os.fstat(wasm).st_size
    limits = (limits or Limits()).for_size(size)
    memory = limits.memory_for(size)
    cgroup: CompilerCgroup | None = None

    def entry() -> None:
        os.dup2(report, 2)  # what is said from here on, and by whom, is the reason
        try:
            if cgroup is not None:
                cgroup.enter()
            _confine(wasm, outputs, limits, size, foreman)
        except OSError as error:
            _give_up(_NOT_CONFINED, str(error))
        artifact = _compile(
            engine, wasm, size, limits, function, memory_pages, part, checked=checked
        )
        _write(key, artifact, outputs)

    with contextlib.ExitStack() as failed, contextlib.ExitStack() as done:
        for fd in outputs:
            failed.callback(os.close, fd)
        report = os.memfd_create("report", os.MFD_CLOEXEC)
        failed.callback(os.close, report)
        foreman = os.pidfd_open(os.getpid())
        done.callback(os.close, foreman)
        try:
            cgroup = CompilerCgroup(owner, memory, limits.tasks)
            failed.callback(cgroup.delete)
        except OSError:
            pass  # the process has limits, too
        directory = cgroup.open_dir() if cgroup is not None else None
        if directory is not None:
            done.callback(os.close, directory)
        child = clone.clone(entry, _NAMESPACES, cgroup=directory)
        failed.pop_all()
    return Compilation(*child, limits.time, key, outputs, report, limits, memory, cgroup)


def _confine(wasm: int, outputs: Sequence[int], limits: Limits, size: int, foreman: int) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1):
        os.dup2(null, number)
    kept = {wasm, *outputs}
    files.keep_only({*kept, foreman})

    set_title("pywasm-compiler")
    # When memory is short, whoever can be started again goes first.
    with open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")
    with open("/proc/self/statm") as statm:
        mapped = int(statm.read().split()[0]) * resource.getpagesize()
    own_id = _FIRST_ID + int(os.readlink("/proc/self"))
    # An empty root that nobody can write to, and nothing of the host's below it.
    mounts.mount(None, "/", None, mounts.MS_REC | mounts.MS_PRIVATE)
    flags = mounts.MS_RDONLY | mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC
    mounts.mount("pywasm-compiler", "/proc", "tmpfs", flags, "size=4k,nr_inodes=1,mode=555")
    root = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    mounts.enter_root(root)
    os.close(root)

    for limit, value in (
        (resource.RLIMIT_CPU, limits.cpu),
        (resource.RLIMIT_AS, mapped + limits.memory_for(size)),
        (resource.RLIMIT_FSIZE, limits.artifact + 4096),
        (resource.RLIMIT_NPROC, limits.tasks),
        (resource.RLIMIT_NOFILE, max(_DESCRIPTORS, *kept) + 1),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    # Without an exec that could give some back, a change of user takes every capability for good.
    credentials.set_user(own_id, own_id)
    credentials.no_new_privs()
    credentials.set_pdeathsig(signal.SIGKILL)
    watch = select.poll()
    watch.register(foreman, select.POLLIN)
    if watch.poll(0):
        raise SystemExit  # it was too late for that
    os.close(foreman)
    confine()


def _compile(
    engine: Compiler,
    wasm: int,
    size: int,
    limits: Limits,
    function: str | None,
    memory_pages: int | None,
    part: tuple[int, int] | None,
    *,
    checked: bool,
) -> bytes:
    try:
        with contents(wasm, size) as module:
            data = bytes(module)
        if part is not None:
            data = _part(data, *part)
        doubtful = checked and flaws.known(engine)
        if doubtful or function is not None or memory_pages is not None:
            data = assembled(data)
        if memory_pages is not None:
            data = limit_memory(data, memory_pages)
        if function is not None:
            # Nothing else is asked for a function.
            _check_fit(cast("Engine", engine), data, function)
        if doubtful:
            flaws.check(engine, data)
        artifact = engine.compile(data)
    except ModuleError as error:
        _give_up(_REFUSED, str(error))
    except MemoryError:
        _give_up(_NO_MEMORY, "out of memory")
    if len(artifact) > limits.artifact:
        _give_up(_REFUSED, f"compilation exceeded its limit of {limits.artifact} bytes of artifact")
    return artifact


def _part(component: bytes, offset: int, length: int) -> bytes:
    """Return a core module of a component. Its place comes from another compiler, maybe broken."""
    module = assembled(component, component=True)[offset : offset + length]
    check_header(module)
    return module


def _check_fit(engine: Engine, wasm: bytes, function: str) -> None:
    """Give up on a valid module that could not be run: to find that out needs no code.

    What is not valid is left to the engine, which has its own words for that; and so is what only
    the engine understands.
    """
    try:
        interface = interface_of(wasm)
    except ModuleError:
        return
    try:
        interface.check(engine.host, function)
    except ModuleError as error:
        if flaws.invalid(wasm) is None:
            _give_up(_UNFIT, str(error))


def _write(key: bytes, artifact: bytes, outputs: Sequence[int]) -> None:
    problem = "nowhere to put the artifact"
    for fd in outputs:
        try:
            write_artifact(fd, key, artifact)
        except OSError as error:
            problem = f"artifact: {error.strerror}"
            os.ftruncate(fd, 0)
        else:
            return
    _give_up(_NO_SPACE, problem)


def _give_up(status: int, reason: str) -> NoReturn:
    # What a library may have said before is not part of the reason.
    os.ftruncate(2, 0)
    os.pwrite(2, one_line(reason).encode(), 0)
    raise SystemExit(status)


def _one_line(report: str) -> str:
    """Return the last line of a report, where tracebacks and panics have their message."""
    lines = [line for line in report.splitlines() if line and not line.startswith(_NO_REASON)]
    line = "".join(c if c.isprintable() else " " for c in lines[-1]) if lines else ""
    return line.strip()[:_REASON_CHARACTERS]
