"""Error numbers of preview 1, and how Linux's become them (library; runs in the guest)."""

from __future__ import annotations

import errno as _linux
from typing import Final

SUCCESS: Final = 0

# In the order of the specification: the position is the number.
_LIST: Final = (
    "SUCCESS 2BIG ACCES ADDRINUSE ADDRNOTAVAIL AFNOSUPPORT AGAIN ALREADY BADF BADMSG BUSY CANCELED "
    "CHILD CONNABORTED CONNREFUSED CONNRESET DEADLK DESTADDRREQ DOM DQUOT EXIST FAULT FBIG "
    "HOSTUNREACH IDRM ILSEQ INPROGRESS INTR INVAL IO ISCONN ISDIR LOOP MFILE MLINK MSGSIZE "
    "MULTIHOP NAMETOOLONG NETDOWN NETRESET NETUNREACH NFILE NOBUFS NODEV NOENT NOEXEC NOLCK NOLINK "
    "NOMEM NOMSG NOPROTOOPT NOSPC NOSYS NOTCONN NOTDIR NOTEMPTY NOTRECOVERABLE NOTSOCK NOTSUP "
    "NOTTY NXIO OVERFLOW OWNERDEAD PERM PIPE PROTO PROTONOSUPPORT PROTOTYPE RANGE ROFS SPIPE SRCH "
    "STALE TIMEDOUT TXTBSY XDEV NOTCAPABLE"
)
_NAMES: Final = _LIST.split()

ACCES: Final = _NAMES.index("ACCES")
AFNOSUPPORT: Final = _NAMES.index("AFNOSUPPORT")
AGAIN: Final = _NAMES.index("AGAIN")
BADF: Final = _NAMES.index("BADF")
EXIST: Final = _NAMES.index("EXIST")
FAULT: Final = _NAMES.index("FAULT")
INVAL: Final = _NAMES.index("INVAL")
IO: Final = _NAMES.index("IO")
NAMETOOLONG: Final = _NAMES.index("NAMETOOLONG")
NOENT: Final = _NAMES.index("NOENT")
NOMEM: Final = _NAMES.index("NOMEM")
NOSYS: Final = _NAMES.index("NOSYS")
NOTCAPABLE: Final = _NAMES.index("NOTCAPABLE")
NOTDIR: Final = _NAMES.index("NOTDIR")
NOTSOCK: Final = _NAMES.index("NOTSOCK")
NOTSUP: Final = _NAMES.index("NOTSUP")
OVERFLOW: Final = _NAMES.index("OVERFLOW")
ROFS: Final = _NAMES.index("ROFS")
SPIPE: Final = _NAMES.index("SPIPE")

# What WasmEdge adds for sock_getaddrinfo, after the last number of preview 1.
AI_ADDRFAMILY: Final = 77
AI_AGAIN: Final = 78
AI_BADFLAG: Final = 79
AI_FAIL: Final = 80
AI_FAMILY: Final = 81
AI_MEMORY: Final = 82
AI_NODATA: Final = 83
AI_NONAME: Final = 84
AI_SERVICE: Final = 85
AI_SOCKTYPE: Final = 86

# Linux numbers without a WASI name (ENODATA and the like) become EIO.
FROM_LINUX: Final = {
    getattr(_linux, f"E{name}"): number
    for number, name in enumerate(_NAMES)
    if hasattr(_linux, f"E{name}")
} | {_linux.EOPNOTSUPP: NOTSUP}


class Refused(Exception):
    """A function's answer is this error number (first argument) instead of success."""
