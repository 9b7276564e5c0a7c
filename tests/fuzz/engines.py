"""One program under both engines: what it leaves in its memory has to be the same.

The program is made up, and is a module by construction: functions of all kinds of instructions that
both engines have and should get right (see `flaws`), whose locals live until they end. The values
go into a sum; that and the beginning of the memory are written to standard output, and compared.
A fuzzer's coverage does not see native code, so its input is a seed of random numbers and no more.

Where the standard leaves the bits of a NaN open, they are made the same before they can be seen.
Compiling and running are for processes of their own: what compiles never forks again.
"""

from __future__ import annotations

import os
import random
import signal
from typing import Final, NamedTuple

import wasmtime

from shim.engines import engines, flaws
from shim.engines.base import Engine, Grants
from tests.fuzz.source import Source

SEEDS = [bytes([number]) for number in range(8)]

_PAGE: Final = 65536
_SECONDS: Final = 20  # nothing here takes one, unless an engine hangs
_MASK: Final = 4096 - 1  # a mask for addresses: below, there is something to be read
_IOVEC: Final = 4096 + 512  # beyond what these reach with an offset; all below is written
_BYTES: Final = "".join(f"\\{byte:02x}" for byte in random.Random(0).randbytes(_MASK + 1))
_TYPES: Final = ("i32", "i64", "f32", "f64")
_WIDTH: Final = {"i32": 32, "i64": 64, "f32": 32, "f64": 64}
_FUEL: Final = 100  # for a call from outside: loops begun and calls made
_SIZES: Final = (300, 1000, 3000, 6000)  # bytes of choices: of the last, 20 kB of module
_DEPTH: Final = 4  # of an expression
_STATEMENTS: Final = 12

_INTEGERS: Final = (
    *(0, 1, -1, 2, 3, 7, 31, 32, 33, 63, 64, 127, 128, 255, 256, -128, -129, 4095, 65535, 65536),
    *((1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, 0x123456789ABCDEF),
)
_OFFSETS: Final = (65527, 65535, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
_FLOATS: Final = (
    *("0", "-0", "1", "-1", "0.1", "-1.5", "0.5", "2.5", "1e10", "-1e30", "1e-40", "inf", "-inf"),
    *("nan", "0x1p31", "-0x1p31", "0x1p32", "0x1p63", "-0x1p63", "0x1p64", "2147483520", "1e-320"),
)

_INT_BINARY: Final = (
    *("add", "sub", "mul", "and", "or", "xor", "shl", "shr_s", "shr_u", "rotl", "rotr"),
    *("div_s", "div_u", "rem_s", "rem_u"),
)
_DIVISIONS: Final = ("div_s", "div_u", "rem_s", "rem_u")
_ORDERS: Final = ("lt", "gt", "le", "ge")
_INT_COMPARE: Final = ("eq", "ne", *(f"{order}_{sign}" for order in _ORDERS for sign in "su"))
_FLOAT_UNARY: Final = ("abs", "neg", "ceil", "floor", "trunc", "nearest", "sqrt")
_FLOAT_BINARY: Final = ("add", "sub", "mul", "div", "min", "max", "copysign", "copysign")
_FLOAT_COMPARE: Final = ("eq", "ne", *_ORDERS)


class _Function(NamedTuple):
    name: str
    params: tuple[str, ...]
    results: tuple[str, ...]


class _Program:
    """A module in text, out of a source of choices. Everything refers only to what came before."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.functions: list[_Function] = []
        self.texts: list[str] = []
        self.locals: dict[str, list[str]] = {}
        self.labels = 0
        for number in range(2 + source.number() % 3):
            self.texts.append(self.function(f"$f{number}"))

    def text(self) -> str:
        """Return the module: `_start` calls every function, and writes the memory."""
        calls = []
        for function in self.functions * 2:
            given = " ".join(
                f"({kind}.const {at + 3 if kind[0] == 'i' else at - 2.5})"
                for at, kind in enumerate(function.params)
            )
            calls.append(f"(global.set $fuel (i32.const {_FUEL})) (call {function.name} {given})")
            calls += ["(drop)"] * len(function.results)
        elements = " ".join(f.name for f in self.functions)
        return "\n".join(
            (
                '(module (import "wasi_snapshot_preview1" "fd_write"',
                "  (func $write (param i32 i32 i32 i32) (result i32)))",
                '(memory (export "memory") 1 3) (data $d "some data, \\ff\\fe\\80 of 26 bytes")',
                f'(data (i32.const 0) "{_BYTES}")',
                f"(table $t {len(self.functions) + 1} funcref) (elem (i32.const 0) {elements})",
                "(global $fuel (mut i32) (i32.const 0))",
                "(global $sum (mut i64) (i64.const 1))",
                *(f"(global $g_{kind} (mut {kind}) ({kind}.const 9))" for kind in _TYPES),
                *self.texts,
                '(func (export "_start")',
                *calls,
                f"(i64.store (i32.const {_IOVEC - 8}) (global.get $sum))",
                f"(i32.store (i32.const {_IOVEC}) (i32.const 0))",
                f"(i32.store (i32.const {_IOVEC + 4}) (i32.const {_IOVEC}))",
                f"(i32.const 1) (i32.const {_IOVEC}) (i32.const 1) (i32.const {_IOVEC})",
                "call $write drop))",
            )
        )

    def function(self, name: str) -> str:
        """Return a function, which from here on may be called."""
        choose = self.source
        params = tuple(choose.choice(_TYPES) for _ in range(choose.number() % 12))
        results = tuple(choose.choice(_TYPES) for _ in range(choose.number() % 3))
        more = [choose.choice(_TYPES) for _ in range(4 + choose.number() % 24)]
        self.locals = {kind: [] for kind in _TYPES}
        for at, kind in enumerate((*params, *more)):
            self.locals[kind].append(f"$l{at}")
        begin = [
            f"(local.set $l{at} {self.constant(kind)})" for at, kind in enumerate(more, len(params))
        ]
        body = [self.statement(3) for _ in range(2 + choose.number() % _STATEMENTS)]
        end = [
            self.told(kind, f"(local.get {local})")
            for kind in _TYPES
            for local in self.locals[kind]
        ]
        given = "".join(f" ({kind}.const 5)" for kind in results)
        values = [self.expression(kind, 2) for kind in results]
        declared = [
            *(f"(param $l{at} {kind})" for at, kind in enumerate(params)),
            *(f"(result {kind})" for kind in results),
            *(f"(local $l{len(params) + at} {kind})" for at, kind in enumerate(more)),
            *(f"(local $nan_{kind} {kind})" for kind in ("f32", "f64")),
        ]
        self.functions.append(_Function(name, params, results))
        return "\n".join(
            (
                f"(func {name} {' '.join(declared)}",
                f"(if (i32.eqz (global.get $fuel)) (then (return{given}))) {_BURN}",
                *begin,
                *body,
                *end,
                *values,
                ")",
            )
        )

    def told(self, kind: str, value: str) -> str:
        """Have a value change the sum, so that it is not lost whatever becomes of it."""
        bits = self.seen(kind, value)
        if kind[0] == "f":
            bits = f"(i{kind[1:]}.reinterpret_{kind} {bits})"
        if _WIDTH[kind] == 32:
            bits = f"(i64.extend_i32_u {bits})"
        return (
            f"(global.set $sum (i64.mul (i64.xor (global.get $sum) {bits})"
            " (i64.const 0x9e3779b97f4a7c15)))"
        )

    def seen(self, kind: str, value: str) -> str:
        """Make a NaN the one of which all bits are known."""
        if kind[0] == "i":
            return value
        same = f"({kind}.eq (local.get $nan_{kind}) (local.get $nan_{kind}))"
        return f"(select (local.tee $nan_{kind} {value}) ({kind}.const nan) {same})"

    def address(self, depth: int) -> str:
        """Return an address at the beginning of the memory, or now and then any number."""
        value = self.expression("i32", depth)
        return value if self.source.number() == 255 else f"(i32.and {value} (i32.const {_MASK}))"

    def place(self, depth: int) -> str:
        """Return the offset and the address of a load or a store."""
        offset = self.source.number()
        if offset == 255:
            offset = self.source.choice(_OFFSETS)
        return f"offset={offset} {self.address(depth)}"

    def statement(self, depth: int) -> str:
        """Return one, with at most `depth` blocks in each other."""
        choose = self.source
        if not choose:
            return "(nop)"
        if depth and choose.number() % 3 == 0:
            return self.block(depth - 1)
        kind = choose.choice(_TYPES)
        which = choose.number() % 10
        if which < 4:
            return self.told(kind, self.expression(kind))
        if which < 6 and self.locals[kind]:
            return f"(local.set {choose.choice(self.locals[kind])} {self.expression(kind)})"
        if which == 6:
            return f"(global.set $g_{kind} {self.expression(kind)})"
        if which == 7:
            return self.bulk()
        if which == 8 and self.functions:
            called = choose.choice(self.functions)
            return self.call(called, 2) + "(drop)" * len(called.results)
        parts = {"i32": ("", "8", "16"), "i64": ("", "8", "16", "32")}.get(kind, ("",))
        value = self.seen(kind, self.expression(kind))
        return f"({kind}.store{choose.choice(parts)} {self.place(2)} {value})"

    def block(self, depth: int) -> str:
        """Return statements that are done never, once, or until the fuel is used up."""
        choose = self.source
        inside = " ".join(self.statement(depth) for _ in range(1 + choose.number() % 3))
        condition = self.expression("i32", 3)
        self.labels += 1
        label = f"$b{self.labels}"
        which = choose.number() % 4
        if which == 0:
            return f"(if {condition} (then {inside}) (else {self.statement(depth)}))"
        if which == 1:
            stop = f"(br_if {label}_out (i32.eqz (global.get $fuel))) {_BURN}"
            again = f"(br_if {label} {condition})"
            return f"(block {label}_out (loop {label} {stop} {inside} {again}))"
        if which == 2:
            return f"(block {label} (br_if {label} {condition}) {inside})"
        cases = [f"{label}_{number}" for number in range(1 + choose.number() % 5)]
        opened = " ".join(f"(block {case}" for case in cases)
        chosen = f"(br_table {' '.join(cases)} (i32.and {condition} (i32.const 7)))"
        each = " ".join(f") {self.statement(depth)}" for _ in cases)
        return f"{opened} {chosen} {each} {inside}"

    def bulk(self) -> str:
        """Return an instruction for many bytes, most of the time within the memory."""
        which = self.source.number() % 5
        numbers = f"{self.address(1)} {self.expression('i32', 1)}"
        length = f"(i32.and {self.expression('i32', 1)} (i32.const 255))"
        if which == 0:
            return f"(memory.fill {numbers} {length})"
        if which == 1:
            return f"(memory.copy {self.address(1)} {self.address(1)} {length})"
        if which == 2:
            few = f"(i32.and {self.expression('i32', 1)} (i32.const 7))"
            return f"(memory.init $d {self.address(1)} {few} {few})"
        if which == 3:
            return f"(drop (memory.grow (i32.and {self.expression('i32', 1)} (i32.const 1))))"
        return f"(table.set $t (i32.const {len(self.functions)}) (ref.null func))"

    def call(self, called: _Function, depth: int) -> str:
        """Call a function by its name, or through the table."""
        given = " ".join(self.expression(kind, depth) for kind in called.params)
        if self.source.number() % 3:
            return f"(call {called.name} {given})"
        params, results = " ".join(called.params), " ".join(called.results)
        index = self.functions.index(called) if self.source.number() < 250 else self.source.number()
        return f"(call_indirect $t (param {params}) (result {results}) {given} (i32.const {index}))"

    def expression(self, kind: str, depth: int = _DEPTH) -> str:
        """Return one of a type, with at most `depth` operations in each other."""
        choose = self.source
        which = choose.number() % (16 if depth > 0 else 3)
        if which == 0:
            return self.constant(kind)
        if which == 1 or (which == 2 and not self.locals[kind]):
            return f"(global.get $g_{kind})"
        if which == 2:
            return f"(local.get {choose.choice(self.locals[kind])})"
        return (self.integer if kind[0] == "i" else self.float)(kind, depth - 1, which)

    def constant(self, kind: str) -> str:
        """Return a number at an edge, or any."""
        choose = self.source
        edge = choose.number() % 4
        if kind[0] == "i":
            number = choose.choice(_INTEGERS) if edge else choose.number(8)
            return f"({kind}.const {number & (1 << _WIDTH[kind]) - 1})"
        return f"({kind}.const {choose.number(4) / 1000 if edge else choose.choice(_FLOATS)})"

    def integer(self, kind: str, depth: int, which: int) -> str:
        """Return an operation whose result is an integer."""
        choose = self.source
        if which < 7:
            name = choose.choice(_INT_BINARY)
            left, right = self.expression(kind, depth), self.expression(kind, depth)
            if name in _DIVISIONS and choose.number() < 250:
                right = f"({kind}.or {right} ({kind}.const 1))"
                if name.endswith("_s"):  # nor is it -1, which overflows
                    right = f"({kind}.and {right} ({kind}.const 0x7fffffff))"
            return f"({kind}.{name} {left} {right})"
        if which == 7:
            signs = ("extend8_s", "extend16_s", *(("extend32_s",) if kind == "i64" else ()))
            name = choose.choice(("clz", "ctz", "popcnt", *signs))
            return f"({kind}.{name} {self.expression(kind, depth)})"
        if which == 8:
            return self.load(kind, depth)
        if which == 9:
            return self.converted(kind, depth)
        if which == 10:
            other = choose.choice(_TYPES)
            names = _INT_COMPARE if other[0] == "i" else _FLOAT_COMPARE
            left, right = self.expression(other, depth), self.expression(other, depth)
            compared = f"({other}.{choose.choice(names)} {left} {right})"
            return compared if kind == "i32" else f"(i64.extend_i32_u {compared})"
        if which == 11:
            if kind == "i32":
                return choose.choice(
                    ("(memory.size)", f"(i64.eqz {self.expression('i64', depth)})")
                )
            return f"(i64.extend_i32_{choose.choice('su')} {self.expression('i32', depth)})"
        return self.structure(kind, depth, which)

    def float(self, kind: str, depth: int, which: int) -> str:
        """Return an operation whose result is a floating-point number."""
        choose = self.source
        if which < 8:
            name = choose.choice(_FLOAT_BINARY)
            left, right = self.expression(kind, depth), self.expression(kind, depth)
            if name == "copysign":  # a NaN's sign is open, too
                right = self.seen(kind, right)
            return f"({kind}.{name} {left} {right})"
        if which == 8:
            return self.load(kind, depth)
        if which == 9:
            return self.converted(kind, depth)
        if which < 12:
            return f"({kind}.{choose.choice(_FLOAT_UNARY)} {self.expression(kind, depth)})"
        return self.structure(kind, depth, which)

    def load(self, kind: str, depth: int) -> str:
        """Return a load, of a part or of all."""
        choose = self.source
        parts = {"i32": (8, 16), "i64": (8, 16, 32)}.get(kind, ())
        narrow = [f"{bits}_{sign}" for bits in parts for sign in "su"]
        return f"({kind}.load{choose.choice(('', *narrow))} {self.place(depth)})"

    def converted(self, kind: str, depth: int) -> str:
        """Return a number of another type made one of this."""
        choose = self.source
        other = choose.choice([each for each in _TYPES if each != kind])
        value = self.expression(other, depth)
        sign = choose.choice("su")
        if kind[0] == "i" and other[0] == "i":
            return (
                f"(i32.wrap_i64 {value})" if kind == "i32" else f"(i64.extend_i32_{sign} {value})"
            )
        if kind[0] == "f" and other[0] == "f":
            return f"(f32.demote_f64 {value})" if kind == "f32" else f"(f64.promote_f32 {value})"
        if _WIDTH[kind] == _WIDTH[other] and choose.number() % 2:
            return f"({kind}.reinterpret_{other} {self.seen(other, value)})"
        if kind[0] == "f":
            return f"({kind}.convert_{other}_{sign} {value})"
        trapping = choose.number() > 250
        return f"({kind}.trunc{'' if trapping else '_sat'}_{other}_{sign} {value})"

    def structure(self, kind: str, depth: int, which: int) -> str:
        """Return a value out of control flow, or a call."""
        choose = self.source
        if which == 12:
            one, other = self.expression(kind, depth), self.expression(kind, depth)
            return f"(select {one} {other} {self.expression('i32', depth)})"
        if which == 13:
            condition = self.expression("i32", depth)
            one, other = self.expression(kind, depth), self.expression(kind, depth)
            return f"(if (result {kind}) {condition} (then {one}) (else {other}))"
        called = [f for f in self.functions if f.results == (kind,)]
        if which == 14 and called:
            return self.call(choose.choice(called), min(depth, 1))
        if self.locals[kind]:
            return f"(local.tee {choose.choice(self.locals[kind])} {self.expression(kind, depth)})"
        return self.constant(kind)


_BURN: Final = "(global.set $fuel (i32.sub (global.get $fuel) (i32.const 1)))"


def module(data: bytes) -> bytes:
    """Return the module that comes of `data`."""
    numbers = random.Random(data)
    choices = Source(numbers.randbytes(numbers.choice(_SIZES)))
    return bytes(wasmtime.wat2wasm(_Program(choices).text()))


def fuzz(data: bytes) -> None:
    """Run the module that comes of `data` under both engines."""
    wasm = module(data)
    outcomes = {engine.name: _outcome(engine, wasm) for engine in engines()}
    first, *others = outcomes.values()
    assert first.status in (0, 134), outcomes
    for other in others:
        assert first == other, (wasm.hex(), _difference(first, other))


class _Outcome(NamedTuple):
    """How a program ended: its status, its output, and why it trapped."""

    status: int
    output: bytes
    reason: bytes


def _outcome(engine: Engine, wasm: bytes) -> _Outcome:
    streams = [os.memfd_create(name) for name in ("out", "err")]
    try:
        child = os.fork()
        if child == 0:
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(_SECONDS)
                flaws.check(engine, wasm)
                artifact = engine.compile(wasm)
                for target, fd in enumerate(streams, 1):
                    os.dup2(fd, target)
                loaded = engine.load(artifact)
                loaded.check()
                loaded.run(Grants([b"program"], [], []))
            except BaseException as error:
                os.write(streams[1], repr(error).encode())
                os._exit(99)
        _, status = os.waitpid(child, 0)
        output, said = (os.pread(fd, _PAGE, 0) for fd in streams)
        return _Outcome(os.waitstatus_to_exitcode(status), output, said.partition(b"\n")[0])
    finally:
        for fd in streams:
            os.close(fd)


def _difference(one: _Outcome, other: _Outcome) -> str:
    if one.output == other.output or not (one.output and other.output):
        return f"{one.status} {one.reason!r} against {other.status} {other.reason!r}"
    pairs = enumerate(zip(one.output, other.output, strict=False))
    where = [at + 16 for at, (left, right) in pairs if left != right]
    return f"the memory differs at {where[:20]}"
