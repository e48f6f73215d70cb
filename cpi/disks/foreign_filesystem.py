"""Mounts an untrusted disk, such as a stemcell's."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cpi.disks import loop
from cpi.disks.filesystems import FILE_SYSTEMS, mount_device
from cpi.disks.loop import Part
from cpi.errors import CloudError
from cpi.host import kernel, syscalls
from stemcell_convert.partitions import FileSystem

_FLAGS = kernel.MS_RDONLY | kernel.MS_NODEV | kernel.MS_NOSUID | kernel.MS_NOEXEC

Result = TypeVar("Result")


def mounted(raw: Path, system: FileSystem, folder: Path, use: Callable[[Path], Result]) -> Result:
    """Mount a file system of a raw disk read-only in a folder, return what `use` makes of it.

    No other process sees the mount, and it goes with this one. Raises CloudError.
    """
    driver = FILE_SYSTEMS[system.fstype]

    def look() -> Result:
        with loop.attached(Part(raw, system.offset, system.size), read_only=True) as device:
            options = (driver.no_replay, *driver.copy_options)
            mount_device(device, folder, driver.name, _FLAGS, options)
            try:
                return use(folder)
            finally:
                syscalls.umount(folder)

    folder.mkdir(exist_ok=True)
    try:
        return syscalls.in_private_mounts(look)
    except PermissionError:
        raise CloudError(
            "only root can look into a disk, since the kernel has to mount it; run this with sudo"
        ) from None
