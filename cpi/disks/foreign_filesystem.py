"""Looking into a disk that comes from anywhere, such as a stemcell's."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from cpi.disks import loop
from cpi.disks.filesystems import FILE_SYSTEMS, mount_device
from cpi.disks.loop import Part
from cpi.errors import CloudError
from cpi.host import kernel, linux

# Nothing of it may do anything here.
_FLAGS = kernel.MS_RDONLY | kernel.MS_NODEV | kernel.MS_NOSUID | kernel.MS_NOEXEC

Result = TypeVar("Result")


class FileSystem(Protocol):
    """Where a file system lies on a disk: `size` bytes at `offset`."""

    @property
    def kind(self) -> str: ...

    @property
    def offset(self) -> int: ...

    @property
    def size(self) -> int: ...


def mounted(raw: Path, system: FileSystem, at: Path, use: Callable[[Path], Result]) -> Result:
    """Mount a file system of a raw disk read-only at `at` and return what `use` makes of it.

    No other process sees the mount, and it goes with this one. Raises CloudError.
    """
    kind = FILE_SYSTEMS[system.kind]

    def look() -> Result:
        with loop.attached(Part(raw, system.offset, system.size), read_only=True) as device:
            mount_device(device, at, kind.name, _FLAGS, (kind.no_replay, *kind.of_a_copy))
            try:
                return use(at)
            finally:
                linux.umount(at)

    at.mkdir(exist_ok=True)
    try:
        return linux.in_private_mounts(look)
    except PermissionError:
        raise CloudError(
            "only root can look into a disk, since the kernel has to mount it; run this with sudo"
        ) from None
