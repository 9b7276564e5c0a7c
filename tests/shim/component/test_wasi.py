"""Each interface of WASI 0.2 called by a program: through an engine, the linker and its types."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.shim.component.guests import POLL, Lowered, Runner, saying, standard

TO_RESULT = "(param i32)"
NUMBER = "(result i32)"


class Case(NamedTuple):
    """What a program imports, does and says, and whether that is right. Results are at 1024."""

    imports: Sequence[str]
    functions: Sequence[Lowered]
    body: str
    is_right: Callable[[bytes], bool]
    data: str = ""


def say(size: int) -> str:
    """Say what there is at 1024."""
    return f"(call $say (i32.const 1024) (i32.const {size}))"


SAY_LIST = "(call $say (i32.load (i32.const 1024)) (i32.load (i32.const 1028)))"
SAY_FIRST = """(call $say (i32.load (i32.load (i32.const 1024)))
    (i32.load offset=4 (i32.load (i32.const 1024))))"""
"""Says the first string of a list of them."""


ENVIRONMENT = """(import "wasi:cli/environment@0.2.0" (instance $environment
    (export "get-environment" (func (result (list (tuple string string)))))
    (export "get-arguments" (func (result (list string))))
    (export "initial-cwd" (func (result (option string))))))"""
WALL_CLOCK = """(import "wasi:clocks/wall-clock@0.2.0" (instance $wall
    (type $defined (record (field "seconds" u64) (field "nanoseconds" u32)))
    (export "datetime" (type $datetime (eq $defined)))
    (export "now" (func (result $datetime)))))
    (alias export $wall "datetime" (type $datetime))"""
MONOTONIC = """(import "wasi:clocks/monotonic-clock@0.2.0" (instance $monotonic
    (export "pollable" (type $it (eq $pollable)))
    (type $u64 u64)
    (export "instant" (type $instant (eq $u64)))
    (export "duration" (type $duration (eq $u64)))
    (export "now" (func (result $instant)))
    (export "subscribe-duration" (func (param "when" $duration) (result (own $it))))))"""
RANDOM = """(import "wasi:random/random@0.2.0" (instance $random
    (export "get-random-bytes" (func (param "len" u64) (result (list u8))))))"""
INSECURE = """(import "wasi:random/insecure@0.2.0" (instance $insecure
    (export "get-insecure-random-u64" (func (result u64)))))"""
SEED = """(import "wasi:random/insecure-seed@0.2.0" (instance $seed
    (export "insecure-seed" (func (result (tuple u64 u64))))))"""
FILES = """(import "wasi:filesystem/types@0.2.0" (instance $files
    (export "descriptor" (type $descriptor (sub resource)))
    (type $codes (enum "access" "would-block" "already" "bad-descriptor" "busy" "deadlock" "quota"
        "exist" "file-too-large" "illegal-byte-sequence" "in-progress" "interrupted" "invalid" "io"
        "is-directory" "loop" "too-many-links" "message-size" "name-too-long" "no-device"
        "no-entry" "no-lock" "insufficient-memory" "insufficient-space" "not-directory" "not-empty"
        "not-recoverable" "unsupported" "no-tty" "no-such-device" "overflow" "not-permitted" "pipe"
        "read-only" "invalid-seek" "text-file-busy" "cross-device"))
    (export "error-code" (type $code (eq $codes)))
    (type $following (flags "symlink-follow"))
    (export "path-flags" (type $path-flags (eq $following)))
    (type $opening (flags "create" "directory" "exclusive" "truncate"))
    (export "open-flags" (type $open-flags (eq $opening)))
    (type $having (flags "read" "write" "file-integrity-sync" "data-integrity-sync"
        "requested-write-sync" "mutate-directory"))
    (export "descriptor-flags" (type $descriptor-flags (eq $having)))
    (type $u64 u64)
    (export "filesize" (type $size (eq $u64)))
    (export "[method]descriptor.open-at" (func (param "self" (borrow $descriptor))
        (param "path-flags" $path-flags) (param "path" string) (param "open-flags" $open-flags)
        (param "flags" $descriptor-flags) (result (result (own $descriptor) (error $code)))))
    (export "[method]descriptor.read" (func (param "self" (borrow $descriptor))
        (param "length" $size) (param "offset" $size)
        (result (result (tuple (list u8) bool) (error $code)))))))
    (alias export $files "descriptor" (type $descriptor))"""
PREOPENS = """(import "wasi:filesystem/preopens@0.2.0" (instance $preopens
    (export "descriptor" (type $it (eq $descriptor)))
    (export "get-directories" (func (result (list (tuple (own $it) string)))))))"""
NETWORK = """(import "wasi:sockets/network@0.2.0" (instance $network-types
    (export "network" (type $network (sub resource)))
    (type $codes (enum "unknown" "access-denied" "not-supported" "invalid-argument" "out-of-memory"
        "timeout" "concurrency-conflict" "not-in-progress" "would-block" "invalid-state"
        "new-socket-limit" "address-not-bindable" "address-in-use" "remote-unreachable"
        "connection-refused" "connection-reset" "connection-aborted" "datagram-too-large"
        "name-unresolvable" "temporary-resolver-failure" "permanent-resolver-failure"))
    (export "error-code" (type $code (eq $codes)))
    (type $families (enum "ipv4" "ipv6"))
    (export "ip-address-family" (type $family (eq $families)))
    (type $four (tuple u8 u8 u8 u8))
    (export "ipv4-address" (type $ipv4 (eq $four)))
    (type $six (tuple u16 u16 u16 u16 u16 u16 u16 u16))
    (export "ipv6-address" (type $ipv6 (eq $six)))
    (type $either (variant (case "ipv4" $ipv4) (case "ipv6" $ipv6)))
    (export "ip-address" (type $address (eq $either)))))
    (alias export $network-types "network" (type $network))
    (alias export $network-types "error-code" (type $code))
    (alias export $network-types "ip-address-family" (type $family))
    (alias export $network-types "ip-address" (type $address))
    (import "wasi:sockets/instance-network@0.2.0" (instance $instance-network
        (export "network" (type $it (eq $network)))
        (export "instance-network" (func (result (own $it))))))"""
NAMES = """(import "wasi:sockets/ip-name-lookup@0.2.0" (instance $names
    (export "network" (type $network-there (eq $network)))
    (export "error-code" (type $code-there (eq $code)))
    (export "ip-address" (type $address-there (eq $address)))
    (export "resolve-address-stream" (type $stream (sub resource)))
    (export "[method]resolve-address-stream.resolve-next-address" (func
        (param "self" (borrow $stream))
        (result (result (option $address-there) (error $code-there)))))
    (export "resolve-addresses" (func (param "network" (borrow $network-there))
        (param "name" string) (result (result (own $stream) (error $code-there)))))))"""


def sockets(kind: str, method: str, outcome: str) -> str:
    """Import what makes a socket, and a method of it."""
    return f"""(import "wasi:sockets/{kind}@0.2.0" (instance ${kind}
        (export "{kind}-socket" (type $socket (sub resource)))
        (export "error-code" (type $code-there (eq $code)))
        (export "[method]{kind}-socket.{method}" (func (param "self" (borrow $socket))
            (result {outcome})))))
        (alias export ${kind} "{kind}-socket" (type $socket))
        (import "wasi:sockets/{kind}-create-socket@0.2.0" (instance $creating
            (export "{kind}-socket" (type $it (eq $socket)))
            (export "error-code" (type $code-there (eq $code)))
            (export "ip-address-family" (type $family-there (eq $family)))
            (export "create-{kind}-socket" (func (param "address-family" $family-there)
                (result (result (own $it) (error $code-there)))))))"""


def terminal(name: str, kind: str) -> list[str]:
    """Import what tells whether a standard stream is a terminal."""
    return [
        f"""(import "wasi:cli/terminal-{kind}@0.2.0" (instance $terminal
            (export "terminal-{kind}" (type (sub resource)))))
        (alias export $terminal "terminal-{kind}" (type $terminal-type))
        (import "wasi:cli/terminal-{name}@0.2.0" (instance $asked
            (export "terminal-{kind}" (type $it (eq $terminal-type)))
            (export "get-terminal-{name}" (func (result (option (own $it)))))))"""
    ]


def asks_for_terminal(name: str, kind: str) -> Case:
    function = Lowered("ask", "$asked", f"get-terminal-{name}", TO_RESULT)
    body = f"(call $ask (i32.const 1024)) {say(1)}"
    return Case(terminal(name, kind), [function], body, lambda said: said == b"\0")


def recent(said: bytes) -> bool:
    seconds: int
    nanoseconds: int
    seconds, nanoseconds = struct.unpack("<QI", said)
    return abs(seconds - time.time()) < 3600 and nanoseconds < 10**9


CASES = {
    "cli/environment arguments": Case(
        [ENVIRONMENT],
        [Lowered("arguments", "$environment", "get-arguments", TO_RESULT)],
        f"(call $arguments (i32.const 1024)) {SAY_FIRST}",
        lambda said: said == b"guest",
    ),
    "cli/environment variables": Case(
        [ENVIRONMENT],
        [Lowered("environment", "$environment", "get-environment", TO_RESULT)],
        f"(call $environment (i32.const 1024)) {SAY_FIRST}",
        lambda said: said == b"NAME",
    ),
    "cli/environment directory": Case(
        [ENVIRONMENT],
        [Lowered("cwd", "$environment", "initial-cwd", TO_RESULT)],
        f"(call $cwd (i32.const 1024)) {say(1)}",
        lambda said: said == b"\0",
    ),
    "cli/stdin": Case(
        [standard("stdin", "input")],
        [
            Lowered("get-stdin", "$stdin", "get-stdin", NUMBER),
            Lowered(
                *("read", "$streams", "[method]input-stream.blocking-read"),
                "(param i32 i64 i32)",
            ),
        ],
        """(call $read (call $get-stdin) (i64.const 100) (i32.const 1020))
        (if (i32.load8_u (i32.const 1020)) (then unreachable))"""
        + SAY_LIST,
        lambda said: said == b"typed",
    ),
    "cli/terminal-stdin": asks_for_terminal("stdin", "input"),
    "cli/terminal-stdout": asks_for_terminal("stdout", "output"),
    "cli/terminal-stderr": asks_for_terminal("stderr", "output"),
    "clocks/wall-clock": Case(
        [WALL_CLOCK],
        [Lowered("now", "$wall", "now", TO_RESULT)],
        f"(call $now (i32.const 1024)) {say(12)}",
        recent,
    ),
    "clocks/monotonic-clock": Case(
        [POLL, MONOTONIC],
        [
            Lowered("now", "$monotonic", "now", "(result i64)"),
            Lowered("later", "$monotonic", "subscribe-duration", "(param i64) (result i32)"),
            Lowered("block", "$poll", "[method]pollable.block", "(param i32)"),
        ],
        """(i64.store (i32.const 1024) (call $now))
        (call $block (call $later (i64.const 1000000)))
        (i64.store (i32.const 1032) (call $now))"""
        + say(16),
        lambda said: struct.unpack("<QQ", said)[0] + 10**6 <= struct.unpack("<QQ", said)[1],
    ),
    "io/poll": Case(
        [POLL, MONOTONIC],
        [
            Lowered("later", "$monotonic", "subscribe-duration", "(param i64) (result i32)"),
            Lowered("ready", "$poll", "[method]pollable.ready", "(param i32) (result i32)"),
            Lowered("poll", "$poll", "poll", "(param i32 i32 i32)"),
        ],
        """(i32.store (i32.const 2048) (call $later (i64.const 3600000000000)))
        (i32.store (i32.const 2052) (call $later (i64.const 1)))
        (i32.store (i32.const 2056) (call $later (i64.const 3600000000000)))
        (call $poll (i32.const 2048) (i32.const 3) (i32.const 1024))
        (if (call $ready (i32.load (i32.const 2048))) (then unreachable))
        (call $say (i32.const 1028) (i32.const 4))
        (call $say (i32.load (i32.const 1024)) (i32.const 4))""",
        lambda said: struct.unpack("<II", said) == (1, 1),
    ),
    "random/random": Case(
        [RANDOM],
        [Lowered("bytes", "$random", "get-random-bytes", "(param i64 i32)")],
        f"(call $bytes (i64.const 100) (i32.const 1024)) {SAY_LIST}",
        lambda said: len(said) == 100 and any(said),
    ),
    "random/insecure": Case(
        [INSECURE],
        [Lowered("number", "$insecure", "get-insecure-random-u64", "(result i64)")],
        f"(i64.store (i32.const 1024) (call $number)) {say(8)}",
        any,
    ),
    "random/insecure-seed": Case(
        [SEED],
        [Lowered("seed", "$seed", "insecure-seed", TO_RESULT)],
        f"(call $seed (i32.const 1024)) {say(16)}",
        any,
    ),
    "filesystem": Case(
        [FILES, PREOPENS],
        [
            Lowered("directories", "$preopens", "get-directories", TO_RESULT),
            Lowered(
                *("open", "$files", "[method]descriptor.open-at"),
                "(param i32 i32 i32 i32 i32 i32 i32)",
            ),
            Lowered("read", "$files", "[method]descriptor.read", "(param i32 i64 i64 i32)"),
        ],
        """(call $directories (i32.const 1024))
        (call $open (i32.load (i32.load (i32.const 1024))) (i32.const 1) (i32.const 2048)
            (i32.const 4) (i32.const 0) (i32.const 1) (i32.const 1024))
        (if (i32.load8_u (i32.const 1024)) (then unreachable))
        (call $read (i32.load (i32.const 1028)) (i64.const 100) (i64.const 1) (i32.const 1020))
        (if (i32.load8_u (i32.const 1020)) (then unreachable))"""
        + SAY_LIST,
        lambda said: said == b"ontents",
        '(data (i32.const 2048) "file")',
    ),
    "filesystem, what is not there": Case(
        [FILES, PREOPENS],
        [
            Lowered("directories", "$preopens", "get-directories", TO_RESULT),
            Lowered(
                *("open", "$files", "[method]descriptor.open-at"),
                "(param i32 i32 i32 i32 i32 i32 i32)",
            ),
        ],
        """(call $directories (i32.const 1024))
        (call $open (i32.load (i32.load (i32.const 1024))) (i32.const 1) (i32.const 2048)
            (i32.const 4) (i32.const 0) (i32.const 1) (i32.const 1024))"""
        + say(5),
        lambda said: said[0] == 1 and said[4] == 20,  # no-entry
        '(data (i32.const 2048) "nope")',
    ),
    "sockets/tcp": Case(
        [NETWORK, sockets("tcp", "is-listening", "bool")],
        [
            Lowered("create", "$creating", "create-tcp-socket", "(param i32 i32)"),
            Lowered(
                *("listening", "$tcp", "[method]tcp-socket.is-listening"),
                "(param i32) (result i32)",
            ),
        ],
        """(call $create (i32.const 1) (i32.const 1024))
        (i32.store8 (i32.const 1025) (call $listening (i32.load (i32.const 1028))))"""
        + say(2),
        lambda said: said == b"\0\0",
    ),
    "sockets/udp": Case(
        [NETWORK, sockets("udp", "unicast-hop-limit", "(result u8 (error $code-there))")],
        [
            Lowered("create", "$creating", "create-udp-socket", "(param i32 i32)"),
            Lowered("limit", "$udp", "[method]udp-socket.unicast-hop-limit", "(param i32 i32)"),
        ],
        """(call $create (i32.const 0) (i32.const 1024))
        (call $limit (i32.load (i32.const 1028)) (i32.const 1024))"""
        + say(2),
        lambda said: said[0] == 0 and said[1] > 0,
    ),
    "sockets/ip-name-lookup": Case(
        [NETWORK, NAMES],
        [
            Lowered("network", "$instance-network", "instance-network", NUMBER),
            Lowered("resolve", "$names", "resolve-addresses", "(param i32 i32 i32 i32)"),
            Lowered(
                *("next", "$names", "[method]resolve-address-stream.resolve-next-address"),
                "(param i32 i32)",
            ),
        ],
        """(call $resolve (call $network) (i32.const 2048) (i32.const 9) (i32.const 1024))
        (if (i32.load8_u (i32.const 1024)) (then unreachable))
        (call $next (i32.load (i32.const 1028)) (i32.const 1024))"""
        + say(10),
        lambda said: said[::2][:3] == b"\0\1\0" and said[6:] == bytes([127, 0, 0, 1]),
        '(data (i32.const 2048) "127.0.0.1")',
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_call(run: Runner, name: str, tmp_path: Path) -> None:
    case = CASES[name]
    text = saying(case.body + "(i32.const 0)", case.imports, case.functions, core=case.data)
    (tmp_path / "file").write_bytes(b"contents")
    ended = run(text, env=[b"NAME=value"], directory=tmp_path, stdin=b"typed")
    assert ended.status == 0, ended.stderr
    assert case.is_right(ended.stdout), ended.stdout
