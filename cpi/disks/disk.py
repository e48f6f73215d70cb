"""A persistent disk: its facts, and what may be done with it."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cpi.disks import filesystems
from cpi.errors import CloudError, DiskNotAttached, NotSupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cpi.log import Log
    from cpi.model import DiskProperties, JsonObject

DEFAULT_STORE = "default"
TABLE_MIB = 2  # before and after the partition of a disk (cpi.disks.raw_image)
STORE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,30}")


@dataclass(frozen=True)
class Disk:
    """A disk's facts. size: MiB, as BOSH asked for; attached_to: a VM CID or "".

    moves: how often it has changed its store; of copies in two stores, the greater is valid.
    table: MiB of the raw disk in addition, for its GPT, so that the partition has just `size`.
    Disks of earlier versions have 0: their GPT takes its room from `size`.
    """

    cid: str
    size: int
    filesystem: str = "ext4"
    preallocate: bool = False
    attached_to: str = ""
    moves: int = 0
    cloud_properties: JsonObject = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    store: str = DEFAULT_STORE
    table: int = 0

    @property
    def whole(self) -> int:
        """The size of the raw disk in MiB."""
        return self.size + self.table

    def require_detached(self, advice: str = "detach it first") -> None:
        """Raise CloudError, with the advice, when a VM has the disk."""
        if self.attached_to:
            raise CloudError(
                f"the disk {self.cid} is attached to the VM {self.attached_to}; {advice}"
            )

    def require_free_for(self, vm_cid: str) -> None:
        """Raise CloudError when another VM has the disk."""
        if self.attached_to != vm_cid:
            self.require_detached()

    def require_attached_to(self, vm_cid: str) -> None:
        """Raise DiskNotAttached when the VM does not have the disk."""
        if self.attached_to != vm_cid:
            where = f"attached to {self.attached_to}" if self.attached_to else "not attached"
            raise DiskNotAttached(f"the disk {self.cid} is {where}, so not to the VM {vm_cid}")

    def require_growth(self, size_mib: int) -> None:
        """Raise NotSupported for a size (MiB) that is less than the disk has."""
        if size_mib < self.size:
            raise NotSupported(
                f"the disk {self.cid} has {self.size} MiB and cannot shrink to {size_mib} MiB; the "
                "director copies to a smaller one instead"
            )

    def require_filesystem(self, filesystem: str | None) -> None:
        """Raise NotSupported for another file system than the disk has; None: any will do."""
        if filesystem not in (None, self.filesystem):
            raise NotSupported(
                f"the disk {self.cid} has {self.filesystem}; {filesystem} takes a new disk and "
                "copying, which the director does itself"
            )

    def require_room_for_filesystem(self) -> None:
        """Raise CloudError for a disk that is too small for its file system."""
        min_mib = filesystems.FILE_SYSTEMS[self.filesystem].min_mib
        if self.size < min_mib:
            raise CloudError(
                f"a disk of {self.size} MiB is too small for {self.filesystem}, which takes "
                f"{min_mib} MiB at least"
            )


def wanted(disk_cid: str, size_mib: int, properties: DiskProperties, env: str | None) -> Disk:
    """Return the facts of a disk to create. env: the file system of its VM's env, if any."""
    return Disk(
        disk_cid,
        size_mib,
        filesystem=properties.filesystem or env or filesystems.DEFAULT,
        preallocate=properties.preallocate,
        cloud_properties=properties.given,
        store=properties.store,
        table=TABLE_MIB,
    )


class AnyDiskStore(ABC):
    """All disks of one backend. The caller holds the lock of the disk it changes."""

    @abstractmethod
    def find(self, disk_cid: str) -> Disk | None:
        """Return a disk's facts, or None. Raises CloudError when they are corrupt."""

    @abstractmethod
    def get(self, disk_cid: str) -> Disk:
        """Return a disk's facts. Raises DiskNotFound."""

    @abstractmethod
    def save(self, disk: Disk) -> None:
        """Write a disk's facts, whole or not at all."""

    @abstractmethod
    def has(self, disk_cid: str) -> bool:
        """Tell whether a disk is there, with its data."""

    @abstractmethod
    def attached_to(self, vm_cid: str) -> list[str]:
        """Return the CIDs of the disks that a VM has."""

    @abstractmethod
    def create(self, disk: Disk) -> None:
        """Create a disk, its facts last.

        Raises CloudError for a size out of range or an unknown store, NoDiskSpace, NotSupported.
        """

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
        """Let a free disk's file system fill its file, if only a hypervisor has grown that.

        Raises CPIError, and then nothing has changed.
        """

    def change(self, disk_cid: str, **facts: Any) -> Disk:
        """Change some of a disk's facts and return them all. Raises DiskNotFound."""
        disk = self.get(disk_cid)
        changed = replace(disk, **facts)
        if changed != disk:
            self.save(changed)
        return changed

    def user_of(self, disk_cid: str) -> str:
        """Return the CID of the VM that has the disk; "" for none, or a disk that is gone."""
        disk = self.find(disk_cid)
        return "" if disk is None else disk.attached_to

    def get_reclaimed(self, disk_cid: str, has_vm: Callable[[str], bool], log: Log) -> Disk:
        """Return a disk's facts, after detaching it from a VM that is gone. Raises DiskNotFound."""
        disk = self.get(disk_cid)
        if not disk.attached_to or has_vm(disk.attached_to):
            return disk
        log.warn(f"{disk.cid} was attached to {disk.attached_to}, which is gone")
        return self.change(disk_cid, attached_to="")
