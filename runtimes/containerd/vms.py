"""VMs as containerd has them: snapshot, container, task; and what is written into a VM."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cpi.agent_settings import render as render_settings
from cpi.cni.networks import nameservers, published
from cpi.errors import CloudError, VMNotFound
from cpi.host import linux
from cpi.host.undo import Undo
from cpi.log import Log
from cpi.model import Json, Network, VMProperties, VMSpec
from runtimes.containerd import cgroups, host_facts, mount_namespaces, oci_spec
from runtimes.containerd.api import containers_pb2, types_pb2
from runtimes.containerd.containers import Containers
from runtimes.containerd.mounted_snapshot import mounted
from runtimes.containerd.stemcells import Stemcell, Stemcells
from runtimes.containerd.storage import Store
from runtimes.containerd.vm_folder import HostFolder
from stemcell_convert import adapt
from stemcell_convert.facts import SYSTEMD
from stemcell_convert.inroot import Root

if TYPE_CHECKING:
    from cpi.terminal import Streams
    from runtimes.containerd.execs import Execs

STORE = "/var/vcap/store"
_MOUNTED_LAST = "/var/vcap/bosh/managed_disk_settings.json"
METADATA_PREFIX = "bosh.metadata/"
LABEL_AGENT = "bosh.agent_id"
LABEL_STEMCELL = "bosh.stemcell"
LABEL_SETTINGS = "bosh.settings"
LABEL_ADDRESSES = "bosh.addresses"
LABEL_PORTS = "bosh.ports"

# containerd takes 4096 bytes for key and value of a label together.
_LABEL_LIMIT = 4000
_SETTINGS_LIMIT = 16 << 20  # bytes
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True)
class Place:
    """What the host has for one VM: its network, folder and limiting cgroup, and containerd.

    folders: of the host, that the VM gets.
    """

    namespace: Path
    folder: HostFolder
    cgroup: str
    address: str
    folders: Sequence[oci_spec.Folder] = ()


class VMs:
    """VMs of one containerd namespace. The caller holds the lock of the VM it changes."""

    def __init__(
        self,
        store: Store,
        containers: Containers,
        stemcells: Stemcells,
        mount_point: Path,
        log: Log,
    ) -> None:
        self._store = store
        self._containers = containers
        self._stemcells = stemcells
        self._mount_point = mount_point
        self._log = log

    def create(
        self, spec: VMSpec, place: Place, connected: Callable[[], Sequence[Network]], undo: Undo
    ) -> Sequence[Network]:
        """Create and start a VM in its place on the host; return its networks.

        `connected` waits for the networks; they are made while containerd's client loads.
        """
        stemcell = self._stemcells.find(spec.stemcell_cid)
        undo.push(lambda: self._store.remove_snapshot(spec.cid))
        with self._store.lease() as lease:
            mounts = self._store.prepare(spec.cid, stemcell.snapshot, lease=lease)
            networks = connected()
            files = rootfs_files(spec, networks, stemcell)
            linux.in_private_mounts(lambda: _write(mounts, self._mount_point, files))
            limits = _limits(spec.properties)
            document = oci_spec.render(_container(spec, stemcell, place, limits))
            labels = _labels(spec, stemcell, networks)
            undo.push(lambda: self._containers.delete(spec.cid))
            self._containers.create(spec.cid, stemcell.image, document, labels)
        undo.push(lambda: cgroups.remove(place.cgroup))
        cgroups.create(place.cgroup, limits)
        undo.push(lambda: self._containers.stop(spec.cid))
        pid = self._containers.start(spec.cid, mounts, mount_namespaces.share_mounts)
        self._log.info(f"{spec.cid} runs, its init is process {pid}")
        return networks

    def delete(self, vm_cid: str) -> None:
        """Delete what containerd has of a stopped VM."""
        self._containers.delete(vm_cid)
        self._store.remove_snapshot(vm_cid)

    def stop(self, vm_cid: str) -> None:
        """End a VM's processes."""
        self._containers.stop(vm_cid)

    def exists(self, vm_cid: str) -> bool:
        return self._containers.find(vm_cid) is not None

    def has_task(self, vm_cid: str) -> bool:
        """Tell whether the VM has run since the host was started."""
        return self._containers.has_task(vm_cid)

    def start(self, vm_cid: str, place: Place) -> None:
        """Start a VM that has not run since the host was started. Raises VMNotFound, CloudError."""
        spec = json.loads(self._get(vm_cid).spec.value)
        capabilities = host_facts.capabilities_of_server(place.address)
        oci_spec.renew(spec, capabilities, host_facts.devices())
        self._containers.set_spec(vm_cid, spec)
        cgroups.remove(place.cgroup)  # what a killed call made may lack limits
        cgroups.create(place.cgroup, cgroups.limits_of(spec))
        self.reboot(vm_cid, place.folder)

    def reboot(self, vm_cid: str, folder: HostFolder) -> None:
        """Start a VM's init anew on the same root file system and network. Raises VMNotFound.

        In bind mode the agent does not mount its disk again after a reboot, as it would on a VM; so
        the disk that it had mounted last is bound to its place before anything runs.
        """
        spec = json.loads(self._get(vm_cid).spec.value)
        self._containers.stop(vm_cid)
        mounts = self._store.mounts(vm_cid)
        attached = [target.name for target in folder.attached()]
        disk = linux.in_private_mounts(lambda: _mounted_last(mounts, self._mount_point, attached))
        spec["mounts"] = [mount for mount in spec["mounts"] if mount["destination"] != STORE]
        if disk:
            self._log.info(f"{disk} will be at {STORE}")
            spec["mounts"].append(oci_spec.bind(STORE, folder.disks / disk))
        self._containers.set_spec(vm_cid, spec)
        self._containers.start(vm_cid, mounts, mount_namespaces.share_mounts)

    def set_metadata(self, vm_cid: str, metadata: Mapping[str, Json]) -> None:
        """Show BOSH's metadata as labels, instead of what was shown before."""
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
        pid = self._containers.init_of(vm_cid)
        if pid is None:
            raise CloudError(f"the VM {vm_cid} does not run; reboot it first")
        with Root(Path(f"/proc/{pid}/root")) as root:
            settings = json.loads(root.read(path, _SETTINGS_LIMIT))
            settings["disks"]["persistent"][disk_cid] = hint
            root.write(path, json.dumps(settings).encode(), 0o600)

    def init_of(self, vm_cid: str) -> int | None:
        """The process id of a VM's init, None when it does not run. Raises VMNotFound."""
        self._get(vm_cid)
        return self._containers.init_of(vm_cid)

    def has_systemd(self, vm_cid: str) -> bool:
        """Tell whether a VM's init is systemd. Raises VMNotFound."""
        spec = json.loads(self._get(vm_cid).spec.value)
        program: str = spec["process"]["args"][0]
        return program.rpartition("/")[2] in ("init", "systemd")

    def run_inside(
        self, vm_cid: str, command: Sequence[str], streams: "Streams", execs: "Execs"
    ) -> int:
        """Run a command in a running VM; return its exit status. Raises VMNotFound, CloudError."""
        spec = json.loads(self._get(vm_cid).spec.value)
        if self._containers.init_of(vm_cid) is None:
            raise CloudError(f"the VM {vm_cid} does not run; reboot it first")
        return execs.run(vm_cid, spec, command, streams)

    def _get(self, vm_cid: str) -> containers_pb2.Container:
        container = self._containers.find(vm_cid)
        if container is None:
            raise VMNotFound(f"there is no VM {vm_cid} in containerd")
        return container


def _limits(properties: VMProperties) -> cgroups.Limits:
    return cgroups.Limits(
        cpu=properties.cpu,
        memory=None if properties.memory is None else properties.memory << 20,
        pids=properties.pids,
        any_device=properties.privileged,
    )


def _container(
    spec: VMSpec, stemcell: Stemcell, place: Place, limits: cgroups.Limits
) -> oci_spec.Container:
    privileged = spec.properties.privileged
    return oci_spec.Container(
        hostname=hostname(spec),
        command=stemcell.command,
        namespace=place.namespace,
        cgroup=f"{place.cgroup}/{cgroups.CHILD}",
        data=place.folder.data,
        disks=place.folder.disks,
        disk_folder=adapt.DISK_FOLDER,
        capabilities=host_facts.capabilities_of_server(place.address),
        systemd=stemcell.init == SYSTEMD,
        cpu=limits.cpu,
        memory=limits.memory,
        swap_accounting=host_facts.accounts_swap(),
        pids=limits.pids,
        privileged=privileged,
        devices=host_facts.devices() if privileged else (),
        folders=place.folders,
    )


def hostname(spec: VMSpec) -> str:
    """The agent's id, as on other CPIs, if it can be a host name, else the CID's own part."""
    if _HOSTNAME.fullmatch(spec.agent_id):
        return spec.agent_id
    return f"vm-{spec.cid.rsplit('-', 1)[1]}"


def rootfs_files(
    spec: VMSpec, networks: Sequence[Network], stemcell: Stemcell
) -> list[tuple[str, bytes, int]]:
    """Return what is written into the VM's root file system: path, content, mode.

    Plain files and no binds: the agent renames /etc/hosts and replaces /etc/resolv.conf.
    """
    name = hostname(spec)
    hosts = f"127.0.0.1 localhost {name}\n::1 localhost ip6-localhost ip6-loopback\n"
    servers = "".join(f"nameserver {server}\n" for server in nameservers(networks))
    settings = json.dumps(render_settings(spec, networks))
    files = [
        (stemcell.settings, settings.encode(), 0o600),
        ("/etc/hostname", f"{name}\n".encode(), 0o644),
        ("/etc/hosts", hosts.encode(), 0o644),
        ("/etc/resolv.conf", servers.encode(), 0o644),
    ]
    if stemcell.init == SYSTEMD:
        # Every VM its own; a stemcell may come with one, and then all VMs would share it.
        files.append(("/etc/machine-id", f"{spec.cid.rsplit('-', 1)[1]}\n".encode(), 0o444))
    return files


def _write(
    mounts: Sequence[types_pb2.Mount], at: Path, files: Sequence[tuple[str, bytes, int]]
) -> None:
    with mounted(mounts, at) as folder, Root(folder) as root:
        for path, data, mode in files:
            # A stemcell with systemd-resolved points there, and the agent configures it.
            if path == "/etc/resolv.conf" and "systemd" in (root.link_target(path) or ""):
                continue
            root.write(path, data, mode)


def _mounted_last(mounts: Sequence[types_pb2.Mount], at: Path, attached: Sequence[str]) -> str:
    """The disk that the agent mounted last, if the VM still has it, or "".

    An agent that remembers a disk which is no longer there never gets through its start
    (bosh-agent, bootstrap.mountLastMountedDisk), so then it is made to forget it.
    """
    with mounted(mounts, at) as folder, Root(folder) as root:
        try:
            disk = root.read(_MOUNTED_LAST, 256).decode().strip()
        except (OSError, UnicodeDecodeError):
            return ""
        if disk and disk not in attached:
            root.write(_MOUNTED_LAST, b"", 0o600)
            return ""
        return disk


def _labels(spec: VMSpec, stemcell: Stemcell, networks: Sequence[Network]) -> dict[str, str]:
    labels = {
        LABEL_AGENT: spec.agent_id[:256],
        LABEL_STEMCELL: spec.stemcell_cid,
        LABEL_SETTINGS: stemcell.settings,
        LABEL_ADDRESSES: " ".join(network.ip or "" for network in networks),
    }
    if spec.properties.ports:
        labels[LABEL_PORTS] = published(spec.properties.ports)[:_LABEL_LIMIT]
    return labels
