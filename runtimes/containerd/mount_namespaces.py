"""The mount namespaces of a running VM: its processes, and unmounting disks in them.

BOSH's agent in bind mode leaves /var/vcap/store mounted when it unmounts a disk (bosh-agent,
bind_mounter), and a job's own container may have a copy. Each is unmounted where it is.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from cpi.errors import CloudError
from cpi.host import kernel, syscalls
from cpi.host.syscalls import Mounted


def share_mounts(init: int) -> None:
    """Let what a VM mounts and unmounts reach the mount namespaces of its services.

    systemd does that when it boots a machine, and not in a container. Without it a service that
    starts while a disk is mounted keeps a copy of the mount for ever, below its former root, where
    it cannot be unmounted.
    """
    flags = kernel.MS_SHARED | kernel.MS_REC
    syscalls.in_mount_namespace(init, lambda: syscalls.mount("none", Path("/"), flags=flags))


def pids_of(vm_cid: str) -> list[int]:
    """Return the processes in a VM's cgroup and those below it, whatever the cgroup version."""
    marker = f"/{vm_cid}".encode()
    pids = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            lines = Path(f"/proc/{entry}/cgroup").read_bytes().splitlines()
        except OSError:
            continue  # it has ended
        if any(line.endswith(marker) or marker + b"/" in line for line in lines):
            pids.append(int(entry))
    return pids


def sees(vm_cid: str, target: str) -> bool:
    """Tell whether a VM's init has a mount there; True for a VM that does not run."""
    for pid in pids_of(vm_cid):
        try:
            if _is_init(pid):
                return any(mounted.target == target for mounted in syscalls.mounts(str(pid)))
        except OSError:
            continue  # it has ended
    return True


def umount_everywhere(vm_cid: str, device: str, folder: Mounted) -> None:
    """Unmount all mounts of a device ("major:minor") in a VM.

    folder: the disk's place on the shared tmpfs. When the agent has unmounted a disk it may bind
    the empty folder instead, which has to go as well.
    Raises CloudError, naming the processes, when something in the VM still uses it.
    """

    def is_disk(mounted: Mounted) -> bool:
        bound = (mounted.device, mounted.root) == (folder.device, folder.root)
        return mounted.device == device or bound

    for pid in _pids_by_namespace(pids_of(vm_cid)):
        try:
            _umount_in(pid, is_disk)
        except FileNotFoundError:
            continue  # the process ended, its namespace with it or seen through another
        except OSError as error:
            users = ", ".join(_users(vm_cid, device)) or "unknown"
            raise CloudError(
                f"{error.filename} in the VM {vm_cid} cannot be unmounted: {error.strerror}; "
                f"processes that use it: {users}; stop the jobs, then detach again",
                ok_to_retry=True,
            ) from None


def _is_init(pid: int) -> bool:
    """Tell whether a process is its VM's init, and not that of a container in the VM.

    Its NSpid has two numbers: ours, and 1 in the namespace below (proc(5)).
    """
    words = [line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return ["NSpid:", str(pid), "1"] in words


def _umount_in(pid: int, is_disk: Callable[[Mounted], bool]) -> None:
    targets = [mounted.target for mounted in syscalls.mounts(str(pid)) if is_disk(mounted)]

    def umount_all() -> None:
        for target in reversed(targets):
            syscalls.umount(Path(target))

    if targets:
        syscalls.in_mount_namespace(pid, umount_all)


def _pids_by_namespace(pids: list[int]) -> Iterator[int]:
    """Yield a process of each mount namespace but ours."""
    own = os.readlink("/proc/self/ns/mnt")
    seen = {own}  # a process that has just been forked into the cgroup may still be in ours
    for pid in pids:
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
        except OSError:
            continue
        if namespace not in seen:
            seen.add(namespace)
            yield pid


def _users(vm_cid: str, device: str) -> Iterator[str]:
    """Yield the VM's processes with a file of the device open, or their folder on it."""
    major, minor = (int(part) for part in device.split(":"))
    wanted = os.makedev(major, minor)
    for pid in pids_of(vm_cid):
        links = [f"/proc/{pid}/cwd", f"/proc/{pid}/root"]
        try:
            links += [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
            name = Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            continue
        if any(_device(link) == wanted for link in links):
            yield f"{name} ({pid})"


def _device(path: str) -> int | None:
    try:
        return os.stat(path).st_dev
    except OSError:
        return None
