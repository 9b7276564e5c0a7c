"""Resource limits and the out-of-memory score of a process (library)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from oci.decoding import SpecError
from oci.runtime import Rlimit
from shim.linux import procfs
from shim.linux.credentials import RLIMITS, set_rlimit

_OOM_SCORES: Final = range(-1000, 1001)


def check_rlimits(rlimits: Sequence[Rlimit]) -> None:
    """Raise SpecError for a limit that is unknown, given twice, or makes no sense."""
    seen: set[str] = set()
    for index, limit in enumerate(rlimits):
        where = f"process.rlimits[{index}]"
        if limit.type not in RLIMITS:
            raise SpecError(f"{where}.type: unknown limit {limit.type!r}")
        if limit.type in seen:
            raise SpecError(f"{where}.type: {limit.type} is there twice")
        if limit.hard >= 2**64 or limit.soft > limit.hard:
            raise SpecError(
                f"{where}: {limit.type}: soft {limit.soft} and hard {limit.hard} are no limits"
            )
        seen.add(limit.type)


def set_rlimits(rlimits: Sequence[Rlimit]) -> None:
    """Apply `process.rlimits` to this process. Raises OSError naming the limit.

    They hold at once: for what is still to be set up, too.
    """
    for limit in rlimits:
        set_rlimit(limit.type, limit.soft, limit.hard)


def set_oom_score_adj(score: int, proc: int) -> None:
    """Apply `process.oomScoreAdj`. `proc` is from `procfs.open_proc`.

    Raises SpecError; OSError EACCES for a score below the one this process was born with, without
    CAP_SYS_RESOURCE.
    """
    if score not in _OOM_SCORES:
        raise SpecError(f"process.oomScoreAdj: {score} is not in -1000..1000")
    try:
        procfs.write(proc, "self/oom_score_adj", str(score))
    except OSError as e:
        raise OSError(e.errno, e.strerror, "process.oomScoreAdj") from None
