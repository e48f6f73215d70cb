"""Volumes as files of a folder, for a driver of libvirt without a usable storage API.

They are made with qemu-img, and the hypervisor opens them by their path, on this machine.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cpi.disks import raw_image as images
from cpi.disks.raw_image import quiet
from cpi.errors import CloudError, NoDiskSpace
from cpi.host.process import CommandFailed, run
from cpi.progress import Progress
from runtimes.libvirt.client import AlreadyThere
from runtimes.libvirt.virtualbox import media
from runtimes.libvirt.volumes import SMALL, StoragePool
from runtimes.libvirt.xml.storage_xml import Volume

_HOURS = 24 * 3600.0  # seconds; a disk takes as long as it takes
_HINT = "apt-get install qemu-utils"
_PART = ".part"


class FileVolume:
    """A volume, with the methods of libvirt's."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def name(self) -> str:
        return self.file.name

    def path(self) -> str:
        return str(self.file)

    def info(self) -> tuple[int, int, int]:
        """Return type (0, a file), size and allocation, both in bytes; of a VDI, not its disk."""
        status = self.file.stat()
        return 0, status.st_size, status.st_blocks * 512


class FolderPool(StoragePool):
    """A storage pool without libvirt. Volumes get their names when they are complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def require(self) -> None:
        """A folder is made when it is missing."""

    def names(self) -> list[str]:
        """Return the names of all volumes, also of those that killed calls left incomplete."""
        if not self.folder.is_dir():
            return []
        return sorted(path.name.removesuffix(_PART) for path in self.folder.iterdir())

    def find(self, name: str) -> FileVolume | None:
        file = self.folder / name
        return FileVolume(file) if file.exists() else None

    def create(self, volume: Volume) -> FileVolume:
        """Make a volume, or nothing. Raises AlreadyThere, CloudError, NoDiskSpace."""
        file = self.folder / volume.name
        if file.exists():
            raise AlreadyThere(f"there is a volume {file}")
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = file.with_name(file.name + _PART)
        part.unlink(missing_ok=True)
        try:
            with _translated_errors(f"making the volume {file}"):
                _make(part, volume)
                os.chmod(part, int(volume.mode, 8))
                if volume.format == "vdi":
                    media.set_vdi_uuid(part, volume.name)
                part.rename(file)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return FileVolume(file)

    def refresh(self) -> None:
        """Do nothing: the folder is read each time."""

    def upload(self, volume: FileVolume, path: Path, progress: Progress = quiet) -> None:
        mode = volume.file.stat().st_mode & 0o7777
        part = volume.file.with_name(volume.name() + _PART)
        images.copy(path, part, progress)
        os.chmod(part, mode)
        part.replace(volume.file)

    def write(self, volume: FileVolume, data: bytes) -> None:
        """Write bytes in place: a VM may have the volume open."""
        with _translated_errors(f"writing {volume.name()}"), volume.file.open("r+b") as file:
            file.write(data)

    def read(
        self, volume: FileVolume, offset: int = 0, length: int = 0, limit: int = SMALL
    ) -> bytes:
        with _translated_errors(f"reading {volume.name()}"), volume.file.open("rb") as file:
            file.seek(offset)
            data = file.read(length or limit + 1)
        if len(data) > limit:
            raise CloudError(f"the volume {volume.name()} has more than {limit} bytes")
        return data

    def delete(self, name: str) -> None:
        file = self.folder / name
        file.with_name(name + _PART).unlink(missing_ok=True)
        file.unlink(missing_ok=True)

    def backing(self, volume: FileVolume) -> str:
        """Return "": clones are full copies."""
        return ""


def _make(file: Path, volume: Volume) -> None:
    if volume.format == "raw" and volume.backing is None:
        with file.open("xb") as made:
            made.truncate(volume.capacity)
        return
    size = -(-volume.capacity // images.MIB) * images.MIB  # VDIs are made of blocks of a MiB
    _qemu_img("create", "-q", "-f", volume.format, str(file), str(size))
    if volume.backing:
        source, format_ = volume.backing
        # Into an existing empty one, which may be larger than the stemcell.
        argv = ["convert", "-n", "--target-is-zero", "-f", format_, "-O", volume.format]
        _qemu_img(*argv, source, str(file))


def _qemu_img(*words: str) -> None:
    try:
        run(["qemu-img", *words], timeout=_HOURS, install_hint=_HINT)
    except CommandFailed as error:
        if "No space left" in error.stderr or "Disk quota exceeded" in error.stderr:
            raise NoDiskSpace(error.message) from None
        raise


@contextmanager
def _translated_errors(doing: str) -> Iterator[None]:
    """Turn the system's errors into BOSH's."""
    try:
        yield
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise (NoDiskSpace if is_full else CloudError)(f"{doing}: {error.strerror}") from None
