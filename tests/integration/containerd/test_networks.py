"""Networks through real CNI plugins."""

import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.containerd.machine import VM, Machine, failing, manual
from tests.support.containerd.operator_output import check


def test_manual_address_gateway_and_dns(make_vm: Callable[..., VM]) -> None:
    vm = make_vm(networks={"n": manual("10.99.0.10")})
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
    first = make_vm(networks={"n": manual("10.99.0.10")})
    second = make_vm(networks={"n": manual("10.99.0.11")})
    second.wait_for_agent()
    first.sh(f"python3 -c \"import socket; socket.create_connection(('{second.ip}', 6868), 5)\"")


def test_several_nics_with_one_default_route(make_vm: Callable[..., VM]) -> None:
    vm = make_vm(
        networks={
            "a": manual("10.99.0.10", default=["dns"]),
            "b": manual(
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
        "four": manual("10.99.0.10"),
        "six": manual("fd99::10", netmask="ffff:ffff:ffff:ffff::", gateway="fd99::1", dns=[]),
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
    vm = make_vm(networks={"n": manual("10.99.0.10")})
    before = machine.leftovers()
    error = failing(lambda: machine.create_vm(stemcell, networks={"n": manual("10.99.0.10")}))
    assert "10.99.0.10" in error.message
    assert vm.cid in error.message
    assert machine.leftovers() == before


def test_addresses_of_the_bridge_and_its_subnet_are_refused(
    machine: Machine, make_vm: Callable[..., VM], stemcell: str
) -> None:
    """Whatever the netmask; without a gateway, as CNI's plugin compares it with the bridge's."""
    six = manual("fd99::10", netmask="ffff:ffff:ffff:ffff::", gateway="fd99::1", dns=[])
    make_vm(networks={"four": manual("10.99.0.10"), "six": six})
    before = machine.leftovers()
    for ip, netmask, reason in (
        ("10.99.0.1", "255.255.255.0", "10.99.0.1 is the address of the bridge manual0"),
        ("10.99.0.1", "255.254.0.0", "10.99.0.1 is the address of the bridge manual0"),
        ("10.99.0.0", "255.254.0.0", "network or broadcast address of 10.99.0.0/24"),
        ("10.99.0.255", "255.254.0.0", "network or broadcast address of 10.99.0.0/24"),
        ("10.99.0.11", "255.254.0.0", "use the netmask 255.255.255.0"),
        ("10.99.0.11", "255.255.255.128", "use the netmask 255.255.255.0"),
        ("fd99::1", "ffff:ffff:ffff:ffff::", "fd99::1 is the address of the bridge manual0"),
        ("fd99::12", "ffff:ffff::", "use the netmask ffff:ffff:ffff:ffff::"),
    ):
        network = manual(ip, netmask=netmask, gateway=None, dns=[])
        error = failing(lambda given=network: machine.create_vm(stemcell, networks={"n": given}))  # type: ignore[misc]
        assert error.type == "CloudError"
        assert reason in error.message
    assert machine.leftovers() == before


def test_the_gateway_cannot_be_another_vms_address(
    machine: Machine, make_vm: Callable[..., VM], stemcell: str
) -> None:
    on_bridge = {"cloud_properties": {"bridge": "gate0"}}
    vm = make_vm(networks={"n": manual("10.95.0.9", gateway=None, **on_bridge)})
    network = manual("10.95.0.2", gateway="10.95.0.9", **on_bridge)
    error = failing(lambda: machine.create_vm(stemcell, networks={"n": network}))
    assert f"is the address of the VM {vm.cid}" in error.message


def test_a_deleted_vms_address_can_be_used_again(make_vm: Callable[..., VM]) -> None:
    make_vm(networks={"n": manual("10.99.0.10")}).delete()
    make_vm(networks={"n": manual("10.99.0.10")})


def test_plugins_that_speak_an_older_version_of_cni(
    machine: Machine, make_vm: Callable[..., VM], stemcell: str, clean: None
) -> None:
    """As Ubuntu 22.04 has them, 0.9.1."""
    folder = machine.host.folder / "old-plugins"
    folder.mkdir()
    for name in ("bridge", "host-local"):
        (folder / name).write_text(_OLD_PLUGIN.format(real=f"/usr/lib/cni/{name}"))
        (folder / name).chmod(0o755)
    network = {**machine.host.config()["network"], "cni_plugin_dirs": [str(folder)]}
    config = machine.host.write_config("old-plugins.json", network=network)
    arguments: tuple[Any, ...] = ("a", stemcell, {}, {"n": manual("10.99.0.10")}, [], {})
    cid, networks = machine.call("create_vm", *arguments, config=config)
    assert networks["n"]["ip"] == "10.99.0.10"
    record = json.loads((machine.host.state / "vms" / cid / "network.json").read_bytes())
    assert record[0]["result"]["cniVersion"] == "0.4.0"
    assert "0.4.0" in check(machine, "CNI plugins", config)["message"]
    machine.call("delete_vm", cid, config=config)


_OLD_PLUGIN = """#!/bin/sh
document=$(cat)
case $CNI_COMMAND:$document in
    VERSION:*) echo '{{"cniVersion": "0.4.0", "supportedVersions": ["0.3.1", "0.4.0"]}}' ;;
    *'"cniVersion": "0.4.0"'* | *'"cniVersion":"0.4.0"'*) echo "$document" | {real} ;;
    *) echo '{{"code": 1, "msg": "incompatible CNI versions"}}'; exit 1 ;;
esac
"""


def test_the_mtu_is_that_of_the_way_out(
    machine: Machine, make_vm: Callable[..., VM], outside: str
) -> None:
    machine.host.run("ip", "link", "set", "out0", "mtu", "1400")
    machine.host.run("ip", "route", "add", "default", "via", outside)
    vm = make_vm(networks={"n": manual("10.96.0.10", gateway="10.96.0.1",
                                        cloud_properties={"bridge": "mtu0"})})  # fmt: skip
    assert "mtu 1400" in vm.sh("ip link show eth0")
    assert "mtu 1400" in machine.host.run("ip", "link", "show", "mtu0").stdout


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
    network = manual("10.99.0.10", cloud_properties=properties)
    error = failing(lambda: machine.create_vm(stemcell, networks={"n": network}))
    assert next(iter(properties)) in error.message


def test_a_vm_without_networks(make_vm: Callable[..., VM]) -> None:
    vm = make_vm(networks={})
    assert "eth0" not in vm.sh("ip link")
    assert "UP" in vm.sh("ip link show lo")
