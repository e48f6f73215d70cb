"""What root in a full VM tries against the network: each fails, and works where it is allowed."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from cpi.cni import nftables
from testing.patience import PATIENCE, wait_for
from tests.support.containerd.machine import failing
from tests.support.forged_frames import forge
from tests.support.libvirt.kvm_machine import Guest, KvmMachine

BRIDGE = "forge0"
GATEWAY, GATEWAY_6 = "10.246.0.1", "fd00:246::1"
OWN, OWN_6, OTHER, OTHER_6 = "10.246.0.10", "fd00:246::10", "10.246.0.99", "fd00:246::99"
OTHER_MAC = "02:00:00:00:00:99"
NETWORKS = {
    "four": {"type": "manual", "ip": OWN, "netmask": "255.255.255.0", "gateway": GATEWAY,
             "default": ["gateway"], "cloud_properties": {"bridge": BRIDGE}},
    "six": {"type": "manual", "ip": OWN_6, "netmask": "ffff:ffff:ffff:ffff::",
            "gateway": GATEWAY_6, "cloud_properties": {"bridge": BRIDGE}},
}  # fmt: skip


@pytest.fixture
def guest(machine: KvmMachine, make_guest: Callable[..., Guest]) -> Iterator[Guest]:
    guest = make_guest(networks=NETWORKS)
    guest.wait_for_agent()
    yield guest
    machine.host.run("ip", "neigh", "flush", "dev", BRIDGE)


def test_a_full_vm_sends_only_as_itself(machine: KvmMachine, guest: Guest) -> None:
    _attack_arp(machine, guest)
    _attack_neighbor_discovery(machine, guest)
    _attack_bridge(machine, guest)
    assert _neighbour(machine, OTHER) == _neighbour(machine, OTHER_6) == OTHER_MAC
    assert OTHER_MAC not in _learned(machine)
    for source, own, to in ((OTHER, OWN, GATEWAY), (OTHER_6, OWN_6, GATEWAY_6)):
        assert _sender(machine, guest, to, source, own) == own

    machine.host.run(
        "nft", "flush", "map", "bridge", nftables.table_name(machine.host.state), "ports"
    )
    _attack_arp(machine, guest)
    wait_for(lambda: _neighbour(machine, OTHER) != OTHER_MAC, "the host to believe it")
    _attack_neighbor_discovery(machine, guest)
    wait_for(lambda: _neighbour(machine, OTHER_6) != OTHER_MAC, "the host to believe it by IPv6")
    _attack_bridge(machine, guest)
    wait_for(lambda: OTHER_MAC in _learned(machine), "the bridge to learn it")
    for source, own, to in ((OTHER, OWN, GATEWAY), (OTHER_6, OWN_6, GATEWAY_6)):
        assert _sender(machine, guest, to, source, own) == source

    assert json.loads(machine.bosh_cpi("restore", "--json").stdout)["restored"] == [guest.cid]
    assert _sender(machine, guest, GATEWAY, OTHER, OWN) == OWN


def test_addresses_of_the_bridge_are_refused(
    machine: KvmMachine, guest: Guest, make_guest: Callable[..., Guest]
) -> None:
    for ip, netmask, reason in (
        (GATEWAY, "255.254.0.0", "is the address of the bridge forge0"),
        ("10.246.0.255", "255.254.0.0", "network or broadcast address of 10.246.0.0/24"),
        ("10.246.0.11", "255.254.0.0", "use the netmask 255.255.255.0"),
    ):
        network = {**NETWORKS["four"], "ip": ip, "netmask": netmask, "gateway": None}
        error = failing(lambda given=network: make_guest(networks={"n": given}))  # type: ignore[misc]
        assert reason in error.message


def _attack_arp(machine: KvmMachine, guest: Guest) -> None:
    _believe(machine, OTHER)
    guest.sh(forge("claim", OTHER))


def _attack_neighbor_discovery(machine: KvmMachine, guest: Guest) -> None:
    _believe(machine, OTHER_6)
    guest.sh(forge("advertise", OTHER_6))


def _attack_bridge(machine: KvmMachine, guest: Guest) -> None:
    for to in ("ff:ff:ff:ff:ff:ff", "01:80:c2:00:00:0e"):
        guest.sh(forge("use_mac", OTHER_MAC, to))


def _believe(machine: KvmMachine, ip: str) -> None:
    words = ["ip", "neigh", "replace", ip, "lladdr", OTHER_MAC, "dev", BRIDGE, "nud", "reachable"]
    machine.host.run(*words)


def _neighbour(machine: KvmMachine, ip: str) -> str:
    words = ["ip", "-json", "neigh", "show", ip, "dev", BRIDGE]
    [entry] = json.loads(machine.host.run(*words).stdout)
    return str(entry["lladdr"])


def _learned(machine: KvmMachine) -> set[str]:
    listed = machine.host.run("bridge", "-json", "fdb", "show", "br", BRIDGE).stdout
    return {entry["mac"] for entry in json.loads(listed)}


def _sender(machine: KvmMachine, guest: Guest, to: str, source: str, own: str) -> str:
    """Send with another's address, then with the own one; return the first that arrives."""
    argv = machine.host.enter(sys.executable, "-c", _RECEIVE, to)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            for sender in (source, own):
                guest.sh(forge("datagram", sender, to, "7000", "text"))
            return process.communicate(timeout=PATIENCE)[0].strip()
        finally:
            process.kill()


_RECEIVE = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
receiver = socket.socket(family, socket.SOCK_DGRAM)
receiver.bind((sys.argv[1], 7000))
print("ready", flush=True)
print(receiver.recvfrom(100)[1][0])
"""
