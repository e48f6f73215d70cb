"""What this host and its containerd can do, asked of the kernel."""

import os
import resource
import socket
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

from cpi.host.syscalls import effective_capabilities
from runtimes.containerd.oci_spec import RLIMITS, UNLIMITED, Ceiling

# What jobs that run containers or VMs themselves open, where the host has it.
_DEVICES = ("fuse", "kvm", "loop-control", "net/tun", *(f"loop{number}" for number in range(16)))

_CONTAINED_DEVICES = ("fuse", "net/tun")  # safe for everybody: their files are the opener's own


_OOM_SCORE_ADJ_MAX = 1000  # linux/oom.h


def ceiling_of_server(address: str) -> Ceiling:
    """Return what the process that listens on a unix socket can give a container.

    Some hosts lack capabilities, or have lower limits, and asking for more fails.
    """
    try:
        return _ceiling(_server(address))
    except OSError:
        return _ceiling(os.getpid())  # it listens in another process namespace


def _server(address: str) -> int:
    """Return the process that listens on a unix socket. Raises OSError."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", peer)[0])


def _ceiling(pid: int) -> Ceiling:
    """Return what a process can give. Raises OSError."""
    capabilities = effective_capabilities(str(pid))
    limits: dict[str, int] = {}
    with suppress(OSError, ValueError):  # even who may raise limits cannot raise this one further
        limits["RLIMIT_NOFILE"] = int(Path("/proc/sys/fs/nr_open").read_text())
    if "CAP_SYS_RESOURCE" in capabilities:
        return Ceiling(capabilities, limits)
    for name in RLIMITS:
        hard = resource.prlimit(pid, getattr(resource, name))[1]
        if hard != resource.RLIM_INFINITY:
            limits[name] = min(hard, limits.get(name, UNLIMITED))
    own = int(Path(f"/proc/{pid}/oom_score_adj").read_text())
    # Its shim adds 1 (runtime/v2/shim, AdjustOOMScore), and may not be able to take that back.
    return Ceiling(capabilities, limits, 0 if own <= 0 else min(own + 1, _OOM_SCORE_ADJ_MAX))


def devices(*, privileged: bool) -> list[dict[str, Any]]:
    """Return the OCI devices for a privileged VM, or for one in a user namespace."""
    nodes = []
    for name in _DEVICES if privileged else _CONTAINED_DEVICES:
        try:
            status = os.stat(f"/dev/{name}")
        except OSError:
            continue
        if not stat.S_ISCHR(status.st_mode) and not stat.S_ISBLK(status.st_mode):
            continue
        nodes.append(
            {
                "path": f"/dev/{name}",
                "type": "c" if stat.S_ISCHR(status.st_mode) else "b",
                "major": os.major(status.st_rdev),
                "minor": os.minor(status.st_rdev),
                "fileMode": stat.S_IMODE(status.st_mode),
                "uid": 0,
                "gid": 0,
            }
        )
    return nodes
