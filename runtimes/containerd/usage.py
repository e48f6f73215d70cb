"""What a cgroup has used: cgroup v1, v1 with v2 beside it, and v2.

Source: Documentation/admin-guide/cgroup-v1 (cpuacct, memory, pids, blkio-controller) and
cgroup-v2.rst. All figures are of the cgroup and those below it.
"""

from pathlib import Path
from typing import Any

from runtimes.containerd import cgroups

_NONE = 1 << 60  # v1 writes "no limit" as the largest multiple of a page


def read(path: str) -> dict[str, Any] | None:
    """Return the counted fields of cpi.views.Usage for a cgroup, None for one that is gone."""
    try:
        return _read_v2(path) if cgroups.is_v2() else _read_v1(path)
    except OSError:  # ENOENT, or ENODEV: removed while it was read
        return None


def _read_v2(path: str) -> dict[str, Any]:
    folder = cgroups.folder("", path)
    memory = _number(folder / "memory.current")
    read, written = 0, 0
    for line in _lines(folder / "io.stat"):
        pairs = dict(word.split("=", 1) for word in line.split()[1:] if "=" in word)
        read += int(pairs.get("rbytes", 0))
        written += int(pairs.get("wbytes", 0))
    return {
        "cpu": _usec((folder / "cpu.stat").read_text()) / 1e6,
        "memory": _without_cache(memory, _fields(folder / "memory.stat"), "inactive_file"),
        "memory_limit": _number(folder / "memory.max"),
        "pids": _number(folder / "pids.current"),
        "read": read,
        "written": written,
    }


def _read_v1(path: str) -> dict[str, Any]:
    memory = cgroups.folder("memory", path)
    limit = _number(memory / "memory.limit_in_bytes")
    read, written = 0, 0
    for line in _lines(cgroups.folder("blkio", path) / "blkio.throttle.io_service_bytes_recursive"):
        words = line.split()
        if len(words) == 3:  # "8:0 Read 4096"; the last line is "Total 4096"
            read += int(words[2]) if words[1] == "Read" else 0
            written += int(words[2]) if words[1] == "Write" else 0
    return {
        "cpu": int((cgroups.folder("cpuacct", path) / "cpuacct.usage").read_text()) / 1e9,
        "memory": _without_cache(
            _number(memory / "memory.usage_in_bytes"),
            _fields(memory / "memory.stat"),
            "total_inactive_file",
        ),
        "memory_limit": None if limit is None or limit >= _NONE else limit,
        "pids": _number(cgroups.folder("pids", path) / "pids.current"),
        "read": read,
        "written": written,
    }


def _without_cache(memory: int | None, fields: dict[str, int], inactive: str) -> int | None:
    """As kubelet and docker count: file cache that nobody used lately is free at any time."""
    return None if memory is None else max(0, memory - fields.get(inactive, 0))


def _number(path: Path) -> int | None:
    """A number, None for "max" or a controller that is not there."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _usec(text: str) -> int:
    return next(int(line.split()[1]) for line in text.splitlines() if "usage_usec" in line)


def _fields(path: Path) -> dict[str, int]:
    return {words[0]: int(words[1]) for line in _lines(path) if len(words := line.split()) == 2}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except FileNotFoundError:
        return []
