"""Disks as volumes of libvirt's storage pool, for a libvirt that is on another machine.

`<disk cid>.raw` is the disk, laid out as everywhere (cpi.disks.raw_image), and `<disk cid>.facts`
has its facts. These are written last: a disk without them is what a killed call left.
`<snapshot cid>.snapshot` is a snapshot (qcow2), with facts beside it too.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cpi.disks import raw_image as images
from cpi.disks.disk import DEFAULT_STORE, Disk
from cpi.disks.disk_store import DiskStore
from cpi.disks.snapshots import describe
from cpi.errors import CloudError, DiskNotFound, NotSupported
from cpi.host import locks
from cpi.host.layout import Layout
from cpi.host.undo import Undo
from cpi.log import Log
from cpi.model import DiskProperties, JsonObject
from runtimes.libvirt.client import INACTIVE_XML, Connection, translated_errors
from runtimes.libvirt.disk_backend import CopyInUse, DiskBackend
from runtimes.libvirt.volumes import StoragePool, capacity_of, path_of
from runtimes.libvirt.xml import domain_xml
from runtimes.libvirt.xml.storage_xml import Volume

_DISK, _FACTS, _SNAPSHOT = ".raw", ".facts", ".snapshot"
# Bytes of facts, JSON padded with spaces: a page, which is one message, written at once, so that no
# reader gets half of it.
_FACTS_SIZE = 4096


class VolumeDiskBackend(DiskBackend):
    """The disks in one pool. Nothing of them is on this machine."""

    def __init__(
        self, connection: Connection, pool: StoragePool, here: DiskStore, layout: Layout, log: Log
    ) -> None:
        """here: this machine's disks, which libvirt elsewhere cannot use."""
        self._connection = connection
        self._pool = pool
        self._here = here
        self._layout = layout
        self._log = log

    # Facts

    def find(self, disk_cid: str) -> Disk | None:
        volume = self._pool.find(disk_cid + _FACTS)
        if volume is None:
            return None
        text = self._pool.read(volume, limit=_FACTS_SIZE).strip(b"\0 ")
        if not text:  # killed before it was written, so the disk has never been there
            return None
        try:
            return Disk(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise CloudError(f"the volume {disk_cid}{_FACTS} is damaged: {error}") from None

    def get(self, disk_cid: str) -> Disk:
        disk = self.find(disk_cid)
        if disk is not None:
            return disk
        if self._here.find(disk_cid) is not None:
            raise NotSupported(
                f"the disk {disk_cid} is a file of this machine, and libvirt at "
                f"{self._connection.uri} is on another, which has disks in its own storage pool"
            )
        raise DiskNotFound(f"there is no disk {disk_cid} in {self._where}")

    def save(self, disk: Disk) -> None:
        document = asdict(disk)
        del document["store"]  # there is one
        volume = self._pool.find(disk.cid + _FACTS)
        if volume is None:
            raise DiskNotFound(f"there is no disk {disk.cid} in {self._where} any more")
        self._write(volume, disk.cid, document)

    def _write(self, volume: Any, cid: str, document: Mapping[str, Any]) -> None:
        text = json.dumps(document).encode()
        if len(text) > _FACTS_SIZE:
            raise CloudError(
                f"what is to be kept of {cid} takes {len(text)} bytes, more than the "
                f"{_FACTS_SIZE} there are: its cloud_properties or its metadata are too long"
            )
        self._pool.write(volume, text.ljust(_FACTS_SIZE))

    def _create_facts(self, cid: str, document: Mapping[str, Any], undo: Undo) -> None:
        undo.push(lambda: self._pool.delete(cid + _FACTS))
        self._write(self._pool.create(Volume(cid + _FACTS, _FACTS_SIZE)), cid, document)

    # Looking

    def has(self, disk_cid: str) -> bool:
        return self._pool.find(disk_cid + _DISK) is not None and self.find(disk_cid) is not None

    def has_vm(self, vm_cid: str) -> bool:
        return self._connection.domain(vm_cid) is not None

    def attached_to(self, vm_cid: str) -> list[str]:
        # One message for the domain, instead of one for the facts of each disk.
        domain = self._connection.domain(vm_cid)
        if domain is None:
            return []
        with translated_errors(f"looking at the disks of {vm_cid}"):
            document = domain.XMLDesc(INACTIVE_XML)
        names = [os.path.basename(disk.path) for disk in domain_xml.attached(document)]
        cids = [name.removesuffix(_DISK) for name in names if name.endswith(_DISK)]
        disks = [disk for cid in cids if (disk := self.find(cid)) is not None]
        return [disk.cid for disk in disks if disk.attached_to == vm_cid]

    def path(self, disk: Disk, *, unused: bool) -> str:
        volume = self._volume(disk)
        if unused:
            head = self._pool.read(volume, length=images.TABLE_HEAD)
            _require_no(images.table_problem(head, disk.cid), disk)
        return path_of(volume)

    def _volume(self, disk: Disk) -> Any:
        """Return a disk's volume. Raises CloudError when it is missing or truncated."""
        volume = self._pool.find(disk.cid + _DISK)
        problem, whole = "", disk.whole * images.MIB
        if volume is None:
            problem = "is missing"
        elif (size := capacity_of(volume)) < whole:
            problem = f"is truncated: it has {size} bytes of {whole}"
        _require_no(problem, disk)
        return volume

    @property
    def _where(self) -> str:
        return f"the storage pool {self._pool.name} of libvirt at {self._connection.uri}"

    # Changing

    def create(self, disk: Disk) -> None:
        self._require_plain(disk.store, disk.preallocate)
        disk.require_room_for_filesystem()
        document = asdict(disk)
        del document["store"]
        with Undo(self._log) as undo, self._scratch_file(disk.cid) as image:
            images.create(image, disk.cid, disk.whole, disk.filesystem, preallocate=False)
            undo.push(lambda: self._pool.delete(disk.cid + _DISK))
            volume = self._pool.create(Volume(disk.cid + _DISK, disk.whole * images.MIB))
            self._pool.upload(volume, image)
            self._create_facts(disk.cid, document, undo)
            undo.keep()

    @contextmanager
    def _scratch_file(self, cid: str) -> Iterator[Path]:
        """Give the path of a file to upload, under the lock of its new CID; remove it at the end.

        Files of killed calls, which are not locked, are removed as well.
        """
        folder, run_dir = self._layout.scratch, str(self._layout.run_dir)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locks.hold(run_dir, cid, log=self._log):
            for left in folder.iterdir():
                if left.name != cid and not locks.is_held(run_dir, left.name):
                    left.unlink(missing_ok=True)
            path = folder / cid
            try:
                yield path
            finally:
                path.unlink(missing_ok=True)

    def _require_plain(self, store: str, preallocate: bool) -> None:
        """Refuse what only this machine's disks can have."""
        if store != DEFAULT_STORE:
            raise NotSupported(
                f"disk stores are folders of this machine; {self._where} has no store {store}"
            )
        if preallocate:
            raise NotSupported(f"disks in {self._where} take their room as it is used")

    def delete(self, disk_cid: str) -> None:
        disk = self._get_free(disk_cid)
        # The facts go last, so that a delete which was killed can be called again.
        self._pool.delete(disk.cid + _DISK)
        self._pool.delete(disk.cid + _FACTS)

    def _get_free(self, disk_cid: str) -> Disk:
        disk = self.get(disk_cid)
        disk.require_detached()
        return disk

    def resize(self, disk_cid: str, size_mib: int) -> None:
        self._grow(self._get_free(disk_cid), size_mib)

    def _grow(self, disk: Disk, size_mib: int) -> None:
        """Give a disk more room at its end; the agent grows what is in it when it mounts it."""
        disk.require_growth(size_mib)
        if size_mib > disk.size:
            volume = self._volume(disk)
            with translated_errors(f"growing the disk {disk.cid} to {size_mib} MiB"):
                volume.resize((size_mib + disk.table) * images.MIB)
            self.change(disk.cid, size=size_mib)

    def settle(self, disk_cid: str) -> None:
        """Do nothing: only agents can grow file systems on another machine."""

    def update(self, disk_cid: str, size_mib: int, properties: DiskProperties) -> None:
        disk = self._get_free(disk_cid)
        self._require_plain(properties.store, properties.preallocate)
        disk.require_filesystem(properties.filesystem)
        self._grow(disk, size_mib)
        self.change(disk_cid, cloud_properties=dict(properties.given))

    # Snapshots

    def snapshot(
        self, disk: Disk, snapshot_cid: str, metadata: JsonObject, copy_in_use: CopyInUse | None
    ) -> None:
        name = snapshot_cid + _SNAPSHOT
        with Undo(self._log) as undo:
            undo.push(lambda: self._pool.delete(name))
            if copy_in_use is not None:
                copy_in_use(name)
            else:
                size = disk.whole * images.MIB
                self._pool.copy(self._volume(disk), Volume(name, size, "qcow2"))
            self._create_facts(snapshot_cid, asdict(describe(disk, snapshot_cid, metadata)), undo)
            undo.keep()

    def delete_snapshot(self, snapshot_cid: str) -> None:
        self._pool.delete(snapshot_cid + _SNAPSHOT)
        self._pool.delete(snapshot_cid + _FACTS)


def _require_no(problem: str, disk: Disk) -> None:
    if problem:
        raise CloudError(
            f"the disk {disk.cid} cannot be used: the volume {disk.cid}{_DISK} {problem}"
        )
