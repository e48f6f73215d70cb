"""Persistent disks as files of the host, in one format for every runtime.

`<folder>/<disk CID>.raw` is a sparse raw disk: GPT, one partition at 1 MiB, a file system in it;
any tool reads it. `<disk CID>.json` beside it says what BOSH said of it and which VM has it.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from cpi.errors import CloudError, DiskNotFound, NoDiskSpace
from cpi.process import CommandFailed, run

MIB = 1 << 20
SECTOR = 512
PARTITION_OFFSET = MIB  # bytes; where the partition starts on every disk of ours
_PARTITION_TAIL = MIB  # bytes after the partition: the second copy of the GPT
MINIMUM_MIB = 8

# A sparse file takes its room while it is filled. Refuse at once when even this much is missing.
_LEAST_FREE = 64 * MIB


@dataclass(frozen=True)
class Disk:
    """A disk's facts. size: MiB, of the whole raw disk; attached_to: a VM CID or ""."""

    cid: str
    size: int
    filesystem: str = "ext4"
    attached_to: str = ""
    cloud_properties: Mapping[str, object] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


class DiskStore:
    """The disks below one folder. The caller holds the lock of the disk it changes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def image(self, disk_cid: str) -> Path:
        """The raw disk's path."""
        return self.folder / f"{disk_cid}.raw"

    def find(self, disk_cid: str) -> Disk | None:
        """Return a disk's facts, or None. Raises CloudError when its file is damaged."""
        try:
            document = json.loads(self._facts(disk_cid).read_bytes())
            return Disk(**document)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise CloudError(
                f"the facts of the disk {disk_cid} in {self._facts(disk_cid)} are damaged: {error}"
            ) from None

    def get(self, disk_cid: str) -> Disk:
        """Return a disk's facts. Raises DiskNotFound."""
        disk = self.find(disk_cid)
        if disk is None:
            raise DiskNotFound(f"there is no disk {disk_cid} in {self.folder}")
        return disk

    def create(self, disk: Disk) -> None:
        """Create a disk: its file, its file system, its facts last.

        Raises CloudError for a size out of range, NoDiskSpace.
        """
        if disk.size < MINIMUM_MIB:
            raise CloudError(f"a disk of {disk.size} MiB is too small, {MINIMUM_MIB} is the least")
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        image = self.image(disk.cid)
        _require_room(self.folder, disk.size)
        try:
            make_sparse(image, disk.size)
            _make_partition(image, self.partition_size(disk))
            make_ext4(image, self.partition_size(disk), PARTITION_OFFSET)
            self.save(disk)
        except BaseException:
            self._facts(disk.cid).unlink(missing_ok=True)
            image.unlink(missing_ok=True)
            raise

    def save(self, disk: Disk) -> None:
        """Write a disk's facts, whole or not at all."""
        target = self._facts(disk.cid)
        fresh = target.with_suffix(f".json.{os.getpid()}")
        try:
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                json.dump(asdict(disk), file)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(target)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise

    def set_owner(self, disk: Disk, vm_cid: str) -> Disk:
        """Record which VM has the disk, "" for none."""
        changed = replace(disk, attached_to=vm_cid)
        self.save(changed)
        return changed

    def set_metadata(self, disk_cid: str, metadata: Mapping[str, str]) -> None:
        """Replace a disk's metadata. Raises DiskNotFound."""
        self.save(replace(self.get(disk_cid), metadata=dict(metadata)))

    def delete(self, disk_cid: str) -> None:
        """Delete a disk. Raises DiskNotFound, and CloudError while a VM has it."""
        disk = self.get(disk_cid)
        if disk.attached_to:
            raise CloudError(
                f"the disk {disk_cid} is attached to the VM {disk.attached_to}; detach it first"
            )
        self.image(disk_cid).unlink(missing_ok=True)
        self._facts(disk_cid).unlink()

    def partition_size(self, disk: Disk) -> int:
        """Bytes of the disk's one partition."""
        return disk.size * MIB - PARTITION_OFFSET - _PARTITION_TAIL

    def _facts(self, disk_cid: str) -> Path:
        return self.folder / f"{disk_cid}.json"


def make_sparse(image: Path, size_mib: int) -> None:
    """Create a sparse file of `size_mib` MiB for root alone. Raises NoDiskSpace."""
    try:
        fd = os.open(image, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(fd, size_mib * MIB)
        finally:
            os.close(fd)
    except OSError as error:
        raise NoDiskSpace(f"cannot make {image} of {size_mib} MiB: {error.strerror}") from None


def make_ext4(image: Path, size: int, offset: int = 0) -> None:
    """Make an ext4 file system of `size` bytes at `offset` bytes of a file.

    Inode tables and the journal are left to the kernel, so that 100 GiB take no longer than 1 GiB.
    """
    options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"
    if offset:
        options += f",offset={offset}"
    argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-E", options]
    _tool([*argv, str(image), f"{size // 1024}k"], "apt-get install e2fsprogs", image)


def _make_partition(image: Path, size: int) -> None:
    start, sectors = PARTITION_OFFSET // SECTOR, size // SECTOR
    script = f"label: gpt\nstart={start}, size={sectors}, type=linux\n"
    argv = ["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", str(image)]
    _tool(argv, "apt-get install fdisk", image, stdin=script.encode())


def _tool(argv: list[str], hint: str, image: Path, stdin: bytes = b"") -> None:
    try:
        run(argv, stdin=stdin, install_hint=hint)
    except CommandFailed as error:
        if "No space left" in error.stderr:
            raise NoDiskSpace(f"the file system of {image} is full: {error.stderr}") from None
        raise


def _require_room(folder: Path, size_mib: int) -> None:
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if free < min(size_mib * MIB, _LEAST_FREE):
        raise NoDiskSpace(
            f"no room for a disk of {size_mib} MiB in {folder}: {free // MIB} MiB are free"
        )
