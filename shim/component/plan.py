"""A plan: how a component is linked, as a list of steps without a decision in them (library).

Made in the compiler (`planning`), kept with the artifacts of the core modules, followed in the
guest (`linker`). Whatever a component nests is flat here: all its instances, aliases and types are
resolved, and what is left are core modules to instantiate and core functions to make.

Everything that is referred to has a number: the place in one of the lists of the plan. A plan is
made of hostile input, by a process that may have been taken over: who follows it checks them.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

FORMAT: Final = 1
"""What a plan's key in the cache depends on, besides the component."""


class _Item(msgspec.Struct, frozen=True, array_like=True, tag=True, tag_field="what"):
    """A part of a plan, encoded without names."""


class Type(msgspec.Struct, frozen=True, array_like=True):
    """A value type. `parts` are numbers of types before it, -1 for none.

    | kind | labels | parts | number |
    | --- | --- | --- | --- |
    | a primitive's name, `string`, `error-context` | | | |
    | `list` | | element | length, 0 where it is not fixed |
    | `map` | | key, value | |
    | `record`, `variant` | of fields or cases | their types | |
    | `tuple`, `option` | | its types | |
    | `result` | | ok, error | |
    | `enum`, `flags` | its labels | | |
    | `own`, `borrow` | | | of the resource |
    | `stream`, `future` | | element | |
    """

    kind: str
    parts: list[int] = []
    labels: list[str] = []
    number: int = 0


class Function(msgspec.Struct, frozen=True, array_like=True):
    """A function's type: names and types of parameters, the type of the result or -1."""

    names: list[str]
    params: list[int]
    result: int
    is_async: bool = False


class Module(msgspec.Struct, frozen=True, array_like=True):
    """Where a core module is in the component: its offset and length, in bytes."""

    offset: int
    length: int


class HostResource(_Item, frozen=True, tag="host"):
    """A resource of an interface that the host provides."""

    interface: str
    name: str


class OwnResource(_Item, frozen=True, tag="own"):
    """A resource that a component instance defines. Its destructor: a core function."""

    instance: int
    drop: Item | None = None


Resource: TypeAlias = HostResource | OwnResource


class Import(msgspec.Struct, frozen=True, array_like=True):
    """A function that the host provides: of an interface, or where that is empty of the world."""

    interface: str
    name: str
    type: int
    """The number of its function type, as the component has it."""


class Export(_Item, frozen=True, tag="e"):
    """What an instance of a core module exports."""

    instance: int
    """The number of the step that instantiated it, counted without the others."""
    name: str


class Made(_Item, frozen=True, tag="m"):
    """A core function that is made: the number of it in `functions`."""

    function: int


Item: TypeAlias = Export | Made


class Options(msgspec.Struct, frozen=True, array_like=True):
    """Canonical options."""

    memory: Export | None = None
    realloc: Item | None = None
    post_return: Item | None = None
    callback: Item | None = None
    encoding: str = "utf8"
    is_async: bool = False


class Lift(msgspec.Struct, frozen=True, array_like=True):
    """A component's function: what implements it, its type, and the instance it belongs to."""

    core: Item
    type: int
    instance: int
    options: Options


class Lower(_Item, frozen=True, tag="lower"):
    """A core function that calls a component's function, for an instance.

    `imported` is a number of `imports`, or -1, and then `lifted` is one of `lifts`.
    """

    instance: int
    imported: int
    lifted: int
    options: Options


class BuiltIn(_Item, frozen=True, tag="builtin"):
    """A built-in core function, for an instance, by its name in the text format.

    What it is about: a resource, a type (of `stream` or `future`, or the result of `task.return`,
    -1 for none), a flag (`async`, `cancellable`), a number (of a context slot).
    """

    instance: int
    name: str
    resource: int = -1
    type: int = -1
    flag: bool = False
    number: int = 0
    options: Options = Options()


CoreFunction: TypeAlias = Lower | BuiltIn


class Signature(msgspec.Struct, frozen=True, array_like=True):
    """A core function to make, and its type in the names of wasm's types."""

    function: CoreFunction
    params: list[str]
    results: list[str]


class Instantiate(msgspec.Struct, frozen=True, array_like=True):
    """Instantiate a core module, with what it imports in the order of its imports.

    `instance` is the component instance during which its start function runs.
    """

    module: int
    imports: list[Item]
    instance: int


class ExportedFunction(_Item, frozen=True, tag="func"):
    """A function: a number of `lifts`, or where that is -1 of `imports`."""

    lifted: int
    imported: int = -1


class ExportedInstance(_Item, frozen=True, tag="instance"):
    """An instance, which is an interface where the name is one's. Types are left out."""

    exports: dict[str, Exported]


class ExportedOther(_Item, frozen=True, tag="other"):
    """What cannot be called: a component, a core module."""

    kind: str


Exported: TypeAlias = ExportedFunction | ExportedInstance | ExportedOther


class Plan(msgspec.Struct, frozen=True, array_like=True):
    """How a component is linked."""

    modules: list[Module]
    types: list[Type]
    function_types: list[Function]
    resources: list[Resource]
    instances: list[int]
    """The component instances: for each the number of the one it is nested in, -1 for the first."""
    imports: list[Import]
    lifts: list[Lift]
    functions: list[Signature]
    steps: list[Instantiate]
    exports: dict[str, Exported]


DecodeError: Final = msgspec.MsgspecError
decode: Final = msgspec.msgpack.Decoder(Plan).decode
encode: Final = msgspec.msgpack.Encoder().encode
