"""The containerd runtime: the contract's verbs, handed to what does them.

containerd's client is loaded on first use: attaching and detaching a disk need the host alone, and
must not wait for it.
"""

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cpi import cid
from cpi.cni.networks import Networks
from cpi.disks.disk_store import DiskStore, folders_of, wanted
from cpi.errors import DiskNotAttached, NotSupported, VMNotFound
from cpi.host import guest_socket, locks, unfinished
from cpi.host.undo import Undo
from cpi.runtime import Runtime
from runtimes.containerd import cgroups
from runtimes.containerd.disks import Disks
from runtimes.containerd.vm_folder import HostFolder

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from typing import TypeVar

    from cpi.config.config import Config
    from cpi.disks.snapshots import Snapshots
    from cpi.findings import Finding
    from cpi.log import Log
    from cpi.model import DiskProperties, Garbage, Json, JsonObject, Network, VMSpec
    from cpi.terminal import Streams
    from cpi.views import LogPart, LogPlaces, StemcellView, Usage, VMView
    from runtimes.containerd.client import Client
    from runtimes.containerd.containers import Containers
    from runtimes.containerd.oci_spec import Folder
    from runtimes.containerd.stemcells import Stemcells
    from runtimes.containerd.storage import Store
    from runtimes.containerd.vms import Place, VMs
    from stemcell_convert.inroot import Root

    Result = TypeVar("Result")


class ContainerdRuntime(Runtime):
    """BOSH VMs as containerd tasks."""

    name: ClassVar[str] = "containerd"
    supports: ClassVar[frozenset[str]] = frozenset((
        "share_stemcell", "set_disk_metadata", "resize_disk", "update_disk", "snapshot_disk",
        "delete_snapshot", "snapshot_attached_disk", "vms", "stemcells", "usage", "run_inside",
        "log_places", "read_log",
    ))  # fmt: skip

    def __init__(self, config: "Config", log: "Log") -> None:
        super().__init__(config, log)
        self._state_dir = Path(config.text("state_dir"))
        self._run_dir = Path(config.text("run_dir"))
        self._mount_point = self._run_dir / "rootfs"
        self._networks = Networks(config, self._state_dir, self._run_dir)
        self._disk_store = DiskStore(folders_of(config))
        self._disks = Disks(self._disk_store, self._state_dir, log)

    def close(self) -> None:
        if "_client" in self.__dict__:
            self._client.close()

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
        from concurrent.futures import ThreadPoolExecutor  # costs what attach_disk saves

        if spec.properties.privileged and not self.config.flag("containerd.allow_privileged"):
            raise NotSupported(
                "this host does not allow privileged VMs (containerd.allow_privileged is false)"
            )
        self._networks.require_free(spec)
        folder = HostFolder(self._state_dir, spec.cid)
        with Undo(self.log) as undo, ThreadPoolExecutor(1) as pool:
            undo.push(folder.remove)
            folder.create(spec.disk_wishes)
            undo.push(lambda: self._networks.disconnect(spec.cid, folder.path))
            # CNI's plugins take as long as the file system and loading containerd's client.
            connecting = pool.submit(self._networks.connect, spec, folder.path)
            if spec.properties.ephemeral_disk is not None:
                folder.limit_data(spec.properties.ephemeral_disk)
            folders = self._folders_of_host(spec, folder)
            place = self._place(spec.cid, folder, folders)
            networks = self._vms.create(spec, place, connecting.result, undo)
            unfinished.end(folder.path)
            undo.keep()
        return networks

    def delete_vm(self, vm_cid: str) -> None:
        from concurrent.futures import ThreadPoolExecutor

        # Whatever there is, so that this also cleans up after a create that was killed half-way.
        folder = HostFolder(self._state_dir, vm_cid)
        unfinished.begin(folder.path)
        with ThreadPoolExecutor(1) as pool:
            disconnecting = pool.submit(self._networks.disconnect, vm_cid, folder.path)
            self._vms.stop(vm_cid)
            disconnecting.result()
        for target in folder.attached():
            with self._lock(target.name):
                self._disks.release(folder, target.name)
        self._vms.delete(vm_cid)
        cgroups.remove(self._cgroup(vm_cid))
        folder.remove()

    def has_vm(self, vm_cid: str) -> bool:
        return self._vms.exists(vm_cid)

    def reboot_vm(self, vm_cid: str) -> None:
        folder = self._folder(vm_cid)
        if self._vms.has_task(vm_cid):
            self._mount_again(vm_cid, folder)
            self._vms.reboot(vm_cid, folder)
        else:
            self._bring_back(vm_cid, folder)

    def restore(self, vm_cid: str) -> bool:
        folder = self._folder(vm_cid)
        if unfinished.is_marked(folder.path) or not self._vms.exists(vm_cid):
            return False
        if self._vms.has_task(vm_cid):
            return False
        self._bring_back(vm_cid, folder)
        return True

    def _bring_back(self, vm_cid: str, folder: HostFolder) -> None:
        """Start a VM of which a restart of the host has left what is on disks alone."""
        self._mount_again(vm_cid, folder)
        if not self._networks.is_whole(vm_cid, folder.path):
            self._networks.rebuild(vm_cid, folder.path)
        self._vms.start(vm_cid, self._place(vm_cid, folder))

    def _mount_again(self, vm_cid: str, folder: HostFolder) -> None:
        folder.restore()
        guest_socket.make_folder(self.config.text("run_dir"))  # a restart of the host took it
        for disk_cid in self._disk_store.attached_to(vm_cid):
            with self._lock(disk_cid):
                self._disks.mount_again(folder, disk_cid)

    def set_vm_metadata(self, vm_cid: str, metadata: "JsonObject") -> None:
        self._vms.set_metadata(vm_cid, metadata)

    # For people

    def vms(self) -> "list[VMView]":
        from runtimes.containerd import listing

        return listing.vms(self._containers, self.name)

    def stemcells(self) -> "list[StemcellView]":
        from runtimes.containerd import listing

        return listing.stemcells(self._store, self.name, self.config.text("runtime"))

    def usage(self) -> "list[Usage]":
        from runtimes.containerd import listing

        parent = self.config.text("containerd.cgroup_parent").rstrip("/")
        return list(listing.used(self._containers, self._store, parent, self._state_dir))

    def run_inside(self, vm_cid: str, command: Sequence[str], streams: "Streams") -> int:
        from runtimes.containerd.execs import Execs

        return self._vms.run_inside(
            vm_cid, command, streams, Execs(self._client, self._run_dir / "exec")
        )

    def log_places(self, vm_cid: str) -> "LogPlaces":
        from runtimes.containerd import vm_logs

        systemd = self._vms.has_systemd(vm_cid)
        return self._look(
            vm_cid, lambda root, runs: vm_logs.places(root, runs=runs, systemd=systemd)
        )

    def read_log(
        self, vm_cid: str, path: str, after: "LogPart | None", limit: int
    ) -> "LogPart | None":
        from runtimes.containerd import vm_logs

        return self._look(vm_cid, lambda root, _: vm_logs.part(root, path, after, limit))

    def _look(self, vm_cid: str, work: "Callable[[Root, bool], Result]") -> "Result":
        """Look into a VM's root file system; `work` is told whether the VM runs."""
        from runtimes.containerd import vm_logs

        pid = self._vms.init_of(vm_cid)
        if pid is not None:
            with suppress(ProcessLookupError, FileNotFoundError):  # it may end just now
                return vm_logs.running(pid, lambda root: work(root, True))
        data = self._folder(vm_cid).data
        mounts = self._store.mounts(vm_cid)
        return vm_logs.stopped(mounts, self._mount_point, data, lambda root: work(root, False))

    def checks(self) -> "list[Finding]":
        from runtimes.containerd import checks

        return checks.all_of(checks.Subject(self.config, self._store, self._containers))

    # Persistent disks

    def create_disk(self, size_mib: int, properties: "DiskProperties", vm_cid: str | None) -> str:
        wished = HostFolder(self._state_dir, vm_cid).wishes().filesystem if vm_cid else None
        disk = wanted(cid.new(self.name, cid.DISK), size_mib, properties, wished)
        with self._lock(disk.cid):
            self._disk_store.create(disk)
        return disk.cid

    def delete_disk(self, disk_cid: str) -> None:
        self._disks.get(disk_cid)
        self._disk_store.delete(disk_cid)

    def has_disk(self, disk_cid: str) -> bool:
        disk = self._disk_store.find(disk_cid)
        return disk is not None and self._disk_store.image(disk).exists()

    def disk_user(self, disk_cid: str) -> str:
        disk = self._disk_store.find(disk_cid)
        return "" if disk is None else disk.attached_to

    def attach_disk(self, vm_cid: str, disk_cid: str, api_version: int) -> "Json":
        disk = self._disks.get(disk_cid)
        folder = self._folder(vm_cid)
        with Undo(self.log) as undo:
            hint = self._disks.attach(folder, disk, undo)
            if api_version < 2:
                self._vms.add_disk_to_settings(vm_cid, disk_cid, hint)
            undo.keep()
        return hint

    def detach_disk(self, vm_cid: str, disk_cid: str) -> None:
        disk = self._disk_store.get(disk_cid)
        folder = self._folder(vm_cid)
        if disk.attached_to != vm_cid:
            where = f"attached to {disk.attached_to}" if disk.attached_to else "not attached"
            raise DiskNotAttached(f"the disk {disk_cid} is {where}, so not to the VM {vm_cid}")
        self._disks.release(folder, disk_cid)

    def get_disks(self, vm_cid: str) -> list[str]:
        self._folder(vm_cid)
        return self._disk_store.attached_to(vm_cid)

    def set_disk_metadata(self, disk_cid: str, metadata: "JsonObject") -> None:
        self._disk_store.set_metadata(disk_cid, metadata)

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

    # What nobody owns

    def garbage(self) -> "list[Garbage]":
        from runtimes.containerd.garbage import Finder, Places

        parent = self.config.text("containerd.cgroup_parent")
        places = Places(self.name, self._state_dir, str(self._run_dir), parent)
        return Finder(places, self._containers, self._store, self.delete_vm, self.log).all()

    def _lock(self, name: str) -> "AbstractContextManager[None]":
        return locks.hold(str(self._run_dir), name, log=self.log)

    def _folder(self, vm_cid: str) -> HostFolder:
        """A VM's folder, which is there as long as the VM is. Raises VMNotFound."""
        folder = HostFolder(self._state_dir, vm_cid)
        if not folder.exists():
            raise VMNotFound(f"there is no VM {vm_cid} in {folder.path.parent}")
        return folder

    # Made when first needed

    @cached_property
    def _snapshots(self) -> "Snapshots":
        from cpi.disks.snapshots import Snapshots

        return Snapshots(self._disk_store)

    @cached_property
    def _client(self) -> "Client":
        from runtimes.containerd.client import Client

        return Client(
            self.config.text("containerd.address"),
            self.config.text("containerd.namespace"),
            self.config.integer("containerd.timeout"),
        )

    @cached_property
    def _store(self) -> "Store":
        from runtimes.containerd.storage import Store

        snapshotter = self.config.text("containerd.snapshotter")
        return Store(self._client, snapshotter, self._run_dir, self.log)

    @cached_property
    def _stemcells(self) -> "Stemcells":
        from runtimes.containerd.stemcells import Stemcells

        return Stemcells(self._store, self.name, self.config, self._mount_point, self.log)

    @cached_property
    def _vms(self) -> "VMs":
        from runtimes.containerd.vms import VMs

        return VMs(self._store, self._containers, self._stemcells, self._mount_point, self.log)

    @cached_property
    def _containers(self) -> "Containers":
        from runtimes.containerd.containers import Containers

        return Containers(self._client, self.config.text("containerd.snapshotter"))

    def _cgroup(self, vm_cid: str) -> str:
        return f"{self.config.text('containerd.cgroup_parent').rstrip('/')}/{vm_cid}"

    def _place(self, vm_cid: str, folder: HostFolder, folders: "Sequence[Folder]" = ()) -> "Place":
        """folders: of the host, for a VM that has no spec yet."""
        from runtimes.containerd.vms import Place

        return Place(
            namespace=self._networks.namespace(vm_cid),
            folder=folder,
            cgroup=self._cgroup(vm_cid),
            address=self.config.text("containerd.address"),
            folders=folders,
        )

    def _folders_of_host(self, spec: "VMSpec", folder: HostFolder) -> "list[Folder]":
        """What the VM gets of the host besides its own. Raises CloudError."""
        from runtimes.containerd.oci_spec import Folder

        mounts = spec.properties.mounts
        folders = [
            Folder(mount.vm, source, mount.read_only)
            for mount, source in zip(mounts, folder.add_mounts(mounts), strict=True)
        ]
        if spec.properties.host_service:
            run_dir = self.config.text("run_dir")
            source = guest_socket.make_folder(run_dir)
            folders.append(Folder(guest_socket.IN_VM, source, read_only=True))
            if not guest_socket.is_served(run_dir):
                self.log.warn(
                    f"{spec.cid} has host_service, but nothing listens at {source}/"
                    f"{guest_socket.SOCKET} yet; start the host's service: bosh-cpi serve"
                )
        return folders
