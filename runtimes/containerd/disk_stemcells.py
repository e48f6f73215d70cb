"""Looking into the disk of a stemcell that was made for machines."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cpi import linux
from cpi.disks import loop
from cpi.disks.filesystems import FILE_SYSTEMS, mount_device
from cpi.disks.loop import Part
from stemcell_convert.partitions import FileSystem

# Nothing of it may do anything here: it comes from anywhere.
_FLAGS = linux.MS_RDONLY | linux.MS_NODEV | linux.MS_NOSUID | linux.MS_NOEXEC


@contextmanager
def mounted_disk(raw: Path, system: FileSystem, target: Path) -> Iterator[Path]:
    """Mount a file system of a raw disk at `target`, for use inside linux.in_private_mounts."""
    kind = FILE_SYSTEMS[system.kind]
    options = (kind.no_replay, *kind.of_a_copy)
    target.mkdir(exist_ok=True)
    with loop.attached(Part(raw, system.offset, system.size), read_only=True) as device:
        mount_device(device, target, kind.name, _FLAGS, options)
        try:
            yield target
        finally:
            linux.umount(target)
