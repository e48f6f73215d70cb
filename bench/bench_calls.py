"""Time every call of the CPI contract as a process, on a private host and a new file system.

Wall time is what BOSH waits for; CPU is user and system time of the `cpi` process and the programs
that it runs, without containerd. A VM's calls are made when its agent has answered, as BOSH does.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console

from bench.figures import (
    PEER_STEMCELL_MB,
    Import,
    Samples,
    Spread,
    calls_table,
    imports_of,
    imports_table,
    ratio,
    stemcell_table,
)
from demo.demo_text import leftovers, network_of
from testing.agent.agent_client import Agent, Credentials
from testing.command_line import count, run_as_root
from testing.hosts.driver import Driver
from testing.hosts.private_host import PrivateHost
from testing.hosts.scratch import file_system
from testing.stemcells.stemcell_source import Stemcell, opened, stand_in

SUBNET = "10.245.0.0/16"
RESOURCES = {"ram": 512, "cpu": 1, "ephemeral_disk_size": 1024}  # MiB, CPUs, MiB
DISK_MIB = 1024
RUNS = 7
PARALLEL = 8
TOP_IMPORTS = 10
AGENT_SECONDS = 60.0
_FIRST_ADDRESS = 10
_CLEAN_SECONDS = 30.0

CTR = "ctr images import"
CPI = "cpi create_stemcell"


class BenchFailed(Exception):
    """A call failed, so there are no figures."""


class CallBench:
    """Measurements of all calls on one host with one stemcell."""

    def __init__(
        self, driver: Driver, stemcell: Stemcell, credentials: Credentials, runs: int
    ) -> None:
        self.samples = Samples.none()
        self.imports: dict[str, list[Import]] = {}
        self.stemcells: dict[str, list[dict[str, float]]] = {CPI: [], CTR: []}
        self._driver = driver
        self._stemcell = stemcell
        self._credentials = credentials
        self._runs = runs

    def call(self, method: str, *arguments: Any, name: str | None = "") -> Any:
        """Make a call and keep its times under `name` (default: the method; None: not kept)."""
        answer = self._driver.cpi(method, *arguments)
        if answer.error:
            raise BenchFailed(f"{method}: {answer.error['type']}: {answer.error['message']}")
        if name is not None:
            self.samples.add(name or method, answer.done.wall, answer.done.cpu)
        return answer.response["result"]

    def measure_stemcells(self, tar: Path, say: Callable[[str], None]) -> None:
        """Import and delete the stemcell, alternating with ctr's import of the same image."""
        cid = self._create_stemcell(None)
        ctr = self._driver.ctr
        image = self._driver.must([*ctr, "images", "ls", "-q"]).stdout.split()[0]
        self._driver.must([*ctr, "images", "export", str(tar), image])
        self._call_again(cid)
        self.call("delete_stemcell", cid, name=None)
        for run in range(self._runs):
            say(f"importing the stemcell, {run + 1} of {self._runs}")
            for ours in (True, False) if run % 2 == 0 else (False, True):
                self._driver.must(["sync"])  # so that earlier writes are not measured here
                if ours:
                    self._import_ours()
                else:
                    self._import_theirs(tar, image)

    def _call_again(self, cid: str) -> None:
        for _ in range(self._runs):
            if self._create_stemcell("create_stemcell again") != cid:
                raise BenchFailed("the same stemcell has another CID the second time")

    def _import_ours(self) -> None:
        answer = self._driver.cpi(
            "create_stemcell", str(self._stemcell.image), self._stemcell.cloud_properties
        )
        if answer.error:
            raise BenchFailed(f"create_stemcell: {answer.error['message']}")
        done = answer.done
        self.samples.add("create_stemcell", done.wall, done.cpu)
        self.stemcells[CPI].append({"wall": done.wall, "cpu": done.cpu, "daemon": done.daemon})
        self.call("delete_stemcell", answer.response["result"])

    def _import_theirs(self, tar: Path, image: str) -> None:
        ctr = self._driver.ctr
        done = self._driver.must([*ctr, "images", "import", str(tar)])
        self.stemcells[CTR].append({"wall": done.wall, "cpu": done.cpu, "daemon": done.daemon})
        if len(self._driver.must([*ctr, "snapshots", "ls"]).stdout.splitlines()) < 2:
            raise BenchFailed("ctr has not unpacked the image, so it cannot be compared with")
        self._driver.must([*ctr, "images", "rm", "--sync", image])

    def _create_stemcell(self, name: str | None = "") -> str:
        image, properties = str(self._stemcell.image), self._stemcell.cloud_properties
        return str(self.call("create_stemcell", image, properties, name=name))

    def measure_lives(self, say: Callable[[str], None]) -> None:
        """Time the calls in the life of a VM and a disk, once a run."""
        cid = self._create_stemcell(None)
        for run in range(self._runs):
            say(f"a VM's life, {run + 1} of {self._runs}")
            self._live(cid, last=run == self._runs - 1)
        self.call("delete_stemcell", cid, name=None)

    def _live(self, stemcell: str, *, last: bool) -> None:
        call = self.call
        call("info")
        properties = call("calculate_vm_cloud_properties", RESOURCES)
        networks = {"default": network_of(SUBNET, _address(0))}
        env = self._credentials.env
        vm = call("create_vm", "bench", stemcell, properties, networks, [], env)[0]
        agent = Agent(self._driver, self._credentials, _address(0))
        self._wait(agent, "agent answers after create_vm")
        call("has_vm", vm)
        call("set_vm_metadata", vm, {"deployment": "bench", "job": "bench", "index": "0"})
        disk = call("create_disk", DISK_MIB, {}, vm)
        call("has_disk", disk)
        hint = call("attach_disk", vm, disk)
        call("set_disk_metadata", disk, {"deployment": "bench"})
        agent.ask("add_persistent_disk", disk, hint)
        agent.ask("mount_disk", disk)
        call("get_disks", vm)
        if last:
            self._measure_imports(vm, disk)
        # While the disk is there: BOSH's agent does not start without the one it mounted last.
        call("reboot_vm", vm)
        agent.starts_now()
        self._wait(agent, "agent answers after reboot_vm")
        agent.ask("unmount_disk", disk)
        agent.ask("remove_persistent_disk", disk)
        call("detach_disk", vm, disk)
        call("delete_disk", disk)
        call("delete_vm", vm)

    def _wait(self, agent: Agent, name: str) -> None:
        agent.wait(AGENT_SECONDS)
        self.samples.add(name, agent.age() * 1e3, None)

    def _measure_imports(self, vm: str, disk: str) -> None:
        python = (sys.executable, "-X", "importtime")
        for method, *arguments in (("info",), ("has_vm", vm), ("attach_disk", vm, disk)):
            answer = self._driver.cpi(method, *arguments, python=python)
            self.imports[method] = imports_of(answer.done.stderr)

    def run_many(self, drivers: Sequence[Driver], count: int) -> dict[str, float]:
        """Create `count` VMs, then delete them, with as many calls at once as there are drivers.

        Returns seconds. Raises BenchFailed if one fails or anything is left.
        """
        stemcell = self._create_stemcell(None)
        before = self._driver.inventory()
        free = list(drivers)

        def call(method: str, *arguments: Any) -> Any:
            driver = free.pop()  # never empty: there are as many threads as drivers
            try:
                answer = driver.cpi(method, *arguments)
            finally:
                free.append(driver)
            if answer.error:
                raise BenchFailed(f"{method}: {answer.error['message']}")
            return answer.response["result"]

        def create(number: int) -> str:
            networks = {"default": network_of(SUBNET, _address(number))}
            properties = {"memory": 256, "ephemeral_disk": 256}
            vm = call("create_vm", f"bench-{number}", stemcell, properties, networks, [], {})
            return str(vm[0])

        with ThreadPoolExecutor(len(drivers)) as pool:
            start = time.monotonic()
            vms = list(pool.map(create, range(count)))
            created = time.monotonic()
            list(pool.map(lambda vm: call("delete_vm", vm), vms))
            deleted = time.monotonic()
        self._expect_nothing(before)
        self.call("delete_stemcell", stemcell, name=None)
        return {"create_s": created - start, "delete_s": deleted - created}

    def _expect_nothing(self, before: dict[str, set[str]]) -> None:
        deadline = time.monotonic() + _CLEAN_SECONDS
        while True:
            left = leftovers(before, self._driver.inventory())
            if not any(left.values()):
                return
            if time.monotonic() > deadline:
                examples = {title: sorted(names)[:3] for title, names in left.items() if names}
                raise BenchFailed(f"the VMs have left something: {examples}")
            time.sleep(0.2)


def _address(number: int) -> str:
    """Return the address of VM `number`, in the upper half of SUBNET, which nothing else uses."""
    number += _FIRST_ADDRESS
    return f"10.245.{128 + number // 250}.{1 + number % 250}"


def show(document: dict[str, Any], bench: CallBench, stemcell: Stemcell, console: Console) -> None:
    """Print the tables."""
    style = box.SIMPLE_HEAD if console.is_terminal else None
    machine = document["machine"]
    console.print(
        f"\n{machine['cpus']} CPUs, Linux {machine['kernel']}, {machine['containerd']}, "
        f"Python {machine['python']}; load {machine['load']} before; {document['runs']} runs\n"
    )
    if bench.samples.wall:
        console.print(calls_table(bench.samples, style))
        console.print(
            "\nratio: our median to the docker CPI's (the least, where it varies), measured on two "
            f"cores with\na stemcell of {PEER_STEMCELL_MB:g} MB; the image here has "
            f"{stemcell.size / 1e6:.1f} MB, so create_stemcell is {_per_megabyte(bench, stemcell)}"
            "\n"
        )
        console.print(stemcell_table(bench.stemcells, style))
        console.print("\nImports of the cpi process, slower here than usual for being watched:\n")
        console.print(imports_table(bench.imports, TOP_IMPORTS, style))
    if "vms" in document:
        many = document["vms"]
        console.print(
            f"\n{many['count']} VMs, {many['parallel']} calls at a time: created in "
            f"{many['create_s']:.1f} s, deleted in {many['delete_s']:.1f} s; nothing is left"
        )


def _per_megabyte(bench: CallBench, stemcell: Stemcell) -> str:
    median = Spread.of(bench.samples.wall["create_stemcell"]).median
    share = ratio("create_stemcell", median * PEER_STEMCELL_MB * 1e6 / stemcell.size) or 0
    return f"{share:.2f} per MB"


def _machine(driver: Driver, programs: Path | None) -> dict[str, Any]:
    program = str(programs / "containerd") if programs else "containerd"
    words = driver.must([program, "--version"]).stdout.split()
    return {
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "containerd": f"containerd {words[2]}",
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
    }


def measure(options: argparse.Namespace, console: Console) -> None:
    """Measure what the options ask for and print it. Raises what goes wrong."""
    tarball = options.stemcell or stand_in("systemd")
    programs, plugins = folders(options.programs)
    progress = Console(stderr=True)
    with file_system(), PrivateHost(programs, plugins) as host, ExitStack() as stack:
        stemcell = opened(tarball, host.folder)
        config = host.write_config()
        drivers = [
            stack.enter_context(Driver(host, config, programs))
            for _ in range(PARALLEL if options.vms else 1)
        ]
        bench = CallBench(drivers[0], stemcell, Credentials.make(host.folder), options.runs)
        document: dict[str, Any] = {
            "machine": _machine(drivers[0], programs),
            "stemcell": {"name": stemcell.name, "image_bytes": stemcell.size},
            "runs": options.runs,
        }
        with progress.status("starting") as status:
            if options.vms:
                status.update(f"creating and deleting {options.vms} VMs")
                many = bench.run_many(drivers, options.vms)
                document["vms"] = {"count": options.vms, "parallel": PARALLEL, **many}
            else:
                bench.measure_lives(status.update)
                bench.measure_stemcells(host.folder / "image.tar", status.update)
                document |= _document(bench)
        if options.json:
            print(json.dumps(document, indent=2))
        else:
            show(document, bench, stemcell, console)


def _document(bench: CallBench) -> dict[str, Any]:
    return {
        "calls": bench.samples.document(),
        "stemcell_imports": bench.stemcells,
        "imports": {
            name: [[module.module, module.own, module.total] for module in modules[:TOP_IMPORTS]]
            for name, modules in bench.imports.items()
        },
    }


def folders(programs: Path | None) -> tuple[Path | None, Path | None]:
    """Return the folders of containerd's programs and of CNI plugins; None means the system's.

    programs: a folder as debian_suite makes it.
    """
    if programs is None:
        return None, None
    inner = programs / "bin" if (programs / "bin").is_dir() else programs
    plugins = inner.parent / "cni"
    return inner, plugins if plugins.is_dir() else None


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python3 -m bench.bench_calls", description=__doc__)
    add = parser.add_argument
    add("--runs", type=count, default=RUNS, metavar="N", help="of each call (%(default)s)")
    add("--stemcell", type=Path, metavar="FILE", help="a BOSH stemcell (default: make a small one)")
    add("--programs", type=Path, metavar="DIR", help="containerd, shim, runc and ctr to use")
    add("--vms", type=count, metavar="N", help="instead, create and delete N VMs, 8 at a time")
    add("--json", action="store_true", help="print JSON")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = parse(argv)
    return run_as_root("bench", lambda console: measure(options, console), BenchFailed)


if __name__ == "__main__":
    sys.exit(main())
