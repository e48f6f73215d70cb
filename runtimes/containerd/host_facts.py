"""What this host and its containerd can do, asked of the kernel."""

import os
import socket
import stat
import struct
from pathlib import Path
from typing import Any

# linux/capability.h, in the order of their numbers.
_NAMES = (  # noqa: SIM905 - one word a line would hide their order
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO "
    "SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME "
    "SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG "
    "WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
).split()

# What jobs that run containers or VMs themselves open, where the host has it.
_DEVICES = ("fuse", "kvm", "loop-control", "net/tun", *(f"loop{number}" for number in range(16)))


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
        return _effective(pid)
    except OSError:
        return _effective("self")  # it listens in another process namespace


def _effective(process: str) -> frozenset[str]:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            mask = int(line.split()[1], 16)
            return frozenset(
                f"CAP_{name}" for number, name in enumerate(_NAMES) if mask >> number & 1
            )
    return frozenset()


def devices() -> list[dict[str, Any]]:
    """Return the OCI devices for a privileged VM."""
    nodes = []
    for name in _DEVICES:
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
