"""Time calls as VMs become many on one host, and the restore of 100 VMs after its restart.

Tiny VMs, each with an ephemeral and a persistent disk, on a private host. Calls are processes, as
BOSH makes them: at each size, create_vm and delete_vm are of one VM more. Then the VMs are brought
back after a restart of the host, and all are deleted: nothing may be left.
"""

import argparse
import io
import json
import os
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.bench_calls import BenchFailed
from bench.figures import Samples, Spread
from demo.demo_text import leftovers, network_of
from testing.command_line import count, run_as_root
from testing.hosts.driver import Done, Driver
from testing.hosts.host_reboot import reboot
from testing.hosts.private_docker import packed
from testing.hosts.private_host import PrivateHost
from testing.hosts.private_service import BOSH_CPI, Service
from testing.hosts.scratch import file_system

SIZE = 500
RESTORED = 100
RUNS = 5
MOST_GROWTH = 1.2  # of create_vm, from the first size to the last
_AT_ONCE = 4
_DISK_MIB = 32
_SUBNET = "10.245.0.0/16"
_PROPERTIES = {"memory": 32, "ephemeral_disk": 16}
_MEASURED = ("create_vm", "has_vm", "get_disks", "vms", "delete_vm")
_CLEAN_SECONDS = 30.0
_CONTAINERD = "containerd ("  # with another process id since the restart

Say = Callable[[str], None]


def sizes(largest: int) -> list[int]:
    """Return the numbers of VMs at which calls are timed."""
    return sorted({1, 50, *range(100, largest + 1, 100), largest} - set(range(largest + 1, 101)))


def tiny_image(path: Path) -> Path:
    """Write a stemcell's `image` with a shell, which sleeps as its init; return its path."""
    files = {
        "etc/os-release": b"ID=debian\nVERSION_ID=12\n",
        "usr/sbin/runsvdir-start": b"#!/bin/sh\nexec /bin/sleep infinity\n",
    }
    data = io.BytesIO(packed("/bin/sh", "/bin/sleep"))
    with tarfile.open(fileobj=data) as programs, tarfile.open(path, "w:gz") as image:
        for member in programs.getmembers():
            member.name = f"./{member.name}"
            image.addfile(member, programs.extractfile(member))
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size, member.mode = len(content), 0o755
            image.addfile(member, io.BytesIO(content))
    return path


class ScaleBench:
    """VMs on one host, and what calls take with each number of them."""

    def __init__(self, service: Service, config: Path) -> None:
        self.curve: dict[int, Samples] = {}  # by number of VMs
        self.memory: dict[int, float] = {}  # MiB of the service, by number of VMs
        self.drivers: list[Driver] = []  # free ones
        self._service = service
        self._config = config
        self._vms: dict[str, tuple[str, int]] = {}  # disk and number
        self._stemcell = ""
        self._next = 0

    def measure(self, image: Path, largest: int, say: Say) -> None:
        """Create VMs up to each size, and time calls there."""
        self._stemcell = self._result(self.drivers[0].cpi("create_stemcell", str(image), {}))
        for size in sizes(largest):
            say(f"creating VMs, up to {size}")
            self._grow(size)
            say(f"timing calls with {size} VMs")
            self.curve[size] = self._calls()
            self.memory[size] = memory_of(self._service.pid)

    def _grow(self, size: int) -> None:
        first, self._next = self._next, self._next + size - len(self._vms)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(self._create, range(first, self._next)))

    def _calls(self) -> Samples:
        """Time each call, on the VM that is there longest and on one more."""
        samples, driver, vm = Samples.none(), self.drivers[0], next(iter(self._vms))

        def call(method: str, *arguments: Any) -> Any:
            answer = driver.cpi(method, *arguments)
            samples.add(method, answer.done.wall, answer.done.cpu + answer.done.daemon)
            return self._result(answer)

        for _ in range(RUNS):
            fresh = call("create_vm", *self._arguments(self._next))[0]
            self._next += 1
            call("has_vm", vm)
            call("get_disks", vm)
            listed = driver.must(self._words("vms", "--json"))
            samples.add("vms", listed.wall, listed.cpu + listed.daemon)
            call("delete_vm", fresh)
        return samples

    def shrink(self, most: int, say: Say) -> None:
        """Delete VMs until there are at most so many."""
        surplus = list(self._vms)[most:]
        say(f"deleting {len(surplus)} VMs")
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(self._delete, surplus))

    def restore(self, say: Say) -> dict[str, float]:
        """Bring back all VMs after a restart of the host; return what that takes."""
        say(f"bringing back {len(self._vms)} VMs")
        done = self.drivers[0].must(self._words("restore", "--json"))
        restored = json.loads(done.stdout)["restored"]
        if set(restored) != set(self._vms):
            raise BenchFailed(f"{len(restored)} of {len(self._vms)} VMs came back: {done.stderr}")
        return {"vms": len(restored), **_figures(done)}

    def delete_all(self, say: Say) -> None:
        """Delete all VMs, disks and the stemcell."""
        self.shrink(0, say)
        self._result(self.drivers[0].cpi("delete_stemcell", self._stemcell))

    def _create(self, number: int) -> None:
        vm = self._call("create_vm", *self._arguments(number))[0]
        disk = self._call("create_disk", _DISK_MIB, {}, vm)
        self._call("attach_disk", vm, disk)
        self._vms[vm] = (disk, number)

    def _delete(self, vm: str) -> None:
        self._call("delete_vm", vm)
        self._call("delete_disk", self._vms.pop(vm)[0])

    def _arguments(self, number: int) -> list[Any]:
        networks = {"default": network_of(_SUBNET, _address(number))}
        return [f"agent-{number}", self._stemcell, _PROPERTIES, networks, [], {}]

    def _call(self, method: str, *arguments: Any) -> Any:
        driver = self.drivers.pop()  # never empty: there are as many threads as drivers
        try:
            return self._result(driver.cpi(method, *arguments))
        finally:
            self.drivers.append(driver)

    @staticmethod
    def _result(answer: Any) -> Any:
        if answer.error:
            raise BenchFailed(answer.error["message"])
        return answer.response["result"]

    def _words(self, *words: str) -> list[str]:
        return [str(BOSH_CPI), "--config", str(self._config), *words]


def _address(number: int) -> str:
    return f"10.245.{1 + number // 250}.{1 + number % 250}"


def _median(values: Sequence[float]) -> float:
    return Spread.of(values).median


def _figures(done: Done) -> dict[str, float]:
    """Return seconds: in all, of our own programs, and of containerd and its shims."""
    figures = {"wall": done.wall, "own cpu": done.cpu, "containerd's cpu": done.daemon}
    return {name: value / 1e3 for name, value in figures.items()}


def memory_of(pid: int) -> float:
    """Return the memory of a process and its children, in MiB, shared pages by their share."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    own = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    total = sum(int(line.split()[1]) for line in own if line.startswith("Pss:")) / 1024
    return total + sum(memory_of(int(child)) for child in children)


def show(bench: ScaleBench, restored: dict[str, float], console: Console) -> None:
    """Print the curve and what the restart took."""
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None)
    for heading in ("VMs", *_MEASURED, "service MiB"):
        table.add_column(heading, justify="right")
    for size, samples in bench.curve.items():
        figures = [f"{_median(samples.wall[name]):.0f} ({_median(samples.cpu[name]):.0f})"
                   for name in _MEASURED]  # fmt: skip
        table.add_row(str(size), *figures, f"{bench.memory[size]:.0f}")
    console.print(table)
    first, *_, last = (samples.wall["create_vm"] for samples in bench.curve.values())
    growth = _median(last) / _median(first)
    met = "met" if growth <= MOST_GROWTH else "missed"
    console.print(
        f"medians of {RUNS}, in ms: wall (CPU, containerd's included); create_vm takes "
        f"{growth:.2f} times as long in the end as with one VM (goal: {MOST_GROWTH}, {met})"
    )
    vms, wall = restored["vms"], restored["wall"]
    parts = ", ".join(f"{name} {value:.1f} s" for name, value in restored.items() if "cpu" in name)
    console.print(
        f"{vms:.0f} VMs came back in {wall:.1f} s after a restart of the host ({parts}, on "
        f"{os.cpu_count()} CPUs); then all were deleted, and nothing was left"
    )


def measure(options: argparse.Namespace, console: Console) -> None:
    """Measure, and print the figures. Raises BenchFailed."""
    progress = Console(stderr=True)
    with file_system(), PrivateHost() as host, progress.status("starting") as status:
        with Service(host) as service:
            bench = ScaleBench(service, config := host.write_config())
            with workers(host, config) as bench.drivers:
                before = bench.drivers[0].inventory()
                bench.measure(tiny_image(host.folder / "image"), options.size, status.update)
                bench.shrink(RESTORED, status.update)
        reboot(host)
        with workers(host, config) as bench.drivers:
            restored = bench.restore(status.update)
            bench.delete_all(status.update)
            _expect_nothing(bench.drivers[0], before)
    show(bench, restored, console)


@contextmanager
def workers(host: PrivateHost, config: Path) -> Iterator[list[Driver]]:
    """Yield drivers, one for each thread."""
    with ExitStack() as stack:
        yield [stack.enter_context(Driver(host, config)) for _ in range(_AT_ONCE)]


def _expect_nothing(driver: Driver, before: dict[str, set[str]]) -> None:
    deadline = time.monotonic() + _CLEAN_SECONDS
    while any((left := _left(driver, before)).values()):
        if time.monotonic() > deadline:
            examples = {title: sorted(names)[:3] for title, names in left.items() if names}
            raise BenchFailed(f"the VMs have left something: {examples}")
        time.sleep(0.2)


def _left(driver: Driver, before: dict[str, set[str]]) -> dict[str, set[str]]:
    left = leftovers(before, driver.inventory())
    left["processes"] = {name for name in left["processes"] if not name.startswith(_CONTAINERD)}
    return left


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.bench_scale", description=__doc__)
    parser.add_argument("--size", type=count, default=SIZE, help="VMs (default: %(default)s)")
    options = parser.parse_args(argv)
    return run_as_root("bench_scale", lambda console: measure(options, console), BenchFailed)


if __name__ == "__main__":
    sys.exit(main())
