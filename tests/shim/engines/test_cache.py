import errno
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shim.engines.cache import (
    SHARED,
    Artifact,
    ArtifactCache,
    Refusal,
    key,
    open_directory,
    read_artifact,
    tenant,
    write_artifact,
)

KEY = key(b"\1" * 32, "engine 1.0 sse2")
CODE = os.urandom(10_000)
AN_HOUR_AGO = time.time_ns() - 3_601_000_000_000


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = open_directory(str(tmp_path / "state" / "artifacts"))
    yield fd
    os.close(fd)


@pytest.fixture
def reports() -> list[str]:
    return []


@pytest.fixture
def cache(directory: int, reports: list[str]) -> ArtifactCache:
    return ArtifactCache(directory, report=reports.append)


def keep(cache: ArtifactCache, key: bytes = KEY, code: bytes = CODE) -> None:
    with cache.draft(len(code)) as fd:
        write_artifact(fd, key, code)
        cache.store(key, fd).close()


def loaded(cache: ArtifactCache, key: bytes = KEY) -> bytes | None:
    artifact = cache.load(key)
    if artifact is None:
        return None
    assert isinstance(artifact, Artifact)
    try:
        return artifact.read()
    finally:
        artifact.close()


def age(directory: int, name: str = KEY.hex(), ns: int = AN_HOUR_AGO) -> None:
    os.utime(name, ns=(ns, ns), dir_fd=directory)


def damage(directory: int, offset: int = 5000, data: bytes = b"\xcc" * 8) -> None:
    fd = os.open(KEY.hex(), os.O_WRONLY, dir_fd=directory)
    os.pwrite(fd, data, offset)
    os.close(fd)


def test_keys_differ_by_module_and_engine() -> None:
    keys = {key(module * 32, engine) for module in (b"\1", b"\2") for engine in ("a", "b")}
    assert len(keys) == 4
    assert all(len(value) == 32 for value in keys)


def test_nothing_stored(cache: ArtifactCache, reports: list[str]) -> None:
    assert cache.load(KEY) is None
    assert reports == []


@pytest.mark.parametrize("code", [b"", b"x", CODE])
def test_store_and_load(
    cache: ArtifactCache, directory: int, reports: list[str], code: bytes
) -> None:
    with cache.draft(len(code)) as draft:
        write_artifact(draft, KEY, code)
        stored = cache.store(KEY, draft)
    assert stored.read() == code
    assert stored.name == KEY.hex()
    assert fcntl.fcntl(stored.fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    stored.close()
    assert loaded(cache) == code
    assert os.listdir(directory) == [KEY.hex()]
    assert os.stat(KEY.hex(), dir_fd=directory).st_mode & 0o777 == 0o444
    assert loaded(cache, key(b"\2" * 32, "")) is None
    assert reports == []


def test_an_artifact_from_elsewhere_is_copied(cache: ArtifactCache, directory: int) -> None:
    memfd = os.memfd_create("artifact")
    write_artifact(memfd, KEY, CODE)
    stored = cache.store(KEY, memfd)
    assert stored.name == KEY.hex()
    stored.close()
    assert loaded(cache) == CODE
    assert os.listdir(directory) == [KEY.hex()]
    assert os.stat(KEY.hex(), dir_fd=directory).st_mode & 0o777 == 0o444
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(memfd)


def test_the_directory_may_be_out_of_reach_by_name(cache: ArtifactCache, directory: int) -> None:
    keep(cache)
    code = """
import os, sys
from shim.engines.cache import ArtifactCache
os.chroot(sys.argv[3])
os.chdir("/")
artifact = ArtifactCache(int(sys.argv[1])).load(bytes.fromhex(sys.argv[2]))
sys.stdout.buffer.write(artifact.read())
"""
    empty = os.path.join(os.readlink(f"/proc/self/fd/{directory}"), "empty")
    os.mkdir(empty)
    done = subprocess.run(
        [sys.executable, "-c", code, str(directory), KEY.hex(), empty],
        stdout=subprocess.PIPE,
        check=True,
        pass_fds=[directory],
    )
    assert done.stdout == CODE


def test_read_artifact_takes_only_what_was_made_for_the_key() -> None:
    fd = os.memfd_create("artifact")
    try:
        with pytest.raises(ValueError, match=r"^truncated$"):
            read_artifact(fd, KEY)
        write_artifact(fd, KEY, CODE)
        assert read_artifact(fd, KEY) == Artifact(fd, len(CODE))
        with pytest.raises(ValueError, match="made for another"):
            read_artifact(fd, bytes(32))
        os.write(fd, b"\0")
        with pytest.raises(ValueError, match="not an artifact"):
            read_artifact(fd, KEY)
    finally:
        os.close(fd)


UNPRIVILEGED = """
import os, sys
state, name = sys.argv[1:]
fd = os.open(state + "/artifacts", os.O_RDONLY | os.O_DIRECTORY)
os.fchdir(fd)
os.close(fd)
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
with open(name, "rb") as file:
    sys.stdout.buffer.write(file.read()[:10])
for forbidden in (
    lambda: os.listdir("."),
    lambda: os.open(name, os.O_RDWR),
    lambda: os.open("other", os.O_CREAT | os.O_WRONLY),
    lambda: os.unlink(name),
    lambda: os.chdir(state + "/artifacts"),
    lambda: os.listdir(state),
):
    try:
        forbidden()
    except PermissionError:
        continue
    sys.exit("allowed")
"""


def test_by_name_for_who_is_there_and_nobody_else(
    cache: ArtifactCache, directory: int, tmp_path: Path
) -> None:
    keep(cache)
    code = [sys.executable, "-c", UNPRIVILEGED, str(tmp_path / "state"), KEY.hex()]
    assert subprocess.run(code, stdout=subprocess.PIPE, check=True).stdout == CODE[:10]


def test_older_modes_are_put_right(cache: ArtifactCache, directory: int, tmp_path: Path) -> None:
    keep(cache)
    path = tmp_path / "state" / "artifacts"
    path.chmod(0o700)
    (path / KEY.hex()).chmod(0o600)
    os.close(open_directory(str(path)))
    assert path.stat().st_mode & 0o777 == 0o711
    assert loaded(cache) == CODE
    assert (path / KEY.hex()).stat().st_mode & 0o777 == 0o444


def test_refusal(cache: ArtifactCache, directory: int, reports: list[str]) -> None:
    cache.refuse(KEY, "invalid wasm module: ö")
    assert cache.load(KEY) == Refusal("invalid wasm module: ö")
    age(directory)
    assert cache.load(KEY) == Refusal("invalid wasm module: ö")
    assert cache.load(key(b"\2" * 32, "")) is None
    assert reports == []
    damage(directory, 0, b"v")
    assert cache.load(KEY) is None
    assert os.listdir(directory) == []


@pytest.mark.parametrize("reason", ["", "x" * 5000, "x" + "ö" * 5000])
def test_a_reason_of_any_length(cache: ArtifactCache, directory: int, reason: str) -> None:
    cache.refuse(KEY, reason)
    refusal = cache.load(KEY)
    assert isinstance(refusal, Refusal)
    assert reason.startswith(refusal.reason)
    assert len(refusal.reason.encode()) >= min(len(reason), 2047)
    assert os.stat(KEY.hex(), dir_fd=directory).st_size <= 2048 + 88


def test_a_refusal_is_no_artifact(cache: ArtifactCache, directory: int) -> None:
    cache.refuse(KEY, "no")
    fd = os.open(KEY.hex(), os.O_RDONLY, dir_fd=directory)
    with pytest.raises(ValueError, match="not an artifact"):
        read_artifact(fd, KEY)
    os.close(fd)


def test_a_damaged_refusal_does_not_become_an_artifact(
    cache: ArtifactCache, directory: int, reports: list[str]
) -> None:
    """Found by fuzzing: the kind, byte 12 of the trailer, was under no checksum."""
    cache.refuse(KEY, "no")
    damage(directory, len("no") + 12, b"\0")
    assert cache.load(KEY) is None
    assert len(reports) == 1


@pytest.mark.parametrize("on_disk", [True, False])
def test_an_artifact_outdoes_a_refusal(cache: ArtifactCache, directory: int, on_disk: bool) -> None:
    cache.refuse(KEY, "no")
    if on_disk:
        keep(cache)
    else:
        fd = os.memfd_create("artifact")
        write_artifact(fd, KEY, CODE)
        cache.store(KEY, fd).close()
    assert loaded(cache) == CODE
    cache.refuse(KEY, "no")
    assert loaded(cache) == CODE
    assert os.listdir(directory) == [KEY.hex()]


def test_store_refuses_what_is_no_artifact(cache: ArtifactCache, directory: int) -> None:
    with cache.draft(len(CODE)) as draft:
        os.write(draft, CODE)
        with pytest.raises(ValueError, match="not an artifact"):
            cache.store(KEY, draft)
    assert os.listdir(directory) == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(draft)


def test_corrupt_while_young(cache: ArtifactCache, directory: int, reports: list[str]) -> None:
    keep(cache)
    damage(directory)
    assert cache.load(KEY) is None
    assert os.listdir(directory) == []
    assert reports == [f"artifact {KEY.hex()} discarded: corrupt"]


def test_corrupt_after_it_was_verified(cache: ArtifactCache, directory: int) -> None:
    keep(cache)
    age(directory)
    assert loaded(cache) == CODE  # verifies, for good
    damage(directory)
    assert cache.load(KEY) is None
    assert os.listdir(directory) == []


def test_a_verified_artifact_is_not_hashed_again(cache: ArtifactCache, directory: int) -> None:
    keep(cache)
    age(directory)
    assert loaded(cache) == CODE
    verified = os.stat(KEY.hex(), dir_fd=directory)
    assert verified.st_mtime_ns < AN_HOUR_AGO
    # Damage that leaves no trace is what shows that nobody looked.
    damage(directory)
    os.utime(KEY.hex(), ns=(verified.st_atime_ns, verified.st_mtime_ns), dir_fd=directory)
    assert loaded(cache) not in (None, CODE)


def test_intact_but_touched_is_verified_anew(cache: ArtifactCache, directory: int) -> None:
    keep(cache)
    age(directory)
    assert loaded(cache) == CODE
    verified = os.stat(KEY.hex(), dir_fd=directory).st_mtime_ns
    age(directory)
    assert loaded(cache) == CODE
    assert os.stat(KEY.hex(), dir_fd=directory).st_mtime_ns == verified


@pytest.mark.parametrize("verified", [False, True])
@pytest.mark.parametrize("size", [0, 87, 88, 5000, len(CODE) + 87, len(CODE) + 89])
def test_wrong_length(cache: ArtifactCache, directory: int, size: int, verified: bool) -> None:
    keep(cache)
    if verified:
        age(directory)
        assert loaded(cache) == CODE
    stamp = os.stat(KEY.hex(), dir_fd=directory)
    path = f"/proc/self/fd/{directory}/{KEY.hex()}"
    os.truncate(path, size)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert cache.load(KEY) is None
    assert os.listdir(directory) == []


def test_the_artifact_of_another_module(cache: ArtifactCache, directory: int) -> None:
    other = key(b"\2" * 32, "engine 1.0 sse2")
    keep(cache, other)
    os.rename(other.hex(), KEY.hex(), src_dir_fd=directory, dst_dir_fd=directory)
    assert cache.load(KEY) is None
    assert os.listdir(directory) == []


@pytest.mark.parametrize(("uid", "mode"), [(65534, 0o600), (0, 0o620), (0, 0o602)])
def test_others_could_have_written_it(
    cache: ArtifactCache, directory: int, uid: int, mode: int
) -> None:
    keep(cache)
    os.chown(f"/proc/self/fd/{directory}/{KEY.hex()}", uid, 0)
    os.chmod(f"/proc/self/fd/{directory}/{KEY.hex()}", mode)
    assert cache.load(KEY) is None
    assert os.listdir(directory) == []


def test_a_link_is_not_followed(cache: ArtifactCache, directory: int, tmp_path: Path) -> None:
    keep(cache)
    os.rename(KEY.hex(), tmp_path / "elsewhere", src_dir_fd=directory)
    os.symlink(tmp_path / "elsewhere", KEY.hex(), dir_fd=directory)
    assert cache.load(KEY) is None
    assert os.listdir(directory) == []
    assert (tmp_path / "elsewhere").exists()


def test_a_fifo_does_not_block(cache: ArtifactCache, directory: int) -> None:
    os.mkfifo(KEY.hex(), 0o600, dir_fd=directory)
    assert cache.load(KEY) is None
    assert os.listdir(directory) == []


def test_two_writers_of_one_key(cache: ArtifactCache, directory: int) -> None:
    with cache.draft(len(CODE)) as one, cache.draft(len(CODE)) as other:
        for draft in (one, other):
            write_artifact(draft, KEY, CODE)
        artifacts = [cache.store(KEY, draft) for draft in (one, other)]
    assert [artifact.read() for artifact in artifacts] == [CODE, CODE]
    for artifact in artifacts:
        artifact.close()
    assert os.listdir(directory) == [KEY.hex()]


WRITER = """
import os, sys
from contextlib import nullcontext
from shim.engines.cache import ArtifactCache, open_directory, write_artifact
cache = ArtifactCache(open_directory(sys.argv[1]), max_count=3)
for round in range(100):
    key = bytes([round % 5]) * 32
    artifact = cache.load(key)
    if artifact is None:
        with cache.draft(100_000) if round % 2 else nullcontext(os.memfd_create("artifact")) as fd:
            write_artifact(fd, key, key * 1000)
            artifact = cache.store(key, fd)
    assert artifact.read() == key * 1000
    artifact.close()
"""


def test_several_processes(cache: ArtifactCache, directory: int) -> None:
    path = os.readlink(f"/proc/self/fd/{directory}")
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path]) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    names = os.listdir(directory)
    assert 0 < len(names) <= 5
    assert all(len(name) == 64 for name in names)


def test_least_recently_used_goes_first(directory: int, reports: list[str]) -> None:
    cache = ArtifactCache(directory, max_total=35_000, report=reports.append)
    keys = [key(bytes([number]) * 32, "") for number in range(4)]
    for number, each in enumerate(keys[:3]):
        keep(cache, each)
        age(directory, each.hex(), AN_HOUR_AGO + number * 10**9)
    assert loaded(cache, keys[0]) == CODE  # now the most recent
    keep(cache, keys[3])
    assert set(os.listdir(directory)) == {keys[0].hex(), keys[2].hex(), keys[3].hex()}
    assert reports == []


def test_use_is_noted_at_most_once_an_hour(cache: ArtifactCache, directory: int) -> None:
    keep(cache)
    age(directory)
    assert loaded(cache) == CODE
    verified = os.stat(KEY.hex(), dir_fd=directory).st_mtime_ns
    noted = []
    for ago in (3_000, 4_000):
        os.utime(KEY.hex(), ns=(time.time_ns() - ago * 10**9, verified), dir_fd=directory)
        before = os.stat(KEY.hex(), dir_fd=directory).st_atime_ns
        artifact = cache.load(KEY)
        assert isinstance(artifact, Artifact)
        noted.append(os.stat(KEY.hex(), dir_fd=directory).st_atime_ns != before)
        artifact.close()
    assert noted == [False, True]


def test_number_of_artifacts_is_bounded(directory: int) -> None:
    cache = ArtifactCache(directory, max_count=5)
    for number in range(20):
        keep(cache, key(bytes([number]) * 32, ""))
    assert len(os.listdir(directory)) == 5


def test_larger_than_the_cache(directory: int, reports: list[str]) -> None:
    small = ArtifactCache(directory, max_total=20_000, report=reports.append)
    keep(small)
    other = key(b"\2" * 32, "")
    memfd = os.memfd_create("artifact")
    write_artifact(memfd, other, CODE * 3)
    artifact = small.store(other, memfd)
    assert artifact.read() == CODE * 3
    assert artifact.name == ""
    artifact.close()
    assert os.listdir(directory) == [KEY.hex()]
    assert "larger than" in reports[0]


A, B, C = map(tenant, ("n/a", "n/b", "n/c"))


def keys(start: int, number: int) -> list[bytes]:
    return [key(index.to_bytes(32, "big"), "") for index in range(start, start + number)]


def stored(directory: int) -> set[str]:
    return {name for name in os.listdir(directory) if not name.startswith(".")}


def test_tenants_have_numbers_that_nobody_has() -> None:
    assert len({A, B, C, SHARED}) == 4
    assert all(1 << 31 < number < 0xC0000000 for number in (A, B, C))
    assert tenant("n/a") == A


@pytest.mark.parametrize("short", ["bytes", "files", "refusals"])
def test_a_flood_costs_nobody_who_has_less_than_a_share(directory: int, short: str) -> None:
    """Found by attack: one tenant had all others compile anew."""
    limits: dict[str, Any] = {"max_total": 100_000} if short == "bytes" else {"max_count": 9}
    a, b, c = (ArtifactCache(directory, owner=owner, **limits) for owner in (A, B, C))
    theirs = {}
    for cache, own in ((a, keys(0, 3)), (b, keys(10, 3))):
        for number, each in enumerate(own):
            keep(cache, each)
            age(directory, each.hex(), AN_HOUR_AGO + number * 10**9)
            theirs[each.hex()] = os.stat(each.hex(), dir_fd=directory).st_gid
    assert set(theirs.values()) == {A, B}
    flood = keys(100, 50)
    for each in flood:
        if short == "refusals":
            c.refuse(each, "no")
        else:
            keep(c, each)
    left = stored(directory)
    assert theirs.keys() <= left
    assert left - theirs.keys() == {each.hex() for each in flood[-len(left - theirs.keys()) :]}
    assert len(left) == 9


def test_who_has_most_loses_first(directory: int) -> None:
    a, b = (ArtifactCache(directory, owner=owner, max_count=6) for owner in (A, B))
    for number, each in enumerate(keys(0, 6)):
        keep(a, each)
        age(directory, each.hex(), AN_HOUR_AGO + number * 10**9)
    for each in keys(10, 6):  # the share of b is half of it, from then on it loses its own
        keep(b, each)
        time.sleep(0.001)
    assert stored(directory) == {each.hex() for each in keys(3, 3) + keys(13, 3)}


def test_what_two_use_is_shared_and_a_tenant_of_its_own(directory: int) -> None:
    a, b = (ArtifactCache(directory, owner=owner, max_count=6) for owner in (A, B))
    keep(a)
    assert os.stat(KEY.hex(), dir_fd=directory).st_gid == A
    assert loaded(a) == CODE
    assert os.stat(KEY.hex(), dir_fd=directory).st_gid == A
    assert loaded(b) == CODE
    assert os.stat(KEY.hex(), dir_fd=directory).st_gid == SHARED
    age(directory)
    for each in keys(0, 20):
        keep(a, each)
    assert KEY.hex() in stored(directory)
    assert len(stored(directory)) == 6
    keep(b)  # and stays shared whoever makes it again
    assert os.stat(KEY.hex(), dir_fd=directory).st_gid == SHARED


def test_one_who_may_only_read_has_another_say_that_it_is_shared(directory: int) -> None:
    told: list[tuple[bytes, bool]] = []
    keep(ArtifactCache(directory, owner=A))
    for owner, expected in ((A, []), (B, [(KEY, False)])):
        reader = ArtifactCache(directory, owner=owner, touch=lambda *said: told.append(said))
        assert loaded(reader) == CODE
        assert told == expected


def test_an_artifact_of_nobodys_is_its_first_users(cache: ArtifactCache, directory: int) -> None:
    keep(cache)  # as before there were owners
    assert loaded(ArtifactCache(directory, owner=A)) == CODE
    assert os.stat(KEY.hex(), dir_fd=directory).st_gid == A


def test_drafts_count(directory: int, reports: list[str]) -> None:
    a, b = (
        ArtifactCache(directory, owner=owner, max_total=40_000, report=reports.append)
        for owner in (A, B)
    )
    keep(b)
    with a.draft(20_000) as draft:
        os.close(os.dup(draft))
        with pytest.raises(OSError, match="too much is being compiled"), a.draft(1):
            pass  # half of it is the most for one
        with pytest.raises(OSError, match="too much is being compiled"), b.draft(20_001):
            pass
        with b.draft(20_000) as other:
            os.close(other)
        os.write(draft, bytes(20_000))
        for each in keys(0, 3):  # for the third of which there is no room beside the draft
            keep(b, each)
        assert reports == []
        assert len(stored(directory)) == 1
        os.close(draft)
    assert os.listdir(directory) == [keys(0, 3)[-1].hex()]


def test_a_draft_lives_as_long_as_somebody_has_it_open(directory: int) -> None:
    cache = ArtifactCache(directory)
    with cache.draft(100) as draft:
        (name,) = os.listdir(directory)
        keep(cache)
        assert name in os.listdir(directory)
        os.close(draft)  # as where its shim was killed
        keep(cache)
        assert os.listdir(directory) == [KEY.hex()]


def test_leftovers_are_removed(cache: ArtifactCache, directory: int) -> None:
    for name in (".partial-old", ".partial-new"):
        os.close(os.open(name, os.O_CREAT, 0o600, dir_fd=directory))
    age(directory, ".partial-old")
    keep(cache)
    assert set(os.listdir(directory)) == {".partial-new", KEY.hex()}


@pytest.fixture
def full(tmp_path: Path) -> Iterator[int]:
    """Return a directory on a disk of 32 KiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k,mode=700", "x", tmp_path], check=True)
    fd = open_directory(str(tmp_path))
    yield fd
    os.close(fd)
    subprocess.run(["umount", tmp_path], check=True)


def test_disk_full(full: int, reports: list[str]) -> None:
    cache = ArtifactCache(full, report=reports.append)
    with cache.draft(len(CODE)) as draft:
        with pytest.raises(OSError, match="No space left"):
            write_artifact(draft, KEY, CODE * 10)
        os.close(draft)
    memfd = os.memfd_create("artifact")
    write_artifact(memfd, KEY, CODE * 10)
    artifact = cache.store(KEY, memfd)
    assert artifact.read() == CODE * 10
    artifact.close()
    assert os.listdir(full) == []
    assert reports == [
        f"artifact {KEY.hex()} not stored: [Errno {errno.ENOSPC}] No space left on device"
    ]


def test_directory_is_private(tmp_path: Path) -> None:
    os.close(open_directory(str(tmp_path / "a" / "b")))
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o711
    os.close(open_directory(str(tmp_path / "a" / "b")))


@pytest.mark.parametrize("where", ["a", "a/b"])
def test_directory_of_others(tmp_path: Path, where: str) -> None:
    path = str(tmp_path / "a" / "b")
    os.close(open_directory(path))
    changes: list[tuple[Callable[..., None], tuple[int, ...], tuple[int, ...]]] = [
        (os.chmod, (0o770,), (0o700,)),
        (os.chown, (1, 1), (0, 0)),
    ]
    for change, bad, good in changes:
        change(tmp_path / where, *bad)
        with pytest.raises(PermissionError) as caught:
            open_directory(path)
        assert caught.value.filename == str(tmp_path / where)
        change(tmp_path / where, *good)
    os.close(open_directory(path))


def test_the_directory_above_is_closed(tmp_path: Path) -> None:
    path = str(tmp_path / "a" / "b")
    os.close(open_directory(path))
    (tmp_path / "a").chmod(0o711)
    with pytest.raises(PermissionError, match="others may enter") as caught:
        open_directory(path)
    assert caught.value.filename == str(tmp_path / "a")


@pytest.mark.parametrize("where", ["a", "a/b"])
def test_directory_behind_a_link(tmp_path: Path, where: str) -> None:
    path = str(tmp_path / "a" / "b")
    os.close(open_directory(path))
    os.rename(tmp_path / where, tmp_path / "moved")
    os.symlink(tmp_path / "moved", tmp_path / where)
    with pytest.raises(OSError, match="not a plain directory") as caught:
        open_directory(path)
    assert caught.value.filename == str(tmp_path / where)
