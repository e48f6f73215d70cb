"""Several hosts by BOSH's own cpi-config: one `cpi`, and each entry's properties name a host.

Two private hosts, each with its containerd and its service, stand for two machines. Their VMs share
a network of the operator's: a bridge on each host, joined by VXLAN, as CNI's own plugins and the
kernel make it. A third namespace is the director's.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from testing.hosts.private_host import PrivateHost
from testing.hosts.private_service import Service, ThinClient
from testing.patience import wait_for
from testing.stemcells import stemcell_source
from tests.integration.service.conftest import PORT
from tests.support.certificates import CA
from tests.support.containerd.machine import AGENT_PORT, Machine

ADDRESSES = {"z1": "198.51.100.1", "z2": "198.51.100.2"}
NETWORKS = {"default": {"type": "dynamic", "cloud_properties": {"name": "fabric"}}}

# In the director's namespace: a switch that both hosts are on.
_DIRECTOR = """\
set -e
ip netns add director
ip link add switch type bridge
ip link set switch up
ip link add director0 type veth peer name eth0 netns director
ip link set director0 master switch up
ip -n director addr add 198.51.100.9/24 dev eth0
ip -n director link set eth0 up
"""

_HOST = """\
set -e
ip addr add $1/24 dev uplink
ip link set uplink up
ip link add fabric0 type bridge
ip link add vxlan0 type vxlan id 7 dstport 4789 local $1 remote $2 dev uplink
ip link set vxlan0 master fabric0 up
ip link set fabric0 up
"""


def fabric(first: str, last: str) -> dict[str, Any]:
    """Return a host's configuration of the shared CNI network, with its range of addresses."""
    pool = {"subnet": "10.99.0.0/16", "rangeStart": first, "rangeEnd": last}
    ipam = {"type": "host-local", "ranges": [[pool]]}
    bridge = {"type": "bridge", "bridge": "fabric0", "mtu": 1450, "ipam": ipam}
    return {"cniVersion": "1.0.0", "name": "fabric", "plugins": [bridge]}


class TwoHosts:
    """Both hosts, and the director's client."""

    def __init__(self, stack: ExitStack) -> None:
        self.hosts = {zone: stack.enter_context(PrivateHost()) for zone in ADDRESSES}
        self._wire()
        first = self.hosts["z1"]
        authority = CA(first.folder / "pki")
        for zone, host in self.hosts.items():
            self._start(stack, zone, host, authority)
        pair = authority.client("director")
        self.tls = authority.settings(pair, as_text=True)
        around = ("ip", "netns", "exec", "director")
        self.cpi = ThinClient(first, first.folder / "cpi.pyz", {}, around)
        self.machines = {zone: Machine(host) for zone, host in self.hosts.items()}

    def _wire(self) -> None:
        first, second = self.hosts.values()
        first.run("sh", "-c", _DIRECTOR)
        net = ("nsenter", "--net", "--target", str(first.init))
        for name, host in (("port1", first), ("port2", second)):
            into = ["netns", str(host.init)]
            link = ["ip", "link", "add", name, "type", "veth", "peer", "name", "uplink", *into]
            subprocess.run([*net, *link], check=True)
            first.run("ip", "link", "set", name, "master", "switch", "up")
        ends = list(ADDRESSES.values())
        for host, (own, other) in zip(self.hosts.values(), (ends, ends[::-1]), strict=True):
            host.run("sh", "-c", _HOST, "sh", own, other)

    def _start(self, stack: ExitStack, zone: str, host: PrivateHost, authority: CA) -> None:
        folder, third = host.folder / "cni", {"z1": 1, "z2": 2}[zone]
        folder.mkdir()
        pool = fabric(f"10.99.{third}.1", f"10.99.{third}.250")
        (folder / "fabric.conflist").write_text(json.dumps(pool))
        server = authority.server(ADDRESSES[zone])
        settings = {
            "tcp": f"{ADDRESSES[zone]}:{PORT}",
            "tls_certificate": str(server.certificate),
            "tls_private_key": str(server.key),
            "tls_client_ca": str(authority.certificate),
            "clients": {"director": {"networks": ["fabric"]}},
        }
        stack.enter_context(Service(host, settings))

    def context(self, zone: str) -> dict[str, Any]:
        """Return a call's context, which has the properties of the zone's entry."""
        properties = {"endpoint": f"https://{ADDRESSES[zone]}:{PORT}", "tls": self.tls}
        return {"director_uuid": "tests", "request_id": f"cpi-{zone}", **properties}

    def call(self, zone: str, method: str, *arguments: object) -> Any:
        """Make a call; fail the test if it fails."""
        response = self.cpi(method, *arguments, context=self.context(zone))
        assert response["error"] is None, response
        return response["result"]


@pytest.fixture(scope="module")
def two_hosts() -> Iterator[TwoHosts]:
    with ExitStack() as stack:
        yield TwoHosts(stack)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tarball = stemcell_source.stand_in("runit")
    return stemcell_source.opened(tarball, tmp_path_factory.mktemp("stemcell")).image


def test_vms_land_where_their_entry_says_and_reach_each_other(
    two_hosts: TwoHosts, image: Path
) -> None:
    vms = {}
    for zone in ADDRESSES:
        stemcell = two_hosts.call(zone, "create_stemcell", str(image), {})
        cid, networks = two_hosts.call(zone, "create_vm", "a", stemcell, {}, NETWORKS, [], {})
        vms[zone] = (cid, str(networks["default"]["ip"]))
    for zone, (cid, _) in vms.items():
        for other, machine in two_hosts.machines.items():
            assert (cid in machine.ctr("containers", "ls", "-q").split()) is (zone == other)
            assert two_hosts.call(other, "has_vm", cid) is (zone == other)
    for zone, other in (("z1", "z2"), ("z2", "z1")):
        address, host = vms[other][1], two_hosts.machines[zone].host
        pid = _init_of(two_hosts.machines[zone], vms[zone][0])
        knock = f"import socket; socket.create_connection(({address!r}, {AGENT_PORT}), 2)"
        inside = ["nsenter", "--net", "--target", str(pid), "/usr/bin/python3", "-c", knock]
        wait_for(lambda: host.run(*inside, check=False).returncode == 0, f"{address} from {zone}")  # noqa: B023
    for zone, (cid, _) in vms.items():
        two_hosts.call(zone, "delete_vm", cid)
        assert two_hosts.call(zone, "has_vm", cid) is False


def _init_of(machine: Machine, cid: str) -> int:
    lines = machine.ctr("tasks", "ls").splitlines()[1:]
    return next(int(line.split()[1]) for line in lines if line.split()[0] == cid)
