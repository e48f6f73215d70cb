"""The runtimes through libvirt: the contract's verbs, handed to what does them."""

import base64
import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cpi import cid
from cpi.cni.networks import Networks
from cpi.disks.disk_store import Disk, DiskStore, folders_of, wanted
from cpi.errors import NotSupported
from cpi.host import locks, unfinished
from cpi.host.undo import Undo
from cpi.runtime import Runtime
from runtimes.libvirt.addresses import Addresses, FileAddresses, PoolAddresses
from runtimes.libvirt.client import Connection, is_local, is_unprivileged
from runtimes.libvirt.disk_backend import DiskPlace
from runtimes.libvirt.disk_backend_files import Files
from runtimes.libvirt.disk_backend_volumes import Scratch, Volumes
from runtimes.libvirt.disks import Disks, is_running
from runtimes.libvirt.garbage import Sweep
from runtimes.libvirt.nics import Nics
from runtimes.libvirt.profiles import KVM, VIRTUALBOX, Profile, require_possible
from runtimes.libvirt.stemcells import Stemcells
from runtimes.libvirt.virtualbox.cold_disks import ColdDisks
from runtimes.libvirt.virtualbox.folder_pool import Folder
from runtimes.libvirt.vms import VMs
from runtimes.libvirt.volumes import Pool

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import Any

    from cpi.config.config import Config
    from cpi.findings import Finding
    from cpi.log import Log
    from cpi.model import DiskProperties, Garbage, Json, JsonObject, Network, VMSpec
    from cpi.terminal import Streams
    from cpi.views import StemcellView, Usage, VMView

_SHORT = 10  # characters, of 5 bits
_REMOTE_POOL = "/var/lib/libvirt/images/bosh"


class LibvirtRuntime(Runtime):
    """BOSH VMs as domains of a hypervisor that libvirt drives."""

    profile: ClassVar[Profile]
    supports: ClassVar[frozenset[str]] = frozenset((
        "share_stemcell", "set_disk_metadata", "resize_disk", "update_disk", "snapshot_disk",
        "delete_snapshot", "console", "vms", "stemcells",
    ))  # fmt: skip

    def __init__(self, config: "Config", log: "Log") -> None:
        super().__init__(config, log)
        self._state_dir = Path(config.text("state_dir"))
        self._uri = config.text(f"{self.name}.uri")
        self._local = is_local(self._uri)
        profile = self.profile
        if not self._local and not profile.uploads:
            raise NotSupported(
                f"{self._uri} is of another machine, and the {self.name} runtime must be on "
                "VirtualBox' own: libvirt's driver for it takes no disks from elsewhere"
            )
        self._connection = Connection(
            self._uri,
            log,
            events=profile.events,
            lookups=profile.lookups,
            turn=None if profile.concurrent else lambda: self._lock(f"libvirt-{self.name}"),
        )

    def close(self) -> None:
        self._connection.close()

    # Stemcells

    def create_stemcell(
        self, image: Path, cloud_properties: "JsonObject", tags: "JsonObject"
    ) -> str:
        return self._stemcells.create(image, cloud_properties)

    def share_stemcell(
        self, stemcell_cid: str, image: Path, cloud_properties: "JsonObject"
    ) -> None:
        self._stemcells.share(stemcell_cid, image, cloud_properties)

    def delete_stemcell(self, stemcell_cid: str) -> None:
        self._stemcells.delete(stemcell_cid)

    # VMs

    def create_vm(self, spec: "VMSpec") -> "Sequence[Network]":
        from concurrent.futures import ThreadPoolExecutor

        if spec.properties.pids is not None:
            self.log.info("pids is not limited in a full VM, which has a kernel of its own")
        require_possible(self.profile, spec.properties, len(spec.networks))
        self._sweep()
        self._nics.require_free(spec)
        folder = self._folder(spec.cid)
        with Undo(self.log) as undo, ThreadPoolExecutor(1) as threads:
            undo.push(lambda: _remove(folder))
            if self._local:
                os.makedirs(folder.parent, mode=0o700, exist_ok=True)
                folder.mkdir(mode=0o700)
                unfinished.begin(folder)
            undo.push(lambda: self._nics.disconnect(spec.cid, folder))
            # CNI's plugins take as long as the volumes.
            connecting = threads.submit(self._nics.connect, spec, folder)
            networks = self._vms.create(spec, connecting, undo)
            unfinished.end(folder)
            undo.keep()
        return networks

    def delete_vm(self, vm_cid: str) -> None:
        # Whatever there is, so that this also cleans up after a create that was killed half-way.
        if self._place.attached_to(vm_cid):  # what its system has not written yet counts
            self._vms.stop(vm_cid)
        self._clear(vm_cid)

    def _clear(self, vm_cid: str) -> None:
        """Delete everything of a VM; its disks are released as it ends."""
        unfinished.begin(self._folder(vm_cid))
        disk_cids = self._place.attached_to(vm_cid)
        self._vms.delete(vm_cid)
        for disk_cid in disk_cids:
            with self._lock(disk_cid):
                self._disks.forget(vm_cid, disk_cid)
        folder = self._folder(vm_cid)
        self._nics.disconnect(vm_cid, folder)
        _remove(folder)

    def has_vm(self, vm_cid: str) -> bool:
        return self._vms.exists(vm_cid)

    def reboot_vm(self, vm_cid: str) -> None:
        self._vms.reboot(vm_cid)

    def restore(self, vm_cid: str) -> bool:
        # The domain itself libvirt starts with the host, where its driver can.
        folder = self._folder(vm_cid)
        if unfinished.is_marked(folder) or self._vms.is_unfinished(vm_cid):
            return False
        return self._nics.restore(vm_cid, folder, lambda: self._vms.start(vm_cid))

    def set_vm_metadata(self, vm_cid: str, metadata: "JsonObject") -> None:
        self._vms.set_metadata(vm_cid, metadata)

    def console(self, vm_cid: str) -> bytes:
        if not self.profile.console:
            raise NotSupported(f"{self.name} keeps no console log")
        return self._vms.console(vm_cid)

    # For people

    def vms(self) -> "list[VMView]":
        from runtimes.libvirt import listing

        return listing.vms(self._vms, self._connection, self.name, self._state_dir)

    def stemcells(self) -> "list[StemcellView]":
        from runtimes.libvirt import listing

        return listing.stemcells(self._pool, self.name, self.config.text("runtime"))

    def usage(self) -> "list[Usage]":
        from runtimes.libvirt import listing

        return listing.used(self._connection, self.name)

    def run_inside(self, vm_cid: str, command: Sequence[str], streams: "Streams") -> int:
        self._vms.require(vm_cid)
        raise NotSupported(
            f"{vm_cid} is a full VM, and nothing gets into it from outside: `bosh ssh` does, and "
            f"`bosh-cpi console {vm_cid}` shows what it printed"
        )

    def checks(self) -> "list[Finding]":
        from runtimes.libvirt import checks

        return checks.all_of(checks.Subject(self._connection, self.profile, self.config))

    # Persistent disks

    def create_disk(self, size_mib: int, properties: "DiskProperties", vm_cid: str | None) -> str:
        wished = None
        if vm_cid and (domain := self._vms.find(vm_cid)) is not None:
            wished = self._vms.facts(domain).filesystem
        disk = wanted(cid.new(self.name, cid.DISK, _short()), size_mib, properties, wished)
        # Where libvirt is elsewhere, the lock is held while the disk is made here, to be sent.
        with self._lock(disk.cid) if self._local else nullcontext():
            self._place.create(disk)
        return disk.cid

    def delete_disk(self, disk_cid: str) -> None:
        self._disks.get(disk_cid)
        self._place.delete(disk_cid)

    def has_disk(self, disk_cid: str) -> bool:
        return self._place.has(disk_cid)

    def disk_user(self, disk_cid: str) -> str:
        disk = self._place.find(disk_cid)
        return "" if disk is None else disk.attached_to

    def attach_disk(self, vm_cid: str, disk_cid: str, api_version: int) -> "Json":
        domain = self._vms.get(vm_cid)
        disk = self._disks.get(disk_cid)
        with Undo(self.log) as undo:
            resolution = self._vms.facts(domain).resolution
            hint = self._disks.attach(vm_cid, domain, resolution, disk, undo)
            if api_version < 2:
                self._vms.add_disk_to_settings(vm_cid, disk_cid, hint)
            undo.keep()
        return hint

    def detach_disk(self, vm_cid: str, disk_cid: str) -> None:
        self._place.get(disk_cid)
        domain = self._vms.get(vm_cid)
        self._disks.require_attached(vm_cid, disk_cid)
        self._disks.release(vm_cid, domain, disk_cid)

    def get_disks(self, vm_cid: str) -> list[str]:
        self._vms.require(vm_cid)
        return self._place.attached_to(vm_cid)

    def set_disk_metadata(self, disk_cid: str, metadata: "JsonObject") -> None:
        self._place.change(disk_cid, metadata=dict(metadata))

    def resize_disk(self, disk_cid: str, size_mib: int) -> None:
        disk = self._disks.get(disk_cid)
        domain = self._running_with(disk)
        if domain is not None:
            self._disks.grow(domain, disk, size_mib)
            return
        self._place.resize(disk_cid, size_mib)

    def update_disk(self, disk_cid: str, size_mib: int, properties: "DiskProperties") -> str:
        self._disks.get(disk_cid)
        self._place.update(disk_cid, size_mib, properties)
        return disk_cid

    def snapshot_disk(self, disk_cid: str, metadata: "JsonObject") -> str:
        snapshot_cid = cid.new(self.name, cid.SNAPSHOT)
        disk = self._disks.get(disk_cid)
        self._disks.snapshot(self._running_with(disk), disk, snapshot_cid, metadata)
        return snapshot_cid

    def delete_snapshot(self, snapshot_cid: str) -> None:
        self._place.delete_snapshot(snapshot_cid)

    # Helpers

    def _running_with(self, disk: Disk) -> "Any":
        """The domain that runs with a disk, or None."""
        domain = self._vms.find(disk.attached_to) if disk.attached_to else None
        return domain if domain is not None and is_running(domain) else None

    def _sweep(self) -> None:
        """Delete what killed calls left, where all calls are this machine's."""
        if self._local:
            for orphan in self._sweeper.orphans():
                self.log.warn(f"deleting what a killed call left of {orphan.name}")
                with self._lock(orphan.lock):
                    orphan.remove()

    def garbage(self) -> "list[Garbage]":
        if self._local:
            return self._sweeper.all()
        self.log.info(f"{self._uri} is of another machine: what calls left there is not looked for")
        return []

    @property
    def _sweeper(self) -> Sweep:
        return Sweep(self._vms, self._state_dir, self._is_held, self._clear)

    def _lock(self, name: str) -> "AbstractContextManager[None]":
        return locks.hold(self.config.text("run_dir"), name, log=self.log)

    def _is_held(self, name: str) -> bool:
        return locks.is_held(self.config.text("run_dir"), name)

    def _folder(self, vm_cid: str) -> Path:
        """A VM's folder, which is there as long as the VM is, when it is on this machine."""
        return self._state_dir / "vms" / vm_cid

    # Made when first needed

    @cached_property
    def _place(self) -> DiskPlace:
        here = DiskStore(folders_of(self.config))
        if self._local:
            return Files(here, self._state_dir, self._pool)
        scratch = Scratch(self._state_dir / "scratch", self._lock, self._is_held)
        return Volumes(self._connection, self._pool, here, scratch, self.log)

    @cached_property
    def _disks(self) -> Disks:
        if not self.profile.hotplug:
            folder = Path(self._pool_path)
            return ColdDisks(self._connection, self._place, self._pool, self._vms, folder, self.log)
        seconds = self.config.integer(f"{self.name}.detach_timeout")
        return Disks(self._connection, self._place, self._pool, self.profile, seconds, self.log)

    @cached_property
    def _pool(self) -> Pool:
        if not self.profile.uploads:
            return Folder(Path(self._pool_path))
        name = self.config.text(f"{self.name}.pool")
        return Pool(self._connection, name, self._pool_path, self._lock, self.log)

    @property
    def _pool_path(self) -> str:
        usual = str(self._state_dir / self.name) if self._local else _REMOTE_POOL
        return self.config.text(f"{self.name}.pool_path") or usual

    @cached_property
    def _stemcells(self) -> Stemcells:
        return Stemcells(self._pool, self.profile, self.config, self._lock, self.log)

    @cached_property
    def _vms(self) -> VMs:
        return VMs(
            self._connection, self._pool, self._stemcells, self.profile, self.config, self.log
        )

    @cached_property
    def _nics(self) -> Nics:
        host = None
        if self._local and self.profile.bridges and not is_unprivileged():
            host = Networks(self.config, self._state_dir, Path(self.config.text("run_dir")))
        addresses: Addresses = PoolAddresses(self._pool)
        if self._local:
            addresses = FileAddresses(self._state_dir / "addresses")
        return Nics(
            self._connection, self.profile, self.config, host, addresses, self._lock, self.log
        )


def _short() -> str:
    """A random identifier that makes a disk's CID shorter than 20 characters.

    By a CID that long bosh-agent looks for a disk itself before it looks at the hint: it has udev
    go through all devices, and waits (id_device_path_resolver.go).
    """
    return base64.b32encode(os.urandom(8)).decode().lower()[:_SHORT]


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=not folder.exists())


class KvmRuntime(LibvirtRuntime):
    """VMs of QEMU, with KVM where there is one."""

    name: ClassVar[str] = "kvm"
    profile: ClassVar[Profile] = KVM
    supports = LibvirtRuntime.supports | {"grow_attached_disk", "snapshot_attached_disk", "usage"}


class VirtualBoxRuntime(LibvirtRuntime):
    """VMs of VirtualBox."""

    name: ClassVar[str] = "virtualbox"
    profile: ClassVar[Profile] = VIRTUALBOX
