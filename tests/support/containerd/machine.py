"""A private host with the CPI, as tests use it: calls, VMs, leftovers."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpi.cni import nftables
from cpi.errors import NotSupported
from testing.hosts.private_host import CPI, PrivateHost, cgroup_hierarchies
from testing.patience import PATIENCE, wait_for
from testing.repository import REPOSITORY

NAMESPACE = "bosh"
AGENT_PORT = 6868
BOSH_CPI = CPI.with_name("bosh-cpi")


class CallFailed(Exception):
    """The CPI answered with an error."""

    def __init__(self, method: str, error: dict[str, Any], log: str) -> None:
        super().__init__(f"{method}: {error['type']}: {error['message']}\n{log}")
        self.type = error["type"].removeprefix("Bosh::Clouds::")
        self.message = error["message"]
        self.ok_to_retry = error["ok_to_retry"]


@dataclass
class VM:
    """A VM under test."""

    machine: "Machine"
    cid: str
    networks: dict[str, Any]

    @property
    def ip(self) -> str:
        return str(next(iter(self.networks.values()))["ip"])

    @property
    def pid(self) -> int:
        """The process id of its init, on the host."""
        lines = self.machine.ctr("tasks", "ls").splitlines()[1:]
        pids = {line.split()[0]: line.split()[1] for line in lines}
        return int(pids[self.cid])

    def sh(self, script: str, check: bool = True) -> str:
        """Run a shell script inside, in the VM's namespaces and cgroup, and return its output."""
        done = self.machine.host.run("sh", "-c", _INSIDE, str(self.pid), script, check=False)
        if check and done.returncode:
            raise AssertionError(f"{script!r} failed: {done.stdout}{done.stderr}")
        return str(done.stdout).strip()

    def wait_for_agent(self) -> None:
        """Wait until the agent listens."""
        self.machine.wait_for_port(self.ip, AGENT_PORT)

    def agent(self, method: str, *arguments: Any) -> Any:
        """Send the agent a message, as the director would, and return its answer."""
        return self.machine.ask_agent(self.ip, method, *arguments)

    def delete(self) -> None:
        self.machine.call("delete_vm", self.cid)


@dataclass
class Machine:
    """A private host with the CPI on it."""

    host: PrivateHost
    vms: list[VM] = field(default_factory=list)
    disks: list[str] = field(default_factory=list)

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Call the CPI; raises CallFailed for an error."""
        response = self.host.cpi(method, *arguments, **options)
        if response["error"]:
            raise CallFailed(method, response["error"], response["log"])
        return response["result"]

    def create_vm(
        self,
        stemcell: str,
        properties: dict[str, Any] | None = None,
        networks: dict[str, Any] | None = None,
        env: dict[str, Any] | None = None,
        agent_id: str = "agent",
    ) -> VM:
        networks = {"default": {"type": "dynamic"}} if networks is None else networks
        cid, actual = self.call(
            "create_vm", agent_id, stemcell, properties or {}, networks, [], env or {}
        )
        vm = VM(self, cid, actual)
        self.vms.append(vm)
        return vm

    def create_disk(
        self, size: int = 64, properties: dict[str, Any] | None = None, vm: str | None = None
    ) -> str:
        disk = str(self.call("create_disk", size, properties or {}, vm))
        self.disks.append(disk)
        return disk

    def bosh_cpi(
        self,
        *words: str,
        check: bool = True,
        config: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        """Run `bosh-cpi`; fail the test if it fails. env: added to the environment."""
        path = config or self.host.folder / "cpi.json"
        if not path.exists():
            self.host.write_config()
        options = {"env": {**os.environ, **env}} if env else {}
        done = self.host.run(str(BOSH_CPI), "--config", str(path), *words, check=False, **options)
        if check and done.returncode:
            raise AssertionError(f"bosh-cpi {' '.join(words)}: {done.stdout}{done.stderr}")
        return done

    def facts(self, disk: str) -> dict[str, Any]:
        """Return what `bosh-cpi disk show` prints about a disk."""
        shown: dict[str, Any] = json.loads(self.bosh_cpi("disk", "show", disk, "--json").stdout)
        return shown

    def metadata_of(self, cid: str) -> dict[str, str]:
        """Return BOSH's metadata of a VM or disk, as `bosh-cpi` shows it."""
        if "-disk-" in cid:
            return dict(self.facts(cid)["metadata"])
        vms = json.loads(self.bosh_cpi("vms", "--json").stdout)
        return dict(next(vm["metadata"] for vm in vms if vm["cid"] == cid))

    def verb(self, method: str, *arguments: object) -> Any:
        """Call a method of the runtime (tests.support.runtime_verb). Raises NotSupported."""
        words = [sys.executable, "-m", "tests.support.runtime_verb"]
        config = str(self.host.folder / "cpi.json")
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        done = self.host.run(
            *self.host.around, *words, config, method, json.dumps(arguments), env=environment
        )
        answer = json.loads(done.stdout)
        if "not_supported" in answer:
            raise NotSupported(answer["not_supported"])
        return answer["result"]

    def image(self, disk: str) -> Path:
        """Return the file of a disk."""
        return Path(self.facts(disk)["path"])

    def delete_all(self) -> None:
        """Delete the remaining VMs and disks of a test."""
        while self.vms:
            self.vms.pop().delete()
        while self.disks:
            disk = self.disks.pop()
            if self.call("has_disk", disk):
                self.call("delete_disk", disk)

    def ctr(self, *words: str) -> str:
        """Run containerd's command line; return its stdout."""
        argv = ["ctr", "--address", str(self.host.address), "--namespace", NAMESPACE, *words]
        return str(self.host.run(*argv).stdout)

    def stored(self) -> list[str]:
        """Return all parts of stemcells in containerd, or on their way there."""
        imports = self.host.state / "imports"
        return [
            *self.ctr("images", "ls", "-q").split(),
            *(line.split()[0] for line in self.ctr("content", "ls").splitlines()[1:]),
            *(line.split()[0] for line in self._snapshots()),
            *self.ctr("content", "active").splitlines()[1:],
            *self.ctr("leases", "ls", "-q").split(),
            *(str(path) for path in (imports.iterdir() if imports.exists() else ())),
        ]

    def leftovers(self) -> dict[str, Sequence[str]]:
        """Return all parts of VMs and disks on the host, without stemcells and bridges."""
        folder = str(self.host.folder)
        mounts = self.host.run("cat", "/proc/self/mountinfo").stdout.splitlines()
        state = [path for path in self.host.state.rglob("*") if path.is_file()]
        state = [path for path in state if self.host.state / "stemcells" not in path.parents]
        lasting = ("lock", "last_reserved_ip.0", "last_reserved_ip.1", "console.log.1")
        rules = self.host.run("iptables-save").stdout.splitlines()
        listed = json.loads(self.host.run("nft", "--json", "list", "ruleset").stdout)
        return {
            "containers": sorted(self.ctr("containers", "ls", "-q").split()),
            "tasks": sorted(self.ctr("tasks", "ls", "-q").split()),
            "leases": sorted(self.ctr("leases", "ls", "-q").split()),
            "snapshots": sorted(line.split()[0] for line in self._snapshots()),
            "mounts": sorted(line.split()[4] for line in mounts if folder in line.split()[4]),
            "loops": self.host.loops(),
            "files": sorted(str(path) for path in state if path.name not in lasting),
            "namespaces": sorted(
                str(path)
                for folder in ("netns", "userns", "layers")
                for path in self.host.folder.glob(f"run/{folder}/[!.]*")
            ),
            "locks": sorted(path.name for path in self.host.folder.glob("run/locks/*")),
            "interfaces": self._interfaces(),
            "rules": sorted(
                rule for rule in rules if rule.startswith("-A") and not _LASTING_RULE.search(rule)
            ),
            "elements": sorted(
                f"{owner} {element.set} {element.key}"
                for owner, elements in nftables.owners(listed).items()
                for element in elements
            ),
            "cgroups": sorted(
                str(path)
                for hierarchy in cgroup_hierarchies()
                for path in hierarchy.glob(f"{self.host.folder.name}/*")
                if path.is_dir()
            ),
        }  # fmt: skip

    def _snapshots(self) -> list[str]:
        return self.ctr("snapshots", "ls").splitlines()[1:]

    def _interfaces(self) -> list[str]:
        links = json.loads(self.host.run("ip", "-json", "link").stdout)
        return sorted(link["ifname"] for link in links if link["ifname"].startswith("veth"))

    def wait_for_port(self, ip: str, port: int) -> None:
        """Wait until a port accepts connections."""
        wait_for(lambda: self.can_connect(ip, port), f"{ip}:{port}")

    def can_connect(self, ip: str, port: int) -> bool:
        probe = f"import socket; socket.create_connection(({ip!r}, {port}), 1).close()"
        done = self.host.run(sys.executable, "-c", probe, check=False)
        return bool(done.returncode == 0)

    def ask_agent(self, ip: str, method: str, *arguments: Any) -> Any:
        """Send an agent a message, wait for the end of its task, and return the answer."""
        state = self._post(ip, {"method": method, "arguments": arguments})
        while isinstance(state, dict) and "agent_task_id" in state:
            task = state["agent_task_id"]
            state = self._post(ip, {"method": "get_task", "arguments": [task]})
        return state

    def _post(self, ip: str, message: dict[str, Any]) -> Any:
        document = json.dumps({**message, "reply_to": "tests"})
        url = f"http://{ip}:{AGENT_PORT}/agent"
        answer = self.host.run(sys.executable, "-c", _POST, url, input=document).stdout
        reply = json.loads(answer)
        if "exception" in reply:
            raise AssertionError(f"the agent failed at {message['method']}: {reply['exception']}")
        return reply["value"]


# Joins process $0 and runs the script $1. The kernel may have a cgroup hierarchy that is not
# mounted: where its folder would be, a write makes a plain file.
_INSIDE = """\
for line in $(cut -d: -f2- "/proc/$0/cgroup"); do
    name=${line%%:*}; name=${name#name=}; path=${line#*:}
    for folder in "/sys/fs/cgroup/${name:-unified}$path" "/sys/fs/cgroup$path"; do
        case $(stat --file-system --format %T "$folder" 2>/dev/null) in
            cgroup*) echo $$ > "$folder/cgroup.procs"; break;;
        esac
    done
done
exec nsenter --target "$0" --all sh -c "$1"
"""

_POST = (
    "import sys, urllib.request as r; "
    f"print(r.urlopen(sys.argv[1], sys.stdin.buffer.read(), {PATIENCE}).read().decode())"
)

# What we, and CNI's portmap and firewall plugins, set up once for the host, and leave.
_LASTING_RULE = re.compile(
    "bosh-cpi-[0-9a-f]{8}"
    "|--dst-type LOCAL -j CNI-HOSTPORT-DNAT|requiring masquerade|-A CNI-HOSTPORT-"
    "|CNI firewall plugin rules|admin overrides|LIBVIRT_"
)


def manual(ip: str, **changes: Any) -> dict[str, Any]:
    """Return a manual network on the bridge manual0."""
    network = {
        "type": "manual",
        "ip": ip,
        "netmask": "255.255.255.0",
        "gateway": "10.99.0.1",
        "dns": ["10.99.0.53"],
        "default": ["dns", "gateway"],
        "cloud_properties": {"bridge": "manual0"},
    }
    return {**network, **changes}


def failing(call: Callable[[], Any]) -> CallFailed:
    """Return the error of a call that must fail."""
    try:
        result = call()
    except CallFailed as error:
        return error
    raise AssertionError(f"no error but {result!r}")


def sha_of(path: Path) -> str:
    """Return the sha256 of a file, as sha256sum prints it."""
    done = subprocess.run(["sha256sum", str(path)], check=True, capture_output=True, text=True)
    return done.stdout.split()[0]
