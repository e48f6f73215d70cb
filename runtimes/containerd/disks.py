"""Persistent disks in running VMs, mounted below a VM's shared folder."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from cpi.disks import freeze, raw_image as images
from cpi.disks.disk import Disk
from cpi.disks.disk_store import DiskStore
from cpi.host import syscalls
from cpi.host.layout import Layout
from cpi.host.undo import Undo
from cpi.log import Log
from runtimes.containerd import mount_namespaces
from runtimes.containerd.vm_folder import VMFolder
from stemcell_convert.mount_programs import DISK_FOLDER


def hint_of(disk_cid: str) -> str:
    """Return where a VM sees a disk, which is the agent's hint."""
    return f"{DISK_FOLDER}/{disk_cid}"


class Disks:
    """The disks of all VMs. The caller holds the locks of the disk and of its VM."""

    def __init__(
        self,
        store: DiskStore,
        layout: Layout,
        lock: Callable[[str], AbstractContextManager[None]],
        log: Log,
    ) -> None:
        """lock: returns the lock of a CID."""
        self._store = store
        self._layout = layout
        self._lock = lock
        self._log = log

    def get(self, disk_cid: str) -> Disk:
        """Return a disk's facts, after detaching it from a VM that is gone. Raises DiskNotFound."""
        return self._store.get_reclaimed(
            disk_cid, lambda vm_cid: VMFolder(self._layout, vm_cid).exists(), self._log
        )

    def attach(self, folder: VMFolder, disk: Disk, undo: Undo) -> str:
        """Attach a disk to a VM and return the hint; idempotent.

        Raises CloudError when another VM has it, or its file is not the disk.
        """
        disk_cid, hint = disk.cid, hint_of(disk.cid)
        disk.require_free_for(folder.vm_cid)
        fresh = not folder.has_disk(disk_cid)
        if not fresh and not mount_namespaces.sees(folder.vm_cid, hint):
            self._log.info(f"{folder.vm_cid} has unmounted {disk_cid}, attaching it anew")
            self.release(folder, disk_cid)
            fresh = True
        if fresh:
            self._require_usable(disk)
            undo.push(lambda: self.release(folder, disk_cid))
        self._store.change(disk_cid, attached_to=folder.vm_cid)
        if fresh:
            folder.mount_disk(disk_cid, self._store.image(disk), disk.filesystem)
        return hint

    def mount_all_again(self, folder: VMFolder) -> None:
        """Mount a VM's disks that a restart of the host unmounted; takes their locks.

        Raises CloudError.
        """
        for disk_cid in self._store.attached_to(folder.vm_cid):
            with self._lock(disk_cid):
                disk = self._store.get(disk_cid)
                if not folder.has_disk(disk_cid):
                    self._require_usable(disk)
                    folder.mount_disk(disk_cid, self._store.image(disk), disk.filesystem)

    def _require_usable(self, disk: Disk) -> None:
        images.require_unused(self._store.image(disk), disk.cid)
        self._store.check(disk)

    def release_all(self, folder: VMFolder) -> None:
        """Detach all disks from a VM; takes their locks. Raises like `release`."""
        for target in folder.attached():
            with self._lock(target.name):
                self.release(folder, target.name)

    def release(self, folder: VMFolder, disk_cid: str) -> None:
        """Detach a disk from a VM: its namespaces, the host's folder and the facts.

        Raises CloudError, naming its users, and then the VM still has it.
        """
        target = folder.disks / disk_cid
        device, shared = syscalls.device_of(target), syscalls.device_of(folder.disks)
        if device is not None and shared is not None:
            freeze.thaw(target)  # what is frozen is never quite unmounted
            below_tmpfs = syscalls.Mounted(shared, f"/{disk_cid}", hint_of(disk_cid))
            mount_namespaces.umount_everywhere(folder.vm_cid, device, below_tmpfs)
        folder.umount_disk(disk_cid)
        disk = self._store.find(disk_cid)
        if disk is not None and disk.attached_to == folder.vm_cid:
            images.require_unused(self._store.image(disk), disk_cid)
            self._store.change(disk_cid, attached_to="")

    def still(self, disk: Disk) -> AbstractContextManager[None] | None:
        """Return what blocks a disk's writers; None where there can be none."""
        target = VMFolder(self._layout, disk.attached_to).disks / disk.cid
        if disk.attached_to and syscalls.is_mount_point(target):
            return freeze.frozen(target)
        images.require_unused(self._store.image(disk), disk.cid)
        return None
