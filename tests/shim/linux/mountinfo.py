"""What /proc/PID/mountinfo says (proc_pid_mountinfo(5))."""

from __future__ import annotations


class Mount:
    """One mount."""

    def __init__(self, line: str) -> None:
        fields, _, filesystem = line.rstrip("\n").partition(" - ")
        self.id, self.parent, _, self.root, self.point, options, *self.propagation = fields.split()
        self.fstype, self.source, self.data = filesystem.split(" ", 2)
        self.options = set(options.split(","))


def mounts_at(path: object, pid: int | str = "self") -> list[Mount]:
    with open(f"/proc/{pid}/mountinfo") as file:
        return [m for m in map(Mount, file) if m.point == str(path)]


def mounted(path: object, pid: int | str = "self") -> Mount:
    return mounts_at(path, pid)[-1]
