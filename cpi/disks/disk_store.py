"""Persistent disks as the host keeps them: in folders, a file for the data and one for the facts.

`<folder>/<disk CID>.raw` is the disk (see cpi.disks.raw_image), `<disk CID>.json` beside it says
what BOSH said of it and which VM has it. There is no list of disks but these files.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cpi.disks import filesystems, raw_image as images
from cpi.disks.filesystems import FILE_SYSTEMS
from cpi.errors import CloudError, CPIError, DiskNotFound, NoDiskSpace, NotSupported
from cpi.host.layout import Layout
from cpi.text import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cpi.config.config import Config
    from cpi.model import DiskProperties, JsonObject

DEFAULT_STORE = "default"
STORE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,30}")

# A sparse file takes its room while it is filled. Refuse at once when even this much is missing.
_LEAST_FREE = 64 * images.MIB


@dataclass(frozen=True)
class Disk:
    """A disk's facts. size: MiB, of the whole raw disk; attached_to: a VM CID or "".

    moves: how often it has changed its store; where two stores have it, the greater is right.
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


def wanted(disk_cid: str, size_mib: int, properties: DiskProperties, env: str | None) -> Disk:
    """The facts of a disk to create. env: the file system that its VM's env asks for, if any."""
    return Disk(
        disk_cid,
        size_mib,
        filesystem=properties.filesystem or env or filesystems.DEFAULT,
        preallocate=properties.preallocate,
        cloud_properties=properties.given,
        store=properties.store,
    )


def folders_of(config: Config) -> dict[str, Path]:
    """Return the folders that the configuration has for disks, by the name of the store.

    Raises CPIError for a store that is none.
    """
    folders = {DEFAULT_STORE: Path(config.text("disk_dir") or Layout.of(config).disks)}
    for name, path in config.mapping("disk_stores").items():
        if not STORE_NAME.fullmatch(name) or name == DEFAULT_STORE:
            raise CPIError(f"disk_stores: {shown(name, 60)} cannot be the name of a store")
        if not isinstance(path, str) or not path.startswith("/") or ".." in path.split("/"):
            raise CPIError(f"disk_stores.{name} must be a path (absolute, without ..)")
        folders[name] = Path(path)
    return folders


class DiskStore:
    """All disks, in one or several folders. The caller holds the lock of the disk it changes."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        """folders: by name; the one named "default" takes disks that ask for none."""
        self.folders = dict(folders)

    def image(self, disk: Disk) -> Path:
        """The raw disk's path."""
        return self.folders[disk.store] / f"{disk.cid}.raw"

    def partial_snapshot(self, disk: Disk) -> Path:
        """Where a snapshot of the disk is made; what a killed call left is there."""
        return self.folders[disk.store] / f"{disk.cid}.snapshot.part"

    def find(self, disk_cid: str) -> Disk | None:
        """Return a disk's facts, or None. Raises CloudError when their file is damaged."""
        found = [
            disk
            for store, folder in self.folders.items()
            if (disk := self._read(store, folder / f"{disk_cid}.json")) is not None
        ]
        return max(found, key=lambda disk: disk.moves, default=None)

    def get(self, disk_cid: str) -> Disk:
        """Return a disk's facts. Raises DiskNotFound."""
        disk = self.find(disk_cid)
        if disk is None:
            folders = ", ".join(str(folder) for folder in self.folders.values())
            raise DiskNotFound(f"there is no disk {disk_cid} in {folders}")
        return disk

    def get_free(self, disk_cid: str, purpose: str) -> Disk:
        """Return the facts of a disk that no VM has and the host does not use, its file checked.

        Raises DiskNotFound, and CloudError naming what has it or what is wrong with its file.
        """
        disk = self.get(disk_cid)
        if disk.attached_to:
            raise CloudError(
                f"the disk {disk_cid} is attached to the VM {disk.attached_to}; detach it to "
                f"{purpose} it"
            )
        images.require_unused(self.image(disk), disk_cid)
        self.check(disk)
        return disk

    def check(self, disk: Disk) -> None:
        """Raise CloudError when a disk's file is missing, truncated or another's."""
        images.check(self.image(disk), disk.cid, disk.size, disk.filesystem)

    def all(self) -> Iterator[Disk]:
        """Yield every disk, by CID."""
        cids = {
            path.stem for folder in self.folders.values() for path in folder.glob("*-disk-*.json")
        }
        for cid in sorted(cids):
            disk = self.find(cid)
            if disk is not None:
                yield disk

    def attached_to(self, vm_cid: str) -> list[str]:
        """Return the CIDs of the disks that a VM has."""
        return [disk.cid for disk in self.all() if disk.attached_to == vm_cid]

    def create(self, disk: Disk) -> None:
        """Create a disk: its file, its file system, its facts last.

        Raises CloudError for a size out of range or a store that there is not, NoDiskSpace.
        """
        folder = self._require_store(disk.store)
        require_size(disk)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        needed = min(disk.size * images.MIB, _LEAST_FREE)
        images.require_room(folder, needed, f"a disk of {disk.size} MiB")
        image = self.image(disk)
        try:
            images.create(image, disk.cid, disk.size, disk.filesystem, preallocate=disk.preallocate)
            self.save(disk)
        except BaseException:
            self._facts(disk).unlink(missing_ok=True)
            image.unlink(missing_ok=True)
            raise

    def save(self, disk: Disk) -> None:
        """Write a disk's facts, whole or not at all."""
        document = asdict(disk)
        del document["store"]  # that is the folder they are in
        write_facts(self._facts(disk), document)

    def set_owner(self, disk_cid: str, vm_cid: str) -> Disk:
        """Record which VM has the disk, "" for none; return its facts. Raises DiskNotFound."""
        disk = self.get(disk_cid)
        changed = replace(disk, attached_to=vm_cid)
        if changed != disk:
            self.save(changed)
        return changed

    def set_metadata(self, disk_cid: str, metadata: Mapping[str, str]) -> None:
        """Replace a disk's metadata. Raises DiskNotFound."""
        self.save(replace(self.get(disk_cid), metadata=dict(metadata)))

    def delete(self, disk_cid: str) -> None:
        """Delete a disk. Raises DiskNotFound, and CloudError while something has it."""
        disk = self.get(disk_cid)
        if disk.attached_to:
            raise CloudError(
                f"the disk {disk_cid} is attached to the VM {disk.attached_to}; detach it first"
            )
        images.require_unused(self.image(disk), disk_cid)
        self._remove_elsewhere(disk)
        shutil.rmtree(self.partial_snapshot(disk), ignore_errors=True)
        images.partial(self.image(disk)).unlink(missing_ok=True)
        self.image(disk).unlink(missing_ok=True)
        self._facts(disk).unlink()

    def resize(self, disk_cid: str, size_mib: int) -> None:
        """Grow a free disk to `size_mib` MiB. Raises NoDiskSpace, NotSupported for less."""
        disk = self.get_free(disk_cid, "resize")
        require_growth(disk, size_mib)
        if size_mib > disk.size:
            self._grow(disk, size_mib)

    def settle(self, disk_cid: str) -> None:
        """Let a free disk's file system fill its file, if that was grown by a hypervisor alone."""
        disk = self.get(disk_cid)
        if not disk.attached_to and images.has_room_left(self.image(disk)):
            self._grow(disk, disk.size)

    def update(self, disk_cid: str, size_mib: int, properties: DiskProperties) -> None:
        """Give a free disk this size and these properties.

        Raises NoDiskSpace, and NotSupported, with nothing changed, for what takes a new disk. Each
        step can be repeated, and the facts of each are written when it is done.
        """
        disk = self.get_free(disk_cid, "update")
        require_growth(disk, size_mib)
        if properties.filesystem not in (None, disk.filesystem):
            raise NotSupported(
                f"the disk {disk_cid} has {disk.filesystem}; {properties.filesystem} takes a new "
                "disk and copying, which the director does itself"
            )
        if properties.store != disk.store:
            disk = self._move(disk, properties.store)
        self._remove_elsewhere(disk)
        disk = replace(
            disk, preallocate=properties.preallocate, cloud_properties=dict(properties.given)
        )
        if size_mib > disk.size:
            self._grow(disk, size_mib)
            return
        if disk.preallocate:
            images.allocate(self.image(disk))
        self.save(disk)

    def _grow(self, disk: Disk, size_mib: int) -> None:
        size = images.enlarge(
            self.image(disk), disk.cid, size_mib, disk.filesystem, preallocate=disk.preallocate
        )
        self.save(replace(disk, size=size))

    def _move(self, disk: Disk, store: str) -> Disk:
        """Copy a disk to another store; it is there when its facts are."""
        moved = replace(disk, store=store, moves=disk.moves + 1)
        folder = self._require_store(store)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        target = self.image(moved)
        images.copy(self.image(disk), images.partial(target))
        images.replace(images.partial(target), target)
        self.save(moved)
        return moved

    def _remove_elsewhere(self, disk: Disk) -> None:
        """Remove what a killed move left of a disk in other stores, or what it leaves there now."""
        for store, folder in self.folders.items():
            if store != disk.store and folder.is_dir():
                other = replace(disk, store=store)
                self._facts(other).unlink(missing_ok=True)
                self.image(other).unlink(missing_ok=True)
                images.partial(self.image(other)).unlink(missing_ok=True)

    def _require_store(self, store: str) -> Path:
        if store not in self.folders:
            raise CloudError(
                f"there is no disk store {store}; the configuration has {', '.join(self.folders)}"
            )
        return self.folders[store]

    def _read(self, store: str, path: Path) -> Disk | None:
        document = read_facts(path)
        try:
            return None if document is None else Disk(**document, store=store)
        except TypeError as error:
            raise CloudError(f"the facts in {path} are damaged: {error}") from None

    def _facts(self, disk: Disk) -> Path:
        return self.folders[disk.store] / f"{disk.cid}.json"


def require_size(disk: Disk) -> None:
    """Raise CloudError for a disk that is too small for its file system."""
    kind = FILE_SYSTEMS[disk.filesystem]
    if disk.size < kind.least_mib:
        raise CloudError(
            f"a disk of {disk.size} MiB is too small for {kind.name}, which takes "
            f"{kind.least_mib} MiB at least"
        )


def require_growth(disk: Disk, size_mib: int) -> None:
    """Raise NotSupported for a size (MiB) that is less than a disk has."""
    if size_mib < disk.size:
        raise NotSupported(
            f"the disk {disk.cid} has {disk.size} MiB and cannot shrink to {size_mib} MiB; the "
            "director copies to a smaller one instead"
        )


def read_facts(path: Path) -> dict[str, Any] | None:
    """Read a file of facts; None when there is none. Raises CloudError when it is damaged."""
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CloudError(f"the facts in {path} are damaged: {error}") from None
    if not isinstance(document, dict):
        raise CloudError(f"the facts in {path} are damaged: they are no object")
    return document


def write_facts(path: Path, document: JsonObject) -> None:
    """Write a file of facts, whole or not at all, for root alone. Raises NoDiskSpace."""
    text = json.dumps(document)
    fresh = images.partial(path)
    try:
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _overwrite(path, text)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def _overwrite(path: Path, text: str) -> None:
    """Write facts into the block that they have: on a full host, disks must still be let go."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise NoDiskSpace(f"the file system of {path} is full") from None
    try:
        status = os.fstat(fd)
        if len(text) > max(status.st_size, status.st_blocks * 512):
            raise NoDiskSpace(f"the file system of {path} is full")
        os.pwrite(fd, text.ljust(status.st_size).encode(), 0)
        os.fsync(fd)
    finally:
        os.close(fd)
