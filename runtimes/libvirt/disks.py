"""Persistent disks in domains: the same files that containers mount, as disks of a machine.

The disks are this host's (cpi.disks.store); a domain has one as a file. Which VM has a disk is in
the disk's facts, so that a disk goes from a container to a VM and back.
"""

import math
import os
import time
from pathlib import Path
from typing import Any

from cpi.disks import image as images
from cpi.disks.snapshots import Snapshots
from cpi.disks.store import Disk, DiskStore
from cpi.errors import CloudError, DiskNotAttached, NotSupported
from cpi.log import Log
from cpi.model import Json
from cpi.process import run
from cpi.undo import Undo
from runtimes.libvirt import client, domain_xml, storage_xml
from runtimes.libvirt.client import Connection, told
from runtimes.libvirt.profiles import Profile
from runtimes.libvirt.storage_xml import Volume
from runtimes.libvirt.volumes import Pool, path_of
from stemcell_convert.machine import SCSI

_SERIAL = 20  # characters that virtio has for it (linux/virtio_blk.h, VIRTIO_BLK_ID_BYTES)
BACKUP = ".backup"
_ASK_AGAIN = 2.0  # seconds


def serial_of(disk_cid: str) -> str:
    """What a disk is called inside the VM: the beginning of its CID's last part."""
    return disk_cid.rsplit("-", 1)[1][:_SERIAL]


def hint_of(serial: str, resolution: str) -> Json:
    """How an agent finds a disk by its serial (bosh-agent, infrastructure/devicepathresolver).

    A virtio resolver takes a path, and its own look-up by the disk's CID ends after half a second
    without success: a CID is longer than a serial. A scsi resolver takes the end of a link's name.
    """
    if resolution == SCSI:
        return {"id": serial}
    return {"path": f"/dev/disk/by-id/virtio-{serial}"}


class Disks:
    """The disks of all VMs. The caller holds the locks of the disk and of its VM."""

    def __init__(
        self,
        connection: Connection,
        store: DiskStore,
        state_dir: Path,
        profile: Profile,
        detach_seconds: float,
        log: Log,
    ) -> None:
        self._connection = connection
        self._store = store
        self._state_dir = state_dir
        self._profile = profile
        self._detach_seconds = detach_seconds
        self._log = log

    def get(self, disk_cid: str) -> Disk:
        """Return a disk's facts, taken from a VM that is gone. Raises DiskNotFound."""
        disk = self._store.get(disk_cid)
        # Every runtime has a folder there for each of its VMs, as long as it lives.
        if not disk.attached_to or (self._state_dir / "vms" / disk.attached_to).is_dir():
            return disk
        self._log.warn(f"{disk.cid} was attached to {disk.attached_to}, which is gone")
        return self._store.set_owner(disk_cid, "")

    def attach(self, vm_cid: str, domain: Any, resolution: str, disk: Disk, undo: Undo) -> Json:
        """Give a disk to a VM and return the hint; twice is once. Raises CloudError."""
        require_free_for(vm_cid, disk)
        serial = serial_of(disk.cid)
        running = _is_running(domain)
        lacking = [flag for flag in _layers(running) if not _has(domain, flag, serial)]
        if lacking:
            image = self._store.image(disk)
            self._store.check(disk)
            if len(lacking) == len(_layers(running)):
                images.require_unused(image, disk.cid)
            self._let_through(image)
            undo.push(lambda: self.release(vm_cid, domain, disk.cid))
        self._store.set_owner(disk.cid, vm_cid)
        if lacking:
            self._attach(vm_cid, domain, resolution, disk, lacking)
        return hint_of(serial, resolution)

    def _attach(
        self, vm_cid: str, domain: Any, resolution: str, disk: Disk, lacking: list[int]
    ) -> None:
        bus = self._profile.bus[resolution]
        taken = [
            name
            for layer in _layers(_is_running(domain))
            for name in domain_xml.targets(_document_of(domain, layer))
        ]
        document = domain_xml.disk(
            domain_xml.Disk(
                path=str(self._store.image(disk)),
                format=self._profile.disk_format,
                target=domain_xml.free_target(bus, taken),
                bus=bus,
                serial=serial_of(disk.cid),
            )
        )
        flags = 0
        for flag in lacking:
            flags |= flag
        with told(f"attaching the disk {disk.cid} to the VM {vm_cid}"):
            domain.attachDeviceFlags(document, flags)

    def release(self, vm_cid: str, domain: Any, disk_cid: str) -> None:
        """Take a disk out of a VM, running or not, and off its facts.

        Raises CloudError when the VM does not let go of it; then it still has the disk.
        """
        serial = serial_of(disk_cid)
        running = _is_running(domain)
        if running and (attached := _has(domain, client.LIVE, serial)):
            self._unplug(vm_cid, domain, disk_cid, attached)
        if kept := _has(domain, client.CONFIG, serial):
            with told(f"detaching the disk {disk_cid} from the VM {vm_cid}"):
                domain.detachDeviceFlags(_document(kept), client.CONFIG)
        self.forget(vm_cid, disk_cid)

    def forget(self, vm_cid: str, disk_cid: str) -> None:
        """Record that a VM has a disk no more."""
        disk = self._store.find(disk_cid)
        if disk is not None and disk.attached_to == vm_cid:
            self._store.set_owner(disk_cid, "")

    def _unplug(
        self, vm_cid: str, domain: Any, disk_cid: str, attached: domain_xml.Attached
    ) -> None:
        """Have the VM's own kernel let go of a disk, and wait until it has."""
        doing = f"detaching the disk {disk_cid} from the VM {vm_cid}"
        end = time.monotonic() + self._detach_seconds

        def gone() -> bool:
            return not _has(domain, client.LIVE, attached.serial)

        with self._connection.watching(domain, client.REMOVED), told(doing):
            domain.detachDeviceFlags(_document(attached), client.LIVE)
            while not self._connection.wait(gone, min(_ASK_AGAIN, end - time.monotonic())):
                if time.monotonic() >= end:
                    break
                # A VM that was still booting has not heard the first time.
                client.ask_again(domain, _document(attached))
        if not gone():
            raise CloudError(
                f"{doing}: the VM did not let go of {attached.target} within "
                f"{self._detach_seconds:g} s; it has no system that answers yet, or none that can",
                ok_to_retry=True,
            )

    def require_attached(self, vm_cid: str, disk_cid: str) -> Disk:
        """Return a disk's facts. Raises DiskNotFound, DiskNotAttached."""
        disk = self._store.get(disk_cid)
        if disk.attached_to != vm_cid:
            where = f"attached to {disk.attached_to}" if disk.attached_to else "not attached"
            raise DiskNotAttached(f"the disk {disk_cid} is {where}, so not to the VM {vm_cid}")
        return disk

    def grow(self, domain: Any, disk: Disk, size_mib: int) -> None:
        """Grow a disk in a running VM, whose agent uses the room when it mounts it next."""
        if size_mib < disk.size:
            raise NotSupported(f"the disk {disk.cid} has {disk.size} MiB and cannot shrink")
        if not self._profile.block_resize:
            raise NotSupported(f"{self._profile.name} cannot grow a disk that a VM has")
        attached = _has(domain, client.LIVE, serial_of(disk.cid))
        if attached is None:
            raise CloudError(f"the VM {disk.attached_to} runs without its disk {disk.cid}")
        with told(f"growing the disk {disk.cid} to {size_mib} MiB"):
            domain.blockResize(attached.target, size_mib * images.MIB, client.RESIZE_BYTES)
        self._store.save_size(disk.cid, size_mib)

    def snapshot(
        self, domain: Any, pool: Pool, disk: Disk, snapshot_cid: str, metadata: Any
    ) -> None:
        """Take a snapshot of a disk, also while a VM runs with it. Raises NoDiskSpace."""
        snapshots = Snapshots(self._store)
        if domain is None or not _is_running(domain):
            images.require_unused(self._store.image(disk), disk.cid)
            snapshots.take(disk, snapshot_cid, metadata)
            return
        if not self._profile.backup:
            raise NotSupported(f"{self._profile.name} cannot copy a disk while a VM runs with it")

        def copy(_image: Path, target: Path) -> None:
            self._back_up(domain, pool, disk, target)

        snapshots.take(disk, snapshot_cid, metadata, copy=copy)

    def _back_up(self, domain: Any, pool: Pool, disk: Disk, target: Path) -> None:
        """Copy a disk in use as it is at this moment, through a volume that leaves out its holes.

        A raw target would get all of its room reserved.
        """
        attached = _has(domain, client.LIVE, serial_of(disk.cid))
        if attached is None:
            raise CloudError(f"the VM {disk.attached_to} runs without its disk {disk.cid}")
        doing = f"copying the disk {disk.cid}"
        name = disk.cid + BACKUP
        self._end_job(domain, doing)
        pool.delete(name)
        try:
            volume = pool.create(Volume(name, disk.size * images.MIB, "qcow2"))
            path = path_of(volume)
            everything = domain_xml.targets(_document_of(domain, client.LIVE))
            document = storage_xml.backup(everything, attached.target, path, "qcow2")
            with self._connection.watching(domain, client.JOB_COMPLETED) as ended, told(doing):
                domain.backupBegin(document, None, client.REUSE_TARGET)
                if not self._connection.wait(
                    lambda: bool(ended) and not domain.jobInfo()[0], math.inf
                ):
                    raise CloudError(f"{doing}: libvirt went away", ok_to_retry=True)
            said = ended[0][0]
            if not said.get("success", True):
                raise CloudError(f"{doing}: {said.get('errmsg', 'it failed')}")
            hint = "apt-get install qemu-utils"
            argv = [
                "qemu-img",
                "convert",
                "-f",
                "qcow2",
                "-O",
                "raw",
                "-S",
                "4k",
                path,
                str(target),
            ]
            run(argv, timeout=_HOURS, install_hint=hint)
            os.chmod(target, 0o600)
        finally:
            pool.delete(name)

    def _end_job(self, domain: Any, doing: str) -> None:
        """End what a killed call left at work in the domain."""
        with told(doing):
            if domain.jobInfo()[0]:
                self._log.warn(f"{doing}: ending a job that another call left")
                domain.abortJob()

    def _let_through(self, image: Path) -> None:
        """Let the hypervisor's user pass through the folders above a disk, and list nothing."""
        for folder in (image.parent, self._state_dir):
            mode = folder.stat().st_mode
            if not mode & 0o001:
                folder.chmod((mode & 0o7777) | 0o011)


_HOURS = 24 * 3600.0  # seconds; a disk takes as long as it takes


def require_free_for(vm_cid: str, disk: Disk) -> None:
    """Raise CloudError when another VM has the disk."""
    if disk.attached_to not in ("", vm_cid):
        raise CloudError(
            f"the disk {disk.cid} is attached to the VM {disk.attached_to}; detach it first"
        )


def _is_running(domain: Any) -> bool:
    with told("looking at a VM"):
        return bool(domain.isActive())


def _layers(running: bool) -> list[int]:
    return [client.CONFIG, client.LIVE] if running else [client.CONFIG]


def _document_of(domain: Any, layer: int) -> str:
    """A domain as it runs, or as it will start."""
    with told("looking at a VM's disks"):
        return str(domain.XMLDesc(client.INACTIVE_XML if layer == client.CONFIG else 0))


def _has(domain: Any, layer: int, serial: str) -> domain_xml.Attached | None:
    disks = domain_xml.attached(_document_of(domain, layer))
    return next((one for one in disks if one.serial == serial), None)


def _document(attached: domain_xml.Attached) -> str:
    return domain_xml.disk(
        domain_xml.Disk(attached.path, "raw", attached.target, attached.bus, attached.serial)
    )
