"""What root in a VM tries against the network of its neighbours and of the host.

Each attack must fail in a VM as it is by default, and is shown to work where the protection is off:
in a VM whose network allows spoofing.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from cpi.cni import nftables
from testing.patience import PATIENCE, wait_for
from tests.support.containerd.machine import VM, Machine
from tests.support.forged_frames import forge

BRIDGE = "attack0"
GATEWAY, GATEWAY_6 = "10.99.1.1", "fd99:1::1"
VICTIM, PEER, ATTACKER, SPOOFER = (f"10.99.1.{number}" for number in (10, 11, 12, 13))
PORT = "7000"
_BRIDGES_OWN = ("01:80:c2:00:00:02", "01:80:c2:00:00:0e")  # of LACP and LLDP


@dataclass
class Lan:
    """Four VMs of one bridge. attacker: as it is by default; spoofer: may use others' addresses."""

    machine: Machine
    victim: VM
    peer: VM
    attacker: VM
    spoofer: VM


@pytest.fixture(scope="module")
def lan(machine: Machine, stemcell: str, before: None) -> Lan:
    ports = {PEER: ["8872:6868"], ATTACKER: ["127.0.0.1:8871:80"]}
    vms = [
        machine.create_vm(
            stemcell, {"ports": ports.get(ip, [])}, _networks(ip, spoofing=ip == SPOOFER)
        )
        for ip in (VICTIM, PEER, ATTACKER, SPOOFER)
    ]
    return Lan(machine, *vms)


def _networks(ip: str, **properties: Any) -> dict[str, Any]:
    shared = {"type": "manual", "cloud_properties": {"bridge": BRIDGE, **properties}}
    return {
        "four": {**shared, "ip": ip, "netmask": "255.255.255.0", "gateway": GATEWAY,
                 "default": ["gateway"]},
        "six": {**shared, "ip": _six(ip), "netmask": "ffff:ffff:ffff:ffff::",
                "gateway": GATEWAY_6},
    }  # fmt: skip


def _six(ip: str) -> str:
    return f"fd99:1::{ip.rpartition('.')[2]}"


@pytest.fixture
def known(lan: Lan) -> None:
    """Let all know the true addresses."""
    forget = "ip neigh flush all; ip -6 route flush proto ra 2>/dev/null"
    pings = [f"ping -c1 -W2 {ip}" for ip in (GATEWAY, GATEWAY_6)]
    lan.victim.sh("; ".join([forget, " && ".join(pings)]))
    pings += [f"ping -c1 -W2 {ip}" for ip in (VICTIM, _six(VICTIM))]
    lan.peer.sh("; ".join([forget, " && ".join(pings)]))


@dataclass(frozen=True)
class Attack:
    """An attack on the peer or the bridge. worked: whether it can be seen to have worked."""

    name: str
    command: Callable[[Lan], str]
    worked: Callable[[Lan, VM], bool]


def _knows(ip: str, device: str) -> Callable[[Lan, VM], bool]:
    """Return what tells whether the peer takes the attacker for the owner of an address."""
    return lambda lan, attacker: _neighbour(lan.peer, ip) == _mac(attacker, device)


def _bridge_learned(lan: Lan, attacker: VM) -> bool:
    """Tell whether the bridge sends the victim's frames to the attacker."""
    listed = lan.machine.host.run("bridge", "-json", "fdb", "show", "br", BRIDGE).stdout
    entries = [entry for entry in json.loads(listed) if entry["mac"] == _mac(lan.victim, "eth0")]
    return [entry["ifname"] for entry in entries] == [_port(attacker)]


def _routes(lan: Lan, attacker: VM) -> bool:
    """Tell whether the peer's default route leads to the attacker."""
    return "proto ra" in lan.peer.sh("ip -6 route show default")


def _to_the_bridge(address: str) -> Attack:
    return Attack(
        f"a neighbour's MAC, to the bridge's own {address}",
        lambda lan: forge("use_mac", _mac(lan.victim, "eth0"), address),
        _bridge_learned,
    )


ATTACKS = (
    Attack("ARP for a neighbour", lambda _: forge("claim", VICTIM), _knows(VICTIM, "eth0")),
    Attack("ARP for the gateway", lambda _: forge("claim", GATEWAY), _knows(GATEWAY, "eth0")),
    Attack("ARP in a frame of VLAN 0", lambda _: forge("claim_tagged", VICTIM),
           _knows(VICTIM, "eth0")),
    Attack("ARP with the MAC of another", lambda lan: forge("claim_as", VICTIM,
           _mac(lan.spoofer, "eth1")),
           lambda lan, _: _neighbour(lan.peer, VICTIM) == _mac(lan.spoofer, "eth1")),
    Attack("neighbor advertisement for a neighbour", lambda _: forge("advertise", _six(VICTIM)),
           _knows(_six(VICTIM), "eth1")),
    Attack("neighbor advertisement for the gateway", lambda _: forge("advertise", GATEWAY_6),
           _knows(GATEWAY_6, "eth1")),
    Attack("router advertisement", lambda _: forge("route"), _routes),
    Attack("a neighbour's MAC", lambda lan: forge(
           "use_mac", _mac(lan.victim, "eth0"), _mac(lan.peer, "eth0")), _bridge_learned),
    *(_to_the_bridge(address) for address in _BRIDGES_OWN),
)  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_a_vm_cannot_take_the_place_of_others(lan: Lan, known: None, attack: Attack) -> None:
    lan.attacker.sh(attack.command(lan))
    lan.attacker.sh(f"ping -c1 -W2 {PEER} && ping -c1 -W2 {_six(PEER)}")  # after what it sent
    assert not attack.worked(lan, lan.attacker)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_the_attack_works_where_spoofing_is_allowed(lan: Lan, known: None, attack: Attack) -> None:
    lan.spoofer.sh(attack.command(lan))
    wait_for(lambda: attack.worked(lan, lan.spoofer), "the attack to work")


@pytest.mark.parametrize("target", ["peer", "peer by IPv6", "host", "host by IPv6"])
@pytest.mark.parametrize("allowed", [False, True], ids=["default", "spoofing"])
def test_a_vm_sends_only_from_its_own_addresses(
    lan: Lan, known: None, target: str, allowed: bool
) -> None:
    on_host, six = target.startswith("host"), "IPv6" in target
    source, own = VICTIM, (SPOOFER if allowed else ATTACKER)
    to = GATEWAY if on_host else PEER
    if six:
        source, own, to = _six(source), _six(own), GATEWAY_6 if on_host else _six(to)
    vm = lan.spoofer if allowed else lan.attacker
    with _receiving(lan, None if on_host else lan.peer, to) as senders:
        vm.sh(forge("datagram", source, to, PORT, "one"))
        vm.sh(forge("datagram", own, to, PORT, "two"))
        assert senders() == (source if allowed else own)


@pytest.mark.parametrize("route_localnet", ["0", "1"])
def test_the_hosts_loopback_addresses_are_closed(lan: Lan, route_localnet: str) -> None:
    host, sysctl = lan.machine.host, f"net.ipv4.conf.{BRIDGE}.route_localnet"
    assert host.run("sysctl", "-n", sysctl).stdout == "1\n", "a port published on 127.0.0.1 sets it"
    host.run("sysctl", "-w", f"{sysctl}={route_localnet}")
    for vm in (lan.attacker, lan.spoofer):
        vm.sh(_ROUTE_TO_LOOPBACK)
    try:
        with _receiving(lan, None, "0.0.0.0") as senders:  # noqa: S104 - of a private host
            for vm in (lan.attacker, lan.spoofer):
                vm.sh(forge("datagram", "", "127.0.0.1", PORT, "closed"))
            lan.victim.sh(forge("datagram", "", GATEWAY, PORT, "last"))
            assert senders() == VICTIM
    finally:
        host.run("sysctl", "-w", f"{sysctl}=1")
    host.run("nft", "flush", "chain", "inet", nftables.table_name(host.state), "guard")
    try:
        with _receiving(lan, None, "127.0.0.1") as senders:
            lan.attacker.sh(forge("datagram", "", "127.0.0.1", PORT, "open"))
            assert senders() == ATTACKER
    finally:
        lan.machine.bosh_cpi("restore")


_ROUTE_TO_LOOPBACK = (
    "ip route del local 127.0.0.1 dev lo table local; "
    "ip route del local 127.0.0.0/8 dev lo table local; "
    f"ip route replace 127.0.0.1 via {GATEWAY}"
)


def test_a_host_that_is_closed_to_vms(lan: Lan, known: None, outside: str) -> None:
    """DNS, published ports and the way out stay open, and the host reaches the VMs."""
    machine, network = lan.machine, lan.machine.host.config()["network"]
    lan.peer.wait_for_agent()
    machine.host.write_config(network={**network, "host_access": False})
    try:
        machine.bosh_cpi("restore")
        for ip in (GATEWAY, GATEWAY_6, "192.0.2.1"):
            lan.attacker.sh(f"! ping -c1 -W1 {ip}")
            assert _delivered(lan, ip, PORT) == [], ip
            assert _delivered(lan, ip, "53") == ["asked"], ip
        lan.attacker.sh(_CONNECT.format(GATEWAY, 8872))
        lan.attacker.sh(f"ping -c1 -W2 {outside}")
        lan.attacker.sh(f"ping -c1 -W2 {PEER}; ping -c1 -W2 {_six(PEER)}")
        lan.attacker.wait_for_agent()
    finally:
        machine.host.write_config()
        machine.bosh_cpi("restore")
    for ip in (GATEWAY, GATEWAY_6, "192.0.2.1"):
        lan.attacker.sh(f"ping -c1 -W2 {ip}")
        assert _delivered(lan, ip, PORT) == ["asked"]


_CONNECT = "python3 -c \"import socket; socket.create_connection(('{}', {}), 5)\""


def _delivered(lan: Lan, ip: str, port: str) -> list[str]:
    """Return what the host gets of a VM's packet, before one that it sends itself."""
    with _receiving(lan, None, ip, port, show="text") as texts:
        lan.attacker.sh(forge("datagram", "", ip, port, "asked"))
        lan.machine.host.run(sys.executable, "-c", _SEND, ip, port)
        first = texts()
    return [] if first == "end" else [first]


_SEND = """
import socket, sys
ip, port = sys.argv[1:]
family = socket.AF_INET6 if ":" in ip else socket.AF_INET
socket.socket(family, socket.SOCK_DGRAM).sendto(b"end", (ip, int(port)))
"""


def _mac(vm: VM, device: str) -> str:
    return _interfaces(vm, device)[0]


def _neighbour(vm: VM, ip: str) -> str:
    """Return the MAC that a VM sends to for an address."""
    listed = json.loads(vm.sh(f"ip -json neigh show {ip}"))
    return str(listed[0].get("lladdr")) if listed else ""


def _port(vm: VM) -> str:
    """Return the port of a VM's first interface."""
    return _interfaces(vm, "eth0")[1]


def _interfaces(vm: VM, device: str) -> tuple[str, str]:
    """Return the MAC of a VM's interface, and its port on the bridge."""
    path = vm.machine.host.state / "vms" / vm.cid / "network.json"
    [record] = [entry for entry in json.loads(path.read_bytes()) if entry["interface"] == device]
    _, port, inside = record["result"]["interfaces"]
    return inside["mac"], port["name"]


@contextmanager
def _receiving(
    lan: Lan, vm: VM | None, ip: str, port: str = PORT, show: str = "sender"
) -> Iterator[Callable[[], str]]:
    """Receive a datagram in a VM, or on the host; yield what waits for its sender or its text."""
    inside = ["nsenter", "--target", str(vm.pid), "--net"] if vm else []
    argv = lan.machine.host.enter(*inside, sys.executable, "-c", _RECEIVE, ip, port, show)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield lambda: process.communicate(timeout=PATIENCE)[0].strip()
        finally:
            process.kill()


_RECEIVE = """
import socket, sys
ip, port, show = sys.argv[1:]
family = socket.AF_INET6 if ":" in ip else socket.AF_INET
receiver = socket.socket(family, socket.SOCK_DGRAM)
receiver.bind((ip, int(port)))
print("ready", flush=True)
text, sender = receiver.recvfrom(100)
print(text.decode() if show == "text" else sender[0])
"""
