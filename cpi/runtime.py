"""The interface between the contract and what runs the VMs.

Each CPI method is a method here, of the same name. A runtime may assume that arguments are
validated and that the caller holds the locks of the CIDs it passes. A failed create leaves nothing
behind, and deletes are idempotent.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cpi.errors import NotSupported

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cpi.config.config import Config
    from cpi.findings import Finding
    from cpi.log import Log
    from cpi.model import DiskProperties, Garbage, Json, JsonObject, Network, VMSpec
    from cpi.terminal import Streams
    from cpi.views import LogPart, LogPlaces, StemcellView, Usage, VMView


class Runtime(ABC):
    """Runs BOSH VMs. Methods raise the errors of cpi.errors."""

    name: ClassVar[str]
    # The methods it has of those that raise NotSupported here, and for a disk in use
    # "grow_attached_disk" and "snapshot_attached_disk". The contract's tests check them.
    supports: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: "Config", log: "Log") -> None:
        """Keep the configuration; connect to nothing yet."""
        self.config = config
        self.log = log

    def close(self) -> None:
        """Close connections; called once, after the last operation."""
        self.log.debug(f"{self.name}: closed")

    # Stemcells

    @abstractmethod
    def create_stemcell(
        self, image: Path, cloud_properties: "JsonObject", tags: "JsonObject"
    ) -> str:
        """Import the stemcell's `image` file and return its CID, the same for the same content.

        `stemcell.MF` may lie beside the image. Raises CloudError, naming file and reason, when the
        image is truncated, corrupt or of a format this runtime does not take.
        """

    @abstractmethod
    def delete_stemcell(self, stemcell_cid: str) -> None:
        """Delete a stemcell, if it exists."""

    # VMs

    @abstractmethod
    def create_vm(self, spec: "VMSpec") -> "Sequence[Network]":
        """Create and start the VM `spec.cid`; return its networks with their real addresses.

        The agent's settings are in place before the first process runs. Raises StemcellNotFound,
        NetworkNotFound, NoDiskSpace, VMCreationFailed.
        """

    @abstractmethod
    def delete_vm(self, vm_cid: str) -> None:
        """Delete a VM, if it exists, and release its disks, whose data stays."""

    @abstractmethod
    def has_vm(self, vm_cid: str) -> bool:
        """Tell whether the VM exists, running or not."""

    @abstractmethod
    def reboot_vm(self, vm_cid: str) -> None:
        """Restart the VM's processes; addresses, root file system and disks stay.

        Raises VMNotFound.
        """

    @abstractmethod
    def set_vm_metadata(self, vm_cid: str, metadata: "JsonObject") -> None:
        """Replace the VM's metadata. Raises VMNotFound."""

    @abstractmethod
    def shut_down(self, vm_cid: str, seconds: float) -> None:
        """Have a running VM end by itself, and kill what still runs after `seconds`.

        `restore` and reboot_vm start it again. A VM that does not run stays as it is. Raises
        VMNotFound, and NotSupported for a VM on another machine.
        """

    def restore(self, vm_cid: str) -> bool:
        """Start a VM that `shut_down` or a restart of the host ended; tell whether it did.

        It gets its addresses, networks and disks back. A VM that ended by itself is left to BOSH's
        health monitor. Idempotent. Raises CloudError.
        """
        return False

    # Persistent disks

    @abstractmethod
    def create_disk(self, size_mib: int, properties: "DiskProperties", vm_cid: str | None) -> str:
        """Create a persistent disk of `size_mib` MiB and return its CID. Raises NoDiskSpace."""

    @abstractmethod
    def delete_disk(self, disk_cid: str) -> None:
        """Delete a disk. Raises DiskNotFound, and CloudError for an attached one."""

    @abstractmethod
    def has_disk(self, disk_cid: str) -> bool:
        """Tell whether the disk exists."""

    @abstractmethod
    def attach_disk(self, vm_cid: str, disk_cid: str, api_version: int) -> "Json":
        """Attach a disk to a running VM and return the hint by which its agent finds it.

        Idempotent. With api_version 1 the hint is also put into the VM's settings, where such
        agents look for it. Raises VMNotFound, DiskNotFound, CloudError when another VM has the
        disk.
        """

    @abstractmethod
    def detach_disk(self, vm_cid: str, disk_cid: str) -> None:
        """Detach a disk; nothing of it stays visible in the VM.

        Raises VMNotFound, DiskNotFound, DiskNotAttached.
        """

    @abstractmethod
    def get_disks(self, vm_cid: str) -> list[str]:
        """Return the CIDs of the VM's attached disks. Raises VMNotFound."""

    # Optional

    def share_stemcell(
        self, stemcell_cid: str, image: Path, cloud_properties: "JsonObject"
    ) -> None:
        """Import a stemcell under the CID that another runtime gave it.

        Raises NotSupported for a format that this runtime does not take, and like create_stemcell.
        """
        raise self._not_supported("stemcells of other runtimes")

    def disk_user(self, disk_cid: str) -> str:
        """Return the CID of the VM that has the disk, also another runtime's; "" for none."""
        return ""

    def garbage(self) -> "list[Garbage]":
        """Return this runtime's orphaned resources that no running call uses."""
        return []

    def remains(self) -> "list[Garbage]":
        """Return what this runtime leaves on the host when its VMs are gone, in order of removal.

        Persistent disks are not among it.
        """
        return []

    def console(self, vm_cid: str) -> bytes:
        """Return what is kept of a VM's console output. Raises VMNotFound."""
        raise self._not_supported("a console log")

    def set_disk_metadata(self, disk_cid: str, metadata: "JsonObject") -> None:
        """Replace the disk's metadata. Raises DiskNotFound."""
        raise self._not_supported("set_disk_metadata")

    def resize_disk(self, disk_cid: str, size_mib: int) -> None:
        """Grow a detached disk to `size_mib` MiB, data kept.

        Raises DiskNotFound, NoDiskSpace, and NotSupported for less than it has.
        """
        raise self._not_supported("resize_disk")

    def update_disk(self, disk_cid: str, size_mib: int, properties: "DiskProperties") -> str:
        """Change a detached disk's size and properties, data kept; return its (new) CID.

        Raises DiskNotFound, NoDiskSpace, and NotSupported, with nothing changed, for what takes a
        new disk.
        """
        raise self._not_supported("update_disk")

    def snapshot_disk(self, disk_cid: str, metadata: "JsonObject") -> str:
        """Snapshot a disk and return the snapshot's CID. Raises DiskNotFound."""
        raise self._not_supported("snapshot_disk")

    def delete_snapshot(self, snapshot_cid: str) -> None:
        """Delete a snapshot, if it exists."""
        raise self._not_supported("delete_snapshot")

    def create_network(self, definition: "JsonObject") -> list["Json"]:
        """Create a managed network; return [cid, addresses, cloud_properties]."""
        raise self._not_supported("create_network")

    def delete_network(self, network_cid: str) -> None:
        """Delete a managed network."""
        raise self._not_supported("delete_network")

    # For the operator (cpi.commands)

    def vms(self) -> "list[VMView]":
        """Return all VMs of this CPI, running or not, by CID."""
        raise self._not_supported("listing VMs")

    def stemcells(self) -> "list[StemcellView]":
        """Return all imported stemcells, by CID."""
        raise self._not_supported("listing stemcells")

    def usage(self) -> "list[Usage]":
        """Return what each running VM has used, by CID."""
        raise self._not_supported("usage of VMs")

    def run_inside(self, vm_cid: str, command: "Sequence[str]", streams: "Streams") -> int:
        """Run a command as root in a running VM and return its exit status.

        An interrupt ends the command. Raises VMNotFound, NotSupported, and
        CloudError when the VM does not run or has no such command.
        """
        raise self._not_supported("running commands in its VMs")

    def log_places(self, vm_cid: str) -> "LogPlaces":
        """Return where a VM's own logs are. Raises VMNotFound."""
        raise self._not_supported("reading logs in its VMs")

    def read_log(
        self, vm_cid: str, path: str, after: "LogPart | None", limit: int
    ) -> "LogPart | None":
        """Return what a file in a VM, which need not run, has behind `after`; None: no such file.

        Without `after` its end; `limit` bytes at most. Links lead nowhere outside the VM. Raises
        VMNotFound.
        """
        raise self._not_supported("reading logs in its VMs")

    def checks(self) -> "list[Finding]":
        """Check this runtime on this host."""
        return []

    def _not_supported(self, method: str) -> NotSupported:
        return NotSupported(f"the {self.name} runtime does not support {method}")
