"""What this host and its containerd can do, asked of the kernel."""

import os
import socket
import stat
import struct
from typing import Any

from cpi.host.syscalls import effective_capabilities

# What jobs that run containers or VMs themselves open, where the host has it.
_DEVICES = ("fuse", "kvm", "loop-control", "net/tun", *(f"loop{number}" for number in range(16)))

_CONTAINED_DEVICES = ("fuse", "net/tun")  # safe for everybody: their files are the opener's own


def capabilities_of_server(address: str) -> frozenset[str]:
    """Return the capabilities of the process that listens on a unix socket.

    A container can be given no others: some hosts lack a few, and asking for one fails.
    """
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(address)
            peer = connection.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
            )
        pid = str(struct.unpack("3i", peer)[0])
        return effective_capabilities(pid)
    except OSError:
        return effective_capabilities()  # it listens in another process namespace


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
