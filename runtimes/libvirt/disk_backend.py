"""Where persistent disks are: what the runtime asks, wherever that is."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from cpi.disks.disk import Disk, DiskFacts
from cpi.model import DiskProperties

# Copies a disk, as the VM that runs with it sees it at this moment, into a new volume of this name
# (qcow2), and returns the volume.
CopyInUse = Callable[[str], Any]


class DiskBackend(DiskFacts):
    """All disks of one place. The caller holds the lock of the disk it changes.

    `get` also raises NotSupported, for a disk of another place.
    """

    @abstractmethod
    def has(self, disk_cid: str) -> bool:
        """Tell whether a disk is there, with its data."""

    @abstractmethod
    def has_vm(self, vm_cid: str) -> bool:
        """Tell whether a VM that has a disk of this place is there."""

    @abstractmethod
    def attached_to(self, vm_cid: str) -> list[str]:
        """Return the CIDs of the disks that a VM has."""

    @abstractmethod
    def path(self, disk: Disk, *, unused: bool) -> str:
        """Return a disk's path for the hypervisor, ready to be opened by it.

        unused: no domain has it yet, nor may anything else. Raises CloudError when it is missing,
        truncated, somebody else's, or in use.
        """

    @abstractmethod
    def create(self, disk: Disk) -> None:
        """Create a disk. Raises CloudError, NoDiskSpace, NotSupported."""

    @abstractmethod
    def delete(self, disk_cid: str) -> None:
        """Delete a disk. Raises DiskNotFound, and CloudError while something has it."""

    @abstractmethod
    def resize(self, disk_cid: str, size_mib: int) -> None:
        """Grow a free disk to `size_mib` MiB. Raises NoDiskSpace, NotSupported for less."""

    @abstractmethod
    def update(self, disk_cid: str, size_mib: int, properties: DiskProperties) -> None:
        """Give a free disk this size (MiB) and these properties.

        Raises NoDiskSpace, and NotSupported, with nothing changed, for what takes a new disk.
        """

    @abstractmethod
    def settle(self, disk_cid: str) -> None:
        """Give a disk its room that grew in a VM whose agent did nothing about it.

        Raises CPIError, and then it has what it had.
        """

    @abstractmethod
    def snapshot(
        self,
        disk: Disk,
        snapshot_cid: str,
        metadata: Mapping[str, str],
        copy_in_use: CopyInUse | None,
    ) -> None:
        """Take a snapshot. copy_in_use: None when no VM runs with the disk. Raises NoDiskSpace."""

    @abstractmethod
    def delete_snapshot(self, snapshot_cid: str) -> None:
        """Delete a snapshot; one that is gone is no error."""
