"""Compiled modules on disk. A library, for the shim, which writes, and the guest, which only reads.

An artifact is native code that somebody will jump into, so it is loaded only from a directory that
root alone may write to, and only if its trailer says that it was made for this key. One file each,
named by the key:

    artifact     at offset 0, so that an engine can map the file as it is
    trailer      88 bytes: magic, version, kind, length of the artifact, key, and a SHA-256 of
                 the kind and the artifact's SHA-256

Where an engine refused a module, the file holds its reason instead, as a trailer of another kind
says: compiling the module again at each start would end the same way. Compiled seccomp filters are
of a third kind, and their names are made so that who hands one over cannot name a module's code.

An engine maps an artifact by its name, in a guest that is root no longer but still has the
directory for its working directory. So the files are for everybody to read (0444), and the
directory is for everybody to pass through, but not to list (0711): a name is a SHA-256 of the
module, and who can tell it has the module. From outside nobody gets even there, because the
directory above is root's alone (0700).

Hashing a large artifact on every start would cost more than loading it. So an artifact that was
verified once it had settled on disk gets a modification time from long ago. Whatever writes to it
later moves that to the present, and it is hashed again. Until it has settled it is hashed too: what
a file holds after a power failure is anybody's guess, and waiting for the disk would delay the
first start. The access time tells the least recently used; we set it ourselves, since many
filesystems do not.

Who fills the cache loses what is its own. Each artifact belongs to the tenant that had it made, or
to `SHARED` as soon as another one uses it, and where there is no room it goes from whoever has
most. The file's group says whose it is: a number that is nobody's, and gives nobody anything. An
artifact that is being made counts, too: its file has a name that tells how large it may become.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import struct
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from shim.engines.snapshot import contents, digest
from shim.linux.files import is_locked

MAX_TOTAL: Final = 2 << 30  # bytes
MAX_COUNT: Final = 4096  # artifacts; what storing looks through must stay a matter of milliseconds

SHARED: Final = 0x80000000
"""The owner of what several tenants use. The tenants are the groups above it, below 0xC0000000."""
_TENANTS: Final = (1 << 30) - 1

_TRAILER: Final = struct.Struct("<8sIIQ32s32s")
_MAGIC: Final = b"pywasm\r\n"
_VERSION: Final = 2
_VERIFIED_NS: Final = 1_000_000_000 * 1_000_000_000  # whole seconds: every filesystem can hold it
_SETTLED_SECONDS: Final = 120  # the kernel's default is to write back after 30, at the latest 35
_TOUCH_SECONDS: Final = 3600
_PARTIAL: Final = ".partial-"
_DRAFT: Final = ".draft-"
_DIRECTORY_MODE: Final = 0o711
_FILE_MODE: Final = 0o444


_ARTIFACT: Final = 0  # kinds
_REFUSAL: Final = 1
_FILTER: Final = 2
_REASON_BYTES: Final = 2048
_FILTER_BYTES: Final = 4096 * 8  # BPF_MAXINSNS of struct sock_filter


class Artifact(NamedTuple):
    """An artifact in an open file, of which it is the first `length` bytes.

    `name` is the file's in the cache's directory, "" where it is in none.
    """

    fd: int
    length: int
    name: str = ""

    def read(self) -> bytes:
        """Return a copy; engines that only take `bytes` want one."""
        with contents(self.fd, self.length) as data:
            return bytes(data)

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


class Refusal(NamedTuple):
    """That an engine refused a module, and why: one line, to be shown as it is."""

    reason: str


def tenant(name: str) -> int:
    """Return the number of a tenant, one of some 10**9."""
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    return SHARED + 1 + int.from_bytes(digest[:8], "big") % _TENANTS


def key(module_digest: bytes, fingerprint: str) -> bytes:
    """Return the key of a module's artifact for one engine, version and set of CPU features."""
    return hashlib.sha256(module_digest + fingerprint.encode()).digest()


def write_artifact(fd: int, key: bytes, artifact: bytes) -> None:
    """Write an artifact and its trailer to an empty file. Raises OSError."""
    _write(fd, _ARTIFACT, key, artifact)


def write_filter(fd: int, key: bytes, program: bytes) -> None:
    """Write a compiled seccomp filter and its trailer to an empty file. Raises OSError."""
    _write(fd, _FILTER, _filter_key(key), program)


def _filter_key(profile: bytes) -> bytes:
    return key(profile, "seccomp filter")


def _write(fd: int, kind: int, key: bytes, content: bytes) -> None:
    checksum = _checksum(kind, hashlib.sha256(content).digest())
    trailer = _TRAILER.pack(_MAGIC, _VERSION, kind, len(content), key, checksum)
    for part in (content, trailer):
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(fd, rest) :]


def _checksum(kind: int, content: bytes) -> bytes:
    """Seal the kind, too: a reason must never be taken for code."""
    return hashlib.sha256(bytes([kind]) + content).digest()


def read_artifact(fd: int, key: bytes) -> Artifact:
    """Take a descriptor that `write_artifact` wrote to. Raises ValueError where it did not."""
    kind, length, _ = _read_trailer(fd, os.fstat(fd).st_size, key)
    if kind != _ARTIFACT:
        raise ValueError("not an artifact")
    return Artifact(fd, length)


def _read_trailer(fd: int, size: int, key: bytes) -> tuple[int, int, bytes]:
    length = size - _TRAILER.size
    if length < 0:
        raise ValueError("truncated")
    magic, version, kind, said, made_for, checksum = _TRAILER.unpack(
        os.pread(fd, _TRAILER.size, length)
    )
    if magic != _MAGIC or version != _VERSION or kind > _FILTER:
        raise ValueError("not an artifact, or one of another version")
    if said != length:
        raise ValueError(f"{length} bytes long instead of {said}")
    if made_for != key:
        raise ValueError("made for another module or engine")
    return kind, length, checksum


def _read(fd: int, length: int) -> bytes:
    """Return the start of a file, and close it."""
    try:
        return os.pread(fd, length, 0)
    finally:
        os.close(fd)


def open_directory(path: str) -> int:
    """Make a cache's directory, with its parents, or check the one there is; return a descriptor.

    Every directory on the way must be root's (or ours), and nobody else's to write to, and none may
    be a symbolic link; the one above the cache must be closed to everybody else. Raises OSError,
    PermissionError for a directory that is not trusted.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    names = [name for name in os.path.abspath(path).split("/") if name]
    fd = os.open("/", flags)
    try:
        for depth, name in enumerate(names, 1):
            here = "/" + "/".join(names[:depth])
            try:
                os.mkdir(name, 0o700, dir_fd=fd)
            except FileExistsError:
                pass
            except OSError as error:
                raise OSError(error.errno, error.strerror, here) from None
            try:
                below = os.open(name, flags, dir_fd=fd)
            except OSError as error:
                plain = error.errno not in (errno.ELOOP, errno.ENOTDIR)
                what = error.strerror if plain else "not a plain directory"
                raise OSError(error.errno, what, here) from None
            os.close(fd)
            fd = below
            status = os.fstat(fd)
            shared = status.st_mode & 0o022
            if status.st_mode & stat.S_ISVTX and depth < len(names):
                shared = 0  # in a sticky directory nobody can replace what is ours
            if shared or status.st_uid not in (0, os.geteuid()):
                raise PermissionError(errno.EPERM, "others may write to the directory", here)
            if depth == len(names) - 1 and status.st_mode & 0o077:
                raise PermissionError(errno.EPERM, "others may enter the directory", here)
        if stat.S_IMODE(status.st_mode) != _DIRECTORY_MODE:
            os.fchmod(fd, _DIRECTORY_MODE)
        return fd
    except BaseException:
        os.close(fd)
        raise


class ArtifactCache:
    """The artifacts in a directory, given by a descriptor, that several processes share.

    A process needs nothing but the descriptor to load from it: it may have left the filesystem of
    the directory, but it must still be the user who owns the files. `owner` is the tenant for whom
    this is done. `report` is told, in one line, about files that were thrown away.
    """

    def __init__(
        self,
        directory: int,
        *,
        owner: int = 0,
        max_total: int = MAX_TOTAL,
        max_count: int = MAX_COUNT,
        report: Callable[[str], None] = lambda message: None,
        touch: Callable[[bytes, bool], None] | None = None,
    ) -> None:
        """`touch` is for a process that may not change the cache: it has another one do it."""
        self._touch = touch or self.touch
        self.directory = directory
        """Its descriptor."""
        self._owner = owner
        self._max_total = max_total
        self._max_count = max_count
        self._report = report

    def load(self, key: bytes) -> Artifact | Refusal | None:
        """Return what is known for a key; `None` also where a file was not fit to be loaded."""
        found = self._open(key, (_ARTIFACT, _REFUSAL))
        if found is None:
            return None
        fd, kind, length = found
        if kind == _ARTIFACT:
            return Artifact(fd, length, key.hex())
        return Refusal(_read(fd, min(length, _REASON_BYTES)).decode(errors="replace"))

    def load_filter(self, key: bytes) -> bytes | None:
        """Return a compiled filter, or `None` as `load`."""
        found = self._open(_filter_key(key), (_FILTER,))
        return None if found is None else _read(found[0], found[2])

    def _open(self, key: bytes, kinds: Collection[int]) -> tuple[int, int, int] | None:
        """Return an open file of one of these kinds, its kind and length."""
        name = key.hex()
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOATIME
        try:
            fd = os.open(name, flags, dir_fd=self.directory)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EPERM):  # the latter for O_NOATIME
                self._discard(name, "a symbolic link, or somebody else's")
            else:
                self._report(f"artifact {name} not loaded: {error.strerror}")
            return None
        try:
            kind, length = self._check(fd, key)
            if kind not in kinds:
                raise ValueError("of another kind")
        except (ValueError, OSError) as error:
            os.close(fd)
            self._discard(name, str(error))
            return None
        return fd, kind, length

    @contextmanager
    def draft(self, size: int) -> Iterator[int]:
        """Make a file on the cache's disk to write an artifact of at most `size` bytes to.

        An artifact written elsewhere would have to be copied here by `store`, in a process that
        may have no time to wait for a disk. Whoever uses the descriptor closes it; the file has a
        name during the block. Raises OSError where there is no room for so much, or the filesystem
        has no such files.
        """
        self._check_room(size)
        flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
        fd = os.open(".", flags, 0o600, dir_fd=self.directory)
        name = f"{_DRAFT}{size}-{os.urandom(8).hex()}"
        try:
            # For as long as somebody has it open: who finds it unlocked may remove it.
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fchown(fd, -1, self._owner)
            self._link(fd, name)
        except OSError:
            os.close(fd)
            raise
        try:
            yield fd
        finally:
            self._remove(name)

    def _check_room(self, size: int) -> None:
        """Raise OSError if what is being made could fill the cache, or half of it for one owner."""
        everybodys = owners = size
        for name, status in self._files():
            if name.startswith(_DRAFT):
                reserved = int(name.split("-")[1])
                everybodys += reserved
                owners += reserved if status.st_gid == self._owner else 0
        if everybodys > self._max_total or owners > self._max_total // 2:
            raise OSError(errno.ENOSPC, "too much is being compiled")

    def store(self, key: bytes, fd: int) -> Artifact:
        """Keep the artifact that was written to `fd`, a draft of ours or any other file.

        Takes `fd` over. The artifact returned, read-only, is for this run in any case; that it
        could not be stored is only reported. Raises ValueError where `fd` holds none for `key`.
        """
        try:
            length = read_artifact(fd, key).length
            name = self._keep(key, fd, length + _TRAILER.size)
            # Nobody who runs a module needs a descriptor that can write to the cache.
            readonly = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
            return Artifact(readonly, length, name)
        finally:
            os.close(fd)

    def keep_filter(self, key: bytes, fd: int) -> None:
        """Keep a filter that `write_filter` wrote to `fd`, which is taken over.

        What is there already stays, whatever it is. Raises ValueError where `fd` holds no filter.
        """
        try:
            name = _filter_key(key)
            kind, length, _ = _read_trailer(fd, os.fstat(fd).st_size, name)
            if kind != _FILTER or length > _FILTER_BYTES:
                raise ValueError("not a filter")
            if self.load_filter(key) is None:
                self._keep(name, fd, length + _TRAILER.size, replace=False)
        finally:
            os.close(fd)

    def refuse(self, key: bytes, reason: str) -> None:
        """Keep an engine's verdict on a module that it cannot compile.

        Only for one that it would give again: a compilation that ran out of time or memory may end
        well another day. An artifact that is there already stays. That the verdict could not be
        stored is only reported.
        """
        content = reason.encode(errors="replace")[:_REASON_BYTES]
        content = content.decode(errors="ignore").encode()  # a character cut in two
        fd = os.memfd_create("refusal", os.MFD_CLOEXEC)
        try:
            _write(fd, _REFUSAL, key, content)
            self._keep(key, fd, len(content) + _TRAILER.size, replace=False)
        finally:
            os.close(fd)

    def _keep(self, key: bytes, fd: int, size: int, *, replace: bool = True) -> str:
        """Enter a complete file; return its name, or "" where that failed, which is reported."""
        name = key.hex()
        try:
            if size > self._max_total:
                raise OSError(errno.EFBIG, f"larger than the cache's {self._max_total} bytes")
            os.fchown(fd, -1, self._owner_of(name))
            self._make_room(size, fd)
            self._publish(name, fd, replace)
        except OSError as error:
            self._report(f"artifact {name} not stored: {error}")
            return ""
        return name

    def _check(self, fd: int, key: bytes) -> tuple[int, int]:
        """Return the kind and the length of a file's content, or raise ValueError, or OSError."""
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise ValueError("others may write to it")
        kind, length, checksum = _read_trailer(fd, status.st_size, key)
        mtime, now = status.st_mtime_ns, time.time()
        if mtime != _VERIFIED_NS:
            if _checksum(kind, digest(fd, length)) != checksum:
                raise ValueError("corrupt")
            if now - status.st_mtime > _SETTLED_SECONDS:
                mtime = _VERIFIED_NS
        unused = now - status.st_atime > _TOUCH_SECONDS
        if (
            unused
            or mtime != status.st_mtime_ns
            or stat.S_IMODE(status.st_mode) != _FILE_MODE
            or self._with_us(status.st_gid) != status.st_gid
        ):
            self._touch(key, mtime == _VERIFIED_NS)
        return kind, length

    def touch(self, key: bytes, verified: bool) -> None:
        """Note that an artifact was used, and whether it was `verified` after it had settled."""
        name = key.hex()
        try:
            found = os.stat(name, dir_fd=self.directory, follow_symlinks=False)
            times = time.time_ns(), _VERIFIED_NS if verified else found.st_mtime_ns
            os.utime(name, ns=times, dir_fd=self.directory, follow_symlinks=False)
            if stat.S_IMODE(found.st_mode) != _FILE_MODE:
                os.chmod(name, _FILE_MODE, dir_fd=self.directory)
            if (group := self._with_us(found.st_gid)) != found.st_gid:
                os.chown(name, -1, group, dir_fd=self.directory, follow_symlinks=False)
        except OSError:
            pass  # on a read-only mount, say, or gone; the next one will do it

    def _with_us(self, group: int) -> int:
        """Whose a file of this group is when our owner uses it, too."""
        if group in (self._owner, SHARED):
            return group
        return SHARED if group > SHARED else self._owner

    def _owner_of(self, name: str) -> int:
        """Whose a file is to be that takes this name."""
        try:
            found = os.stat(name, dir_fd=self.directory, follow_symlinks=False)
        except FileNotFoundError:
            return self._owner
        return self._with_us(found.st_gid)

    def _discard(self, name: str, reason: str) -> None:
        try:
            os.unlink(name, dir_fd=self.directory)
        except OSError:
            pass  # not ours to remove, or somebody else was faster
        self._report(f"artifact {name} discarded: {reason}")

    def _publish(self, name: str, fd: int, replace: bool) -> None:
        """Give a complete file its name, at once whole."""
        os.fchmod(fd, _FILE_MODE)
        try:
            try:
                self._link(fd, name)
            except FileExistsError:
                if not replace:
                    return
                # The same artifact, of somebody who was faster; or a refusal.
                partial = _PARTIAL + os.urandom(8).hex()
                self._link(fd, partial)
                os.rename(partial, name, src_dir_fd=self.directory, dst_dir_fd=self.directory)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.ENOENT, errno.EPERM):
                raise
            self._copy(fd, name)  # no draft of ours

    def _link(self, fd: int, name: str) -> None:
        os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=self.directory, follow_symlinks=True)

    def _copy(self, source: int, name: str) -> None:
        partial = _PARTIAL + os.urandom(8).hex()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(partial, flags, 0o600, dir_fd=self.directory)
        try:
            offset = 0
            while count := os.sendfile(fd, source, offset, 1 << 30):
                offset += count
            os.fchmod(fd, _FILE_MODE)
            os.fchown(fd, -1, os.fstat(source).st_gid)
            os.rename(partial, name, src_dir_fd=self.directory, dst_dir_fd=self.directory)
        except BaseException:
            os.unlink(partial, dir_fd=self.directory)
            raise
        finally:
            os.close(fd)

    def _make_room(self, size: int, fd: int) -> None:
        """Remove artifacts until there is room for one of `size` bytes, which is in `fd`.

        Whoever has most of what is short loses the least recently used of it, and nobody who has
        less than an equal share. Raises OSError if that does not do.
        """
        new = os.fstat(fd)
        size_of, number_of = Counter({new.st_gid: size}), Counter({new.st_gid: 1})
        artifacts = defaultdict[int, list[tuple[int, int, str]]](list)
        for name, status in self._files():
            if status.st_ino == new.st_ino and status.st_dev == new.st_dev:
                continue  # a draft, that is, by the name it had as such
            size_of[status.st_gid] += status.st_size
            number_of[status.st_gid] += 1
            if not name.startswith("."):
                artifacts[status.st_gid].append((-status.st_atime_ns, status.st_size, name))
        for those in artifacts.values():
            those.sort()
        for has, most in ((size_of, self._max_total), (number_of, self._max_count)):
            while has.total() > most:
                over = [group for group in artifacts if has[group] * len(has) > most]
                group = max(filter(artifacts.get, over), key=has.__getitem__, default=None)
                if group is None:
                    raise OSError(errno.ENOSPC, "the cache is full of what is being compiled")
                _, freed, name = artifacts[group].pop()
                self._remove(name)
                size_of[group] -= freed
                number_of[group] -= 1

    def _files(self) -> Iterator[tuple[str, os.stat_result]]:
        """Look through the files; what nobody will finish any more is removed on the way."""
        with os.scandir(self.directory) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                    if entry.name.startswith(_PARTIAL):
                        # Left behind by a process that was killed, unless it is being written now.
                        abandoned = time.time() - status.st_mtime > _TOUCH_SECONDS
                    else:
                        abandoned = entry.name.startswith(_DRAFT) and self._is_unlocked(entry.name)
                except FileNotFoundError:
                    continue
                if abandoned:
                    self._remove(entry.name)
                elif stat.S_ISREG(status.st_mode):
                    yield entry.name, status

    def _is_unlocked(self, name: str) -> bool:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.directory)
        try:
            return not is_locked(fd)
        finally:
            os.close(fd)

    def _remove(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self.directory)
        except FileNotFoundError:
            pass
