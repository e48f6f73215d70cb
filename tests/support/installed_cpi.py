"""The CPI as `make install` leaves it in a guest host: calls, VMs, and commands in them."""

import itertools
import json
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from testing.hosts.guest_host import GuestHost
from testing.hosts.guest_image import CHECKOUT
from testing.patience import wait_for
from testing.stemcells import stemcell_source
from tests.support.containerd.machine import AGENT_PORT, CallFailed

CONFIG = "/etc/bosh-containerd-cpi/cpi.json"
SERVICE = "bosh-containerd-cpi.service"
SOCKET = "bosh-containerd-cpi.socket"
SOCKET_PATH = "/run/bosh-containerd-cpi.sock"
STATE = "/var/lib/bosh-containerd-cpi"
DYNAMIC = {"default": {"type": "dynamic"}}
_AGENT_SECONDS = 300


class InstalledCpi:
    """Calls of the installed `cpi` in a guest, and what it makes."""

    def __init__(self, guest: GuestHost) -> None:
        self.guest = guest
        self.vms: list[str] = []
        self.disks: list[str] = []
        self._exec_ids = itertools.count()
        self._stemcells: dict[Path, str] = {}

    def call(self, method: str, *arguments: Any, **properties: Any) -> Any:
        """Call `cpi` with properties of the context. Raises CallFailed for an error.

        The service does the work, which takes a fraction of the time in emulation.
        """
        endpoint = {"endpoint": f"unix://{SOCKET_PATH}"}
        agent = {"mbus": "nats://127.0.0.1:4222"}
        context = {"director_uuid": "guest-host", "agent": agent, **endpoint, **properties}
        request = {"method": method, "arguments": arguments, "context": context, "api_version": 2}
        done = self.guest.run("cpi", "-c", CONFIG, input=json.dumps(request))
        response = json.loads(done.stdout)
        if response["error"]:
            raise CallFailed(method, response["error"], response["log"])
        return response["result"]

    def bosh_cpi(self, *words: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Run `bosh-cpi`, which finds the installed configuration."""
        return self.guest.run("bosh-cpi", "--config", CONFIG, *words, **options)

    def configure(self, **keys: Any) -> None:
        """Write the installed configuration, which the service reads when it starts."""
        self.guest.run("tee", CONFIG, input=json.dumps(keys))

    def stemcell(self, tarball: Path, **properties: Any) -> str:
        """Upload a stemcell of the cache, which the guest's checkout has too; return its CID."""
        if tarball not in self._stemcells:
            name = f"{CHECKOUT}/.cache/{stemcell_source.CACHE.name}/{tarball.name}"
            folder = f"/var/tmp/{tarball.stem}"
            self.guest.run("mkdir", "-p", folder)
            self.guest.run("tar", "-xf", name, "-C", folder)
            cid = self.call("create_stemcell", f"{folder}/image", {}, **properties)
            self.guest.run("rm", "-r", folder)
            self._stemcells[tarball] = str(cid)
        return self._stemcells[tarball]

    def create_vm(
        self, stemcell: str, networks: dict[str, Any] | None = None, **properties: Any
    ) -> tuple[str, str]:
        """Create a VM; return its CID and its first address."""
        networks = DYNAMIC if networks is None else networks
        cid, actual = self.call("create_vm", "agent", stemcell, properties, networks, [], {})
        self.vms.append(cid)
        return str(cid), str(next(iter(actual.values()))["ip"])

    def create_disk(self, size: int = 64, **properties: Any) -> str:
        """Create a persistent disk of `size` MiB."""
        cid = str(self.call("create_disk", size, properties, None))
        self.disks.append(cid)
        return cid

    def delete_all(self) -> None:
        """Delete the remaining VMs and disks of a test."""
        while self.vms:
            self.call("delete_vm", self.vms.pop())
        while self.disks:
            self.call("delete_disk", self.disks.pop())

    def init_of(self, vm: str) -> int:
        """Return the process ID of a VM's init, on the guest host."""
        lines = self.guest.sh("ctr -n bosh tasks ls").splitlines()
        return next(int(line.split()[1]) for line in lines if line.split()[0] == vm)

    def inside(self, vm: str, script: str, check: bool = True) -> str:
        """Run a shell script in a VM and return its stdout, stripped."""
        name = f"tests-{next(self._exec_ids)}-{vm[-8:]}"
        argv = ["ctr", "-n", "bosh", "tasks", "exec", "--exec-id", name, vm, "sh", "-c", script]
        return self.guest.run(*argv, check=check).stdout.strip()

    def processes(self, vm: str) -> list[int]:
        """Return the process IDs of a VM, on the guest host."""
        space = self.guest.sh(f"readlink /proc/{self.init_of(vm)}/ns/pid")
        script = 'for p in /proc/[0-9]*; do [ "$(readlink $p/ns/pid)" = "$0" ] && echo $p; done; :'
        found = self.guest.run("sh", "-c", script, space).stdout.split()
        return [int(path.rpartition("/")[2]) for path in found]

    def can_connect(self, address: str, port: int, *around: str) -> bool:
        """Return whether the guest host reaches a port; `around` runs a command elsewhere."""
        probe = f"import socket; socket.create_connection(({address!r}, {port}), 5).close()"
        return self.guest.run(*around, "python3", "-c", probe, check=False).returncode == 0

    def reaches(self, vm: str, address: str, port: int) -> bool:
        """Return whether a VM reaches a port."""
        probe = f"import socket; socket.create_connection(({address!r}, {port}), 5).close()"
        script = f"python3 -c {shlex.quote(probe)} && echo reached"
        return "reached" in self.inside(vm, script, check=False)

    def wait_for_agent(self, address: str, seconds: float = _AGENT_SECONDS) -> None:
        """Wait until the agent of the VM with an address listens."""
        wait_for(lambda: self.can_connect(address, AGENT_PORT), f"agent of {address}", seconds)

    def tests(self, *words: str, seconds: float = 1800) -> str:
        """Run tests of the checkout in the guest host; return what pytest printed."""
        pytest = [f"{CHECKOUT}/.venv/bin/python", "-m", "pytest", "-q", f"--rootdir={CHECKOUT}"]
        argv = ["env", "-C", CHECKOUT, *pytest, *words]
        return self.guest.run(*argv, seconds=seconds).stdout


@contextmanager
def outside_host(guest: GuestHost, address: str = "192.0.2.2") -> Iterator[str]:
    """Make another host behind the guest, a network namespace; yield its address."""
    commands = (
        "ip netns add outside",
        "ip link add out0 type veth peer name in0 netns outside",
        "ip address add 192.0.2.1/24 dev out0",
        "ip link set out0 up",
        f"ip -n outside address add {address}/24 dev in0",
        "ip -n outside link set in0 up",
    )
    try:
        for command in commands:
            guest.run(*command.split())
        yield address
    finally:
        guest.run("ip", "link", "delete", "out0", check=False)
        guest.run("ip", "netns", "delete", "outside", check=False)
