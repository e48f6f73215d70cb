"""A disk image's root file system as a tar.gz, the same bytes for the same disk."""

import hashlib
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from isal import igzip

from stemcell_convert import disk_image, partitions
from stemcell_convert.errors import StemcellError
from stemcell_convert.inroot import Root
from stemcell_convert.programs import ENVIRONMENT
from stemcell_convert.unwrap import unwrap

# Mounts a file system of a raw disk read-only in a folder, and unmounts it at the end.
Mounted = Callable[[Path, partitions.FileSystem, Path], AbstractContextManager[Path]]

_CHUNK = 1 << 20  # bytes
_LEVEL = 1  # of igzip: as fast as the disk, and a third of the size

# Names sorted and no time but that of each file's content, so that the bytes depend on the disk
# alone. The disk's own extended attributes, file capabilities among them, and holes are kept.
_TAR = (
    "tar",
    "--create",
    "--file=-",
    "--format=posix",
    "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime",
    "--sort=name",
    "--numeric-owner",
    "--acls",
    "--xattrs",
    "--xattrs-include=security.*",
    "--xattrs-include=user.*",
    "--sparse",
    "--sparse-version=0.0",  # the later ones write the process id of tar into names
    "--one-file-system",
    "--anchored",
    "--exclude=./lost+found",
)


@dataclass(frozen=True)
class Rootfs:
    """A root file system as a tar.gz: digest and size (bytes) of the file."""

    path: Path
    digest: str
    size: int


def rootfs_of_disk(
    image: Path, kind: str, folder: Path, mounted: Mounted, limit: int, say: Callable[[str], None]
) -> Rootfs:
    """Return the root file system of the disk in a stemcell's `image` file of this kind.

    folder: an empty one with room for the disk (`limit` bytes at most) twice, whose content the
    caller removes. Raises StemcellError naming the file.
    """
    say(f"taking the disk out of {image}")
    try:
        return _rootfs(image, kind, folder, mounted, limit, say)
    except StemcellError as error:
        if str(image) in str(error):
            raise
        raise StemcellError(f"{image}: {error}") from None


def _rootfs(
    image: Path, kind: str, folder: Path, mounted: Mounted, limit: int, say: Callable[[str], None]
) -> Rootfs:
    disk = unwrap(image, kind, folder / "disk", limit)
    raw = disk_image.to_raw(disk, folder / "raw", limit)
    with raw.open("rb") as file:

        def read(offset: int, size: int) -> bytes:
            file.seek(offset)
            return file.read(size)

        systems = partitions.file_systems(read, disk_image.raw_size(raw))
    for system in systems:
        with mounted(raw, system, folder / "root") as root:
            with Root(root) as inside:
                is_root = inside.exists("/etc/os-release")
            if is_root:
                say(f"packing the {system.kind} at {system.offset} of the disk")
                return pack(root, folder / "rootfs.tar.gz")
    raise StemcellError(
        f"{image}: none of the disk's file systems ({len(systems)} of ext4 or xfs) has an "
        "/etc/os-release, so none is a root file system"
    )


def pack(root: Path, target: Path) -> Rootfs:
    """Pack a folder into a tar.gz. Raises StemcellError."""
    with subprocess.Popen(
        [*_TAR, f"--directory={root}", "."],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as tar:
        try:
            written = _Written(target)
            # No name and no time in the gzip header: they would differ each time.
            with (
                written.file,
                igzip.IGzipFile(
                    filename="", mode="wb", compresslevel=_LEVEL, fileobj=written, mtime=0
                ) as zipped,
            ):
                stream = cast(BinaryIO, tar.stdout)
                while data := stream.read(_CHUNK):
                    zipped.write(data)
        except BaseException:
            tar.kill()
            raise
        _, errors = tar.communicate()
    if tar.returncode:
        told = errors.decode(errors="replace").strip().splitlines()[-3:]
        raise StemcellError(f"the root file system cannot be packed: {'; '.join(told)}")
    return Rootfs(target, f"sha256:{written.sha.hexdigest()}", written.size)


class _Written:
    """A new file that is hashed while it is written."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("xb")
        self.sha = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.sha.update(data)
        self.size += len(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()
