"""A VM's folder on the host: its ephemeral disk and the shared folder that carries its disks.

<state_dir>/vms/<vm cid>/
    data/            /var/vcap/data of the VM
    ephemeral.img    the file system mounted on data/, when its size is limited
    disks/<disk>/    below a shared tmpfs: what is mounted there appears in the running VM
    network.json     see network.py
"""

import shutil
from pathlib import Path

from cpi.diskstore import MIB, PARTITION_OFFSET, Disk, DiskStore, make_ext4, make_sparse
from cpi.errors import CloudError
from cpi.process import run
from runtimes.containerd import linux


class HostFolder:
    """The folder of one VM. The caller holds the VM's lock."""

    def __init__(self, state_dir: Path, vm_cid: str) -> None:
        self.path = state_dir / "vms" / vm_cid
        self.data = self.path / "data"
        self.disks = self.path / "disks"
        self._ephemeral = self.path / "ephemeral.img"

    def exists(self) -> bool:
        return self.path.is_dir()

    def create(self) -> None:
        """Make the folder and what disks appear in. `remove` takes away whatever there is."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path.mkdir(mode=0o700)
        self.data.mkdir(mode=0o755)
        self.disks.mkdir(mode=0o755)
        linux.mount_shared_tmpfs(self.disks)

    def limit_data(self, size_mib: int) -> None:
        """Give /var/vcap/data a file system of its own of this many MiB."""
        make_sparse(self._ephemeral, size_mib)
        make_ext4(self._ephemeral, size_mib * MIB)
        _mount_loop(self._ephemeral, self.data)

    def restore(self) -> None:
        """Mount again what a restart of the host took away."""
        if not linux.is_mount_point(self.disks):
            linux.mount_shared_tmpfs(self.disks)
        if self._ephemeral.exists() and not linux.is_mount_point(self.data):
            _mount_loop(self._ephemeral, self.data)

    def remove(self) -> None:
        """Unmount and delete everything; gone is no error. Persistent data is not in here."""
        for target in [*self.attached(), self.disks, self.data]:
            linux.umount(target)
        # A disk that is still mounted must stop us before anything is deleted.
        busy = [target for target in [*self.attached(), self.data] if linux.is_mount_point(target)]
        if busy:
            raise CloudError(f"{busy[0]} is still mounted", ok_to_retry=True)
        shutil.rmtree(self.path, ignore_errors=not self.exists())

    # Persistent disks

    def attached(self) -> list[Path]:
        """The mount points of attached disks; their names are disk CIDs."""
        return sorted(self.disks.iterdir()) if self.disks.is_dir() else []

    def has_disk(self, disk_cid: str) -> bool:
        return linux.is_mount_point(self.disks / disk_cid)

    def mount_disk(self, store: DiskStore, disk: Disk) -> None:
        """Mount a disk's partition where the running VM sees it; twice is once."""
        target = self.disks / disk.cid
        if linux.is_mount_point(target):
            return
        target.mkdir(exist_ok=True)
        _mount_loop(store.image(disk.cid), target, PARTITION_OFFSET, store.partition_size(disk))

    def umount_disk(self, disk_cid: str) -> None:
        """Unmount a disk here, and with it every copy of the mount that propagated."""
        target = self.disks / disk_cid
        linux.umount(target)
        if target.is_dir():
            target.rmdir()


def _mount_loop(image: Path, target: Path, offset: int = 0, size: int = 0) -> None:
    """mount(8) finds a free loop device, without a race, and the kernel frees it at umount.

    By offset: some kernels read no partition tables on loop devices.
    """
    options = f"loop,offset={offset},sizelimit={size}"
    run(["mount", "-t", "ext4", "-o", options, str(image), str(target)])
