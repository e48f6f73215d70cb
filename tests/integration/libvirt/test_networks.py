"""Where VMs' interfaces go: bridges that containers use, and networks of libvirt's."""

import json
import sys
from collections.abc import Callable
from typing import Any

from testing.patience import wait_for
from tests.support.containerd.machine import failing
from tests.support.libvirt.kvm_machine import Guest, KvmMachine

Make = Callable[..., Guest]


def manual(ip: str, **properties: Any) -> dict[str, Any]:
    network = {"type": "manual", "ip": ip, "netmask": "255.255.255.0", "default": ["gateway"]}
    gateway = ip.rpartition(".")[0] + ".1"
    return {"default": {**network, "gateway": gateway, "cloud_properties": properties}}


def test_an_address_is_used_once(machine: KvmMachine, make_guest: Make) -> None:
    first = make_guest(networks=manual("10.248.0.10", bridge="bosh8"))
    error = failing(lambda: make_guest(networks=manual("10.248.0.10", bridge="bosh8")))
    assert first.cid in error.message
    machine.call("delete_vm", first.cid)
    assert make_guest(networks=manual("10.248.0.10", bridge="bosh8"))


def test_subnets_are_added_to_a_bridges_network(machine: KvmMachine, make_guest: Make) -> None:
    six = {"type": "manual", "ip": "fd00:248::10", "netmask": "ffff:ffff:ffff:ffff::",
           "gateway": "fd00:248::1", "cloud_properties": {"bridge": "bosh8"}}  # fmt: skip
    make_guest(networks=manual("10.248.0.11", bridge="bosh8"))
    make_guest(networks={**manual("10.248.0.12", bridge="bosh8"), "six": six})
    document = machine.virsh("net-dumpxml", "bosh-bosh8")
    assert "10.248.0.1" in document
    assert "fd00:248::1" in document


def test_an_operators_network_is_left_alone(machine: KvmMachine, make_guest: Make) -> None:
    document = machine.host.folder / "net.xml"
    document.write_text(
        "<network><name>bosh-bosh6</name><bridge name='other0'/><dns enable='no'/></network>"
    )
    machine.virsh("net-define", str(document))
    make_guest(networks=manual("10.241.0.10", bridge="bosh6"))
    assert "other0" in machine.virsh("net-dumpxml", "bosh-bosh6")
    machine.delete_all()
    machine.virsh("net-undefine", "bosh-bosh6")


def test_a_libvirt_network_by_name(machine: KvmMachine, make_guest: Make) -> None:
    document = machine.host.folder / "net.xml"
    document.write_text(
        "<network><name>mine</name><bridge name='mine0'/><dns enable='no'/>"
        "<ip address='10.249.0.1' prefix='24'/></network>"
    )
    machine.virsh("net-define", str(document))
    machine.virsh("net-start", "mine")
    fixed = make_guest(networks=manual("10.249.0.10", name="mine"))
    assert fixed.ip == "10.249.0.10"
    given = make_guest(
        networks={"default": {"type": "dynamic", "cloud_properties": {"name": "mine"}}}
    )
    assert given.ip == "10.249.0.2"
    given.wait_for_agent()
    taken = failing(lambda: make_guest(networks=manual("10.249.0.2", name="mine")))
    assert given.cid in taken.message
    ports = failing(
        lambda: make_guest(
            networks=manual("10.249.0.3", name="mine"), properties={"ports": ["8080:80"]}
        )
    )
    assert ports.type == "NotSupported"
    machine.delete_all()
    machine.virsh("net-destroy", "mine")
    machine.virsh("net-undefine", "mine")


def test_the_default_libvirt_network_is_made_when_missing(
    machine: KvmMachine, make_guest: Make
) -> None:
    machine.configure({"network": "vms"}, network={"dynamic_subnets": ["10.243.0.0/24"]})
    guest = make_guest(networks={"default": {"type": "dynamic", "default": ["gateway"]}})
    assert guest.ip == "10.243.0.2"
    guest.wait_for_agent()
    assert "<forward mode='nat'" in machine.virsh("net-dumpxml", "vms")
    machine.delete_all()
    machine.virsh("net-destroy", "vms")
    machine.virsh("net-undefine", "vms")


def test_a_network_that_is_neither_libvirts_nor_cnis(machine: KvmMachine, make_guest: Make) -> None:
    error = failing(lambda: make_guest(networks=manual("10.249.0.10", name="no-such")))
    assert error.type == "NetworkNotFound"
    for odd in ("../x", "<x>", "a b"):
        error = failing(lambda odd=odd: make_guest(networks=manual("10.9.0.2", name=odd)))  # type: ignore[misc]
        assert error.type == "CloudError"


def test_a_cni_network_by_name_has_to_have_a_bridge(machine: KvmMachine, make_guest: Make) -> None:
    folder = machine.host.folder / "cni"
    folder.mkdir(exist_ok=True)
    ipam = {"type": "host-local", "dataDir": str(machine.host.state / "addresses"),
            "ranges": [[{"subnet": "10.242.0.0/24"}]]}  # fmt: skip
    bridge = {"type": "bridge", "bridge": "cni7", "isGateway": True, "ipam": ipam}
    other = {"type": "ptp", "ipam": ipam}
    for name, plugin in (("bridged", bridge), ("routed", other)):
        document = {"cniVersion": "1.0.0", "name": name, "plugins": [plugin]}
        (folder / f"{name}.conflist").write_text(json.dumps(document))
    network: dict[str, Any] = {"type": "dynamic", "default": ["gateway"]}
    guest = make_guest(networks={"a": {**network, "cloud_properties": {"name": "bridged"}}})
    guest.wait_for_agent()
    networks = {"a": {**network, "cloud_properties": {"name": "routed"}}}
    error = failing(lambda: make_guest(networks=networks))
    assert error.type == "NotSupported"
    assert "has no bridge" in error.message


def test_published_ports_lead_to_the_vm(machine: KvmMachine, make_guest: Make) -> None:
    guest = make_guest(
        networks=manual("10.248.0.20", bridge="bosh8"), properties={"ports": ["16868:6868"]}
    )
    guest.wait_for_agent()
    probe = "import socket; socket.create_connection(('10.248.0.1', 16868), 5)"
    wait_for(
        lambda: machine.host.run(sys.executable, "-c", probe, check=False).returncode == 0,
        "the published port",
    )
