"""Time what the CPI does with persistent disks, and how fast they are inside a VM.

Calls are processes, as BOSH makes them. fio runs in the VM, on an attached disk, and in the host's
folder of the disk's file, in random order, since some machines slow down every second run. The best
run counts.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.bench_calls import BenchFailed
from bench.figures import Spread
from testing.command_line import count, run_as_root
from testing.hosts.driver import Driver, DriverError
from testing.hosts.private_host import PrivateHost
from testing.stemcells.stemcell_source import opened, stand_in

RUNS = 5
DATA_MIB = 1024  # in the disk that is snapshot and moved
IO_DISK_MIB = 4096
HINTS = "/warden-cpi-dev"
_FIO = "/root/fio"  # in the VM

# Name, and fio's words. Files are laid out before, and caches dropped.
WORKLOADS = (
    ("sequential write, 1 MiB", "--rw=write --bs=1M --size=768M --end_fsync=1"),
    ("sequential read, 1 MiB", "--rw=read --bs=1M --size=768M"),
    ("random write, 4 KiB", "--rw=randwrite --bs=4k --size=256M --end_fsync=1"),
    ("random read, 4 KiB", "--rw=randread --bs=4k --size=256M --runtime=4 --time_based"),
    (
        "random read, 4 KiB, 16 at once",
        "--rw=randread --bs=4k --size=256M --runtime=4 --time_based --numjobs=16",
    ),
    (
        "write and fsync, 4 KiB",
        "--rw=randwrite --bs=4k --size=64M --fsync=1 --runtime=4 --time_based",
    ),
)


@dataclass
class Figures:
    """What was measured: milliseconds by call, MiB/s by workload and place."""

    calls: dict[str, list[float]]
    io: dict[str, dict[str, list[float]]]


class DiskBench:
    """Measurements of disks on a host with one VM."""

    def __init__(self, driver: Driver, host: PrivateHost, runs: int) -> None:
        self.figures = Figures({}, {})
        self._driver = driver
        self._host = host
        self._runs = runs
        self._vm = ""

    def start_vm(self, image: str) -> None:
        """Create the VM that disks are attached to."""
        stemcell = self._call("create_stemcell", image, {})
        networks = {"default": {"type": "dynamic"}}
        self._vm = self._call("create_vm", "bench", stemcell, {}, networks, [], {})[0]

    def stop_vm(self) -> None:
        """Delete the VM."""
        self._call("delete_vm", self._vm)

    def measure_calls(self) -> None:
        """Time the calls, on new disks each time."""
        for _ in range(self._runs):
            for name, size in (("1 GiB", 1024), ("100 GiB", 100 << 10)):
                disk = self._timed(f"create_disk {name}", "create_disk", size, {}, self._vm)
                self._timed(f"attach_disk {name}", "attach_disk", self._vm, disk)
                self._timed(f"detach_disk {name}", "detach_disk", self._vm, disk)
                self._call("delete_disk", disk)
            disk = self._timed("create_disk 1 GiB, xfs", "create_disk", 1024, _XFS, self._vm)
            self._timed("resize_disk to 2 GiB, xfs, empty", "resize_disk", disk, 2048)
            self._call("delete_disk", disk)

    def measure_data(self) -> None:
        """Time the calls that depend on how much data a disk has."""
        for store in ("default", "sharing"):
            disk = self._call("create_disk", 2 * DATA_MIB, {"store": store}, self._vm)
            self._call("attach_disk", self._vm, disk)
            fill = f"head -c {DATA_MIB}M /dev/urandom > {HINTS}/{disk}/data; sync"
            self._must(self._driver.inside(self._vm, "sh", "-c", fill))
            for _ in range(self._runs):
                name = f"snapshot_disk, 1 GiB of data, {_CONTENT[store]}"
                snapshot = self._timed(name, "snapshot_disk", disk, {})
                self._timed("delete_snapshot, 1 GiB of data", "delete_snapshot", snapshot)
            self._call("detach_disk", self._vm, disk)
            for run in range(self._runs):
                name = f"resize_disk, 1 GiB of data, {_CONTENT[store]}"
                self._timed(name, "resize_disk", disk, 2 * DATA_MIB + 64 * (run + 1))
            self._call("delete_disk", disk)

    def measure_io(self) -> None:
        """Run fio in the VM and on the host in turns."""
        self._carry_fio()
        disk = self._call("create_disk", IO_DISK_MIB, {}, self._vm)
        self._call("attach_disk", self._vm, disk)
        folder = self._host.state / "disks"
        for name, words in WORKLOADS:
            rates: dict[str, list[float]] = {"host": [], "VM": []}
            for run in range(self._runs + 1):
                for place in random.sample(sorted(rates), k=2):
                    target = str(folder) if place == "host" else f"{HINTS}/{disk}"
                    rate = self._fio(place, target, words)
                    if run:  # the first one lays out the file
                        rates[place].append(rate)
            self.figures.io[name] = rates
            (folder / "bench").unlink()
            self._must(self._driver.inside(self._vm, "rm", f"{HINTS}/{disk}/bench"))
        self._call("detach_disk", self._vm, disk)
        self._call("delete_disk", disk)

    def _carry_fio(self) -> None:
        """Copy fio and its libraries into the VM."""
        program = shutil.which("fio")
        if program is None:
            raise BenchFailed("fio is not installed; `apt-get install fio`")
        listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True)
        libraries = [word for word in listed.stdout.split() if word.startswith("/")]
        tasks = self._driver.must([*self._driver.ctr, "tasks", "ls"]).stdout.splitlines()
        pid = next(line.split()[1] for line in tasks if line.startswith(self._vm))
        target = f"/proc/{pid}/root{_FIO}"
        self._driver.must(["mkdir", "-p", target])
        self._driver.must(["cp", "--dereference", program, *libraries, target])
        loader = next(path for path in libraries if "/ld-linux" in path)
        self._loader = f"{_FIO}/{Path(loader).name}"

    def _fio(self, place: str, folder: str, words: str) -> float:
        """Return the MiB/s of one run."""
        self._driver.must(["sync"])
        Path("/proc/sys/vm/drop_caches").write_text("3")
        argv = ["--name=bench", f"--directory={folder}", "--output-format=json", *words.split()]
        argv += ["--group_reporting", "--filename=bench", "--unlink=0"]
        if place == "host":
            done = self._driver.run(["fio", *argv])
        else:
            command = (self._loader, "--library-path", _FIO, f"{_FIO}/fio")
            done = self._driver.inside(self._vm, *command, *argv)
        self._must(done)
        job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
        return float(max(job["read"]["bw"], job["write"]["bw"])) / 1024

    def _timed(self, name: str, method: str, *arguments: Any) -> Any:
        answer = self._driver.cpi(method, *arguments)
        if answer.error:
            raise BenchFailed(f"{method}: {answer.error['type']}: {answer.error['message']}")
        self.figures.calls.setdefault(name, []).append(answer.done.wall)
        return answer.response["result"]

    def _call(self, method: str, *arguments: Any) -> Any:
        result = self._timed("", method, *arguments)
        del self.figures.calls[""]
        return result

    def _must(self, done: Any) -> None:
        if done.status:
            raise BenchFailed((done.stderr or done.stdout).strip()[-500:])


_XFS = {"filesystem": "xfs"}
_CONTENT = {"default": "copied", "sharing": "blocks shared"}


def show(figures: Figures, console: Console) -> None:
    """Print the tables."""
    style = box.SIMPLE_HEAD if console.is_terminal else None
    table = Table("call", box=style)
    for heading in ("least ms", "median ms", "most ms"):
        table.add_column(heading, justify="right")
    for name, values in figures.calls.items():
        spread = Spread.of(values)
        table.add_row(name, *(f"{value:.0f}" for value in vars(spread).values()))
    console.print(table)
    if not figures.io:
        return
    table = Table("fio, best runs", box=style)
    for heading in ("host MiB/s", "VM MiB/s", "VM / host"):
        table.add_column(heading, justify="right")
    for name, rates in figures.io.items():
        host, vm = (max(rates[place]) for place in ("host", "VM"))
        table.add_row(name, f"{host:.1f}", f"{vm:.1f}", f"{vm / host:.2f}")
    console.print(table)


def measure(options: argparse.Namespace, console: Console) -> None:
    """Measure and print. Raises what goes wrong."""
    progress = Console(stderr=True)
    with PrivateHost() as host:
        sharing = host.folder / "sharing"
        config = host.write_config(disk_stores={"sharing": str(sharing)})
        with Driver(host, config) as driver, progress.status("starting") as status:
            _mount_sharing(driver, sharing)
            try:
                bench = DiskBench(driver, host, options.runs)
                bench.start_vm(str(opened(stand_in("runit"), host.folder).image))
                status.update("calls")
                bench.measure_calls()
                status.update("calls on a disk with data")
                bench.measure_data()
                if not options.calls:
                    status.update("fio, in the VM and on the host")
                    bench.measure_io()
                bench.stop_vm()
            finally:
                with suppress(DriverError):
                    driver.must(["umount", str(sharing)])
        show(bench.figures, console)


def _mount_sharing(driver: Driver, folder: Path) -> None:
    """Mount a file system that shares blocks between files."""
    image = folder.with_suffix(".img")
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(8 << 30)
    driver.must(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)])
    driver.must(["mount", "-o", "loop", str(image), str(folder)])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python3 -m bench.bench_disks", description=__doc__)
    parser.add_argument("--runs", type=count, default=RUNS, metavar="N", help="(%(default)s)")
    parser.add_argument("--calls", action="store_true", help="only the calls, without fio")
    options = parser.parse_args(argv)
    return run_as_root("bench", lambda console: measure(options, console), BenchFailed)


if __name__ == "__main__":
    sys.exit(main())
