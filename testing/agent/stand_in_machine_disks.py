"""The disks of a machine, for the stand-in agent: persistent ones with partitions, the data disk.

The checks and their order are the real agent's (platform/linux_platform.go), with the partitioner
parted. Disks with unexpected content are left alone, where the real agent would overwrite them;
swap and xfs are left out.
"""

from pathlib import Path
from typing import Any

from testing.agent.stand_in_disks import AgentError, Disks, Runner, Store, partition_path
from testing.agent.stand_in_machine_devices import (
    GROWN,
    DeviceMissing,
    Devices,
    format_ext4,
    grow,
    hint_fields,
    partition,
    partition_root,
    read_table,
)

PERSISTENT_NAME = "bosh-partition-0"


class MachineDisks(Disks):
    """Persistent disks as devices, and the data disk; raises AgentError."""

    def __init__(
        self, store: Store, vcap: Path, linux: dict[str, Any], run: Runner, devices: Devices
    ) -> None:
        super().__init__(store, vcap, linux, run)
        self.devices, self.data = devices, str(vcap / "data")
        self.on_root = bool(linux.get("CreatePartitionIfNoEphemeralDisk"))

    def kept(self, hint: Any) -> Any:
        """Return what to keep of a hint: all of it."""
        return hint

    def path(self, cid: str) -> str:
        """Return the device node of a disk; raises DeviceMissing, AgentError."""
        return self.devices.find(cid, hint_fields(self.hint(cid)))

    def present_device(self, cid: str) -> str | None:
        """Return the partition of a disk, or None if the disk did not appear."""
        try:
            return self.device(cid)
        except DeviceMissing:
            return None

    def mount(self, cid: str) -> dict[str, str]:
        """Mount a disk, after partitioning, formatting or growing it as needed."""
        self.adjust(cid)
        return super().mount(cid)

    def adjust(self, cid: str) -> None:
        """Make a disk have one partition with a file system, as large as the disk."""
        wanted = (self.settings.get("env") or {}).get("persistent_disk_fs") or "ext4"
        if wanted != "ext4":
            raise AgentError(f'The filesystem type "{wanted}" is not supported')
        device = self.path(cid)
        table = read_table(self.run, device)
        if len(table.parts) > 1:
            problem = "Persistent disks with many partitions are not supported"
            raise AgentError(f"{problem}. Expected 1, got {len(table.parts)}.")
        if not table.parts:
            format_ext4(self.run, partition(self.run, device, PERSISTENT_NAME))
            return
        if table.label == "loop":
            raise AgentError(f"{device} holds a file system and no partition: it is left alone")
        only = table.parts[0]
        if only.system != "ext4":
            format_ext4(self.run, partition_path(device, only.number))
        elif only.size < table.size - GROWN:
            self._grow(device)

    def _grow(self, device: str) -> None:
        grow(self.run, device)
        first = partition_path(device, 1)
        Path(self.target).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._mount(first, self.target)
        try:
            self.run(["resize2fs", "-f", first])
        finally:
            self._unmount(first)

    def remount(self) -> None:
        """Mount the disk that was mounted last, when the machine starts."""
        try:
            last = (self.store.folder / "managed_disk_settings.json").read_text()
        except FileNotFoundError:
            return
        if self.all() and last not in self.all():
            raise AgentError(f"Attached disk disagrees with previous mount: no {last}")
        if read_table(self.run, self.path(last)).parts:
            self.mount(last)

    def set_up_data(self, agent_id: str) -> None:
        """Mount the ephemeral disk, or room behind the root partition, at /var/vcap/data."""
        Path(self.data).mkdir(mode=0o750, parents=True, exist_ok=True)
        if self.source(self.data) is not None:
            return
        hint = (self.settings.get("disks") or {}).get("ephemeral")
        try:
            device = self.devices.find("", hint_fields(hint))
        except AgentError as error:
            if not self.on_root:
                problem = "No ephemeral disk found, cannot use root partition as ephemeral disk"
                raise AgentError(f"{problem}: {error}") from error
            data = partition_root(self.run)
        else:
            data = self._data_partition(device, agent_id)
        format_ext4(self.run, data)
        self.run(["mount", data, self.data])

    def _data_partition(self, device: str, agent_id: str) -> str:
        """Return the data partition of the ephemeral disk; create it if the disk is empty."""
        prefix = f"bosh-partition-{agent_id}"[:32]
        table = read_table(self.run, device)
        if not table.parts:
            return partition(self.run, device, f"{prefix}-0")
        if not table.parts[0].name.startswith(prefix):
            raise AgentError(f"{device} has partitions of others, so it is left alone")
        return partition_path(device, 1)
