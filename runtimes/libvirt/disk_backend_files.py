"""Disks as files of this machine, where libvirt is too: the same ones that containers mount."""

import os
from collections.abc import Mapping
from pathlib import Path

from cpi.disks import raw_image as images
from cpi.disks.disk import Disk
from cpi.disks.disk_store import DiskStore
from cpi.disks.snapshots import Snapshots
from cpi.host.process import run
from cpi.model import DiskProperties
from runtimes.libvirt.disk_backend import CopyInUse, DiskPlace
from runtimes.libvirt.volumes import Pool, path_of

BACKUP = ".backup"
_HOURS = 24 * 3600.0  # seconds; a disk takes as long as it takes


class Files(DiskPlace):
    """The disks of cpi.disks.disk_store, as every runtime of this machine has them."""

    def __init__(self, store: DiskStore, state_dir: Path, pool: Pool) -> None:
        """pool: for what the hypervisor writes itself."""
        self._store = store
        self._state_dir = state_dir
        self._pool = pool

    def find(self, disk_cid: str) -> Disk | None:
        return self._store.find(disk_cid)

    def get(self, disk_cid: str) -> Disk:
        return self._store.get(disk_cid)

    def save(self, disk: Disk) -> None:
        self._store.save(disk)

    def has(self, disk_cid: str) -> bool:
        return self._store.has(disk_cid)

    def has_vm(self, vm_cid: str) -> bool:
        # Every runtime has a folder there for each of its VMs, as long as it lives.
        return (self._state_dir / "vms" / vm_cid).is_dir()

    def attached_to(self, vm_cid: str) -> list[str]:
        return self._store.attached_to(vm_cid)

    def path(self, disk: Disk, *, unused: bool) -> str:
        image = self._store.image(disk)
        self._store.check(disk)
        if unused:
            images.require_unused(image, disk.cid)
        self._let_through(image)
        return str(image)

    def _let_through(self, image: Path) -> None:
        """Let the hypervisor's user pass through the folders above a disk, and list nothing."""
        for folder in (image.parent, self._state_dir):
            mode = folder.stat().st_mode
            if not mode & 0o001:
                folder.chmod((mode & 0o7777) | 0o011)

    def create(self, disk: Disk) -> None:
        self._store.create(disk)

    def delete(self, disk_cid: str) -> None:
        self._store.delete(disk_cid)

    def resize(self, disk_cid: str, size_mib: int) -> None:
        self._store.resize(disk_cid, size_mib)

    def settle(self, disk_cid: str) -> None:
        self._store.settle(disk_cid)

    def update(self, disk_cid: str, size_mib: int, properties: DiskProperties) -> None:
        self._store.update(disk_cid, size_mib, properties)

    def snapshot(
        self,
        disk: Disk,
        snapshot_cid: str,
        metadata: Mapping[str, str],
        copy_in_use: CopyInUse | None,
    ) -> None:
        snapshots = Snapshots(self._store)
        if copy_in_use is None:
            images.require_unused(self._store.image(disk), disk.cid)
            snapshots.take(disk, snapshot_cid, metadata)
            return
        taking = copy_in_use

        def copy(_image: Path, target: Path) -> None:
            self._copy_in_use(disk, target, taking)

        snapshots.take(disk, snapshot_cid, metadata, copy=copy)

    def _copy_in_use(self, disk: Disk, target: Path, copy_in_use: CopyInUse) -> None:
        """Through a volume that leaves out holes: a raw one would get all of its room reserved."""
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
        Snapshots(self._store).delete(snapshot_cid)
