"""Block devices for the stand-in agent on a machine: finding, partitioning, formatting them.

Disks are found the way BOSH's agent does it (infrastructure/devicepathresolver), by the resolvers
that agent.json names: "virtio" and "scsi". Unlike the real agent, this overwrites no file
system or partition table.
"""

import glob
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from testing.agent.stand_in_disks import AgentError, Runner, partition_path

MAPPED_WAIT = 30.0  # seconds, as are the others: for a disk that is given by its path
SCSI_WAIT = 50.0  # for a SCSI disk that is given by its id
VOLUME_WAIT = 15.0  # for a SCSI disk that is given by its place on the bus
POLL = 0.1
ID_LENGTH = 20  # the real agent takes nothing shorter for the id of a disk
GROWN = 100 << 20  # bytes by which a partition must be smaller than its disk to be grown
ROOT_SPARE = 1 << 30  # bytes that must be free on the root disk for a data partition there


class DeviceMissing(AgentError):
    """A disk did not appear in time."""


class Devices:
    """Finds disks by the hints that the CPI gives; `root` is / except in tests."""

    def __init__(self, resolution: str, run: Runner, root: Path = Path("/")) -> None:
        self.resolution, self.run, self.root = resolution, run, root
        self.patience = 1.0  # factor of every wait

    def find(self, cid: str, hint: dict[str, Any]) -> str:
        """Return the device node of a disk; raises AgentError, DeviceMissing if it does not appear.

        cid: "" for the ephemeral disk, which has none.
        """
        if self.resolution == "scsi":
            return self._scsi(hint)
        if self.resolution == "virtio":
            return self._by_cid(cid) or self._mapped(hint)
        return _path_in(hint)

    def _by_cid(self, cid: str) -> str | None:
        """Return a disk whose serial number is the CID. The real agent triggers udev first."""
        if len(cid) < ID_LENGTH:
            return None
        links = self._glob(f"dev/disk/by-id/*{glob.escape(cid)}")
        return self._real(links[0]) if len(links) == 1 else None

    def _mapped(self, hint: dict[str, Any]) -> str:
        """Return a disk by its path, whatever /dev/sdX is called here."""
        path = _path_in(hint)

        def look() -> str | None:
            if path.startswith("/dev/sd"):
                names = [f"/dev/{prefix}{path[len('/dev/sd') :]}" for prefix in ("xvd", "vd", "sd")]
                return next((name for name in names if self._inside(name).exists()), None)
            return self._real(self._inside(path)) if self._inside(path).exists() else None

        return self._wait(look, MAPPED_WAIT, path)

    def _scsi(self, hint: dict[str, Any]) -> str:
        """Return a disk by its id, or by its place on the first disk's bus."""
        if name := hint.get("id"):
            self._rescan("*")
            pattern = f"dev/disk/by-id/*{glob.escape(name.replace('-', ''))}"

            def by_id() -> str | None:
                return next((self._real(path) for path in self._glob(pattern)), None)

            return self._wait(by_id, SCSI_WAIT, name)
        if volume := hint.get("volume_id"):
            disks = self._glob("sys/bus/scsi/devices/*:0:0:0/block/sd*")
            if not disks:
                raise AgentError("Zero length hostID")
            bus = disks[-1].parent.parent.name.partition(":")[0]
            self._rescan(bus)
            place = f"sys/bus/scsi/devices/{bus}:0:{glob.escape(volume)}:0/block/*"

            def by_place() -> str | None:
                return next((f"/dev/{path.name}" for path in self._glob(place)), None)

            return self._wait(by_place, VOLUME_WAIT, volume)
        problem = "Neither ID, VolumeID nor (Lun, HostDeviceID) provided in disk settings"
        raise AgentError(problem)

    def _rescan(self, bus: str) -> None:
        """Have the kernel look for SCSI disks."""
        for path in self._glob(f"sys/class/scsi_host/host{bus}/scan"):
            path.write_text("- - -")

    def _wait(self, look: Callable[[], str | None], seconds: float, name: str) -> str:
        """Look for a device until it appears; raises DeviceMissing.

        It polls like the real agent: until a bus notices its disk there is no event to await.
        """
        end = time.monotonic() + seconds * self.patience
        device, waited = look(), False
        while device is None:
            if time.monotonic() >= end:
                raise DeviceMissing(f"Timed out getting real device path for {name}")
            time.sleep(POLL * self.patience)
            device, waited = look(), True
        if waited:
            self.run(["udevadm", "settle"])  # so that its partitions are there as well
        return device

    def _glob(self, pattern: str) -> list[Path]:
        return sorted(self.root.glob(pattern))

    def _inside(self, name: str) -> Path:
        return self.root / name.lstrip("/")

    def _real(self, path: Path) -> str:
        """Return the device node that a link of udev's leads to."""
        target = os.path.realpath(path)
        return f"/{os.path.relpath(target, self.root.resolve())}"


def hint_fields(hint: Any) -> dict[str, Any]:
    """Return a hint's fields; a string may be a path, or a place on the bus."""
    if isinstance(hint, str):
        return {"path": hint, "volume_id": hint} if hint else {}
    return dict(hint) if isinstance(hint, dict) else {}


def _path_in(hint: dict[str, Any]) -> str:
    path = hint.get("path")
    if not path:
        raise AgentError("Getting real device path: path is missing")
    return str(path)


class Partition(NamedTuple):
    """One partition: its number, place and size, and the file system that parted detects."""

    number: int
    start: int  # bytes, as are the others
    end: int
    size: int
    system: str
    name: str


class PartitionTable(NamedTuple):
    """A disk's size in bytes, type of partition table ("unknown" for none), and partitions."""

    size: int
    label: str
    parts: tuple[Partition, ...]


def read_table(run: Runner, device: str) -> PartitionTable:
    """Return a disk's partition table, from parted; raises AgentError."""
    try:
        text = run(["parted", "-s", "-m", device, "unit", "B", "print"])
    except AgentError as error:
        if "unrecognised disk label" not in str(error):
            raise
        size = run(["lsblk", "--nodeps", "-nb", "-o", "SIZE", device])
        return PartitionTable(int(size), "unknown", ())
    return parse_table(text)


def parse_table(text: str) -> PartitionTable:
    """Read parted's output for machines; raises AgentError."""
    rows = [line.rstrip(";").split(":") for line in text.splitlines() if line.endswith(";")]
    if len(rows) < 2 or rows[0] != ["BYT"]:
        raise AgentError(f"Parsing existing partitions: {text!r}")
    size, label = int(rows[1][1].rstrip("B")), rows[1][5]
    return PartitionTable(size, label, tuple(_parts(rows[2:])))


def _parts(rows: list[list[str]]) -> Iterator[Partition]:
    for number, start, end, size, system, name, *_ in rows:
        edges = [int(text.rstrip("B")) for text in (start, end, size)]
        yield Partition(int(number), edges[0], edges[1], edges[2], system, name)


def partition(run: Runner, device: str, name: str) -> str:
    """Create one partition on an empty disk; return its device node; raises AgentError."""
    refuse_content(run, device)
    run(["parted", "-s", device, "mklabel", "gpt", "mkpart", name, "1MiB", "100%"])
    run(["udevadm", "settle"])
    return partition_path(device, 1)


def grow(run: Runner, device: str) -> None:
    """Grow the only partition of a disk to the disk's size; raises AgentError."""
    # --fix: a GPT ends with a copy, which is not at the end any more once the disk has grown.
    run(["parted", "-s", "--fix", device, "resizepart", "1", "100%"])
    run(["udevadm", "settle"])


def format_ext4(run: Runner, device: str) -> None:
    """Create a file system, unless there is a usable one; raises AgentError."""
    content = signatures(run, device)
    if not {"ext4", "xfs"} & set(content):
        refuse(device, content)
        run(["mke2fs", "-q", "-t", "ext4", "-j", "-E", "lazy_itable_init=1", device])


def refuse_content(run: Runner, device: str) -> None:
    """Raise AgentError if a device is not empty."""
    refuse(device, signatures(run, device))


def refuse(device: str, content: list[str]) -> None:
    """Raise AgentError if a device has content."""
    if content:
        raise AgentError(f"{device} is not empty ({', '.join(content)}), so it is left alone")


def signatures(run: Runner, device: str) -> list[str]:
    """Return the file systems and partition tables on a device; raises AgentError."""
    return run(["wipefs", "--no-act", "--noheadings", "--output", "TYPE", device]).split()


def root_partition(run: Runner) -> tuple[str, int]:
    """Return the root disk and the number of the root partition; raises AgentError."""
    source = run(["findmnt", "-n", "-o", "SOURCE", "/"]).strip()
    match = re.fullmatch(r"(/dev/nvme\d+n\d+)p(\d+)|(/dev/[a-z]+)(\d)", source)
    if not match:
        raise AgentError(f"Root partition has an invalid name {source}")
    return match[1] or match[3], int(match[2] or match[4])


def partition_root(run: Runner) -> str:
    """Create a data partition behind the root one, if missing; raises AgentError."""
    device, number = root_partition(run)
    table = read_table(run, device)
    if not any(part.number == number + 1 for part in table.parts):
        end = max(part.end for part in table.parts) + 1
        if table.size - end < ROOT_SPARE:
            problem = f"Insufficient remaining disk space ({table.size - end}B)"
            raise AgentError(f"{problem} for ephemeral partition (min: {ROOT_SPARE}B)")
        start = -(-end // (1 << 20))
        run(["parted", "-s", device, "mkpart", "primary", f"{start}MiB", "100%"])
        run(["udevadm", "settle"])
    return partition_path(device, number + 1)
