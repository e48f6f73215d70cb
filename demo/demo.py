"""Run the whole life of two BOSH VMs and a persistent disk, and show that nothing is leaked.

Every step is a call of the `cpi` executable with JSON, as BOSH makes it; agents are called over
their HTTPS port. Unless --address names a running containerd, everything happens in separate
namespaces, below a temporary folder.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from demo.demo_text import Row, leftovers, network_of, shortened
from testing.agent.agent_client import Agent, Credentials
from testing.command_line import run_as_root
from testing.hosts.driver import Done, Driver, DriverError
from testing.hosts.private_host import PrivateHost
from testing.hosts.shared_host import SharedHost
from testing.stemcells.stemcell_source import Stemcell, opened, stand_in

SUBNET = "10.245.252.0/24"
DISK_MIB = 1024
RESOURCES = {"ram": 512, "cpu": 1, "ephemeral_disk_size": 1024}  # MiB, CPUs, MiB
AGENT_SECONDS = 60.0
AGENT_LOG = "/var/vcap/bosh/log/current"
FILE = "/var/vcap/store/demo"
FILE_MIB = 8
_CLEAN_SECONDS = 10.0


class DemoFailed(Exception):
    """A step failed; the message says which and why."""


class Demo:
    """Runs steps, shows them as they happen, and keeps them for the table."""

    def __init__(self, driver: Driver, console: Console) -> None:
        self.driver = driver
        self.rows: list[Row] = []
        self._console = console

    def call(self, method: str, *arguments: Any) -> Any:
        """Call the CPI and return the result. Raises DemoFailed with BOSH's error."""
        shown = ", ".join(shortened(argument) for argument in arguments)
        with self._console.status(Text(f"{method}({shown})")):
            answer = self.driver.cpi(method, *arguments)
        error = answer.error
        if error is not None:
            log = answer.response["log"].strip()
            raise DemoFailed(f"{method}: {error['type']}: {error['message']}\n{log}")
        result = answer.response["result"]
        self._step(f"{method}({shown})", Row(method, answer.done.wall, shortened(result)))
        return result

    def step(self, title: str, work: Callable[[], Any]) -> Any:
        """Run a step that is not a CPI call; show and return its result."""
        start = time.perf_counter()
        with self._console.status(Text(title)):
            result = work()
        wall = (time.perf_counter() - start) * 1e3
        self._step(title, Row(title, wall, shortened(result), ours=False))
        return result

    def fact(self, title: str, text: str) -> None:
        """Show a detail of one or more lines."""
        for line in text.rstrip().splitlines():
            self._console.print(Text(f"{'':13}{title:>9}  {line}", style="dim"), soft_wrap=True)
            title = ""

    def say(self, text: str) -> None:
        """Show a sentence."""
        self._console.print(Text(text), soft_wrap=True)

    def table(self) -> Table:
        """Return a table of all steps."""
        table = Table(box=box.SIMPLE_HEAD if self._console.is_terminal else None, pad_edge=False)
        table.add_column("call", no_wrap=True)
        table.add_column("ms", justify="right")
        table.add_column("result", overflow="ellipsis", no_wrap=True)
        for row in self.rows:
            cells = (row.title if row.ours else f"  {row.title}", f"{row.wall:.0f}", row.result)
            table.add_row(*map(Text, cells), style="" if row.ours else "dim")
        return table

    def show_table(self) -> None:
        """Print all steps."""
        self._console.print(self.table())

    def _step(self, title: str, row: Row) -> None:
        self.rows.append(row)
        text = Text(f"{row.wall:8.0f} ms  ", style="cyan")
        text.append(title, style="bold" if row.ours else "dim")
        text.append(f" → {row.result}" if row.result != "null" else "", style="green")
        self._console.print(text, soft_wrap=True)


class Life:
    """What the demo shows: a stemcell, two VMs, and a disk that moves from one to the other."""

    def __init__(
        self, demo: Demo, stemcell: Stemcell, credentials: Credentials, undo: ExitStack
    ) -> None:
        self._demo = demo
        self._driver = demo.driver
        self._stemcell = stemcell
        self._credentials = credentials
        self._undo = undo

    def run(self) -> None:
        """Run all steps. Raises DemoFailed and DriverError."""
        demo = self._demo
        before = self._driver.inventory()
        demo.call("info")
        image = self._import()
        properties = demo.call("calculate_vm_cloud_properties", RESOURCES)
        vm, agent = self._create("demo-1", image, properties, "10.245.252.10")
        other_vm, other_agent = self._create("demo-2", image, properties, None)
        demo.step("the first VM's agent answers", partial(self._answers, vm, agent))
        demo.step("the second VM's agent answers", partial(self._answers, other_vm, other_agent))
        demo.call("has_vm", vm)
        demo.call("set_vm_metadata", vm, {"deployment": "demo", "job": "first", "index": "0"})
        self._look(vm, other_agent.address)
        disk = self._move(vm, agent, other_vm, other_agent)
        self._reboot(other_vm, other_agent, disk)
        present = self._driver.inventory()
        demo.call("delete_vm", vm)
        demo.call("delete_vm", other_vm)  # with the disk: it is released, and its data stays
        demo.call("has_vm", other_vm)
        demo.call("has_disk", disk)
        demo.call("delete_disk", disk)
        demo.call("delete_stemcell", image)
        self._undo.pop_all()
        demo.show_table()
        self._expect_nothing(before, present)

    def _import(self) -> str:
        demo, stemcell = self._demo, self._stemcell
        for _ in range(2):  # the second call finds the stemcell
            image = demo.call("create_stemcell", str(stemcell.image), stemcell.cloud_properties)
            self._undo.callback(self._quietly, "delete_stemcell", image)
        listed = self._driver.must([*self._driver.ctr, "images", "ls"]).stdout.splitlines()
        for line in listed[1:]:
            name, media_type, digest, *size = line.split()
            demo.fact("image", f"{name}\n{media_type}\n{digest}, {' '.join(size[:2])}")
        return str(image)

    def _create(
        self, name: str, image: str, properties: Any, address: str | None
    ) -> tuple[str, Agent]:
        """Create a VM with a static address, or a dynamic one (None)."""
        networks = {"default": network_of(SUBNET, address)}
        env = self._credentials.env
        vm, actual = self._demo.call("create_vm", name, image, properties, networks, [], env)
        self._undo.callback(self._quietly, "delete_vm", vm)
        default = actual["default"]
        self._demo.fact("address", f"{default['ip']}/{default['prefix']} ({default['type']})")
        return vm, Agent(self._driver, self._credentials, default["ip"])

    def _answers(self, vm: str, agent: Agent) -> str:
        """Wait for an agent; return how long after its VM's start it answered."""
        try:
            agent.wait(AGENT_SECONDS)
        except DriverError as error:
            log = self._driver.inside(vm, "tail", "-n", "5", AGENT_LOG).stdout
            raise DemoFailed(f"{error}\n{log}") from None
        return f"pong from {agent.address}, {agent.age():.1f} s after its VM was started"

    def _look(self, vm: str, neighbour: str) -> None:
        """Show what a VM is like from inside."""
        init = self._inside(vm, "cat", "/proc/1/comm").stdout.strip()
        self._demo.fact("init", f"{init} is process 1")
        if init == "systemd":
            state = self._driver.inside(vm, "systemctl", "is-system-running", "--wait")
            self._demo.fact("", f"systemctl is-system-running: {state.stdout.strip()}")
        ping = self._driver.inside(vm, "ping", "-c", "1", "-W", "2", neighbour)
        if ping.status == 0:
            self._demo.fact("network", f"the second VM answers: {ping.stdout.splitlines()[1]}")
        known = json.loads(self._driver.must([*self._driver.ctr, "containers", "info", vm]).stdout)
        labels = [f"{key}={value}" for key, value in known["Labels"].items() if "metadata" in key]
        self._demo.fact("labels", "\n".join(labels))

    def _move(self, vm: str, agent: Agent, other_vm: str, other_agent: Agent) -> str:
        """Write to a disk in one running VM, and read it in the other."""
        demo = self._demo
        disk: str = demo.call("create_disk", DISK_MIB, {}, vm)
        self._undo.callback(self._quietly, "delete_disk", disk)
        self._attach(vm, agent, disk)
        write = ["dd", "if=/dev/urandom", f"of={FILE}", "bs=1M", f"count={FILE_MIB}"]
        demo.step(f"write {FILE_MIB} MiB to {FILE}", lambda: self._inside(vm, *write) and None)
        written = self._checksum(vm)
        paths = ("/", "/var/vcap/data", "/var/vcap/store")
        demo.fact("df", self._inside(vm, "df", "-h", *paths).stdout)
        for message in ("unmount_disk", "remove_persistent_disk"):
            demo.step(f"agent: {message}", partial(agent.ask, message, disk))
        demo.call("detach_disk", vm, disk)
        self._attach(other_vm, other_agent, disk)
        if demo.step(f"sha256sum {FILE}", lambda: self._checksum(other_vm)) != written:
            raise DemoFailed("the second VM reads other data than the first one has written")
        demo.fact("data", "the second VM reads what the first one has written")
        return disk

    def _attach(self, vm: str, agent: Agent, disk: str) -> None:
        hint = self._demo.call("attach_disk", vm, disk)
        add = partial(agent.ask, "add_persistent_disk", disk, hint)
        self._demo.step("agent: add_persistent_disk", add)
        self._demo.step("agent: mount_disk", partial(agent.ask, "mount_disk", disk))

    def _reboot(self, vm: str, agent: Agent, disk: str) -> None:
        demo = self._demo
        demo.call("reboot_vm", vm)
        agent.starts_now()
        demo.step("the second VM's agent answers", partial(self._answers, vm, agent))
        if disk not in demo.call("get_disks", vm):
            raise DemoFailed("the disk is not attached any more after reboot_vm")
        if disk not in demo.step("agent: list_disk", partial(agent.ask, "list_disk")):
            raise DemoFailed("the agent does not see the disk any more after reboot_vm")

    def _checksum(self, vm: str) -> str:
        return self._inside(vm, "sha256sum", FILE).stdout.split()[0]

    def _inside(self, vm: str, *argv: str) -> Done:
        done = self._driver.inside(vm, *argv)
        if done.status:
            words = (done.stderr or done.stdout).strip()
            raise DemoFailed(
                f"{' '.join(argv)} in the VM failed with status {done.status}: {words}"
            )
        return done

    def _quietly(self, method: str, cid: str) -> None:
        """Undo a step after a failure; show errors of the undo and go on."""
        try:
            error = self._driver.cpi(method, cid).error
        except DriverError as failure:
            error = {"message": str(failure)}
        if error:
            self._demo.say(f"{method}({cid}): {error['message']}")

    def _expect_nothing(self, before: dict[str, set[str]], present: dict[str, set[str]]) -> None:
        """Show what existed and what is left; containerd's garbage collection takes a moment."""
        deadline = time.monotonic() + _CLEAN_SECONDS
        left = leftovers(before, self._driver.inventory())
        while any(left.values()) and time.monotonic() < deadline:
            time.sleep(0.1)
            left = leftovers(before, self._driver.inventory())
        self._demo.say("\nWhat there was before the VMs were deleted, and what is left now:\n")
        for resource, names in leftovers(before, present).items():
            self._demo.say(f"  {resource:<20} {len(names):>4} → {len(left[resource])}")
        remaining = [f"{resource}: {name}" for resource in left for name in sorted(left[resource])]
        if remaining:
            raise DemoFailed("these are left:\n  " + "\n  ".join(remaining))


class Interrupts:
    """Ctrl-C on a shared containerd: the running call ends first, then all steps are undone."""

    def __init__(self) -> None:
        self.interrupted = False

    def catch(self, _signal: int, _frame: FrameType | None) -> None:
        """Remember the first interrupt; raise KeyboardInterrupt on a second one."""
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True

    def check(self) -> None:
        """Raise KeyboardInterrupt if there was an interrupt."""
        if self.interrupted:
            raise KeyboardInterrupt


def live(options: argparse.Namespace, console: Console) -> None:
    """Get a stemcell and a host, and run the demo there. Raises what goes wrong."""
    tarball = options.stemcell or stand_in(options.init)
    host = SharedHost(options.address) if options.address else PrivateHost()
    interrupts = Interrupts()
    with host:
        stemcell = opened(tarball, host.folder)
        console.print(
            Text(f"{stemcell.name} {stemcell.version}: image of {stemcell.size / 1e6:.1f} MB"),
            Text(f"containerd at {host.address}; everything else below {host.folder}\n"),
            sep="\n",
            soft_wrap=True,
        )
        config = host.write_config(network={"dynamic_subnets": [SUBNET]})
        with Driver(host, config) as driver:
            demo = Demo(driver, console)
            undo = ExitStack()
            life = Life(demo, stemcell, Credentials.make(host.folder), undo)
            if options.address:
                driver.before = interrupts.check
                signal.signal(signal.SIGINT, interrupts.catch)
                signal.signal(signal.SIGTERM, interrupts.catch)
            try:
                life.run()
            except BaseException:
                driver.before = lambda: None
                if options.address:  # a private host takes everything with it
                    undo.close()
                raise


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python3 -m demo.demo", description=__doc__)
    add = parser.add_argument
    add("--stemcell", type=Path, metavar="FILE", help="a BOSH stemcell (default: make a small one)")
    add("--address", type=Path, metavar="SOCKET", help="a running containerd (default: start one)")
    add("--init", choices=("systemd", "runit"), default="systemd", help="of the stemcell it makes")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = parse(argv)

    def run(console: Console) -> None:
        start = time.monotonic()
        live(options, console)
        console.print(f"\nNothing is left. The demo took {time.monotonic() - start:.0f} s.")

    interrupted = "interrupted; what was made is gone again"
    return run_as_root("demo", run, DemoFailed, interrupted=interrupted, gap="\n")


if __name__ == "__main__":
    sys.exit(main())
