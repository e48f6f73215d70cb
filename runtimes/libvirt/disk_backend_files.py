"""Disks as files of this machine, which is libvirt's too; containers mount the same files."""

import os
from collections.abc import Mapping
from pathlib import Path

from cpi.disks import raw_image as images
from cpi.disks.disk import Disk
from cpi.disks.disk_store import DiskStore
from cpi.disks.snapshots import Snapshots
from cpi.host.layout import Layout
from cpi.host.process import run
from cpi.model import JsonObject
from runtimes.libvirt.disk_backend import CopyInUse, DiskBackend
from runtimes.libvirt.volumes import StoragePool, path_of

BACKUP = ".backup"
_HOURS = 24 * 3600.0  # seconds; a disk takes as long as it takes


class FileDiskBackend(DiskStore, DiskBackend):
    """The disks of cpi.disks.disk_store, which every runtime of this machine shares."""

    def __init__(self, folders: Mapping[str, Path], layout: Layout, pool: StoragePool) -> None:
        """pool: for the volumes that the hypervisor writes."""
        super().__init__(folders)
        self._layout = layout
        self._pool = pool

    def has_vm(self, vm_cid: str) -> bool:
        # Every runtime has a folder there for each of its VMs, as long as it lives.
        return self._layout.vm(vm_cid).is_dir()

    def path(self, disk: Disk, *, unused: bool) -> str:
        image = self.image(disk)
        self.check(disk)
        if unused:
            images.require_unused(image, disk.cid)
        self._let_through(image)
        return str(image)

    def _let_through(self, image: Path) -> None:
        """Let the hypervisor's user traverse the folders above a disk, but not list them."""
        for folder in (image.parent, self._layout.state_dir):
            mode = folder.stat().st_mode
            if not mode & 0o001:
                folder.chmod((mode & 0o7777) | 0o011)

    def snapshot(
        self, disk: Disk, snapshot_cid: str, metadata: JsonObject, copy_in_use: CopyInUse | None
    ) -> None:
        snapshots = Snapshots(self)
        if copy_in_use is None:
            images.require_unused(self.image(disk), disk.cid)
            snapshots.take(disk, snapshot_cid, metadata)
            return
        taking = copy_in_use

        def copy(_image: Path, target: Path) -> None:
            self._copy_in_use(disk, target, taking)

        snapshots.take(disk, snapshot_cid, metadata, copy=copy)

    def _copy_in_use(self, disk: Disk, target: Path, copy_in_use: CopyInUse) -> None:
        """Copy through a qcow2 volume: libvirt would allocate all of a raw one."""
        name = disk.cid + BACKUP
        try:
            source = path_of(copy_in_use(name))
            argv = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-S", "4k"]
            argv += [source, str(target)]
            run(argv, timeout=_HOURS, install_hint="apt-get install qemu-utils")
            os.chmod(target, 0o600)
        finally:
            self._pool.delete(name)

    def delete_snapshot(self, snapshot_cid: str) -> None:
        Snapshots(self).delete(snapshot_cid)
