"""The life of a VM: its folder, networks, snapshot, container, cgroup and task.

containerd's client is loaded on first use, while the networks of a VM are created.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cpi.cni.networks import Networks, published
from cpi.config.config import Config
from cpi.errors import CloudError, CPIError, NotSupported, VMCreationFailed, VMNotFound
from cpi.host import guest_socket, headroom, vm_creation
from cpi.host.layout import Layout
from cpi.log import Log
from cpi.model import Json, Network, VMSpec
from runtimes.containerd import (
    cgroups,
    console_log,
    host_facts,
    init_signals,
    mount_namespaces,
    oci_spec,
    rootfs,
    user_namespaces,
    vm_logs,
)
from runtimes.containerd.daemon import Containerd
from runtimes.containerd.disks import Disks
from runtimes.containerd.init_watch import InitWatch
from runtimes.containerd.oci_spec import FolderMount, Limits, Spec
from runtimes.containerd.vm_folder import VMFolder
from stemcell_convert.facts import SYSTEMD
from stemcell_convert.inroot import Root
from stemcell_convert.mount_programs import DISK_FOLDER

if TYPE_CHECKING:
    from cpi.terminal import Streams
    from runtimes.containerd.api import containers_pb2, types_pb2
    from runtimes.containerd.containers import Containers
    from runtimes.containerd.image_store import ImageStore
    from runtimes.containerd.stemcells import Stemcell

STORE = "/var/vcap/store"
METADATA_PREFIX = "bosh.metadata/"
LABEL_AGENT = "bosh.agent_id"
LABEL_STEMCELL = "bosh.stemcell"
LABEL_SETTINGS = "bosh.settings"
LABEL_ADDRESSES = "bosh.addresses"
LABEL_PORTS = "bosh.ports"

# containerd takes 4096 bytes for key and value of a label together.
_LABEL_LIMIT = 4000
_SETTINGS_LIMIT = 16 << 20  # bytes

Result = TypeVar("Result")


class VMs:
    """VMs of one containerd namespace. The caller holds the lock of the VM it changes."""

    def __init__(
        self, config: Config, layout: Layout, disks: Disks, containerd: Containerd, log: Log
    ) -> None:
        self._config = config
        self._layout = layout
        self._disks = disks
        self._containerd = containerd
        self._networks = Networks(config, log, self._pin)
        self._log = log

    @property
    def _containers(self) -> "Containers":
        return self._containerd.containers

    @property
    def _store(self) -> "ImageStore":
        return self._containerd.store

    # From its creation to its end

    def create(self, spec: VMSpec) -> Sequence[Network]:
        """Create and start a VM; return its networks with their real addresses."""
        if spec.properties.privileged and not self._config.flag("containerd.allow_privileged"):
            raise NotSupported(
                "this host does not allow privileged VMs (containerd.allow_privileged is false)"
            )
        ids = user_namespaces.ids_for(spec, self._config, self._layout, self._containerd, self._log)
        self._networks.require_free(spec)
        folder, cgroup = VMFolder(self._layout, spec.cid), self._cgroup(spec.cid)
        with vm_creation.creation(
            folder.path,
            self._log,
            make=lambda: folder.create(spec.disk_wishes, ids),
            remove=folder.remove,
            connect=lambda: self._networks.connect(spec, folder.path),
            disconnect=lambda: self._networks.disconnect(spec.cid, folder.path),
        ) as (undo, connecting):
            # CNI's plugins take as long as the file system and loading containerd's client.
            if spec.properties.ephemeral_disk is not None:
                folder.limit_data(spec.properties.ephemeral_disk)
            stemcell = self._containerd.stemcells.find(spec.stemcell_cid)
            headroom.require(self._config.integer("max_vms"), systemd=stemcell.init == SYSTEMD)
            undo.push(lambda: self._store.remove_snapshot(spec.cid))
            with self._store.lease() as lease:
                mounts = self._store.prepare(spec.cid, stemcell.snapshot, lease=lease)
                networks = connecting.result()
                mounts = folder.id_mapped(mounts)
                host_folders = self._host_folders(spec, folder)
                files = rootfs.files(spec, networks, stemcell)
                rootfs.enter(
                    mounts,
                    self._layout.rootfs,
                    lambda root: rootfs.write(root, files),
                    folder.first_id,
                )
                limits = Limits.of(spec.properties)
                document = oci_spec.render(
                    self._container(spec, stemcell, folder, limits, host_folders)
                )
                undo.push(lambda: self._containers.delete(spec.cid))
                labels = _labels(spec, stemcell, networks)
                self._containers.create(spec.cid, stemcell.image, document, labels)
            undo.push(lambda: cgroups.remove(cgroup))
            cgroups.create(cgroup, limits)
            undo.push(lambda: self._containers.stop(spec.cid))
            self._start(folder, document, mounts, VMCreationFailed)
        return networks

    def delete(self, vm_cid: str) -> None:
        """Delete all parts of a VM, also after a killed create."""
        folder = VMFolder(self._layout, vm_cid)
        vm_creation.begin(folder.path)
        with ThreadPoolExecutor(1) as threads:
            disconnecting = threads.submit(self._networks.disconnect, vm_cid, folder.path)
            self._containers.stop(vm_cid)
            disconnecting.result()
        self._disks.release_all(folder)
        self._containers.delete(vm_cid)
        self._store.remove_snapshot(vm_cid)
        cgroups.remove(self._cgroup(vm_cid))
        folder.remove()

    def reboot(self, vm_cid: str) -> None:
        """Start a VM's init again on the same root file system and network. Raises VMNotFound."""
        folder = VMFolder.of_existing(self._layout, vm_cid)
        if self._containers.has_task(vm_cid):
            self._mount_again(folder)
            self._start_again(folder, self._spec(vm_cid))
        else:
            self._bring_back(folder)

    def shut_down(self, vm_cid: str, seconds: float) -> None:
        """End a VM and delete its task, as a restart of the host does. Raises VMNotFound."""
        systemd = self.has_systemd(vm_cid)
        init = self._containers.init_of(vm_cid)
        if init is not None:
            if not init_signals.end(vm_cid, init, seconds, systemd=systemd):
                self._log.warn(f"{vm_cid} did not shut down within {seconds:g} s; it is killed")
            self._containers.stop(vm_cid)

    def restore(self, vm_cid: str) -> bool:
        """Start a VM if a restart of the host ended it; tell whether it did. Raises VMNotFound."""
        folder = VMFolder.of_existing(self._layout, vm_cid)
        if vm_creation.is_marked(folder.path) or not self.exists(vm_cid):
            return False
        if self._containers.has_task(vm_cid):
            return False
        self._bring_back(folder)
        return True

    def _bring_back(self, folder: VMFolder) -> None:
        """Start a VM after a restart of the host, from what is on disks."""
        vm_cid, cgroup = folder.vm_cid, self._cgroup(folder.vm_cid)
        if not self._networks.is_whole(vm_cid, folder.path):
            self._networks.rebuild(vm_cid, folder.path)
        self._mount_again(folder)  # with the user namespace that was made with the network's
        spec = self._spec(vm_cid)
        cgroups.remove(cgroup)  # of a killed call, which may lack limits
        cgroups.create(cgroup, oci_spec.limits_of(spec))
        self._start_again(folder, spec)

    def _mount_again(self, folder: VMFolder) -> None:
        guest_socket.make_folder(self._layout.guest)  # a restart of the host took it
        folder.restore()
        self._disks.mount_all_again(folder)

    def _start_again(self, folder: VMFolder, spec: Spec) -> None:
        """Stop a VM's task, if it has one, and start it by this spec.

        In bind mode the agent does not mount its disk after a reboot, as it would on a VM; so the
        disk that it had mounted last is bound to its place before anything runs.
        """
        vm_cid = folder.vm_cid
        self._containers.stop(vm_cid)
        mounts = folder.id_mapped(self._store.mounts(vm_cid))
        attached = [target.name for target in folder.attached()]
        disk_cid = rootfs.enter(
            mounts,
            self._layout.rootfs,
            lambda root: rootfs.mounted_last(root, attached),
            folder.first_id,
        )
        spec["mounts"] = [mount for mount in spec["mounts"] if mount["destination"] != STORE]
        if disk_cid:
            self._log.info(f"{disk_cid} will be at {STORE}")
            spec["mounts"].append(oci_spec.bind(STORE, folder.disks / disk_cid))
        devices = host_facts.devices(privileged=oci_spec.limits_of(spec).privileged)
        oci_spec.renew(spec, self._ceiling(), devices)
        self._containers.set_spec(vm_cid, spec)
        self._start(folder, spec, mounts, CloudError)

    def _start(
        self,
        folder: VMFolder,
        spec: Spec,
        mounts: "Sequence[types_pb2.Mount]",
        error: type[CPIError],
    ) -> None:
        """Start a VM's task and wait until its init has come up. Raises `error` if it ends."""
        vm_cid = folder.vm_cid
        with InitWatch(folder.path, systemd=oci_spec.has_systemd(spec)) as watch:

            def prepare(pid: int) -> None:
                if folder.first_id:
                    cgroups.give(self._cgroup(vm_cid), folder.first_id)
                mount_namespaces.share_mounts(pid)
                watch.begin(pid)

            console = console_log.logger(folder.path)
            pid = self._containers.start(vm_cid, mounts, console, prepare)
            if watch.has_come_up():
                self._log.info(f"{vm_cid} runs, its init is process {pid}")
                return
            status = self._containers.exit_status(vm_cid)
            words = watch.last_words() or "(nothing)"
        reached = headroom.exhausted(systemd=oci_spec.has_systemd(spec))
        advice = headroom.advice(reached, self._config.integer("max_vms")) if reached else ""
        raise error(
            f"the init of {vm_cid}, {spec['process']['args'][0]}, ended with status {status} "
            f"within a second of its start; it printed: {words}{'; ' * bool(advice)}{advice}"
        )

    def _pin(self, vm_cid: str, network: Path) -> None:
        VMFolder(self._layout, vm_cid).pin_namespaces(network)

    # What it is made of

    def _host_folders(self, spec: VMSpec, folder: VMFolder) -> list[FolderMount]:
        """Return the host's folders that the VM gets. Raises CloudError."""
        mounts = spec.properties.mounts
        host_folders = [
            FolderMount(mount.vm, source, mount.read_only)
            for mount, source in zip(mounts, folder.add_mounts(mounts), strict=True)
        ]
        if spec.properties.host_service:
            source = guest_socket.make_folder(self._layout.guest)
            bound = folder.add_guest_socket()
            host_folders.append(FolderMount(guest_socket.IN_VM, bound, read_only=True))
            if not guest_socket.is_served(source):
                self._log.warn(
                    f"{spec.cid} has host_service, but nothing listens at {source}/"
                    f"{guest_socket.SOCKET} yet; start the host's service: bosh-cpi serve"
                )
        return host_folders

    def _container(
        self,
        spec: VMSpec,
        stemcell: "Stemcell",
        folder: VMFolder,
        limits: Limits,
        host_folders: Sequence[FolderMount],
    ) -> oci_spec.Container:
        return oci_spec.Container(
            hostname=rootfs.hostname(spec),
            command=stemcell.command,
            namespace=self._networks.namespace(spec.cid),
            cgroup=f"{self._cgroup(spec.cid)}/{cgroups.CHILD}",
            data=folder.data,
            disks=folder.disks,
            disk_folder=DISK_FOLDER,
            ceiling=self._ceiling(),
            systemd=stemcell.init == SYSTEMD,
            limits=limits,
            swap_accounting=cgroups.accounts_swap(),
            devices=host_facts.devices(privileged=limits.privileged),
            folders=host_folders,
            first_id=folder.first_id,
            user_namespace=folder.user_namespace,
            machine=os.uname().machine,
        )

    def _ceiling(self) -> oci_spec.Ceiling:
        return host_facts.ceiling_of_server(self._containerd.address)

    def _cgroup(self, vm_cid: str) -> str:
        return cgroups.path_of(self._config.text("containerd.cgroup_parent"), vm_cid)

    # While it is there

    def exists(self, vm_cid: str) -> bool:
        return self._containers.find(vm_cid) is not None

    def set_metadata(self, vm_cid: str, metadata: Mapping[str, Json]) -> None:
        """Replace BOSH's metadata in the labels."""
        labels = {
            key: value
            for key, value in self._get(vm_cid).labels.items()
            if not key.startswith(METADATA_PREFIX)
        }
        for key, value in metadata.items():
            text = value if isinstance(value, str) else json.dumps(value)
            room = _LABEL_LIMIT - len(METADATA_PREFIX) - len(key.encode())
            if room < 0:
                raise CloudError(f"a metadata key of {len(key)} characters is too long for a label")
            labels[METADATA_PREFIX + key] = text.encode()[:room].decode(errors="ignore")
        self._containers.set_labels(vm_cid, labels)

    def add_disk_to_settings(self, vm_cid: str, disk_cid: str, hint: Json) -> None:
        """Put a disk's hint into a running VM's settings, where agents of API 1 look for it."""
        path = self._get(vm_cid).labels[LABEL_SETTINGS]
        owner = VMFolder(self._layout, vm_cid).first_id
        with _root_of(self._require_init(vm_cid), owner) as root:
            settings = json.loads(root.read(path, _SETTINGS_LIMIT))
            settings["disks"]["persistent"][disk_cid] = hint
            root.write(path, json.dumps(settings).encode(), 0o600)

    def has_systemd(self, vm_cid: str) -> bool:
        """Tell whether a VM's init is systemd. Raises VMNotFound."""
        return oci_spec.has_systemd(self._spec(vm_cid))

    def console(self, vm_cid: str) -> bytes:
        """Return what is kept of a VM's console. Raises VMNotFound."""
        return console_log.read(VMFolder.of_existing(self._layout, vm_cid).path)

    def run_inside(self, vm_cid: str, command: Sequence[str], streams: "Streams") -> int:
        """Run a command in a running VM; return its exit status. Raises VMNotFound, CloudError."""
        from runtimes.containerd.execs import Execs

        spec = self._spec(vm_cid)
        self._require_init(vm_cid)
        execs = Execs(self._containerd.client, self._layout.execs)
        return execs.run(vm_cid, spec, command, streams)

    def look(self, vm_cid: str, work: Callable[[Root, bool], Result]) -> Result:
        """Look into a VM's root file system; `work` also gets whether the VM runs.

        Raises VMNotFound.
        """
        self._get(vm_cid)
        pid = self._containers.init_of(vm_cid)
        if pid is not None:
            # It may end just now.
            with suppress(ProcessLookupError, FileNotFoundError), _root_of(pid) as root:
                return work(root, True)
        folder, mounts = VMFolder.of_existing(self._layout, vm_cid), self._store.mounts(vm_cid)
        return vm_logs.stopped(
            mounts, self._layout.rootfs, folder.data, lambda root: work(root, False)
        )

    def _get(self, vm_cid: str) -> "containers_pb2.Container":
        container = self._containers.find(vm_cid)
        if container is None:
            raise VMNotFound(f"there is no VM {vm_cid} in containerd")
        return container

    def _spec(self, vm_cid: str) -> Spec:
        spec: Spec = json.loads(self._get(vm_cid).spec.value)
        return spec

    def _require_init(self, vm_cid: str) -> int:
        """Return the process id of a VM's init. Raises CloudError when it does not run."""
        pid = self._containers.init_of(vm_cid)
        if pid is None:
            raise CloudError(f"the VM {vm_cid} does not run; reboot it first")
        return pid


def _root_of(pid: int, owner: int = 0) -> Root:
    """Return the root file system of a running VM, as its init sees it."""
    return Root(Path(f"/proc/{pid}/root"), owner)


def _labels(spec: VMSpec, stemcell: "Stemcell", networks: Sequence[Network]) -> dict[str, str]:
    labels = {
        LABEL_AGENT: spec.agent_id[:256],
        LABEL_STEMCELL: spec.stemcell_cid,
        LABEL_SETTINGS: stemcell.settings,
        LABEL_ADDRESSES: " ".join(network.ip or "" for network in networks),
    }
    if spec.properties.ports:
        labels[LABEL_PORTS] = published(spec.properties.ports)[:_LABEL_LIMIT]
    return labels
