"""Kernel limits that all VMs of a host share, and what a number of VMs needs of each.

A table for `bosh-cpi setup`, which raises them, and for `bosh-cpi doctor`, which compares them.
cpi.host.headroom tells how much of them is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PROC_SYS = Path("/proc/sys")


@dataclass(frozen=True)
class Limit:
    """One sysctl. base: what the host itself needs; per_vm: what a VM may need besides.

    maximum: the largest value that the kernel takes, 0 for any. module: the kernel module that the
    sysctl comes with, "" for none.
    """

    sysctl: str
    base: int
    per_vm: int
    of: str
    maximum: int = 0
    module: str = ""

    @property
    def path(self) -> Path:
        """Return its file in /proc/sys."""
        return PROC_SYS / self.sysctl.replace(".", "/")

    def needed(self, vms: int) -> int:
        """Return the value that this number of VMs needs."""
        value = self.base + vms * self.per_vm
        return min(value, self.maximum) if self.maximum else value

    def current(self) -> int | None:
        """Return the kernel's value; None where it has no such limit, or none in this namespace."""
        try:
            return int(self.path.read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return None


INOTIFY_INSTANCES = Limit("fs.inotify.max_user_instances", 128, 16, "inotify instances of root")
INOTIFY_WATCHES = Limit("fs.inotify.max_user_watches", 8192, 1024, "inotify watches of root")
PID_MAX = Limit("kernel.pid_max", 32768, 512, "process and thread IDs", maximum=1 << 22)
THREADS_MAX = Limit("kernel.threads-max", 16384, 512, "threads")
FILE_MAX = Limit("fs.file-max", 65536, 4096, "open files")
AIO_MAX = Limit("fs.aio-max-nr", 65536, 4096, "asynchronous I/O requests, which databases reserve")
# Each VM's console, each shell in it. 1024 are for the host alone (kernel.pty.reserve).
TERMINALS = Limit("kernel.pty.max", 4096, 8, "pseudoterminals")
# runc gives each container a session keyring, systemd each service.
ROOT_KEYS = Limit("kernel.keys.root_maxkeys", 1000, 100, "keys of root")
ROOT_KEY_BYTES = Limit("kernel.keys.root_maxbytes", 25_000, 10_000, "bytes of root's keys")
KEYS = Limit("kernel.keys.maxkeys", 200, 20, "keys of a user, such as vcap in all VMs")
KEY_BYTES = Limit("kernel.keys.maxbytes", 20_000, 2000, "bytes of a user's keys")
# One table for all network namespaces: each VM has its neighbours there, and the host has the VMs.
NEIGHBOURS = Limit("net.ipv4.neigh.default.gc_thresh3", 1024, 16, "neighbours (IPv4)")
NEIGHBOURS_6 = Limit("net.ipv6.neigh.default.gc_thresh3", 1024, 16, "neighbours (IPv6)")
CONNECTIONS = Limit(
    "net.netfilter.nf_conntrack_max", 65536, 1024, "tracked connections", module="nf_conntrack"
)

LIMITS = (
    INOTIFY_INSTANCES,
    INOTIFY_WATCHES,
    PID_MAX,
    THREADS_MAX,
    FILE_MAX,
    AIO_MAX,
    TERMINALS,
    ROOT_KEYS,
    ROOT_KEY_BYTES,
    KEYS,
    KEY_BYTES,
    NEIGHBOURS,
    NEIGHBOURS_6,
    CONNECTIONS,
)


def sysctls(max_vms: int) -> dict[str, int]:
    """Return the value of each sysctl that this number of VMs needs.

    The kernel's own values may be higher already.
    """
    return {limit.sysctl: limit.needed(max_vms) for limit in LIMITS}
