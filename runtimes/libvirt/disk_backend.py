"""The interface to persistent disks, wherever they are."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from cpi.disks.disk import AnyDiskStore, Disk
from cpi.model import JsonObject

# Copies a disk, as its running VM sees it at this moment, into a new volume of this name (qcow2),
# and returns the volume.
CopyInUse = Callable[[str], Any]


class DiskBackend(AnyDiskStore):
    """The disks that one libvirt can open. `get` raises NotSupported for those of another place."""

    @abstractmethod
    def has_vm(self, vm_cid: str) -> bool:
        """Tell whether a VM that has a disk of this backend exists."""

    @abstractmethod
    def path(self, disk: Disk, *, unused: bool) -> str:
        """Return a disk's path for the hypervisor, ready to be opened by it.

        unused: no domain has it yet, nor may anything else. Raises CloudError when it is missing,
        truncated, another's, or in use.
        """

    @abstractmethod
    def snapshot(
        self, disk: Disk, snapshot_cid: str, metadata: JsonObject, copy_in_use: CopyInUse | None
    ) -> None:
        """Take a snapshot. copy_in_use: None when no VM runs with the disk. Raises NoDiskSpace."""

    @abstractmethod
    def delete_snapshot(self, snapshot_cid: str) -> None:
        """Delete a snapshot, if it exists."""
