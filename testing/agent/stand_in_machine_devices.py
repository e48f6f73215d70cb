"""Block devices for the stand-in agent on a machine: finding, partitioning, formatting them.

Disks are found the way BOSH's agent does it (infrastructure/devicepathresolver), by the resolvers
that agent.json names: "virtio" and "scsi". Other than the real agent, nothing here writes over a
file system or a partition table that it finds.
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
    """Finds disks by the hints that the CPI gives; `root` is / but in tests."""

    def __init__(self, kind: str, run: Runner, root: Path = Path("/")) -> None:
        self.kind, self.run, self.root = kind, run, root
        self.patience = 1.0  # what every wait is multiplied with

    def find(self, cid: str, hint: dict[str, Any]) -> str:
        """The device node of a disk; raises DeviceMissing when it does not appear, AgentError.

        cid: "" for the ephemeral disk, which has none.
        """
        if self.kind == "scsi":
            return self._scsi(hint)
        if self.kind == "virtio":
            return self._by_cid(cid) or self._mapped(hint)
        return _path_in(hint)

    def _by_cid(self, cid: str) -> str | None:
        """A disk whose serial number is the CID. The real agent triggers udev anew first."""
        if len(cid) < ID_LENGTH:
            return None
        found = self._glob(f"dev/disk/by-id/*{glob.escape(cid)}")
        return self._real(found[0]) if len(found) == 1 else None

    def _mapped(self, hint: dict[str, Any]) -> str:
        """A disk by its path, whatever /dev/sdX is called here."""
        path = _path_in(hint)

        def look() -> str | None:
            if path.startswith("/dev/sd"):
                names = [f"/dev/{kind}{path[len('/dev/sd') :]}" for kind in ("xvd", "vd", "sd")]
                return next((name for name in names if self._inside(name).exists()), None)
            return self._real(self._inside(path)) if self._inside(path).exists() else None

        return self._wait(look, MAPPED_WAIT, path)

    def _scsi(self, hint: dict[str, Any]) -> str:
        """A disk by its id, or by its place on the first disk's bus."""
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
        """Look until something is there; raises DeviceMissing.

        It polls like the real agent: until a bus notices its disk there is no event to await.
        """
        end = time.monotonic() + seconds * self.patience
        found, waited = look(), False
        while found is None:
            if time.monotonic() >= end:
                raise DeviceMissing(f"Timed out getting real device path for {name}")
            time.sleep(POLL * self.patience)
            found, waited = look(), True
        if waited:
            self.run(["udevadm", "settle"])  # so that its partitions are there as well
        return found

    def _glob(self, pattern: str) -> list[Path]:
        return sorted(self.root.glob(pattern))

    def _inside(self, name: str) -> Path:
        return self.root / name.lstrip("/")

    def _real(self, path: Path) -> str:
        """The device node that a link of udev's leads to."""
        target = os.path.realpath(path)
        return f"/{os.path.relpath(target, self.root.resolve())}"


def hint_fields(hint: Any) -> dict[str, Any]:
    """What a hint says of a disk; a string may be its path, or its place on the bus."""
    if isinstance(hint, str):
        return {"path": hint, "volume_id": hint} if hint else {}
    return dict(hint) if isinstance(hint, dict) else {}


def _path_in(hint: dict[str, Any]) -> str:
    path = hint.get("path")
    if not path:
        raise AgentError("Getting real device path: path is missing")
    return str(path)


class Part(NamedTuple):
    """One partition: its number, where it begins and ends, what parted takes its content for."""

    number: int
    start: int  # bytes, as are the others
    end: int
    size: int
    system: str
    name: str


class Table(NamedTuple):
    """A disk's size in bytes, the kind of its partition table ("unknown" for none), its parts."""

    size: int
    label: str
    parts: tuple[Part, ...]


def read_table(run: Runner, device: str) -> Table:
    """What parted tells of a disk; raises AgentError."""
    try:
        text = run(["parted", "-s", "-m", device, "unit", "B", "print"])
    except AgentError as error:
        if "unrecognised disk label" not in str(error):
            raise
        size = run(["lsblk", "--nodeps", "-nb", "-o", "SIZE", device])
        return Table(int(size), "unknown", ())
    return parse_table(text)


def parse_table(text: str) -> Table:
    """Read parted's output for machines; raises AgentError."""
    rows = [line.rstrip(";").split(":") for line in text.splitlines() if line.endswith(";")]
    if len(rows) < 2 or rows[0] != ["BYT"]:
        raise AgentError(f"Parsing existing partitions: {text!r}")
    size, label = int(rows[1][1].rstrip("B")), rows[1][5]
    return Table(size, label, tuple(_parts(rows[2:])))


def _parts(rows: list[list[str]]) -> Iterator[Part]:
    for number, start, end, size, system, name, *_ in rows:
        edges = [int(text.rstrip("B")) for text in (start, end, size)]
        yield Part(int(number), edges[0], edges[1], edges[2], system, name)


def partition(run: Runner, device: str, name: str) -> str:
    """Put one partition on an empty disk and return its device node; raises AgentError."""
    refuse_content(run, device)
    run(["parted", "-s", device, "mklabel", "gpt", "mkpart", name, "1MiB", "100%"])
    run(["udevadm", "settle"])
    return partition_path(device, 1)


def grow(run: Runner, device: str) -> None:
    """Make the only partition of a disk as large as the disk; raises AgentError."""
    # --fix: a GPT ends with a copy, which is not at the end any more once the disk has grown.
    run(["parted", "-s", "--fix", device, "resizepart", "1", "100%"])
    run(["udevadm", "settle"])


def format_ext4(run: Runner, device: str) -> None:
    """Make a file system, unless there is one that the agent can use; raises AgentError."""
    found = signatures(run, device)
    if not {"ext4", "xfs"} & set(found):
        refuse(device, found)
        run(["mke2fs", "-q", "-t", "ext4", "-j", "-E", "lazy_itable_init=1", device])


def refuse_content(run: Runner, device: str) -> None:
    """Raise AgentError if there is anything on a device."""
    refuse(device, signatures(run, device))


def refuse(device: str, found: list[str]) -> None:
    """Raise AgentError if something was found on a device."""
    if found:
        raise AgentError(f"{device} is not empty ({', '.join(found)}), so it is left alone")


def signatures(run: Runner, device: str) -> list[str]:
    """The file systems and partition tables on a device; raises AgentError."""
    return run(["wipefs", "--no-act", "--noheadings", "--output", "TYPE", device]).split()


def root_partition(run: Runner) -> tuple[str, int]:
    """The root disk, and the number of its partition that is mounted as /; raises AgentError."""
    source = run(["findmnt", "-n", "-o", "SOURCE", "/"]).strip()
    found = re.fullmatch(r"(/dev/nvme\d+n\d+)p(\d+)|(/dev/[a-z]+)(\d)", source)
    if not found:
        raise AgentError(f"Root partition has an invalid name {source}")
    return found[1] or found[3], int(found[2] or found[4])


def partition_root(run: Runner) -> str:
    """Put a data partition behind the root one, unless there is one; raises AgentError."""
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
