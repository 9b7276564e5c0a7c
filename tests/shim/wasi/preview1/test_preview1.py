from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shim.wasi import descriptors, filetypes, preview1
from shim.wasi.preview1.abi import Bound
from shim.wasi.preview1.program import Program

from .conftest import Guest

# name: types of the parameters, from the specification
WITX = {
    "args_get": "ii",
    "args_sizes_get": "ii",
    "clock_res_get": "ii",
    "clock_time_get": "iIi",
    "environ_get": "ii",
    "environ_sizes_get": "ii",
    "fd_advise": "iIIi",
    "fd_allocate": "iII",
    "fd_close": "i",
    "fd_datasync": "i",
    "fd_fdstat_get": "ii",
    "fd_fdstat_set_flags": "ii",
    "fd_fdstat_set_rights": "iII",
    "fd_filestat_get": "ii",
    "fd_filestat_set_size": "iI",
    "fd_filestat_set_times": "iIIi",
    "fd_pread": "iiiIi",
    "fd_prestat_dir_name": "iii",
    "fd_prestat_get": "ii",
    "fd_pwrite": "iiiIi",
    "fd_read": "iiii",
    "fd_readdir": "iiiIi",
    "fd_renumber": "ii",
    "fd_seek": "iIii",
    "fd_sync": "i",
    "fd_tell": "ii",
    "fd_write": "iiii",
    "path_create_directory": "iii",
    "path_filestat_get": "iiiii",
    "path_filestat_set_times": "iiiiIIi",
    "path_link": "iiiiiii",
    "path_open": "iiiiiIIii",
    "path_readlink": "iiiiii",
    "path_remove_directory": "iii",
    "path_rename": "iiiiii",
    "path_symlink": "iiiii",
    "path_unlink_file": "iii",
    "poll_oneoff": "iiii",
    "proc_exit": "i",
    "proc_raise": "i",
    "random_get": "ii",
    "sched_yield": "",
    "sock_accept": "iii",
    "sock_recv": "iiiiii",
    "sock_send": "iiiii",
    "sock_shutdown": "ii",
}

# The same, from WasmEdge's host functions. A `_v2` that is not here has no other parameters.
WASMEDGE = {
    "sock_bind": "iii",
    "sock_connect": "iii",
    "sock_getaddrinfo": "iiiiiiii",
    "sock_getlocaladdr": "iiii",
    "sock_getlocaladdr_v2": "iii",
    "sock_getpeeraddr": "iiii",
    "sock_getpeeraddr_v2": "iii",
    "sock_getsockopt": "iiiii",
    "sock_listen": "ii",
    "sock_open": "iii",
    "sock_recv_from": "iiiiiii",
    "sock_recv_from_v2": "iiiiiiii",
    "sock_send_to": "iiiiiii",
    "sock_setsockopt": "iiiii",
    "sock_accept_v2": "iii",
    "sock_bind_v2": "iii",
    "sock_connect_v2": "iii",
    "sock_listen_v2": "ii",
    "sock_open_v2": "iii",
    "sock_recv_v2": "iiiiii",
    "sock_send_v2": "iiiii",
    "sock_send_to_v2": "iiiiiii",
}
VARIANTS = {
    "sock_accept": "ii",
    "sock_recv_from": "iiiiiiii",
    "sock_getlocaladdr": "iii",
    "sock_getpeeraddr": "iii",
}


def signatures(bound: dict[str, Bound]) -> dict[str, str]:
    return {
        name: "".join("I" if kind == "i64" else "i" for kind in function.params)
        for name, function in bound.items()
    }


def test_every_function_exists_with_its_signature() -> None:
    bound = preview1.bind(Program())
    assert signatures(bound) == WITX | WASMEDGE
    assert len(WITX) == 46
    results = {name: function.results for name, function in bound.items()}
    assert results.pop("proc_exit") == ()
    assert set(results.values()) == {("i32",)}

    variants = preview1.bind_variants(Program())
    assert signatures(variants) == VARIANTS
    assert {function.results for function in variants.values()} == {("i32",)}


SOCKETS = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
DEADLY = {"proc_exit", "proc_raise", "poll_oneoff"}  # these end or hold up the caller
I32 = st.integers(0, 5) | st.integers(65500, 65540) | st.integers(-(2**31), 2**31 - 1)
I64 = st.integers(0, 5) | st.integers(-(2**63), 2**63 - 1)


@pytest.mark.parametrize("name", sorted((WITX.keys() | WASMEDGE.keys()) - DEADLY))
def test_no_number_makes_python_raise(name: str) -> None:
    guest = Guest()
    types = (WITX | WASMEDGE)[name]

    def prepare() -> None:
        if not guest.is_open(0):  # it may have been closed
            guest.add(os.open("/dev/null", os.O_RDWR), filetypes.CHARACTER_DEVICE)
        if name.startswith("sock_"):
            for number in range(1, 5):
                if not guest.is_open(number):
                    made = socket.socket(type=SOCKETS[number % 2] | socket.SOCK_NONBLOCK)
                    guest.program.descriptors.add(descriptors.inherited(made.detach()))

    @settings(max_examples=25, deadline=None)
    @given(st.tuples(*(I64 if kind == "I" else I32 for kind in types)))
    def call(numbers: tuple[int, ...]) -> None:
        prepare()
        assert 0 <= guest.functions[name].call(*numbers) <= 87

    call()
    for number in range(64):
        guest("fd_close", number)
