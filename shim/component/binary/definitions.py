"""What a component's binary says, definition by definition (library; runs in the compiler).

Binary.md has a rule for each. Names of sorts are those of the text format. An index is a place in
the index space of its sort at that point, and has not been looked at.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from shim.component.binary.core import CoreExtern, CoreFunction

Reference: TypeAlias = "int | str"
"""A value type: the index of a type, or the name of a primitive one."""


class _Read(msgspec.Struct, frozen=True):
    """Something that was read."""


class Name(_Read, frozen=True):
    """The name of an import or export, with the attributes that say more of it."""

    text: str
    implements: str | None = None
    version_suffix: str | None = None


class Extern(_Read, frozen=True):
    """The type of an import or export: the index of a type, -1 for a new resource."""

    sort: str
    index: int


class Target(_Read, frozen=True):
    """Something that there is, and the name that it goes by here."""

    name: Name
    sort: str
    index: int


class ValueType(_Read, frozen=True):
    """As in the plan, but for the parts, which are references."""

    kind: str
    parts: list[Reference | None] = []
    labels: list[str] = []
    number: int = 0


class FunctionType(_Read, frozen=True):
    """As in the plan, but for references."""

    names: list[str]
    params: list[Reference]
    result: Reference | None
    is_async: bool


class ResourceType(_Read, frozen=True):
    """A new type of resources, and the core function that destroys one."""

    representation: str
    destructor: int | None


class InstanceType(_Read, frozen=True):
    """The type of an instance."""

    declarations: list[Placed]


class ComponentType(_Read, frozen=True):
    """The type of a component: one of an instance, and imports between the declarations."""

    declarations: list[Placed]


class ModuleImport(_Read, frozen=True):
    """A module of that type may import this."""

    module: str
    name: str
    extern: CoreExtern


class ModuleExport(_Read, frozen=True):
    """A module of that type exports this."""

    name: str
    extern: CoreExtern


class ModuleType(_Read, frozen=True):
    """The type of a core module. It has an index space of core types for itself."""

    declarations: list[ModuleImport | ModuleExport | CoreTypeDefinition | OuterAlias]


class TypeDefinition(_Read, frozen=True):
    """A type."""

    type: ValueType | FunctionType | ResourceType | InstanceType | ComponentType


class CoreTypeDefinition(_Read, frozen=True):
    """A core type, or several; None are those that are of no function."""

    type: list[CoreFunction | None] | ModuleType


class CoreModule(_Read, frozen=True):
    """A core module, by where it is."""

    offset: int
    length: int


class CoreInstantiation(_Read, frozen=True):
    """An instance of a core module. Arguments are core instances, by the module's first names."""

    module: int
    arguments: list[tuple[str, int]]


class CoreExports(_Read, frozen=True):
    """A core instance made of what there is: name, sort and index."""

    exports: list[tuple[str, str, int]]


class Component(_Read, frozen=True):
    """A component."""

    definitions: list[Placed]


class Instantiation(_Read, frozen=True):
    """An instance of a component."""

    component: int
    arguments: list[Target]


class Exports(_Read, frozen=True):
    """An instance made of what there is."""

    exports: list[Target]


class ExportAlias(_Read, frozen=True):
    """What an instance exports."""

    sort: str
    instance: int
    name: str


class CoreExportAlias(_Read, frozen=True):
    """What a core instance exports."""

    sort: str
    instance: int
    name: str


class OuterAlias(_Read, frozen=True):
    """Something of the component or type around this one, so many of them further out."""

    sort: str
    count: int
    index: int


class Option(_Read, frozen=True):
    """A canonical option; the index is 0 where it has none."""

    name: str
    index: int = 0


class Lift(_Read, frozen=True):
    """A function made of a core function."""

    function: int
    options: list[Option]
    type: int


class Lower(_Read, frozen=True):
    """A core function made of a function."""

    function: int
    options: list[Option]


class BuiltIn(_Read, frozen=True):
    """A core function made of nothing. `type` is what it is about, `number` a context's slot.

    For a new thread `type` is a core function's, which is in a core table.
    """

    name: str
    type: Reference | None = None
    options: list[Option] = []
    flag: bool = False
    number: int = 0
    table: int = -1


class Import(_Read, frozen=True):
    """An import."""

    name: Name
    extern: Extern


class Export(_Read, frozen=True):
    """An export. With a type, that is all that is to be known of it."""

    target: Target
    extern: Extern | None


class ExportDeclaration(_Read, frozen=True):
    """An export in a type: there is nothing yet that it refers to."""

    name: Name
    extern: Extern


Definition: TypeAlias = (
    "TypeDefinition | CoreTypeDefinition | CoreModule | CoreInstantiation | CoreExports | Component"
    " | Instantiation | Exports | ExportAlias | CoreExportAlias | OuterAlias | Lift | Lower"
    " | BuiltIn | Import | Export | ExportDeclaration"
)


class Placed(_Read, frozen=True):
    """A definition, what it is called in a message, and where it is in the binary."""

    what: str
    offset: int
    definition: Definition
