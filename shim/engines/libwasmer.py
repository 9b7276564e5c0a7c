"""libwasmer: wasmer's C API, by ctypes (library).

The functions are those of the standard wasm.h, and few of wasmer's own. A library that
`scripts/build-wasmer` has made has some of ours besides (`libwasmer.rs`). They are called with the
interpreter lock held: there is no other thread to give it to, and every host call would have to
take it again.

A vector is `size` and `data`. Those that the library fills are ours to delete; it takes over the
memory of some that it is given, which it must have allocated itself then.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

from shim.engines.snapshot import digest

PATH: Final = os.path.join(sys.prefix, "lib", "libwasmer.so")
"""Beside our own code, and as much to be trusted. A link will do."""

_OLDEST: Final = 7  # major version; what earlier ones get wrong nobody has looked at here

try:
    _library = ctypes.PyDLL(PATH)
except OSError as error:
    raise ImportError(str(error)) from None


class Vec(ctypes.Structure):
    """wasm_*_vec_t."""

    _fields_ = (("size", ctypes.c_size_t), ("data", ctypes.c_void_p))

    def pointers(self) -> Sequence[int]:
        """Return what a vector of pointers holds."""
        array = ctypes.c_size_t * self.size
        return array.from_address(self.data or 0) if self.size else ()

    def bytes(self) -> bytes:
        """Return a copy of what a vector of bytes holds."""
        return ctypes.string_at(self.data, self.size) if self.data else b""


def _function(name: str, result: Any, *arguments: Any) -> Any:
    try:
        function = getattr(_library, name)
    except AttributeError as error:
        raise ImportError(f"{PATH}: {error}") from None
    function.restype, function.argtypes = result, arguments
    return function


_POINTER: Final = ctypes.c_void_p
_VEC: Final = ctypes.POINTER(Vec)

_version = _function("wasmer_version", ctypes.c_char_p)
_error_length = _function("wasmer_last_error_length", ctypes.c_int)
_error_message = _function("wasmer_last_error_message", ctypes.c_int, _POINTER, ctypes.c_int)

config_new = _function("wasm_config_new", _POINTER)
config_set_backend = _function("wasm_config_set_backend", None, _POINTER, ctypes.c_int)
config_set_features = _function("wasm_config_set_features", None, _POINTER, _POINTER)
_backend_is_available = _function("wasmer_is_backend_available", ctypes.c_bool, ctypes.c_int)
features_new = _function("wasmer_features_new", _POINTER)
engine_new_with_config = _function("wasm_engine_new_with_config", _POINTER, _POINTER)
store_new = _function("wasm_store_new", _POINTER, _POINTER)
store_delete = _function("wasm_store_delete", None, _POINTER)

module_new = _function("wasm_module_new", _POINTER, _POINTER, _VEC)
module_serialize = _function("wasm_module_serialize", None, _POINTER, _VEC)
module_deserialize = _function("wasm_module_deserialize", _POINTER, _POINTER, _VEC)

_valtype_new = _function("wasm_valtype_new", _POINTER, ctypes.c_uint8)
_valtype_vec_new = _function("wasm_valtype_vec_new", None, _VEC, ctypes.c_size_t, _POINTER)
_functype_new = _function("wasm_functype_new", _POINTER, _VEC, _VEC)
func_new = _function("wasm_func_new", _POINTER, _POINTER, _POINTER, _POINTER)
func_new_with_env = _function(
    "wasm_func_new_with_env", _POINTER, _POINTER, _POINTER, _POINTER, ctypes.py_object, _POINTER
)
func_delete = _function("wasm_func_delete", None, _POINTER)
func_as_extern = _function("wasm_func_as_extern", _POINTER, _POINTER)
func_call = _function("wasm_func_call", _POINTER, _POINTER, _VEC, _VEC)
func_result_arity = _function("wasm_func_result_arity", ctypes.c_size_t, _POINTER)

instance_new = _function(
    "wasm_instance_new", _POINTER, _POINTER, _POINTER, _VEC, ctypes.POINTER(_POINTER)
)
instance_delete = _function("wasm_instance_delete", None, _POINTER)
instance_exports = _function("wasm_instance_exports", None, _POINTER, _VEC)
extern_vec_delete = _function("wasm_extern_vec_delete", None, _VEC)
extern_as_func = _function("wasm_extern_as_func", _POINTER, _POINTER)
extern_as_memory = _function("wasm_extern_as_memory", _POINTER, _POINTER)
memory_data = _function("wasm_memory_data", _POINTER, _POINTER)
memory_data_size = _function("wasm_memory_data_size", ctypes.c_size_t, _POINTER)

trap_new = _function("wasm_trap_new", _POINTER, _POINTER, _VEC)
trap_delete = _function("wasm_trap_delete", None, _POINTER)
trap_message = _function("wasm_trap_message", None, _POINTER, _VEC)
trap_trace = _function("wasm_trap_trace", None, _POINTER, _VEC)
frame_vec_delete = _function("wasm_frame_vec_delete", None, _VEC)
frame_func_index = _function("wasm_frame_func_index", ctypes.c_uint32, _POINTER)
frame_module_offset = _function("wasm_frame_module_offset", ctypes.c_size_t, _POINTER)
# These return a struct of one pointer, which is returned as the pointer would be.
frame_func_name = _function("wasm_frame_func_name", ctypes.c_char_p, _POINTER)
frame_module_name = _function("wasm_frame_module_name", ctypes.c_char_p, _POINTER)

byte_vec_delete = _function("wasm_byte_vec_delete", None, _VEC)

OURS: Final = hasattr(_library, "pywasm_func_call")
"""Whether the library has what the C API lacks."""

SLOTS: Final = 33
"""How many a host function of ours is given (`libwasmer.rs`)."""

if OURS:
    our_set_stack_size = _function("pywasm_set_stack_size", None, ctypes.c_size_t)
    our_engine_new = _function("pywasm_engine_new", _POINTER, _POINTER)
    our_module_deserialize_file = _function(
        "pywasm_module_deserialize_file", _POINTER, _POINTER, ctypes.c_char_p
    )
    our_func_new = _function(
        "pywasm_func_new", _POINTER, _POINTER, _POINTER, _POINTER, ctypes.py_object
    )
    # Quickest with arguments of ctypes' own types that are made once, and none declared.
    our_func_call = _library.pywasm_func_call
    our_func_call.restype = _POINTER

VERSION: Final[str] = _version().decode()
if int(VERSION.partition(".")[0]) < _OLDEST:
    raise ImportError(f"{PATH}: wasmer {VERSION} is older than {_OLDEST}")

CRANELIFT: Final = "cranelift"
COMPILERS: Final = {  # wasmer_backend_t
    name: number
    for number, name in enumerate((CRANELIFT, "llvm", "singlepass"))
    if _backend_is_available(number)
}
if CRANELIFT not in COMPILERS:
    raise ImportError(f"{PATH}: it has no {CRANELIFT}")
FUNCTION_KIND, MEMORY_KIND = 0, 3  # wasm_externkind_t
KINDS: Final = {"i32": 0, "i64": 1, "f32": 2, "f64": 3}  # wasm_valkind_t


class WasmerError(Exception):
    """What the library says of a call that returned nothing."""


def made(result: int | None) -> int:
    """Return what a call has made, or raise WasmerError."""
    if result:
        return result
    buffer = ctypes.create_string_buffer(max(_error_length(), 1))
    _error_message(buffer, len(buffer))
    raise WasmerError(buffer.value.decode(errors="replace") or "it does not say why")


@cache
def build() -> str:
    """Name this very library: two of one version may differ in what their artifacts hold.

    30 ms, in which the file is mapped: what is read to memory would stay there for all forks.
    """
    with open(PATH, "rb") as file:
        return digest(file.fileno(), os.fstat(file.fileno()).st_size).hex()[:16]


def enable(features: int, names: Mapping[str, bool]) -> None:
    """Switch proposals on or off."""
    for name, on in names.items():
        _function(f"wasmer_features_{name}", ctypes.c_bool, _POINTER, ctypes.c_bool)(features, on)


@cache
def functype(params: tuple[str, ...], results: tuple[str, ...]) -> int:
    """Make a wasm_functype_t of the names of wasm's types."""
    return made(_functype_new(_valtypes(params), _valtypes(results)))


def _valtypes(names: Sequence[str]) -> Vec:
    types = (ctypes.c_void_p * len(names))(*(_valtype_new(KINDS[name]) for name in names))
    vector = Vec()
    _valtype_vec_new(vector, len(names), types)
    return vector
