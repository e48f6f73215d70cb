"""The OCI runtime spec of a VM, as a pure function.

Source: opencontainers/runtime-spec 1.0, config.md and config-linux.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpi.host.id_maps import SIZE
from cpi.host.kernel import CAPABILITIES as ALL_CAPABILITIES
from cpi.model import VMProperties
from runtimes.containerd import seccomp

Spec = dict[str, Any]

# What BOSH's agent and ordinary jobs need. SYS_ADMIN: the agent mounts; NET_ADMIN: its firewall
# rules; SYS_RESOURCE, SYS_NICE: limits that jobs set themselves. Not here, since they reach the
# host: SYS_MODULE, SYS_RAWIO, SYS_BOOT, SYS_TIME, SYSLOG, DAC_READ_SEARCH, BPF, PERFMON, MAC_ADMIN.
CAPABILITIES = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CAP_SYS_CHROOT",
    "CAP_SYS_NICE",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RESOURCE",
)

_MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
# Of /proc/sys only `net` may be written: it is the VM's own network's.
_READ_ONLY = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys/abi",
    "/proc/sys/debug",
    "/proc/sys/dev",
    "/proc/sys/fs",
    "/proc/sys/kernel",
    "/proc/sys/user",
    "/proc/sys/vm",
    "/proc/sysrq-trigger",
)

# System calls that SYS_ADMIN would allow and that concern the host as a whole.
_DENIED_CALLS = (
    "acct",
    "bpf",
    "delete_module",
    "finit_module",
    "init_module",
    "kexec_file_load",
    "kexec_load",
    "open_by_handle_at",
    "perf_event_open",
    "quotactl",
    "swapoff",
    "swapon",
    "syslog",
    "userfaultfd",
)

_PTS = ("ptmxmode=0666", "mode=0620", "gid=5")

_DISKS = ("rbind", "ro", "nosuid", "nodev", "noexec", "rslave")

CPU_PERIOD = 100_000  # microseconds, the kernel's default

UNLIMITED = (1 << 64) - 1  # RLIM_INFINITY, getrlimit(2)
# Soft and hard limits of processes, where containerd's own are not those of a machine: its unit has
# LimitNOFILE=infinity, with which programs that close all descriptors take minutes, and
# LimitCORE=infinity, with which a job that crashes fills its disk. The soft ones are the kernel's
# defaults. Jobs raise their own up to the hard ones, by `ulimit -n`, also in a user namespace.
# Processes are counted by user ID, so vcap's of all VMs together: the limit is the cgroup's.
_RLIMITS = {
    "RLIMIT_CORE": (0, UNLIMITED),
    "RLIMIT_NOFILE": (1024, 1 << 20),
    "RLIMIT_NPROC": (UNLIMITED, UNLIMITED),
}
RLIMITS = tuple(_RLIMITS)


@dataclass(frozen=True)
class Limits:
    """cpu: CPUs; memory: bytes; pids: processes and threads; None: no limit.

    privileged: any device may be used.
    """

    cpu: float | None = None
    memory: int | None = None
    pids: int | None = None
    privileged: bool = False

    @classmethod
    def of(cls, properties: VMProperties) -> "Limits":
        """Return the limits that cloud_properties ask for."""
        memory = None if properties.memory is None else properties.memory << 20
        return cls(properties.cpu, memory, properties.pids, properties.privileged)


@dataclass(frozen=True)
class Ceiling:
    """What containerd's process has itself, and so the most that it can give a container.

    hard_limits: of RLIMITS, those that it cannot raise. oom_score_adj: the least that is certain
    to be accepted, 0 where it may set any.
    """

    capabilities: frozenset[str]
    hard_limits: Mapping[str, int] = field(default_factory=dict)
    oom_score_adj: int = 0


@dataclass(frozen=True)
class FolderMount:
    """A folder of the host that a VM gets besides its own."""

    destination: str
    source: Path
    read_only: bool


@dataclass(frozen=True)
class Container:
    """What the spec is rendered from.

    first_id: of the VM's user namespace, which is pinned at `user_namespace`; 0 for none. machine:
    as uname calls it.
    """

    hostname: str
    command: tuple[str, ...]
    namespace: Path
    cgroup: str
    data: Path
    disks: Path
    disk_folder: str
    ceiling: Ceiling
    systemd: bool
    limits: Limits = Limits()
    swap_accounting: bool = False
    devices: Sequence[Spec] = ()
    folders: Sequence[FolderMount] = ()
    first_id: int = 0
    user_namespace: Path | None = None
    machine: str = ""


def render(container: Container) -> Spec:
    """Return the spec of a VM."""
    spec: Spec = {
        "ociVersion": "1.0.2",
        "hostname": container.hostname,
        "root": {"path": "rootfs", "readonly": False},
        "process": {
            "args": list(container.command),
            "cwd": "/",
            # /dev/console, where init tells what no log has yet; see console_log.
            "terminal": True,
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                # systemd's own sign of a container; what it does not know is "some container".
                "container=oci",
            ],
            "user": {"uid": 0, "gid": 0},
            **_given(container.ceiling, container.limits.privileged, bool(container.first_id)),
        },
        "mounts": _mounts(container),
        "linux": {
            "cgroupsPath": container.cgroup,
            "namespaces": [
                {"type": "pid"},
                {"type": "ipc"},
                {"type": "uts"},
                {"type": "mount"},
                # A cgroup namespace makes the VM's cgroup look like the root to systemd.
                {"type": "cgroup"},
                {"type": "network", "path": str(container.namespace)},
            ],
            "resources": _resources(container),
        },
    }
    if container.first_id:
        _contain(spec, container)
    elif container.limits.privileged:
        spec["linux"]["devices"] = list(container.devices)
    else:
        spec["linux"]["maskedPaths"] = list(_MASKED)
        spec["linux"]["readonlyPaths"] = list(_READ_ONLY)
        spec["linux"]["seccomp"] = {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": list(_DENIED_CALLS), "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
        }
    return spec


def _contain(spec: Spec, container: Container) -> None:
    """Put a VM into its user namespace: root there has all rights over the VM, none elsewhere."""
    linux = spec["linux"]
    linux["namespaces"].insert(0, {"type": "user", "path": str(container.user_namespace)})
    ids = [{"containerID": 0, "hostID": container.first_id, "size": SIZE}]
    linux["uidMappings"], linux["gidMappings"] = ids, ids
    linux["devices"] = list(container.devices)
    linux["maskedPaths"] = list(_MASKED)
    # What a VM may write below /proc/sys the kernel decides: its own network's and IPC's settings.
    linux["readonlyPaths"] = [path for path in _READ_ONLY if not path.startswith("/proc/sys/")]
    linux["seccomp"] = seccomp.profile(container.machine)


def renew(spec: Spec, ceiling: Ceiling, devices: Sequence[Spec]) -> None:
    """Update a spec to what the host can give now.

    devices: for a privileged VM, or one in a user namespace.
    """
    privileged, contained = limits_of(spec).privileged, bool(first_id_of(spec))
    spec["process"].update(_given(ceiling, privileged, contained), terminal=True)
    if privileged or contained:
        spec["linux"]["devices"] = list(devices)


def _given(ceiling: Ceiling, privileged: bool, contained: bool) -> Spec:
    """Return the part of the process that depends on what containerd may give."""
    have = ceiling.capabilities
    if contained:  # a new user namespace has all, whatever containerd has (user_namespaces(7))
        have = frozenset(ALL_CAPABILITIES)
    names = sorted(have if privileged or contained else have & set(CAPABILITIES))
    return {
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), names),
        # containerd's unit has -999: what inherits that is killed last when the host is out of
        # memory, after all that the host itself needs.
        "oomScoreAdj": ceiling.oom_score_adj,
        "rlimits": [
            {"type": name, "soft": min(soft, most), "hard": most}
            for name, (soft, hard) in _RLIMITS.items()
            for most in [min(hard, ceiling.hard_limits.get(name, UNLIMITED))]
        ],
    }


def _mounts(container: Container) -> list[Spec]:
    system = "rw" if container.limits.privileged else "ro"
    # As on a machine with that much memory; programs size their caches by these.
    shared, run = _size(container.limits.memory, 0.5), _size(container.limits.memory, 0.2)
    mounts = [
        _mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", *_PTS),
        _mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", *shared),  # noqa: S108
        _mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        _mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", system),
        # The container's own cgroups, of whatever version the host has; never the host's tree.
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "rw"),
        bind("/var/vcap/data", container.data),
        # slave: disks that the host mounts later appear, what the VM mounts stays its own.
        # The other words are flags that it has, which a user namespace must not clear.
        _mount(container.disk_folder, "bind", str(container.disks), *_DISKS),
    ]
    if container.systemd:  # runit stemcells need their own folders in /run
        mounts.append(_mount("/run", "tmpfs", "tmpfs", "nosuid", "nodev", "mode=755", *run))
    return [*mounts, *(_folder(folder) for folder in container.folders)]


def _folder(folder: FolderMount) -> Spec:
    """Return the mount of a folder, without mounts below it, devices and setuid programs."""
    options = ("bind", "ro" if folder.read_only else "rw", "nosuid", "nodev", "rprivate")
    return _mount(folder.destination, "bind", str(folder.source), *options)


def bind(destination: str, source: Path) -> Spec:
    """Return the mount of a folder of the host, with mounts below it."""
    return _mount(destination, "bind", str(source), "rbind", "rw")


def _size(memory: int | None, share: float) -> tuple[str, ...]:
    """Return the size of a tmpfs, as a share of the VM's memory."""
    return () if memory is None else (f"size={int(memory * share)}",)


def _mount(destination: str, type_: str, source: str, *options: str) -> Spec:
    return {"destination": destination, "type": type_, "source": source, "options": list(options)}


def _resources(container: Container) -> Spec:
    limits = container.limits
    resources: Spec = {"devices": [{"allow": limits.privileged, "access": "rwm"}]}
    if limits.cpu is not None:
        resources["cpu"] = {"period": CPU_PERIOD, "quota": int(limits.cpu * CPU_PERIOD)}
    if limits.memory is not None:
        resources["memory"] = {"limit": limits.memory}
        if container.swap_accounting:
            resources["memory"]["swap"] = limits.memory  # memory and swap together
    if limits.pids is not None:
        resources["pids"] = {"limit": limits.pids}
    return resources


def has_systemd(spec: Spec) -> bool:
    """Tell whether a VM's init is systemd."""
    program: str = spec["process"]["args"][0]
    return program.rpartition("/")[2] in ("init", "systemd")


def first_id_of(spec: Spec) -> int:
    """Return the first id of a VM's user namespace, 0 for a VM without one."""
    mappings = spec["linux"].get("uidMappings")
    return int(mappings[0]["hostID"]) if mappings else 0


def limits_of(spec: Spec) -> Limits:
    """Return the limits that a spec was rendered with."""
    resources = spec["linux"]["resources"]
    quota = resources.get("cpu", {}).get("quota")
    return Limits(
        cpu=None if quota is None else quota / CPU_PERIOD,
        memory=resources.get("memory", {}).get("limit"),
        pids=resources.get("pids", {}).get("limit"),
        privileged=bool(resources["devices"][0]["allow"]),
    )
