"""Value types: their layout, and how a value of each crosses the boundary (library).

What a value is in Python (CanonicalABI.md, "Lifting and Lowering Values"):

    bool, integers, floats | bool, int, float
    char, string           | str
    list<u8>               | bytes-like; lifted, a view that holds until the guest runs again
    list, fixed or not     | list
    map                    | list of pairs
    record, tuple          | tuple, in the order of the fields
    variant                | (label, payload), where there is none None
    enum                   | label
    option                 | None or the payload; ("some", payload) where that may be None itself
    result                 | ("ok", payload) or ("error", payload)
    flags                  | frozenset of labels
    own, borrow            | what the resource is represented by: any object, or a guest's number
    stream, future         | the shared end, see `shim.component.streams`
"""

from shim.component.types.base import (
    MAX_FLAT,
    Context,
    FunctionType,
    ValueType,
)
from shim.component.types.compound import (
    Enum,
    Flags,
    Option,
    Record,
    Result,
    Tuple,
    Variant,
)
from shim.component.types.handles import (
    Borrow,
    ErrorContextType,
    Future,
    Own,
    Resource,
    Stream,
)
from shim.component.types.primitive import (
    BOOL,
    CHAR,
    F32,
    F64,
    PRIMITIVES,
    S8,
    S16,
    S32,
    S64,
    U8,
    U16,
    U32,
    U64,
)
from shim.component.types.sequences import STRING, FixedList, List, Map

__all__ = [
    "BOOL", "CHAR", "F32", "F64", "MAX_FLAT", "PRIMITIVES", "S8", "S16", "S32", "S64", "STRING",
    "U8", "U16", "U32", "U64", "Borrow", "Context", "Enum", "ErrorContextType", "FixedList",
    "Flags", "FunctionType", "Future", "List", "Map", "Option", "Own", "Record", "Resource",
    "Result", "Stream", "Tuple", "ValueType", "Variant",
]  # fmt: skip
