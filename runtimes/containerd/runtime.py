"""The containerd runtime: the contract's methods, delegated to its parts.

VMs and stemcells are loaded on first use: attaching and detaching a disk need only the host, and
must not wait for containerd's client.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cpi import cid
from cpi.disks.disk import wanted
from cpi.disks.disk_store import DiskStore, folders_of
from cpi.host import locks
from cpi.host.layout import Layout
from cpi.host.undo import Undo
from cpi.runtime import Runtime
from runtimes.containerd.daemon import Containerd
from runtimes.containerd.disks import Disks
from runtimes.containerd.vm_folder import VMFolder

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from cpi.config.config import Config
    from cpi.disks.snapshots import Snapshots
    from cpi.findings import Finding
    from cpi.log import Log
    from cpi.model import DiskProperties, Garbage, Json, JsonObject, Network, VMSpec
    from cpi.terminal import Streams
    from cpi.views import LogPart, LogPlaces, StemcellView, Usage, VMView
    from runtimes.containerd.vms import VMs


class ContainerdRuntime(Runtime):
    """BOSH VMs as containerd tasks."""

    name: ClassVar[str] = "containerd"
    supports: ClassVar[frozenset[str]] = frozenset((
        "share_stemcell", "set_disk_metadata", "resize_disk", "update_disk", "snapshot_disk",
        "delete_snapshot", "snapshot_attached_disk", "vms", "stemcells", "usage", "run_inside",
        "log_places", "read_log", "console",
    ))  # fmt: skip

    def __init__(self, config: "Config", log: "Log") -> None:
        super().__init__(config, log)
        self._layout = Layout.of(config)
        self._disk_store = DiskStore(folders_of(config))
        self._disks = Disks(self._disk_store, self._layout, self._lock, log)
        self._containerd = Containerd(self.name, config, self._layout, log)

    def close(self) -> None:
        self._containerd.close()

    # Stemcells

    def create_stemcell(
        self, image: Path, cloud_properties: "JsonObject", tags: "JsonObject"
    ) -> str:
        return self._containerd.imports.create(image, cloud_properties)

    def share_stemcell(
        self, stemcell_cid: str, image: Path, cloud_properties: "JsonObject"
    ) -> None:
        self._containerd.imports.share(stemcell_cid, image, cloud_properties)

    def delete_stemcell(self, stemcell_cid: str) -> None:
        self._containerd.stemcells.delete(stemcell_cid)

    # VMs

    def create_vm(self, spec: "VMSpec") -> "Sequence[Network]":
        return self._vms.create(spec)

    def delete_vm(self, vm_cid: str) -> None:
        self._vms.delete(vm_cid)

    def has_vm(self, vm_cid: str) -> bool:
        return self._vms.exists(vm_cid)

    def reboot_vm(self, vm_cid: str) -> None:
        self._vms.reboot(vm_cid)

    def shut_down(self, vm_cid: str, seconds: float) -> None:
        self._vms.shut_down(vm_cid, seconds)

    def restore(self, vm_cid: str) -> bool:
        return self._vms.restore(vm_cid)

    def set_vm_metadata(self, vm_cid: str, metadata: "JsonObject") -> None:
        self._vms.set_metadata(vm_cid, metadata)

    # For the operator

    def vms(self) -> "list[VMView]":
        from runtimes.containerd import listing

        return listing.vms(self._containerd.containers, self.name)

    def stemcells(self) -> "list[StemcellView]":
        from runtimes.containerd import listing

        return listing.stemcells(self._containerd.store, self.name, self.config.text("runtime"))

    def usage(self) -> "list[Usage]":
        from runtimes.containerd import listing

        parent = self.config.text("containerd.cgroup_parent")
        return list(listing.used(self._containerd, parent, self._layout))

    def run_inside(self, vm_cid: str, command: Sequence[str], streams: "Streams") -> int:
        return self._vms.run_inside(vm_cid, command, streams)

    def log_places(self, vm_cid: str) -> "LogPlaces":
        from runtimes.containerd import vm_logs

        systemd = self._vms.has_systemd(vm_cid)
        return self._vms.look(
            vm_cid, lambda root, runs: vm_logs.places(root, runs=runs, systemd=systemd)
        )

    def read_log(
        self, vm_cid: str, path: str, after: "LogPart | None", limit: int
    ) -> "LogPart | None":
        from runtimes.containerd import vm_logs

        return self._vms.look(vm_cid, lambda root, _: vm_logs.part(root, path, after, limit))

    def console(self, vm_cid: str) -> bytes:
        return self._vms.console(vm_cid)

    def checks(self) -> "list[Finding]":
        from runtimes.containerd import checks

        store, containers = self._containerd.store, self._containerd.containers
        return checks.all_of(checks.Subject(self.name, self.config, store, containers))

    # Persistent disks

    def create_disk(self, size_mib: int, properties: "DiskProperties", vm_cid: str | None) -> str:
        wished = VMFolder(self._layout, vm_cid).wishes().filesystem if vm_cid else None
        disk = wanted(cid.new(self.name, cid.DISK), size_mib, properties, wished)
        with self._lock(disk.cid):
            self._disk_store.create(disk)
        return disk.cid

    def delete_disk(self, disk_cid: str) -> None:
        self._disks.get(disk_cid)
        self._disk_store.delete(disk_cid)

    def has_disk(self, disk_cid: str) -> bool:
        return self._disk_store.has(disk_cid)

    def disk_user(self, disk_cid: str) -> str:
        return self._disk_store.user_of(disk_cid)

    def attach_disk(self, vm_cid: str, disk_cid: str, api_version: int) -> "Json":
        disk = self._disks.get(disk_cid)
        folder = VMFolder.of_existing(self._layout, vm_cid)
        with Undo(self.log) as undo:
            hint = self._disks.attach(folder, disk, undo)
            if api_version < 2:
                self._vms.add_disk_to_settings(vm_cid, disk_cid, hint)
            undo.keep()
        return hint

    def detach_disk(self, vm_cid: str, disk_cid: str) -> None:
        disk = self._disk_store.get(disk_cid)
        folder = VMFolder.of_existing(self._layout, vm_cid)
        disk.require_attached_to(vm_cid)
        self._disks.release(folder, disk_cid)

    def get_disks(self, vm_cid: str) -> list[str]:
        VMFolder.of_existing(self._layout, vm_cid)
        return self._disk_store.attached_to(vm_cid)

    def set_disk_metadata(self, disk_cid: str, metadata: "JsonObject") -> None:
        self._disk_store.change(disk_cid, metadata=dict(metadata))

    def resize_disk(self, disk_cid: str, size_mib: int) -> None:
        self._disks.get(disk_cid)
        self._disk_store.resize(disk_cid, size_mib)

    def update_disk(self, disk_cid: str, size_mib: int, properties: "DiskProperties") -> str:
        self._disks.get(disk_cid)
        self._disk_store.update(disk_cid, size_mib, properties)
        return disk_cid

    def snapshot_disk(self, disk_cid: str, metadata: "JsonObject") -> str:
        snapshot_cid = cid.new(self.name, cid.SNAPSHOT)
        disk = self._disks.get(disk_cid)
        self._snapshots.take(disk, snapshot_cid, metadata, self._disks.still(disk))
        return snapshot_cid

    def delete_snapshot(self, snapshot_cid: str) -> None:
        self._snapshots.delete(snapshot_cid)

    # Garbage

    def garbage(self) -> "list[Garbage]":
        from runtimes.containerd.garbage import Finder

        parent = self.config.text("containerd.cgroup_parent")
        delete_vm = self._vms.delete
        return Finder(self.name, self._layout, parent, self._containerd, delete_vm, self.log).all()

    def remains(self) -> "list[Garbage]":
        from runtimes.containerd import uninstall

        return uninstall.remains(self._containerd, self.name, self.config)

    def _lock(self, name: str) -> "AbstractContextManager[None]":
        return locks.hold(str(self._layout.run_dir), name, log=self.log)

    # Made when first needed

    @cached_property
    def _snapshots(self) -> "Snapshots":
        from cpi.disks.snapshots import Snapshots

        return Snapshots(self._disk_store)

    @cached_property
    def _vms(self) -> "VMs":
        from runtimes.containerd.vms import VMs

        return VMs(self.config, self._layout, self._disks, self._containerd, self.log)
