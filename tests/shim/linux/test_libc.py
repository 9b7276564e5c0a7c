from __future__ import annotations

import ctypes
import errno
import os

import pytest

from shim.linux.libc import LIBC, NUMBERS, fail, system_call


def test_fail_raises_the_class_that_belongs_to_errno() -> None:
    ctypes.set_errno(errno.ENOENT)
    with pytest.raises(FileNotFoundError) as e:
        fail("mount", b"/x\xff")
    assert (e.value.errno, e.value.filename) == (errno.ENOENT, "/x\udcff")
    assert e.value.strerror == "mount: No such file or directory"


def test_fail_prefers_an_errno_that_was_saved() -> None:
    ctypes.set_errno(errno.ENOENT)
    with pytest.raises(PermissionError):
        fail("setns", "fd 3", errno.EPERM)


def test_system_calls_do_not_share_argument_types() -> None:
    one, two = system_call(ctypes.c_int), system_call(ctypes.c_char_p)
    assert one.argtypes != two.argtypes


def test_numbers_are_those_of_this_kernel() -> None:
    # A number that is not the call's would not fail in just this way.
    call = system_call(ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_long)
    expected = {
        "clone": errno.EINVAL,  # a thread with memory of its own
        "statx": errno.EINVAL,  # no such flags
        "clone3": errno.EINVAL,  # size 0 is no version of the structure
        "close_range": errno.EINVAL,  # first > last
        "openat2": errno.EINVAL,
        "faccessat2": errno.EFAULT,  # no path
        "mount_setattr": errno.EINVAL,
        "pivot_root": errno.EFAULT,
        "capget": errno.EFAULT,
        "capset": errno.EFAULT,
        "open_tree": errno.EFAULT,
        "move_mount": errno.EFAULT,
        "set_mempolicy": errno.EINVAL,  # no such mode
        "keyctl": errno.EOPNOTSUPP,  # no such operation
        "ioprio_set": errno.EINVAL,
        "sched_setattr": errno.EINVAL,
        "seccomp": errno.EINVAL,  # no such operation; 0 would be the strict mode
    }
    none_such = (99, 0, 0, 0, 0)
    special = {
        "statx": (0, 0, -1, 0, 0),
        "clone": (0x10000, 0, 0, 0, 0),
        "close_range": (5, 4, 0, 0, 0),
        "set_mempolicy": none_such,
        "keyctl": none_such,
        "seccomp": none_such,
    }
    assert expected.keys() == NUMBERS.keys()
    for name, error in expected.items():
        assert call(NUMBERS[name], *special.get(name, (0,) * 5)) == -1, name
        assert ctypes.get_errno() == error, (name, os.strerror(ctypes.get_errno()))


def test_errno_is_kept_by_ctypes() -> None:
    LIBC.close(-1)
    assert ctypes.get_errno() == errno.EBADF
