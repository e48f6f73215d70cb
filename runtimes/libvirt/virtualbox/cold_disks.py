"""Persistent disks of a hypervisor whose driver has no hotplug.

The VM is stopped, defined again with the disk or without it, and started: a power cycle. It has the
disk as `<disk cid>.vmdk`, which refers to the raw file.
"""

import os
from pathlib import Path
from typing import Any

from cpi.disks import raw_image as images
from cpi.disks.disk import Disk
from cpi.errors import CloudError, NotSupported
from cpi.host.undo import Undo
from cpi.log import Log
from cpi.model import Json, JsonObject
from runtimes.libvirt.client import translated_errors
from runtimes.libvirt.disk_backend import DiskBackend
from runtimes.libvirt.disks import Disks
from runtimes.libvirt.domains import Domains
from runtimes.libvirt.virtualbox import media, virtualbox_xml
from runtimes.libvirt.volumes import StoragePool


class ColdDisks(Disks):
    """See Disks."""

    def __init__(
        self, domains: Domains, backend: DiskBackend, pool: StoragePool, folder: Path, log: Log
    ) -> None:
        """folder: for the descriptors of the disks."""
        super().__init__(domains, backend, pool, log)
        self._folder = folder

    def get(self, disk_cid: str) -> Disk:
        disk = super().get(disk_cid)
        if not disk.attached_to:
            self._descriptor(disk_cid).unlink(missing_ok=True)  # of the VM that is gone
        return disk

    def attach(self, vm_cid: str, domain: Any, resolution: str, disk: Disk, undo: Undo) -> Json:
        disk.require_free_for(vm_cid)
        descriptor = self._descriptor(disk.cid)
        document = self._document(vm_cid)
        hint = media.hint_of(descriptor.name, resolution)
        noted = virtualbox_xml.has_disk(document, str(descriptor))
        if noted and self._has(domain, vm_cid, descriptor):
            self._backend.change(disk.cid, attached_to=vm_cid)
            return hint
        image = Path(self._backend.path(disk, unused=True))
        if not noted:
            bus, disk_format = self._profile.bus[resolution], self._profile.disk_format
            document = virtualbox_xml.with_disk(document, str(descriptor), disk_format, bus)
        undo.push(lambda: self.forget(vm_cid, disk.cid))
        self._backend.change(disk.cid, attached_to=vm_cid)
        self._write(descriptor, image)
        self._cycle(vm_cid, f"giving it the disk {disk.cid}", document)
        return hint

    def release(self, vm_cid: str, domain: Any, disk_cid: str) -> None:
        descriptor = self._descriptor(disk_cid)
        document = self._document(vm_cid)
        noted = virtualbox_xml.has_disk(document, str(descriptor))
        if noted or self._has(domain, vm_cid, descriptor):
            document = virtualbox_xml.without_disk(document, str(descriptor))
            self._cycle(vm_cid, f"taking the disk {disk_cid} from it", document)
        self.forget(vm_cid, disk_cid)

    def forget(self, vm_cid: str, disk_cid: str) -> None:
        disk = self._backend.find(disk_cid)
        if disk is not None and disk.attached_to == vm_cid:
            self._descriptor(disk_cid).unlink(missing_ok=True)
        super().forget(vm_cid, disk_cid)

    def grow(self, domain: Any, disk: Disk, size_mib: int) -> None:
        """Refuse to grow a disk that a VM has. Raises CloudError, naming the VM."""
        self._backend.resize(disk.cid, size_mib)

    def snapshot(self, domain: Any, disk: Disk, snapshot_cid: str, metadata: JsonObject) -> None:
        """Take a snapshot of a disk that no VM has. Raises NotSupported, NoDiskSpace."""
        if disk.attached_to:
            raise NotSupported(
                f"{self._profile.name} cannot copy the disk {disk.cid} while the VM "
                f"{disk.attached_to} has it; detach it first"
            )
        self._backend.snapshot(disk, snapshot_cid, metadata, None)

    def _cycle(self, vm_cid: str, purpose: str, document: str) -> None:
        self._log.warn(
            f"power cycle of {vm_cid}, {purpose}: libvirt's driver for {self._profile.name} cannot "
            "while the VM runs"
        )
        self._domains.redefine(vm_cid, document)

    def _document(self, vm_cid: str) -> str:
        document = self._domains.notes.document(vm_cid)
        if not document:
            raise CloudError(f"the notes by which {vm_cid} was defined are lost; recreate the VM")
        return document

    def _has(self, domain: Any, vm_cid: str, descriptor: Path) -> bool:
        with translated_errors(f"looking at the disks of the VM {vm_cid}"):
            return virtualbox_xml.has_disk(domain.XMLDesc(0), str(descriptor))

    def _write(self, descriptor: Path, image: Path) -> None:
        text = media.descriptor(descriptor.name, image, image.stat().st_size)
        part = images.partial(descriptor)
        part.unlink(missing_ok=True)
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        part.replace(descriptor)

    def _descriptor(self, disk_cid: str) -> Path:
        """Return a disk's descriptor, the same for every store: VirtualBox caches UUIDs by path."""
        return self._folder / f"{disk_cid}.vmdk"
