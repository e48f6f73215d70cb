"""A runtime in memory that refuses what a careful runtime would refuse.

Its state is kept by `state_dir`, so that calls with one configuration share it.
"""

import dataclasses
import gzip
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cpi import cid
from cpi.errors import (
    CloudError,
    DiskNotAttached,
    DiskNotFound,
    NotSupported,
    StemcellNotFound,
    VMNotFound,
)
from cpi.findings import Finding
from cpi.model import DiskProperties, Json, JsonObject, Network, VMSpec
from cpi.runtime import Runtime
from cpi.views import StemcellView, Usage, VMView

if TYPE_CHECKING:
    from cpi.config.config import Config
    from cpi.log import Log


@dataclasses.dataclass
class FakeVM:
    """A VM."""

    spec: VMSpec
    networks: tuple[Network, ...]
    metadata: JsonObject = dataclasses.field(default_factory=dict)
    reboots: int = 0
    runs: bool = True


@dataclasses.dataclass
class FakeDisk:
    """A persistent disk, and the VM that it is attached to."""

    size_mib: int
    vm_cid: str | None = None
    metadata: JsonObject = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class FakeWorld:
    """The state of the fake runtime: all resources."""

    stemcells: set[str] = dataclasses.field(default_factory=set)
    machines: dict[str, FakeVM] = dataclasses.field(default_factory=dict)
    disks: dict[str, FakeDisk] = dataclasses.field(default_factory=dict)
    snapshots: set[str] = dataclasses.field(default_factory=set)
    addresses_given: int = 0
    findings: list[Finding] = dataclasses.field(default_factory=list)


WORLDS: dict[str, FakeWorld] = {}


def write_image(path: Path, content: bytes = b"a root file system") -> Path:
    """Write an `image` that the fake runtime takes; return its path."""
    path.write_bytes(gzip.compress(content, mtime=0))
    return path


def metadata_of(config: "Config", cid: str) -> dict[str, str]:
    """Return BOSH's metadata of a VM or disk."""
    world = WORLDS[config.text("state_dir")]
    return dict((world.machines.get(cid) or world.disks[cid]).metadata)


class FakeRuntime(Runtime):
    """See the module."""

    name = "fake"
    supports = frozenset((
        "set_disk_metadata", "resize_disk", "update_disk", "snapshot_disk", "delete_snapshot",
        "snapshot_attached_disk", "vms", "stemcells", "usage",
    ))  # fmt: skip

    def __init__(self, config: "Config", log: "Log") -> None:
        super().__init__(config, log)
        self.world = WORLDS.setdefault(config.text("state_dir"), FakeWorld())

    def create_stemcell(self, image: Path, cloud_properties: JsonObject, tags: JsonObject) -> str:
        try:
            content = image.read_bytes()
        except OSError as error:
            raise CloudError(f"cannot read stemcell {image}: {error.strerror}") from error
        if not content.startswith(b"\x1f\x8b"):
            raise CloudError(f"stemcell {image} is no gzip'd archive")
        stemcell = cid.new("fake", cid.STEMCELL, hashlib.sha256(content).hexdigest()[:32])
        self.world.stemcells.add(stemcell)
        return stemcell

    def delete_stemcell(self, stemcell_cid: str) -> None:
        self.world.stemcells.discard(stemcell_cid)

    def create_vm(self, spec: VMSpec) -> Sequence[Network]:
        if spec.cid in self.world.machines:
            raise CloudError(f"{spec.cid} exists")
        if spec.stemcell_cid not in self.world.stemcells:
            raise StemcellNotFound(f"there is no stemcell {spec.stemcell_cid}")
        used = {nic.ip for machine in self.world.machines.values() for nic in machine.networks}
        for network in spec.networks:
            if network.ip in used and network.ip is not None:
                raise CloudError(f"address {network.ip} is in use")
        networks = tuple(self._addressed(network) for network in spec.networks)
        self.world.machines[spec.cid] = FakeVM(spec, networks)
        return networks

    def delete_vm(self, vm_cid: str) -> None:
        for disk in self.world.disks.values():
            if disk.vm_cid == vm_cid:
                disk.vm_cid = None
        self.world.machines.pop(vm_cid, None)

    def has_vm(self, vm_cid: str) -> bool:
        return vm_cid in self.world.machines

    def reboot_vm(self, vm_cid: str) -> None:
        self._machine(vm_cid).reboots += 1
        self._machine(vm_cid).runs = True

    def shut_down(self, vm_cid: str, seconds: float) -> None:
        self._machine(vm_cid).runs = False

    def restore(self, vm_cid: str) -> bool:
        machine = self._machine(vm_cid)
        machine.runs, ran = True, machine.runs
        return not ran

    def set_vm_metadata(self, vm_cid: str, metadata: JsonObject) -> None:
        assert all(isinstance(value, str) for value in metadata.values())
        self._machine(vm_cid).metadata = metadata

    def create_disk(self, size_mib: int, properties: DiskProperties, vm_cid: str | None) -> str:
        if vm_cid is not None:
            self._machine(vm_cid)
        disk = cid.new("fake", cid.DISK)
        self.world.disks[disk] = FakeDisk(size_mib)
        return disk

    def delete_disk(self, disk_cid: str) -> None:
        if self._disk(disk_cid).vm_cid is not None:
            raise CloudError(f"{disk_cid} is attached to {self._disk(disk_cid).vm_cid}")
        del self.world.disks[disk_cid]

    def has_disk(self, disk_cid: str) -> bool:
        return disk_cid in self.world.disks

    def attach_disk(self, vm_cid: str, disk_cid: str, api_version: int) -> Json:
        self._machine(vm_cid)
        disk = self._disk(disk_cid)
        if disk.vm_cid not in (None, vm_cid):
            raise CloudError(f"{disk_cid} is attached to {disk.vm_cid}")
        disk.vm_cid = vm_cid
        return {"path": f"/dev/fake/{disk_cid}"}

    def detach_disk(self, vm_cid: str, disk_cid: str) -> None:
        self._machine(vm_cid)
        if self._disk(disk_cid).vm_cid != vm_cid:
            raise DiskNotAttached(f"{disk_cid} is not attached to {vm_cid}")
        self._disk(disk_cid).vm_cid = None

    def get_disks(self, vm_cid: str) -> list[str]:
        self._machine(vm_cid)
        return [name for name, disk in self.world.disks.items() if disk.vm_cid == vm_cid]

    def set_disk_metadata(self, disk_cid: str, metadata: JsonObject) -> None:
        assert all(isinstance(value, str) for value in metadata.values())
        self._disk(disk_cid).metadata = metadata

    def resize_disk(self, disk_cid: str, size_mib: int) -> None:
        disk = self._disk(disk_cid)
        if disk.vm_cid is not None:
            raise CloudError(f"{disk_cid} is attached to {disk.vm_cid}")
        if size_mib < disk.size_mib:
            raise NotSupported(f"{disk_cid} cannot shrink")
        disk.size_mib = size_mib

    def update_disk(self, disk_cid: str, size_mib: int, properties: DiskProperties) -> str:
        self.resize_disk(disk_cid, size_mib)
        fresh = cid.new("fake", cid.DISK)  # as a CPI does that moves data
        self.world.disks[fresh] = self.world.disks.pop(disk_cid)
        return fresh

    def snapshot_disk(self, disk_cid: str, metadata: JsonObject) -> str:
        assert all(isinstance(value, str) for value in metadata.values())
        self._disk(disk_cid)
        snapshot = cid.new("fake", cid.SNAPSHOT)
        self.world.snapshots.add(snapshot)
        return snapshot

    def delete_snapshot(self, snapshot_cid: str) -> None:
        self.world.snapshots.discard(snapshot_cid)

    def vms(self) -> list[VMView]:
        return [
            VMView(
                cid=name,
                runtime=self.name,
                state="running" if machine.runs else "stopped",
                agent_id=machine.spec.agent_id,
                stemcell=machine.spec.stemcell_cid,
                addresses=tuple(network.ip or "" for network in machine.networks),
                cpu=machine.spec.properties.cpu,
                memory=machine.spec.properties.memory,
                metadata=machine.metadata,
            )
            for name, machine in sorted(self.world.machines.items())
        ]

    def stemcells(self) -> list[StemcellView]:
        return [StemcellView(name, self.name, "fake", "1") for name in sorted(self.world.stemcells)]

    def usage(self) -> list[Usage]:
        return [Usage(name, memory=1 << 20) for name in sorted(self.world.machines)]

    def checks(self) -> list[Finding]:
        return self.world.findings

    def _machine(self, vm_cid: str) -> FakeVM:
        if vm_cid not in self.world.machines:
            raise VMNotFound(f"there is no VM {vm_cid}")
        return self.world.machines[vm_cid]

    def _disk(self, disk_cid: str) -> FakeDisk:
        if disk_cid not in self.world.disks:
            raise DiskNotFound(f"there is no disk {disk_cid}")
        return self.world.disks[disk_cid]

    def _addressed(self, network: Network) -> Network:
        if network.type != "dynamic":
            return network
        self.world.addresses_given += 1
        address = f"10.245.0.{self.world.addresses_given + 1}"
        return dataclasses.replace(network, ip=address, prefix=16, gateway="10.245.0.1")
