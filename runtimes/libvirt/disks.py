"""Persistent disks in domains, as files of any disk_backend.

The disk's facts say which VM has it, so that a disk can move between containers and VMs.
"""

import math
import time
from functools import partial
from typing import Any

from cpi.disks.disk import Disk
from cpi.disks.raw_image import MIB
from cpi.errors import CloudError, CPIError, NotSupported
from cpi.host.undo import Undo
from cpi.log import Log
from cpi.model import Json, JsonObject
from runtimes.libvirt import client
from runtimes.libvirt.client import translated_errors
from runtimes.libvirt.disk_backend import DiskBackend
from runtimes.libvirt.domains import Domains, is_running
from runtimes.libvirt.volumes import StoragePool, path_of
from runtimes.libvirt.xml import domain_xml, storage_xml
from runtimes.libvirt.xml.storage_xml import Volume
from stemcell_convert.machine_agent import SCSI

_SERIAL = 20  # characters that virtio has for it (linux/virtio_blk.h, VIRTIO_BLK_ID_BYTES)
_ASK_AGAIN = 2.0  # seconds


def serial_of(disk_cid: str) -> str:
    """Return a disk's serial in the VM: the beginning of its CID's last part."""
    return disk_cid.rsplit("-", 1)[1][:_SERIAL]


def hint_of(serial: str, resolution: str) -> Json:
    """Return the hint for a disk's serial (bosh-agent, infrastructure/devicepathresolver).

    A virtio resolver takes a path. By a CID of 20 characters or more it looks for the disk itself
    first, without success. A scsi resolver takes the end of a link's name.
    """
    if resolution == SCSI:
        return {"id": serial}
    return {"path": f"/dev/disk/by-id/virtio-{serial}"}


class Disks:
    """The disks of all VMs. The caller holds the locks of the disk and of its VM."""

    def __init__(self, domains: Domains, backend: DiskBackend, pool: StoragePool, log: Log) -> None:
        self._domains = domains
        self._connection = domains.connection
        self._profile = domains.profile
        self._backend = backend
        self._pool = pool
        self._log = log

    def get(self, disk_cid: str) -> Disk:
        """Return a disk's facts, after detaching it from a VM that is gone. Raises DiskNotFound."""
        return self._backend.get_reclaimed(disk_cid, self._backend.has_vm, self._log)

    def attach(self, vm_cid: str, domain: Any, resolution: str, disk: Disk, undo: Undo) -> Json:
        """Attach a disk to a VM and return the hint; idempotent. Raises CloudError."""
        disk.require_free_for(vm_cid)
        serial = serial_of(disk.cid)
        layers = _layers(is_running(domain))
        lacking = [flag for flag in layers if not _has(domain, flag, serial)]
        if lacking:
            path = self._backend.path(disk, unused=lacking == layers)
            undo.push(lambda: self.release(vm_cid, domain, disk.cid))
        self._backend.change(disk.cid, attached_to=vm_cid)
        if lacking:
            self._attach(vm_cid, domain, resolution, disk, path, lacking)
        return hint_of(serial, resolution)

    def _attach(
        self, vm_cid: str, domain: Any, resolution: str, disk: Disk, path: str, lacking: list[int]
    ) -> None:
        bus = self._profile.bus[resolution]
        taken = [
            name
            for layer in _layers(is_running(domain))
            for name in domain_xml.targets(_document_of(domain, layer))
        ]
        document = domain_xml.disk(
            domain_xml.DomainDisk(
                path=path,
                format=self._profile.disk_format,
                target=domain_xml.free_target(bus, taken),
                bus=bus,
                serial=serial_of(disk.cid),
                discard=not disk.preallocate,
            )
        )
        with translated_errors(f"attaching the disk {disk.cid} to the VM {vm_cid}"):
            domain.attachDeviceFlags(document, sum(lacking))

    def release(self, vm_cid: str, domain: Any, disk_cid: str) -> None:
        """Detach a disk from a VM, running or not, and from its facts.

        Raises CloudError when the VM does not release it; then it still has the disk.
        """
        serial = serial_of(disk_cid)
        running = is_running(domain)
        if running and (attached := _has(domain, client.LIVE, serial)):
            self._unplug(vm_cid, domain, disk_cid, attached)
        if kept := _has(domain, client.CONFIG, serial):
            with translated_errors(f"detaching the disk {disk_cid} from the VM {vm_cid}"):
                domain.detachDeviceFlags(_document(kept), client.CONFIG)
        self.forget(vm_cid, disk_cid)

    def forget(self, vm_cid: str, disk_cid: str) -> None:
        """Record that a VM no longer has a disk."""
        disk = self._backend.find(disk_cid)
        if disk is None or disk.attached_to != vm_cid:
            return
        self._backend.change(disk_cid, attached_to="")
        try:
            self._backend.settle(disk_cid)
        except CPIError as error:  # it is detached all the same, and unchanged
            self._log.warn(f"{disk_cid} keeps the file system's size: {error.message}")

    def _unplug(
        self, vm_cid: str, domain: Any, disk_cid: str, attached: domain_xml.Attached
    ) -> None:
        """Ask the guest to release a disk, and wait until it has."""
        doing = f"detaching the disk {disk_cid} from the VM {vm_cid}"
        seconds = self._domains.config.integer(f"{self._profile.name}.detach_timeout")
        end = time.monotonic() + seconds

        def gone() -> bool:
            return not _has(domain, client.LIVE, attached.serial)

        with self._connection.watching(domain, client.REMOVED), translated_errors(doing):
            domain.detachDeviceFlags(_document(attached), client.LIVE)
            while not self._connection.wait(gone, min(_ASK_AGAIN, end - time.monotonic())):
                if time.monotonic() >= end:
                    break
                # A guest that was still booting has missed the first request.
                client.ask_again(domain, _document(attached))
        if not gone():
            raise CloudError(
                f"{doing}: the VM did not let go of {attached.target} within {seconds} s; it has "
                "no system that answers yet, or none that can",
                ok_to_retry=True,
            )

    def grow(self, domain: Any, disk: Disk, size_mib: int) -> None:
        """Grow a disk in a running VM, whose agent grows the file system at the next mount."""
        disk.require_growth(size_mib)
        if not self._profile.block_resize:
            raise NotSupported(f"{self._profile.name} cannot grow a disk that a VM has")
        if disk.preallocate:
            raise CloudError(
                f"the disk {disk.cid} is preallocated, and can grow while no VM has it alone; "
                f"detach it from {disk.attached_to}"
            )
        attached = self._in_use(domain, disk)
        with translated_errors(f"growing the disk {disk.cid} to {size_mib} MiB"):
            whole = (size_mib + disk.table) * MIB
            domain.blockResize(attached.target, whole, client.RESIZE_BYTES)
        self._backend.change(disk.cid, size=size_mib)

    def _in_use(self, domain: Any, disk: Disk) -> domain_xml.Attached:
        attached = _has(domain, client.LIVE, serial_of(disk.cid))
        if attached is None:
            raise CloudError(f"the VM {disk.attached_to} runs without its disk {disk.cid}")
        return attached

    def snapshot(self, domain: Any, disk: Disk, snapshot_cid: str, metadata: JsonObject) -> None:
        """Take a snapshot. domain: the VM that runs with the disk, or None. Raises NoDiskSpace."""
        if domain is not None and not self._profile.backup:
            raise NotSupported(f"{self._profile.name} cannot copy a disk while a VM runs with it")
        copy_in_use = partial(self._back_up, domain, disk) if domain is not None else None
        self._backend.snapshot(disk, snapshot_cid, metadata, copy_in_use)

    def _back_up(self, domain: Any, disk: Disk, name: str) -> Any:
        """Copy a disk in use, as of this moment, into a new volume, which errors may leave."""
        attached = self._in_use(domain, disk)
        doing = f"copying the disk {disk.cid}"
        self._end_job(domain, doing)
        self._pool.delete(name)
        volume = self._pool.create(Volume(name, disk.whole * MIB, "qcow2"))
        everything = domain_xml.targets(_document_of(domain, client.LIVE))
        document = storage_xml.backup(everything, attached.target, path_of(volume), "qcow2")
        watching = self._connection.watching(domain, client.JOB_COMPLETED)
        with watching as ended, translated_errors(doing):
            domain.backupBegin(document, None, client.REUSE_TARGET)
            if not self._connection.wait(lambda: bool(ended) and not domain.jobInfo()[0], math.inf):
                raise CloudError(f"{doing}: libvirt went away", ok_to_retry=True)
        outcome = ended[0][0]
        if not outcome.get("success", True):
            raise CloudError(f"{doing}: {outcome.get('errmsg', 'it failed')}")
        return volume

    def _end_job(self, domain: Any, doing: str) -> None:
        """Abort the domain's job, if a killed call left one."""
        with translated_errors(doing):
            if domain.jobInfo()[0]:
                self._log.warn(f"{doing}: ending a job that another call left")
                domain.abortJob()


def _layers(running: bool) -> list[int]:
    return [client.CONFIG, client.LIVE] if running else [client.CONFIG]


def _document_of(domain: Any, layer: int) -> str:
    """Return the document of a domain as it runs, or as it will start."""
    with translated_errors("looking at a VM's disks"):
        return str(domain.XMLDesc(client.INACTIVE_XML if layer == client.CONFIG else 0))


def _has(domain: Any, layer: int, serial: str) -> domain_xml.Attached | None:
    disks = domain_xml.attached(_document_of(domain, layer))
    return next((disk for disk in disks if disk.serial == serial), None)


def _document(attached: domain_xml.Attached) -> str:
    return domain_xml.disk(
        domain_xml.DomainDisk(attached.path, "raw", attached.target, attached.bus, attached.serial)
    )
