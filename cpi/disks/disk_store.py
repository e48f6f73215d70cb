"""Persistent disks as files of the host, in one or several folders.

`<folder>/<disk CID>.raw` is the disk (see cpi.disks.raw_image), `<disk CID>.json` beside it has its
facts: what BOSH said of it and which VM has it. These files are the only list of disks.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from cpi import validate
from cpi.disks import raw_image as images
from cpi.disks.disk import DEFAULT_STORE, STORE_NAME, AnyDiskStore, Disk
from cpi.errors import CloudError, CPIError, DiskNotFound
from cpi.host.facts_file import read_facts, write_facts
from cpi.host.layout import Layout
from cpi.text import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cpi.config.config import Config
    from cpi.model import DiskProperties

_STORE_PATH = validate.path("..")

# A sparse file takes its room as it is filled. Refuse at once when even this much is missing.
_MIN_FREE = 64 * images.MIB


def folders_of(config: Config) -> dict[str, Path]:
    """Return the folders that the configuration has for disks, by the name of the store.

    Raises CPIError for an invalid store.
    """
    folders = {DEFAULT_STORE: Path(config.text("disk_dir") or Layout.of(config).disks)}
    for name, path in config.mapping("disk_stores").items():
        if not STORE_NAME.fullmatch(name) or name == DEFAULT_STORE:
            raise CPIError(f"disk_stores: {shown(name, 60)} cannot be the name of a store")
        folders[name] = Path(_STORE_PATH(f"disk_stores.{name}", path, CPIError))
    return folders


class DiskStore(AnyDiskStore):
    """The disks in one or several folders of this host."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        """Use these folders, by store; the one named "default" takes disks that ask for none."""
        self.folders = dict(folders)

    def image(self, disk: Disk) -> Path:
        """Return the raw disk's path."""
        return self.folders[disk.store] / f"{disk.cid}.raw"

    def partial_snapshot(self, disk: Disk) -> Path:
        """Return where a snapshot of the disk is made; a killed call may leave it there."""
        return self.folders[disk.store] / f"{disk.cid}.snapshot.part"

    def find(self, disk_cid: str) -> Disk | None:
        copies = [
            disk
            for store, folder in self.folders.items()
            if (disk := self._read(store, folder / f"{disk_cid}.json")) is not None
        ]
        return max(copies, key=lambda disk: disk.moves, default=None)

    def has(self, disk_cid: str) -> bool:
        disk = self.find(disk_cid)
        return disk is not None and self.image(disk).exists()

    def get(self, disk_cid: str) -> Disk:
        disk = self.find(disk_cid)
        if disk is None:
            folders = ", ".join(str(folder) for folder in self.folders.values())
            raise DiskNotFound(f"there is no disk {disk_cid} in {folders}")
        return disk

    def get_free(self, disk_cid: str, purpose: str) -> Disk:
        """Return the facts of a disk that no VM has and the host does not use, its file checked.

        Raises DiskNotFound, and CloudError naming its user or what is wrong with its file.
        """
        disk = self.get(disk_cid)
        disk.require_detached(f"detach it to {purpose} it")
        images.require_unused(self.image(disk), disk_cid)
        self.check(disk)
        return disk

    def check(self, disk: Disk) -> None:
        """Raise CloudError when a disk's file is missing, truncated or another's."""
        images.check(self.image(disk), disk.cid, disk.whole, disk.filesystem)

    def all(self) -> Iterator[Disk]:
        """Yield every disk, by CID."""
        for cid in sorted({path.stem for path in self._all_facts()}):
            disk = self.find(cid)
            if disk is not None:
                yield disk

    def attached_to(self, vm_cid: str) -> list[str]:
        # With many disks, parsing the facts of all takes longer than the rest of the call.
        cids = {path.stem for path in self._all_facts() if vm_cid.encode() in _content(path)}
        disks = (self.find(cid) for cid in sorted(cids))
        return [disk.cid for disk in disks if disk is not None and disk.attached_to == vm_cid]

    def create(self, disk: Disk) -> None:
        folder = self._require_store(disk.store)
        disk.require_room_for_filesystem()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        needed = min(disk.whole * images.MIB, _MIN_FREE)
        images.require_room(folder, needed, f"a disk of {disk.size} MiB")
        image = self.image(disk)
        try:
            images.create(
                image, disk.cid, disk.whole, disk.filesystem, preallocate=disk.preallocate
            )
            self.save(disk)
        except BaseException:
            self._facts(disk).unlink(missing_ok=True)
            image.unlink(missing_ok=True)
            raise

    def save(self, disk: Disk) -> None:
        document = asdict(disk)
        del document["store"]  # that is the folder they are in
        write_facts(self._facts(disk), document)

    def delete(self, disk_cid: str) -> None:
        disk = self.get(disk_cid)
        disk.require_detached()
        images.require_unused(self.image(disk), disk_cid)
        self._remove_elsewhere(disk)
        shutil.rmtree(self.partial_snapshot(disk), ignore_errors=True)
        images.partial(self.image(disk)).unlink(missing_ok=True)
        self.image(disk).unlink(missing_ok=True)
        self._facts(disk).unlink()

    def resize(self, disk_cid: str, size_mib: int) -> None:
        disk = self.get_free(disk_cid, "resize")
        disk.require_growth(size_mib)
        if size_mib > disk.size:
            self._grow(disk, size_mib)

    def settle(self, disk_cid: str) -> None:
        disk = self.get(disk_cid)
        if not disk.attached_to and images.has_room_left(self.image(disk)):
            self._grow(disk, disk.size)

    def update(self, disk_cid: str, size_mib: int, properties: DiskProperties) -> None:
        # Each step can be repeated, and the facts of each are written when it is done.
        disk = self.get_free(disk_cid, "update")
        disk.require_growth(size_mib)
        disk.require_filesystem(properties.filesystem)
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
        whole = images.enlarge(
            self.image(disk),
            disk.cid,
            size_mib + disk.table,
            disk.filesystem,
            preallocate=disk.preallocate,
        )
        self.save(replace(disk, size=whole - disk.table))

    def _move(self, disk: Disk, store: str) -> Disk:
        """Copy a disk to another store, its facts last."""
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

    def _all_facts(self) -> Iterator[Path]:
        for folder in self.folders.values():
            yield from folder.glob("*-disk-*.json")

    def _facts(self, disk: Disk) -> Path:
        return self.folders[disk.store] / f"{disk.cid}.json"


def _content(path: Path) -> bytes:
    """Return what is in a file, nothing if it is gone."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
