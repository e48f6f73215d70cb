"""Persistent disks in running VMs: mounted below a VM's shared folder, and taken out again."""

from contextlib import AbstractContextManager
from pathlib import Path

from cpi.disks import freeze, raw_image as images
from cpi.disks.disk import Disk
from cpi.disks.disk_store import DiskStore
from cpi.host import linux
from cpi.host.undo import Undo
from cpi.log import Log
from runtimes.containerd import mount_namespaces
from runtimes.containerd.vm_folder import HostFolder

# Where a VM sees its disks: adapt.DISK_FOLDER, which is not loaded for this alone.
DISK_FOLDER = "/warden-cpi-dev"


def hint_of(disk_cid: str) -> str:
    """Where a VM sees a disk, which is the agent's hint."""
    return f"{DISK_FOLDER}/{disk_cid}"


class Disks:
    """The disks of all VMs. The caller holds the locks of the disk and of its VM."""

    def __init__(self, store: DiskStore, state_dir: Path, log: Log) -> None:
        self._store = store
        self._state_dir = state_dir
        self._log = log

    def get(self, disk_cid: str) -> Disk:
        """Return a disk's facts, taken from a VM that is gone. Raises DiskNotFound."""
        return self._store.get_reclaimed(
            disk_cid, lambda vm_cid: HostFolder(self._state_dir, vm_cid).exists(), self._log
        )

    def attach(self, folder: HostFolder, disk: Disk, undo: Undo) -> str:
        """Give a disk to a VM and return the hint; twice is once.

        Raises CloudError when another VM has it, or its file is not the disk.
        """
        vm_cid, disk_cid, hint = folder.path.name, disk.cid, hint_of(disk.cid)
        disk.require_free_for(vm_cid)
        fresh = not folder.has_disk(disk_cid)
        if not fresh and not mount_namespaces.sees(vm_cid, hint):
            self._log.info(f"{vm_cid} has unmounted {disk_cid}, attaching it anew")
            self.release(folder, disk_cid)
            fresh = True
        if fresh:
            self._require_usable(disk)
            undo.push(lambda: self.release(folder, disk_cid))
        self._store.change(disk_cid, attached_to=vm_cid)
        if fresh:
            folder.mount_disk(disk_cid, self._store.image(disk), disk.filesystem)
        return hint

    def mount_again(self, folder: HostFolder, disk_cid: str) -> None:
        """Mount a disk that a VM has, if a restart of the host unmounted it. Raises CloudError."""
        disk = self._store.get(disk_cid)
        if not folder.has_disk(disk_cid):
            self._require_usable(disk)
            folder.mount_disk(disk_cid, self._store.image(disk), disk.filesystem)

    def _require_usable(self, disk: Disk) -> None:
        images.require_unused(self._store.image(disk), disk.cid)
        self._store.check(disk)

    def release(self, folder: HostFolder, disk_cid: str) -> None:
        """Take a disk out of a VM: out of its namespaces, off the host's folder, off its facts.

        Raises CloudError, naming who uses it, and then the VM still has it.
        """
        vm_cid, target = folder.path.name, folder.disks / disk_cid
        device, shared = linux.device_of(target), linux.device_of(folder.disks)
        if device is not None and shared is not None:
            freeze.thaw(target)  # what is frozen is never quite unmounted
            place = linux.Mounted(shared, f"/{disk_cid}", hint_of(disk_cid))
            mount_namespaces.umount_everywhere(vm_cid, device, place)
        folder.umount_disk(disk_cid)
        disk = self._store.find(disk_cid)
        if disk is not None and disk.attached_to == vm_cid:
            images.require_unused(self._store.image(disk), disk_cid)
            self._store.change(disk_cid, attached_to="")

    def still(self, disk: Disk) -> AbstractContextManager[None] | None:
        """What keeps a disk's writers away for a while; None where there can be none."""
        target = HostFolder(self._state_dir, disk.attached_to).disks / disk.cid
        if disk.attached_to and linux.is_mount_point(target):
            return freeze.frozen(target)
        images.require_unused(self._store.image(disk), disk.cid)
        return None
