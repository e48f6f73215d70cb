"""The runtimes through libvirt: the contract's methods, delegated to their parts."""

import base64
import os
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cpi import cid
from cpi.cni.networks import Networks
from cpi.disks.disk import wanted
from cpi.disks.disk_store import DiskStore, folders_of
from cpi.errors import NotSupported
from cpi.host import locks
from cpi.host.layout import Layout
from cpi.host.undo import Undo
from cpi.runtime import Runtime
from runtimes.libvirt.addresses import Addresses, FileAddresses, PoolAddresses
from runtimes.libvirt.client import Connection
from runtimes.libvirt.disk_backend import DiskBackend
from runtimes.libvirt.disk_backend_files import FileDiskBackend
from runtimes.libvirt.disk_backend_volumes import VolumeDiskBackend
from runtimes.libvirt.disks import Disks
from runtimes.libvirt.domains import Domains
from runtimes.libvirt.garbage import Sweep
from runtimes.libvirt.nics import Nics, tap_of
from runtimes.libvirt.profiles import KVM, VIRTUALBOX, Profile, require_possible
from runtimes.libvirt.stemcells import Stemcells
from runtimes.libvirt.virtualbox.cold_disks import ColdDisks
from runtimes.libvirt.virtualbox.folder_pool import FolderPool
from runtimes.libvirt.vms import VMs
from runtimes.libvirt.volumes import StoragePool

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from cpi.config.config import Config
    from cpi.findings import Finding
    from cpi.log import Log
    from cpi.model import DiskProperties, Garbage, Json, JsonObject, Network, VMSpec
    from cpi.terminal import Streams
    from cpi.views import StemcellView, Usage, VMView

_SHORT = 10  # characters, of 5 bits
_OUR_POOL = "bosh"  # the default of kvm.pool, which no operator needs to have made
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
        self._layout = Layout.of(config)
        profile = self.profile
        self._connection = Connection(
            config.text(f"{self.name}.uri"),
            log,
            events=profile.events,
            lookups=profile.lookups,
            lock=None if profile.concurrent else lambda: self._lock(f"libvirt-{self.name}"),
        )
        self._local = self._connection.is_local
        if not self._local and not profile.uploads:
            raise NotSupported(
                f"{self._connection.uri} is of another machine, and the {self.name} runtime must "
                "be on VirtualBox' own: libvirt's driver for it takes no disks from elsewhere"
            )

        self._domains = Domains(self._connection, profile, config, self._layout, log)

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
        if spec.properties.pids is not None:
            self.log.info("pids is not limited in a full VM, which has a kernel of its own")
        require_possible(self.profile, spec.properties, len(spec.networks))
        self._sweep()
        return self._vms.create(spec)

    def delete_vm(self, vm_cid: str) -> None:
        self._vms.delete(vm_cid)

    def has_vm(self, vm_cid: str) -> bool:
        return self._domains.exists(vm_cid)

    def reboot_vm(self, vm_cid: str) -> None:
        self._vms.reboot(vm_cid)

    def shut_down(self, vm_cid: str, seconds: float) -> None:
        self._vms.shut_down(vm_cid, seconds)

    def restore(self, vm_cid: str) -> bool:
        return self._vms.restore(vm_cid)

    def set_vm_metadata(self, vm_cid: str, metadata: "JsonObject") -> None:
        self._vms.set_metadata(vm_cid, metadata)

    def console(self, vm_cid: str) -> bytes:
        return self._vms.console(vm_cid)

    # For the operator

    def vms(self) -> "list[VMView]":
        from runtimes.libvirt import listing

        return listing.vms(self._domains)

    def stemcells(self) -> "list[StemcellView]":
        from runtimes.libvirt import listing

        return listing.stemcells(self._pool, self.name, self.config.text("runtime"))

    def usage(self) -> "list[Usage]":
        from runtimes.libvirt import listing

        return listing.used(self._connection, self.name)

    def run_inside(self, vm_cid: str, command: Sequence[str], streams: "Streams") -> int:
        self._domains.require(vm_cid)
        raise NotSupported(
            f"{vm_cid} is a full VM, and nothing gets into it from outside: `bosh ssh` does, and "
            f"`bosh-cpi console {vm_cid}` shows what it printed"
        )

    def checks(self) -> "list[Finding]":
        from runtimes.libvirt import checks

        pool = self._pool if self.profile.uploads else None
        return checks.all_of(checks.Subject(self._connection, self.profile, self.config, pool))

    # Persistent disks

    def create_disk(self, size_mib: int, properties: "DiskProperties", vm_cid: str | None) -> str:
        wished = None
        if vm_cid and (domain := self._domains.find(vm_cid)) is not None:
            wished = self._domains.facts(domain).filesystem
        disk = wanted(cid.new(self.name, cid.DISK, _short()), size_mib, properties, wished)
        # Where libvirt is elsewhere, the lock is held while the disk is made here, to be sent.
        with self._lock(disk.cid) if self._local else nullcontext():
            self._backend.create(disk)
        return disk.cid

    def delete_disk(self, disk_cid: str) -> None:
        self._disks.get(disk_cid)
        self._backend.delete(disk_cid)

    def has_disk(self, disk_cid: str) -> bool:
        return self._backend.has(disk_cid)

    def disk_user(self, disk_cid: str) -> str:
        return self._backend.user_of(disk_cid)

    def attach_disk(self, vm_cid: str, disk_cid: str, api_version: int) -> "Json":
        domain = self._domains.get(vm_cid)
        disk = self._disks.get(disk_cid)
        with Undo(self.log) as undo:
            resolution = self._domains.facts(domain).resolution
            hint = self._disks.attach(vm_cid, domain, resolution, disk, undo)
            if api_version < 2:
                self._vms.add_disk_to_settings(vm_cid, disk_cid, hint)
            undo.keep()
        return hint

    def detach_disk(self, vm_cid: str, disk_cid: str) -> None:
        disk = self._backend.get(disk_cid)
        domain = self._domains.get(vm_cid)
        disk.require_attached_to(vm_cid)
        self._disks.release(vm_cid, domain, disk_cid)

    def get_disks(self, vm_cid: str) -> list[str]:
        self._domains.require(vm_cid)
        return self._backend.attached_to(vm_cid)

    def set_disk_metadata(self, disk_cid: str, metadata: "JsonObject") -> None:
        self._backend.change(disk_cid, metadata=dict(metadata))

    def resize_disk(self, disk_cid: str, size_mib: int) -> None:
        disk = self._disks.get(disk_cid)
        domain = self._domains.running_with(disk.attached_to)
        if domain is not None:
            self._disks.grow(domain, disk, size_mib)
            return
        self._backend.resize(disk_cid, size_mib)

    def update_disk(self, disk_cid: str, size_mib: int, properties: "DiskProperties") -> str:
        self._disks.get(disk_cid)
        self._backend.update(disk_cid, size_mib, properties)
        return disk_cid

    def snapshot_disk(self, disk_cid: str, metadata: "JsonObject") -> str:
        snapshot_cid = cid.new(self.name, cid.SNAPSHOT)
        disk = self._disks.get(disk_cid)
        domain = self._domains.running_with(disk.attached_to)
        self._disks.snapshot(domain, disk, snapshot_cid, metadata)
        return snapshot_cid

    def delete_snapshot(self, snapshot_cid: str) -> None:
        self._backend.delete_snapshot(snapshot_cid)

    # Garbage

    def garbage(self) -> "list[Garbage]":
        if self._local:
            return self._sweeper.all()
        self.log.info(
            f"{self._connection.uri} is of another machine: what calls left there is not looked for"
        )
        return []

    def remains(self) -> "list[Garbage]":
        from runtimes.libvirt import uninstall

        if not self.profile.uploads:  # its volumes are files below state_dir
            return []
        return uninstall.remains(self._connection, self._pool, self._stemcells, self.stemcells)

    def _sweep(self) -> None:
        """Delete what killed calls left, where all calls are this machine's."""
        if self._local:
            for orphan in self._sweeper.orphans():
                self.log.warn(f"deleting what a killed call left of {orphan.name}")
                with self._lock(orphan.lock):
                    orphan.remove()

    @property
    def _sweeper(self) -> Sweep:
        return Sweep(self._vms)

    def _lock(self, name: str) -> "AbstractContextManager[None]":
        return locks.hold(str(self._layout.run_dir), name, log=self.log)

    # Made when first needed

    @cached_property
    def _vms(self) -> VMs:
        return VMs(
            self._domains,
            self._pool,
            self._stemcells,
            self._nics,
            self._disks,
            self._backend,
            self.profile,
            self._lock,
            self.log,
        )

    @cached_property
    def _backend(self) -> DiskBackend:
        folders = folders_of(self.config)
        if self._local:
            return FileDiskBackend(folders, self._layout, self._pool)
        here = DiskStore(folders)
        return VolumeDiskBackend(self._connection, self._pool, here, self._layout, self.log)

    @cached_property
    def _disks(self) -> Disks:
        if self.profile.hotplug:
            return Disks(self._domains, self._backend, self._pool, self.log)
        return ColdDisks(self._domains, self._backend, self._pool, Path(self._pool_path), self.log)

    @cached_property
    def _pool(self) -> StoragePool:
        if not self.profile.uploads:
            return FolderPool(Path(self._pool_path))
        name, path = self.config.text(f"{self.name}.pool"), self._pool_path
        key = self._pool_key
        return StoragePool(self._connection, name, path, self._lock, self.log, key=key)

    @property
    def _pool_key(self) -> str:
        """Return the key that says where the pool must be, "" if the operator's may be anywhere.

        A pool that we made is in the old folder after a change of state_dir, with all VMs' disks.
        """
        key = f"{self.name}.pool_path"
        is_ours = self._local and self.config.text(f"{self.name}.pool") == _OUR_POOL
        return key if is_ours or self.config.text(key) else ""

    @property
    def _pool_path(self) -> str:
        default = str(self._layout.pool(self.name)) if self._local else _REMOTE_POOL
        return self.config.text(f"{self.name}.pool_path") or default

    @cached_property
    def _stemcells(self) -> Stemcells:
        return Stemcells(self._pool, self.profile, self.config, self._lock, self.log)

    @cached_property
    def _nics(self) -> Nics:
        host = None
        if self._local and not is_unprivileged():
            host = Networks(self.config, self.log, tap=tap_of)
        addresses: Addresses = PoolAddresses(self._pool)
        if self._local:
            addresses = FileAddresses(self._layout.addresses)
        return Nics(self._domains, host, addresses, self._lock)


def is_unprivileged() -> bool:
    """Tell whether this process cannot make networks and mounts."""
    return os.geteuid() != 0


def _short() -> str:
    """Return a random identifier that makes a disk's CID shorter than 20 characters.

    By a longer one bosh-agent looks for a disk before it looks at the hint: it has udev go through
    all devices, and waits (id_device_path_resolver.go).
    """
    return base64.b32encode(os.urandom(8)).decode().lower()[:_SHORT]


class KvmRuntime(LibvirtRuntime):
    """VMs of QEMU, with KVM where there is one."""

    name: ClassVar[str] = "kvm"
    profile: ClassVar[Profile] = KVM
    supports = LibvirtRuntime.supports | {"grow_attached_disk", "snapshot_attached_disk", "usage"}


class VirtualBoxRuntime(LibvirtRuntime):
    """VMs of VirtualBox."""

    name: ClassVar[str] = "virtualbox"
    profile: ClassVar[Profile] = VIRTUALBOX
