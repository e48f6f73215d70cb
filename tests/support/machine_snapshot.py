"""Snapshots of the machine that tests run on, to find what they leak.

Other programs run on the machine meanwhile, perhaps another run of these tests. What is used by
a process that this run has not started is not a leak of this run.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from testing.hosts.private_host import cgroup_hierarchies

# Category -> name -> value, which is empty where only the name counts.
Snapshot = dict[str, dict[str, str]]

# In these categories, everything that existed before must still exist.
_LASTING = ("mount", "loop device", "network link")

# Prefixes of temporary files of this project and of programs that it starts.
_TEMPORARY_NAMES = (
    *("bosh-cpi", "debian-suite-", "stemcell-", "mmdebstrap.", "containerd-", "runc-"),
    *("docker-", "buildkit-", "libvirt", "qemu", "vbox", "oras"),
)
_TEMPORARY_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")

# The CPI's default folders.
_DEFAULT_FOLDERS = (
    "/var/lib/bosh-containerd-cpi",
    "/run/bosh-containerd-cpi",
    "/run/bosh-containerd-cpi.sock",
    "/var/vcap",
)

# Parts of /run in which the init system, its services and logged-in users work at any time.
_BUSY_IN_RUN = ("systemd", "udev", "user", "credentials", "log", "lock", "utmp", "dbus", "mount")

_SYSCTLS = (
    "net/ipv4/ip_forward",
    "net/ipv4/ip_nonlocal_bind",
    "net/ipv4/conf/*/forwarding",
    "net/ipv4/conf/*/route_localnet",
    "net/ipv4/conf/*/rp_filter",
    "net/ipv6/conf/*/disable_ipv6",
    "net/ipv6/conf/*/forwarding",
    "net/bridge/bridge-nf-call-*",
    "user/max_*_namespaces",
    "fs/inotify/max_*",
)

_ID_LENGTH = 8  # of a name that is long enough to be an id, and so to say whose something is


@dataclass
class Processes:
    """The processes of the machine: those of a run, and what is visible of the others.

    A run's processes have the run's folder on their command line or in their environment.
    """

    ours: dict[str, str] = field(default_factory=dict)  # by process id: command lines
    others: list[str] = field(default_factory=list)  # command lines, and paths that are open

    @classmethod
    def of_machine(cls, run: Path) -> "Processes":
        """List the processes that run now."""
        processes = cls()
        for pid in filter(str.isdigit, os.listdir("/proc")):
            command = _read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
            if str(run) in command or f"{run}\0" in _read(f"/proc/{pid}/environ"):
                processes.ours[pid] = command
            elif int(pid) != os.getpid():
                processes.others += [command, *_open_paths(pid)]
        return processes

    def others_use(self, name: str) -> bool:
        """Return whether a process of others has a name on its command line, or has it open."""
        return any(name in words for words in self.others)

    def others_are_in(self, cgroup: Path) -> bool:
        """Return whether a process of others is in a cgroup, or below."""
        files = cgroup.rglob("cgroup.procs")
        pids = {pid for file in files for pid in _read(str(file)).split()}
        return not pids <= {*self.ours, str(os.getpid())}


def _read(path: str) -> str:
    try:
        return Path(path).read_bytes().decode(errors="replace")
    except OSError:  # it is gone, or has no value
        return ""


def _open_paths(pid: str) -> Iterator[str]:
    """Yield the open files and the current folder of a process."""
    try:
        links = [f"/proc/{pid}/cwd", *(entry.path for entry in os.scandir(f"/proc/{pid}/fd"))]
    except OSError:
        return
    for link in links:
        try:
            yield os.readlink(link)
        except OSError:
            continue


def snapshot(run: Path, checkout: Path) -> Snapshot:
    """Return the machine's current state.

    run: the folder of this run's temporary files. checkout: where else it may have files.
    """
    return {
        "mount": _mounts(),
        "loop device": _loop_devices((str(run), str(checkout))),
        "cgroup": _names(_cgroups()),
        "file": _names([*_beside_cgroups(), *_in_run(), *filter(os.path.exists, _DEFAULT_FOLDERS)]),
        "network link": {link: _read(f"/sys/class/net/{link}/ifindex") for link in _links()},
        "sysctl": {str(path): _read(str(path)).strip() for path in _sysctls()},
        "temporary file": _names([*_temporary_files(), *(str(path) for path in run.iterdir())]),
        "process": Processes.of_machine(run).ours,
    }


def changes(
    before: Snapshot, after: Snapshot, is_of_others: Callable[[str, str], bool]
) -> list[str]:
    """Return how the machine has changed, one change a line.

    is_of_others: whether a category's name belongs to another program.
    """
    lines = []
    for category, values in after.items():
        earlier = before[category]
        added = (
            set(values) - set(earlier) if category != "sysctl" else set()
        )  # they come with links
        lines += [
            f"new {category}: {name} {values[name]}".strip()
            for name in sorted(added)
            if os.path.dirname(name) not in added and not is_of_others(category, name)
        ]
        if category in _LASTING:
            lines += [f"{category} is gone: {name}" for name in sorted(set(earlier) - set(values))]
        lines += [
            f"{category} {name}: was {earlier[name]}, is {value}"
            for name, value in sorted(values.items())
            if earlier.get(name, value) != value
        ]
    return lines


def is_of_others(processes: Processes, category: str, name: str) -> bool:
    """Return whether a process that this run has not started uses a new resource."""
    if category == "cgroup":
        # A host's cgroup has the name of the host's folder. libvirt's /machine has many users, so
        # a user of it says nothing about the cgroups in it.
        cgroups = _with_parents(Path(name))
        return any(_identifies(cgroup.name, processes) for cgroup in cgroups) or any(
            processes.others_are_in(cgroup) for cgroup in cgroups[:-1] or cgroups
        )
    if category in ("file", "temporary file"):
        return processes.others_use(name) or _identifies(os.path.basename(name), processes)
    if category == "network link":
        # A container of other software, on its bridge; a bridge of ours would be new as well.
        return os.path.exists(f"/sys/class/net/{name}/master")
    return False


def _identifies(name: str, processes: Processes) -> bool:
    return len(name) >= _ID_LENGTH and processes.others_use(name)


def _with_parents(cgroup: Path) -> list[Path]:
    """Return a cgroup and its parents, up to the mount point."""
    hierarchies = cgroup_hierarchies()
    folders = (cgroup, *cgroup.parents)
    return list(takewhile(lambda folder: folder not in hierarchies, folders))


def _names(names: Iterable[str]) -> dict[str, str]:
    return dict.fromkeys(names, "")


def _mounts() -> dict[str, str]:
    """Return the mounts of this process, by mount point."""
    mounts = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        filesystem, source = words[words.index("-") + 1 :][:2]
        mounts[words[4]] = f"({filesystem} {source} {words[3]})"
    return mounts


def _loop_devices(roots: tuple[str, ...]) -> dict[str, str]:
    files = Path("/sys/block").glob("loop*/loop/backing_file")
    devices = {file.parts[3]: _read(str(file)).strip() for file in files}
    return {name: backing for name, backing in devices.items() if backing.startswith(roots)}


def _cgroups() -> Iterator[str]:
    for root in cgroup_hierarchies():
        for folder, names, _ in os.walk(root):
            yield from (f"{folder}/{name}" for name in names)


def _beside_cgroups() -> Iterator[str]:
    """Yield files in /sys/fs/cgroup outside of cgroups, which are on a tmpfs with cgroup v1."""
    hierarchies = {str(path) for path in cgroup_hierarchies()}
    if "/sys/fs/cgroup" not in hierarchies:
        for folder, names, files in os.walk("/sys/fs/cgroup"):
            names[:] = [name for name in names if f"{folder}/{name}" not in hierarchies]
            yield from (f"{folder}/{name}" for name in (*names, *files))


def _in_run() -> Iterator[str]:
    """Yield files and folders of /run, on its own file system."""
    device = os.stat("/run").st_dev
    for folder, names, files in os.walk("/run"):
        if folder == "/run":
            names[:] = [name for name in names if name not in _BUSY_IN_RUN]
        yield from (f"{folder}/{name}" for name in (*names, *files) if name not in _BUSY_IN_RUN)
        names[:] = [name for name in names if _device(f"{folder}/{name}") == device]


def _device(path: str) -> int | None:
    try:
        return os.lstat(path).st_dev
    except OSError:
        return None


def _links() -> list[str]:
    return os.listdir("/sys/class/net")


def _sysctls() -> Iterator[Path]:
    for pattern in _SYSCTLS:
        yield from Path("/proc/sys").glob(pattern)


def _temporary_files() -> Iterator[str]:
    for folder in filter(os.path.isdir, _TEMPORARY_FOLDERS):
        for name in os.listdir(folder):
            if name.startswith(_TEMPORARY_NAMES):
                yield f"{folder}/{name}"
