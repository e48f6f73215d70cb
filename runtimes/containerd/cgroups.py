"""The cgroup above a VM's own: its limits, out of the VM's reach, and its usage.

A VM's systemd must be able to write its cgroup, and on cgroup v1 that includes the files of its
limits and device rules. So these are set one level up: `<parent>/<vm cid>`, with the container in
`<parent>/<vm cid>/vm`, which is all that its cgroup namespace shows. Works on v1, on v1 with v2
beside it, and on v2. Source: Documentation/admin-guide/cgroup-v1 (also cpuacct, memory, pids and
blkio-controller) and cgroup-v2.rst.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from cpi.errors import CloudError
from runtimes.containerd.oci_spec import CPU_PERIOD, Limits

CHILD = "vm"
_ROOT = Path("/sys/fs/cgroup")
_NO_LIMIT = 1 << 60  # v1 writes "no limit" as the largest multiple of a page

# What runc allows to every container (libcontainer/specconv, AllowedDevices): making any node, and
# null, zero, full, random, urandom, tty, console, ptmx, tun and pseudo terminals; and fuse, which
# only VMs in user namespaces get.
_NODES = ("1:3", "1:5", "1:7", "1:8", "1:9", "5:0", "5:1", "5:2", "10:200", "10:229", "136:*")
_DELEGATED = ("cgroup.procs", "tasks", "cgroup.threads", "cgroup.subtree_control")
_DEVICES = ("c *:* m", "b *:* m", *(f"c {node} rwm" for node in _NODES))


def path_of(parent: str, vm_cid: str) -> str:
    """Return the cgroup of a VM, below the configured parent."""
    return f"{parent.rstrip('/')}/{vm_cid}"


def create(path: str, limits: Limits) -> None:
    """Make the cgroup `path` ("/bosh/<vm cid>") in every hierarchy and set its limits.

    Raises CloudError when the kernel refuses one.
    """
    try:
        if is_v2():
            _create_v2(path, limits)
        else:
            _create_v1(path, limits)
    except OSError as error:
        raise CloudError(
            f"cannot limit the VM's cgroup: {error.filename}: {error.strerror}"
        ) from None


def is_v2() -> bool:
    """Tell whether the host has only cgroup v2."""
    return (_ROOT / "cgroup.controllers").exists()


def accounts_swap() -> bool:
    """Tell whether a memory limit can cover swap: always on v2, if enabled on v1."""
    return is_v2() or (folder_of("memory") / "memory.memsw.limit_in_bytes").exists()


def folder_of(controller: str, path: str = "/") -> Path:
    """Return a cgroup's folder for a controller of v1, "" for v2's own hierarchy."""
    return _ROOT / controller / path.lstrip("/")


def exists(path: str) -> bool:
    """Tell whether there is such a cgroup in any hierarchy."""
    return any((root / path.lstrip("/")).is_dir() for root in _hierarchies())


def remove(path: str) -> None:
    """Remove a cgroup without processes, and those below it, if it exists."""
    for root in _hierarchies():
        for folder, _, _ in os.walk(root / path.lstrip("/"), topdown=False):
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                continue


def empty_children(parent: str) -> list[str]:
    """Return the names of cgroups directly below `parent` that no process is in."""
    empty: dict[str, bool] = {}
    for root in _hierarchies():
        folder = root / parent.strip("/")
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.is_dir():
                empty[path.name] = empty.get(path.name, True) and not _has_processes(path)
    return sorted(name for name, is_empty in empty.items() if is_empty)


def give(path: str, owner: int) -> None:
    """Let a user's processes make cgroups below a VM's own, which must exist.

    The limits above stay out of reach. Source: cgroup-v2.rst, "Delegation".
    """
    for root in _hierarchies():
        folder = root / path.lstrip("/") / CHILD
        for name in ("", *_DELEGATED):
            with suppress(FileNotFoundError):
                os.chown(folder / name, owner, owner)


def _has_processes(path: Path) -> bool:
    return any(file.read_text() for file in path.rglob("cgroup.procs"))


def _hierarchies() -> Iterator[Path]:
    """Yield where cgroups are mounted: one folder on v2, one for each controller on v1."""
    if is_v2():
        yield _ROOT
        return
    for folder in sorted(_ROOT.iterdir()):
        if folder.is_dir() and not folder.is_symlink():
            yield folder


def _create_v1(path: str, limits: Limits) -> None:
    for controller, files in _files_v1(limits).items():
        folder = folder_of(controller, path)
        if not (_ROOT / controller).is_dir():
            raise CloudError(f"the host has no cgroup controller {controller}")
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in files:
            if name == "memory.memsw.limit_in_bytes" and not (folder / name).exists():
                continue  # the kernel does not count swap
            _write(folder / name, value)


def _files_v1(limits: Limits) -> dict[str, list[tuple[str, str]]]:
    files: dict[str, list[tuple[str, str]]] = {}
    if limits.memory is not None:
        # Memory first: it may not be larger than memory and swap together.
        names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
        files["memory"] = [(name, str(limits.memory)) for name in names]
    if limits.pids is not None:
        files["pids"] = [("pids.max", str(limits.pids))]
    if limits.cpu is not None:
        quota = str(int(limits.cpu * CPU_PERIOD))
        files["cpu"] = [("cpu.cfs_period_us", str(CPU_PERIOD)), ("cpu.cfs_quota_us", quota)]
    if not limits.privileged:
        files["devices"] = [("devices.deny", "a"), *(("devices.allow", rule) for rule in _DEVICES)]
    return files


def _create_v2(path: str, limits: Limits) -> None:
    files = []
    if limits.memory is not None:
        files += [("memory.max", str(limits.memory)), ("memory.swap.max", "0")]
    if limits.pids is not None:
        files.append(("pids.max", str(limits.pids)))
    if limits.cpu is not None:
        files.append(("cpu.max", f"{int(limits.cpu * CPU_PERIOD)} {CPU_PERIOD}"))
    folder = _ROOT
    for part in path.strip("/").split("/"):
        # A controller works in a cgroup when its parent passes it on.
        for controller in sorted({name.split(".")[0] for name, _ in files}):
            _write(folder / "cgroup.subtree_control", f"+{controller}")
        folder /= part
        folder.mkdir(exist_ok=True)
    for name, value in files:
        if name == "memory.swap.max" and not (folder / name).exists():
            continue  # a kernel without swap
        _write(folder / name, value)


def _write(path: Path, value: str) -> None:
    with open(path, "w") as file:
        file.write(value)


# What a cgroup and those below it have used


def usage(path: str) -> dict[str, Any] | None:
    """Return the counted fields of cpi.views.Usage for a cgroup, None for one that is gone."""
    try:
        return _usage_v2(path) if is_v2() else _usage_v1(path)
    except OSError:  # ENOENT, or ENODEV: removed while it was read
        return None


def _usage_v2(path: str) -> dict[str, Any]:
    folder = folder_of("", path)
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


def _usage_v1(path: str) -> dict[str, Any]:
    memory = folder_of("memory", path)
    limit = _number(memory / "memory.limit_in_bytes")
    read, written = 0, 0
    for line in _lines(folder_of("blkio", path) / "blkio.throttle.io_service_bytes_recursive"):
        words = line.split()
        if len(words) == 3:  # "8:0 Read 4096"; the last line is "Total 4096"
            read += int(words[2]) if words[1] == "Read" else 0
            written += int(words[2]) if words[1] == "Write" else 0
    return {
        "cpu": int((folder_of("cpuacct", path) / "cpuacct.usage").read_text()) / 1e9,
        "memory": _without_cache(
            _number(memory / "memory.usage_in_bytes"),
            _fields(memory / "memory.stat"),
            "total_inactive_file",
        ),
        "memory_limit": None if limit is None or limit >= _NO_LIMIT else limit,
        "pids": _number(folder_of("pids", path) / "pids.current"),
        "read": read,
        "written": written,
    }


def _without_cache(memory: int | None, fields: dict[str, int], inactive: str) -> int | None:
    """Return memory without inactive file cache, as kubelet and docker count it."""
    return None if memory is None else max(0, memory - fields.get(inactive, 0))


def _number(path: Path) -> int | None:
    """Read a number, None for "max" or a controller that is not there."""
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
