"""A VM's folder on the host: its ephemeral disk and the shared folder that carries its disks.

<state_dir>/vms/<vm cid>/
    data/            /var/vcap/data of the VM
    ephemeral.img    the file system mounted on data/, when its size is limited
    disks/<disk>/    below a shared tmpfs: what is mounted there appears in the running VM
    disks.json       what the VM's env says of its disks
    console.log      see runtimes.containerd.console_log
    mounts.json      folders of the host that the VM has besides (cloud_properties.mounts)
    mounts/<n>/      the n-th of them
    mounts/guest/    the folder of the socket for guests, of a VM in a user namespace that has it
    network.json     see cpi.cni.networks
    ids.json         the range of user ids of a VM in a user namespace (cpi.host.id_ranges)
    unfinished       see cpi.host.vm_creation
"""

import errno
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from cpi.disks import loop, mount_options
from cpi.disks.filesystems import make_ext4, mount_device
from cpi.disks.loop import Part
from cpi.disks.raw_image import MIB, make_sparse, part_of
from cpi.errors import CloudError, VMNotFound
from cpi.host import id_maps, kernel, syscalls, vm_creation
from cpi.host.facts_file import read_facts, write_facts
from cpi.host.id_ranges import IdRanges
from cpi.host.layout import Layout
from cpi.model import DiskWishes, HostMount

if TYPE_CHECKING:
    from runtimes.containerd.api import types_pb2


class VMFolder:
    """The folder of one VM, which exists as long as the VM. The caller holds its lock."""

    def __init__(self, layout: Layout, vm_cid: str) -> None:
        self.vm_cid = vm_cid
        self.path = layout.vm(vm_cid)
        self.data = self.path / "data"
        self.disks = self.path / "disks"
        self._ephemeral = self.path / "ephemeral.img"
        self._wishes = self.path / "disks.json"
        self._mounts = self.path / "mounts"
        self._guest = self._mounts / "guest"
        self._mount_facts = self.path / "mounts.json"
        self._layers = layout.layers / vm_cid
        self.user_namespace = layout.user_namespaces / vm_cid
        self._ids = self.path / "ids.json"
        self._layout = layout

    @classmethod
    def of_existing(cls, layout: Layout, vm_cid: str) -> "VMFolder":
        """Return the folder of an existing VM. Raises VMNotFound."""
        folder = cls(layout, vm_cid)
        if not folder.exists():
            raise VMNotFound(f"there is no VM {vm_cid} in {layout.vms}")
        return folder

    def exists(self) -> bool:
        return self.path.is_dir()

    def create(self, wishes: DiskWishes, ids: str) -> None:
        """Make the folder and the mount for disks; `remove` undoes it, even half-way.

        ids: from which a VM in a user namespace gets its range, else "".
        """
        vm_creation.make(self.path)
        self.data.mkdir(mode=0o755)
        self.disks.mkdir(mode=0o755)
        if ids:
            first = IdRanges(self._layout.ids).reserve(self.vm_cid, ids)
            write_facts(self._ids, {"first": first})
            self._let_in(first)
        syscalls.mount_shared_tmpfs(self.disks)
        write_facts(self._wishes, asdict(wishes))

    def _let_in(self, first: int) -> None:
        """Let root of the VM, who has no rights on the host, reach its folders; and nobody else."""
        for folder in (self._layout.state_dir, self._layout.vms):
            folder.chmod(0o711)
        os.chown(self.path, 0, first)
        self.path.chmod(0o710)
        os.chown(self.data, first, first)

    @cached_property
    def first_id(self) -> int:
        """The id on the host of the VM's root: 0 for a VM without a user namespace."""
        return int((read_facts(self._ids) or {}).get("first", 0))

    def pin_namespaces(self, network: Path) -> None:
        """Make the VM's network namespace, and the user namespace that owns it, if it has one."""
        if self.first_id:
            syscalls.unpin_namespace(self.user_namespace)  # before a restart of the host
            self.user_namespace.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            id_maps.pin(self.user_namespace, network, self.first_id)
        else:
            syscalls.pin_network_namespace(network)

    def limit_data(self, size_mib: int) -> None:
        """Give /var/vcap/data a file system of its own of this many MiB."""
        make_sparse(self._ephemeral, size_mib)
        make_ext4(self._ephemeral, size_mib * MIB)
        self._mount_data()
        os.chown(self.data, self.first_id, self.first_id)

    def restore(self) -> None:
        """Mount everything again after a restart of the host."""
        if not syscalls.is_mount_point(self.disks):
            syscalls.mount_shared_tmpfs(self.disks)
        if self._ephemeral.exists() and not syscalls.is_mount_point(self.data):
            self._mount_data()
        facts = read_facts(self._mount_facts) or {}
        self._bind_all([HostMount(**mount) for mount in facts.get("mounts", ())])
        if self._guest.is_dir():
            self.add_guest_socket()

    def add_mounts(self, mounts: Sequence[HostMount]) -> list[Path]:
        """Bind these folders of the host in here, and return where. Raises CloudError."""
        if mounts:
            write_facts(self._mount_facts, {"mounts": [asdict(mount) for mount in mounts]})
        return self._bind_all(mounts)

    def _bind_all(self, mounts: Sequence[HostMount]) -> list[Path]:
        return [
            self._bind(Path(mount.host), self._mounts / str(index), read_only=mount.read_only)
            for index, mount in enumerate(mounts)
        ]

    def add_guest_socket(self) -> Path:
        """Return the folder of the socket for guests as the VM may have it. Raises CloudError."""
        if not self.first_id:
            return self._layout.guest
        return self._bind(self._layout.guest, self._guest, read_only=True, must_map=False)

    def _bind(self, source: Path, target: Path, *, read_only: bool, must_map: bool = True) -> Path:
        """Bind a folder here: a container's spec has only paths, see syscalls.bind_folder.

        must_map: it is an error if the kernel cannot show its file system under the VM's ids, as
        that of a tmpfs before 6.3.
        """
        target.mkdir(parents=True, exist_ok=True)
        if syscalls.is_mount_point(target):
            return target
        try:
            syscalls.bind_folder(source, target)
            if self.first_id:
                self._map_ids(target, read_only, must_map)
        except OSError as error:
            reason = error.strerror
            if error.errno == errno.ENOTDIR:
                reason = "it is no folder, or a symbolic link, which is not followed"
            raise CloudError(
                f"the host's folder {source} cannot be mounted: {error.filename}: {reason}"
            ) from None
        return target

    def id_mapped(self, mounts: "Sequence[types_pb2.Mount]") -> "Sequence[types_pb2.Mount]":
        """Return the mounts of the VM's root file system under its own ids. Raises CloudError."""
        if not self.first_id:
            return mounts
        from runtimes.containerd import rootfs

        try:
            return rootfs.id_mapped(mounts, self._layers, self.user_namespace)
        except OSError as error:
            raise CloudError(
                f"the layers of {self.vm_cid} cannot be mounted with its user ids: "
                f"{error.filename}: {error.strerror}"
            ) from None

    def _map_ids(self, target: Path, read_only: bool, must_map: bool) -> None:
        """Show what is mounted at a folder under the VM's ids instead.

        What is read-only here, root in the VM cannot make writable (mount_namespaces(7)). The other
        flags only concern the VM itself, and locked they could not be left out in containers there.
        """
        attributes = kernel.MOUNT_ATTR_RDONLY * read_only
        try:
            tree = id_maps.clone(target, self.user_namespace, attributes)
        except OSError as error:
            if must_map or error.errno != errno.EINVAL:
                raise
            return  # whose files the VM's root then has no rights on
        try:
            syscalls.umount(target)
            id_maps.attach(tree, target)
        finally:
            os.close(tree)

    def _mount_data(self) -> None:
        _mount(Part(self._ephemeral, 0, 0), self.data, "ext4")

    def data_size(self) -> int:
        """Return the bytes of /var/vcap/data on the host, 0 where its size is not limited."""
        return self._ephemeral.stat().st_blocks * 512 if self._ephemeral.exists() else 0

    def remove(self) -> None:
        """Unmount and delete everything. Persistent data is not in here."""
        foreign = sorted(self._mounts.iterdir()) if self._mounts.is_dir() else []
        for target in [*foreign, *self.attached(), self.disks, self.data]:
            syscalls.umount(target)
        # Delete nothing while anything is still mounted.
        mine = [*foreign, *self.attached(), self.data]
        busy = [target for target in mine if syscalls.is_mount_point(target)]
        if busy:
            raise CloudError(f"{busy[0]} is still mounted", ok_to_retry=True)
        id_maps.umount(self._layers)
        syscalls.unpin_namespace(self.user_namespace)
        if self.first_id:
            IdRanges(self._layout.ids).release(self.vm_cid, self.first_id)
        shutil.rmtree(self.path, ignore_errors=not self.exists())

    # Persistent disks

    def attached(self) -> list[Path]:
        """Return the mount points of attached disks; their names are disk CIDs."""
        return sorted(self.disks.iterdir()) if self.disks.is_dir() else []

    def has_disk(self, disk_cid: str) -> bool:
        return syscalls.is_mount_point(self.disks / disk_cid)

    def wishes(self) -> DiskWishes:
        """Return what the VM's env says of its disks."""
        facts = read_facts(self._wishes) or {}
        return DiskWishes(facts.get("filesystem"), tuple(facts.get("mount_options", ())))

    def mount_disk(self, disk_cid: str, image: Path, filesystem: str) -> None:
        """Mount a disk's partition where the running VM sees it."""
        target = self.disks / disk_cid
        target.mkdir(exist_ok=True)
        options = self.wishes().mount_options
        if not self.first_id:
            _mount(part_of(image), target, filesystem, options)
            return

        def cloned() -> int:
            _mount(part_of(image), target, filesystem, options)
            return id_maps.clone(target, self.user_namespace)

        # The VM must not see it with the host's ids, not even for a moment.
        tree = syscalls.in_private_mounts(cloned)
        try:
            id_maps.attach(tree, target)
        finally:
            os.close(tree)

    def umount_disk(self, disk_cid: str) -> None:
        """Unmount a disk here, and with it every copy of the mount that propagated."""
        target = self.disks / disk_cid
        syscalls.umount(target)
        if target.is_dir():
            target.rmdir()


def _mount(part: Part, target: Path, filesystem: str, options: tuple[str, ...] = ()) -> None:
    """Mount a partition by its offset: some kernels read no partition tables on loop devices."""
    flags, text = mount_options.arguments(options)
    with loop.attached(part) as device:
        mount_device(device, target, filesystem, flags, text)
