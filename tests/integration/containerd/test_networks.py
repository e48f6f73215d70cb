"""Networks through real CNI plugins."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from testing.hosts.private_host import CPI
from tests.support.containerd.machine import VM, Machine, failing


def _manual(ip: str, **changes: Any) -> dict[str, Any]:
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


def test_manual_address_gateway_and_dns(make_vm: Callable[..., VM]) -> None:
    vm = make_vm(networks={"n": _manual("10.99.0.10")})
    assert vm.ip == "10.99.0.10"
    assert "10.99.0.10/24" in vm.sh("ip -4 -o address show eth0")
    assert "default via 10.99.0.1 dev eth0" in vm.sh("ip route")
    assert "nameserver 10.99.0.53" in vm.sh("cat /etc/resolv.conf")
    vm.wait_for_agent()  # the host reaches it


def test_dynamic_addresses_differ_and_are_returned(make_vm: Callable[..., VM]) -> None:
    first, second = make_vm(), make_vm()
    assert first.ip != second.ip
    network = first.networks["default"]
    assert network["netmask"] == "255.255.0.0"
    assert network["gateway"]
    assert first.ip in first.sh("ip -4 -o address show eth0")


def test_vms_on_one_bridge_reach_each_other(make_vm: Callable[..., VM]) -> None:
    first = make_vm(networks={"n": _manual("10.99.0.10")})
    second = make_vm(networks={"n": _manual("10.99.0.11")})
    second.wait_for_agent()
    first.sh(f"python3 -c \"import socket; socket.create_connection(('{second.ip}', 6868), 5)\"")


def test_several_nics_with_one_default_route(make_vm: Callable[..., VM]) -> None:
    vm = make_vm(
        networks={
            "a": _manual("10.99.0.10", default=["dns"]),
            "b": _manual(
                "10.98.0.10", gateway="10.98.0.1", default=["gateway"],
                cloud_properties={"bridge": "other0"},
            ),
        }
    )  # fmt: skip
    assert "10.99.0.10/24" in vm.sh("ip -4 -o address show eth0")
    assert "10.98.0.10/24" in vm.sh("ip -4 -o address show eth1")
    routes = [line for line in vm.sh("ip route").splitlines() if line.startswith("default")]
    assert len(routes) == 1
    assert "via 10.98.0.1 dev eth1" in routes[0]


def test_ipv6(make_vm: Callable[..., VM]) -> None:
    networks = {
        "four": _manual("10.99.0.10"),
        "six": _manual("fd99::10", netmask="ffff:ffff:ffff:ffff::", gateway="fd99::1", dns=[]),
    }
    first = make_vm(networks=networks)
    networks["four"]["ip"], networks["six"]["ip"] = "10.99.0.11", "fd99::11"
    second = make_vm(networks=networks)
    assert "fd99::10/64" in first.sh("ip -6 -o address show eth1")
    assert "default via fd99::1 dev eth1" in first.sh("ip -6 route")
    first.sh(f"ping -6 -c1 -W2 {second.networks['six']['ip']}")


def test_an_address_in_use_is_refused_before_anything_is_created(
    machine: Machine, make_vm: Callable[..., VM], stemcell: str
) -> None:
    vm = make_vm(networks={"n": _manual("10.99.0.10")})
    before = machine.leftovers()
    error = failing(lambda: machine.create_vm(stemcell, networks={"n": _manual("10.99.0.10")}))
    assert "10.99.0.10" in error.message
    assert vm.cid in error.message
    assert machine.leftovers() == before


def test_a_deleted_vms_address_can_be_used_again(make_vm: Callable[..., VM]) -> None:
    make_vm(networks={"n": _manual("10.99.0.10")}).delete()
    make_vm(networks={"n": _manual("10.99.0.10")})


@pytest.fixture
def outside(machine: Machine) -> Iterator[str]:
    """Yield the address of another host behind the VMs' host: a network namespace."""
    ip = "192.0.2.2"
    commands = (
        "ip netns add outside",
        "ip link add out0 type veth peer name in0 netns outside",
        "ip address add 192.0.2.1/24 dev out0",
        "ip link set out0 up",
        f"ip -n outside address add {ip}/24 dev in0",
        "ip -n outside link set in0 up",
    )
    for command in commands:
        machine.host.run(*command.split())
    yield ip
    machine.host.run("ip", "link", "delete", "out0")
    machine.host.run("ip", "netns", "delete", "outside")


def test_nat_to_the_outside(make_vm: Callable[..., VM], outside: str) -> None:
    # The outside has no route back to the VM: an answer proves that its address was translated.
    vm = make_vm()
    vm.sh(f"ping -c1 -W2 {outside}")


def test_a_host_that_forwards_nothing_by_itself(
    machine: Machine, make_vm: Callable[..., VM], outside: str
) -> None:
    # As Docker leaves it.
    machine.host.run("iptables", "-P", "FORWARD", "DROP")
    try:
        make_vm().sh(f"ping -c1 -W2 {outside}")
    finally:
        machine.host.run("iptables", "-P", "FORWARD", "ACCEPT")


def test_ports_are_published_from_outside_and_from_the_host(
    machine: Machine, make_vm: Callable[..., VM], outside: str
) -> None:
    vm = make_vm(properties={"ports": ["8868:6868", "127.0.0.1:8869:6868/tcp"]})
    vm.wait_for_agent()
    assert machine.can_connect("192.0.2.1", 8868)
    assert machine.can_connect("127.0.0.1", 8869)
    assert not machine.can_connect("192.0.2.1", 8869)
    probe = "import socket; socket.create_connection(('192.0.2.1', 8868), 2)"
    machine.host.run("ip", "netns", "exec", "outside", sys.executable, "-c", probe)
    vm.delete()
    assert not machine.can_connect("192.0.2.1", 8868)


def test_a_published_port_cannot_be_published_again(
    machine: Machine, make_vm: Callable[..., VM], stemcell: str
) -> None:
    vm = make_vm(properties={"ports": ["8868:6868"]})
    error = failing(lambda: machine.create_vm(stemcell, {"ports": ["8868:80"]}))
    assert "8868/tcp" in error.message
    assert vm.cid in error.message


def test_a_port_that_the_host_listens_on_is_refused(machine: Machine, stemcell: str) -> None:
    script = (
        "import socket, subprocess, sys\n"
        "s = socket.create_server(('127.0.0.1', 8870))\n"
        "sys.exit(subprocess.run(sys.argv[1:]).returncode)"
    )
    config = machine.host.write_config()
    request = {
        "method": "create_vm",
        "arguments": ["a", stemcell, {"ports": ["8870:80"]}, {"n": {"type": "dynamic"}}, [], {}],
        "api_version": 2,
    }
    done = machine.host.run(
        sys.executable, "-c", script, str(CPI), "-c", str(config), input=json.dumps(request)
    )
    error = json.loads(done.stdout)["error"]
    assert "8870/tcp" in error["message"]


def test_any_cni_network_of_the_host_by_name(machine: Machine, make_vm: Callable[..., VM]) -> None:
    folder = machine.host.folder / "cni"
    folder.mkdir()
    conflist = {
        "cniVersion": "1.0.0",
        "name": "mine",
        "plugins": [
            {
                "type": "ptp",
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(machine.host.folder / "mine"),
                    "ranges": [[{"subnet": "10.97.0.0/24"}]],
                },
            }
        ],
    }
    (folder / "mine.conflist").write_text(json.dumps(conflist))
    try:
        network = {
            "type": "manual", "ip": "10.97.0.77", "netmask": "255.255.255.0",
            "cloud_properties": {"name": "mine"},
        }  # fmt: skip
        vm = make_vm(networks={"n": network})
        assert "10.97.0.77" in vm.sh("ip -4 -o address show eth0")
        vm.delete()

        network["cloud_properties"] = {"name": "other"}
        error = failing(lambda: make_vm(networks={"n": network}))
        assert error.type == "NetworkNotFound"
        assert "found: mine" in error.message
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "properties", [{"bridg": "x"}, {"bridge": "a/../b"}, {"bridge": "<x>"}, {"name": "../etc"}]
)
def test_bad_properties_are_named(
    machine: Machine, stemcell: str, properties: dict[str, str], clean: None
) -> None:
    network = _manual("10.99.0.10", cloud_properties=properties)
    error = failing(lambda: machine.create_vm(stemcell, networks={"n": network}))
    assert next(iter(properties)) in error.message


def test_a_vm_without_networks(make_vm: Callable[..., VM]) -> None:
    vm = make_vm(networks={})
    assert "eth0" not in vm.sh("ip link")
    assert "UP" in vm.sh("ip link show lo")
