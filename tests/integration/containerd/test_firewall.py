"""Masquerading, published ports and what VMs cannot reach: real packets through nftables."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cpi.cni import nftables
from testing.hosts.private_host import CPI
from testing.patience import PATIENCE
from tests.support.containerd.broken_calls import broken, drop_leases
from tests.support.containerd.machine import VM, Machine, failing, manual
from tests.support.containerd.operator_output import check


def test_nat_to_the_outside(make_vm: Callable[..., VM], outside: str) -> None:
    # The outside has no route back to the VM: an answer proves that its address was translated.
    vm = make_vm()
    vm.sh(f"ping -c1 -W2 {outside}")


@pytest.fixture
def dropping(machine: Machine) -> Iterator[None]:
    """Drop what the host forwards, as Docker does, also between VMs of one bridge."""
    called = "net.bridge.bridge-nf-call-iptables"
    before = machine.host.run("sysctl", "-n", called).stdout.strip()
    machine.host.run("sysctl", "-w", f"{called}=1")
    for program in ("iptables", "ip6tables"):
        machine.host.run(program, "-P", "FORWARD", "DROP")
    yield
    for program in ("iptables", "ip6tables"):
        machine.host.run(program, "-P", "FORWARD", "ACCEPT")
    machine.host.run("sysctl", "-w", f"{called}={before}")


def test_a_host_that_forwards_nothing_by_itself(
    machine: Machine, make_vm: Callable[..., VM], outside: str, dropping: None
) -> None:
    vm, other = make_vm(properties={"ports": ["8868:6868"]}), make_vm()
    vm.wait_for_agent()
    vm.sh(f"ping -c1 -W2 {outside}")
    vm.sh(f"ping -c1 -W2 {other.ip}")
    _connect_from_outside(machine, "192.0.2.1", 8868)
    rules = machine.host.run("iptables", "-S", "FORWARD").stdout.splitlines()
    assert len(rules) == len(set(rules))
    ours = [rule for rule in rules if "-i bosh0 " in rule and "bosh-cpi-" in rule]
    assert len(ours) == 1, "once for the bridge, not for each VM"
    machine.host.run("iptables", *ours[0].replace("-A ", "-D ", 1).replace('"', "").split())
    try:
        vm.sh(f"! ping -c1 -W1 {outside}")
    finally:
        machine.host.run("iptables", *ours[0].replace("-A ", "-I ", 1).replace('"', "").split())


def test_ports_are_published_from_outside_and_from_the_host(
    machine: Machine, make_vm: Callable[..., VM], outside: str
) -> None:
    vm = make_vm(properties={"ports": ["8868:6868", "127.0.0.1:8869:6868/tcp"]})
    vm.wait_for_agent()
    assert machine.can_connect("192.0.2.1", 8868)
    assert machine.can_connect("127.0.0.1", 8868)
    assert machine.can_connect("127.0.0.1", 8869)
    assert not machine.can_connect("192.0.2.1", 8869)
    _connect_from_outside(machine, "192.0.2.1", 8868)
    vm.delete()
    assert not machine.can_connect("192.0.2.1", 8868)


def test_ports_are_published_to_vms_of_the_same_and_of_another_bridge(
    machine: Machine, make_vm: Callable[..., VM], outside: str
) -> None:
    vm = make_vm(properties={"ports": ["8868:6868"]})
    same, other = make_vm(), make_vm(networks={"n": manual("10.99.0.10")})
    vm.wait_for_agent()
    for client in (vm, same, other):
        client.sh(_CONNECT.format("192.0.2.1", 8868))
        client.sh(_CONNECT.format("10.245.0.1", 8868))


def test_vms_of_two_bridges_see_each_others_addresses(
    machine: Machine, make_vm: Callable[..., VM]
) -> None:
    vm, other = make_vm(), make_vm(networks={"n": manual("10.99.0.10")})
    with _listening(machine, other, "tcp", other.ip, 7000) as peer:
        vm.sh(_CONNECT.format(other.ip, 7000))
        assert peer() == vm.ip


def test_udp_flows_follow_a_port_to_its_next_vm(
    machine: Machine, make_vm: Callable[..., VM], outside: str
) -> None:
    send = (
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('192.0.2.2', 5555)); "
        "s.sendto(b'hello', ('192.0.2.1', 8870))"
    )
    seen = set()
    for _ in range(2):
        vm = make_vm(properties={"ports": ["8870:7000/udp"]})
        with _listening(machine, vm, "udp", vm.ip, 7000) as received:
            machine.host.run("ip", "netns", "exec", "outside", sys.executable, "-c", send)
            assert received() == "hello"
        seen.add(vm.ip)
        vm.delete()
    assert len(seen) == 2, "the second VM has another address"


def test_ports_are_published_by_ipv6(
    machine: Machine, make_vm: Callable[..., VM], outside: str
) -> None:
    machine.host.run("ip", "address", "add", "2001:db8::1/64", "dev", "out0", "nodad")
    machine.host.run(
        "ip", "-n", "outside", "address", "add", "2001:db8::2/64", "dev", "in0", "nodad"
    )
    six = {**manual("fd99::10"), "netmask": "ffff:ffff:ffff:ffff::", "gateway": "fd99::1"}
    vm = make_vm(properties={"ports": ["8868:7000"]}, networks={"six": six})
    vm.sh("ping -6 -c5 -i0.5 -W2 2001:db8::2")  # which has no route back
    with _listening(machine, vm, "tcp", "fd99::10", 7000) as peer:
        _connect_from_outside(machine, "2001:db8::1", 8868)
        assert peer() == "2001:db8::2"
    with _listening(machine, vm, "tcp", "fd99::10", 7000) as peer:
        vm.sh(_CONNECT.format("2001:db8::1", 8868))
        assert peer() == "fd99::1"


def test_a_vm_does_not_reach_the_hosts_loopback_addresses(
    machine: Machine, make_vm: Callable[..., VM]
) -> None:
    vm = make_vm(properties={"ports": ["127.0.0.1:8869:6868"]})  # which sets route_localnet
    vm.sh(
        "ip route del local 127.0.0.1 dev lo table local; "
        "ip route del local 127.0.0.0/8 dev lo table local; ip route add 127.0.0.1 via 10.245.0.1"
    )
    send = (
        'python3 -c "import socket; socket.socket(type=socket.SOCK_DGRAM)'
        ".sendto(b'{}', ('127.0.0.1', 9999))\""
    )
    with _listening(machine, None, "udp", "127.0.0.1", 9999) as received:
        vm.sh(send.format("guarded"))
        machine.host.run("nft", "flush", "chain", "inet", _table(machine), "guard")
        vm.sh(send.format("unguarded"))
        assert received() == "unguarded"


def test_many_ports(machine: Machine, make_vm: Callable[..., VM]) -> None:
    vm = make_vm(properties={"ports": [f"{20000 + number}:6868" for number in range(1000)]})
    vm.wait_for_agent()
    for port in (20000, 20500, 20999):
        assert machine.can_connect("10.245.0.1", port)


def test_what_was_flushed_is_restored(
    machine: Machine, make_vm: Callable[..., VM], outside: str
) -> None:
    vm = make_vm(properties={"ports": ["8868:6868"]})
    vm.wait_for_agent()
    machine.host.run("nft", "flush", "ruleset")
    vm.sh(f"! ping -c1 -W1 {outside}")
    finding = check(machine, "nftables")
    assert (finding["status"], finding["fix"]) == ("failure", "bosh-cpi restore")
    machine.bosh_cpi(*finding["fix"].split()[1:])
    assert check(machine, "nftables")["status"] == "ok"
    vm.sh(f"ping -c1 -W2 {outside}")
    _connect_from_outside(machine, "192.0.2.1", 8868)


def test_a_deleted_vm_takes_nothing_from_the_next(
    machine: Machine, make_vm: Callable[..., VM], outside: str
) -> None:
    """Also if its delete_vm was killed after it had released its address and port."""
    properties, networks = {"ports": ["8868:6868"]}, {"n": manual("10.99.0.10")}
    first = make_vm(properties=properties, networks=networks)
    target = "cpi.cni.ports:Ports.release"
    assert broken(machine, target, "kill", "delete_vm", first.cid) == ""
    second = make_vm(properties=properties, networks=networks)
    first.delete()
    second.wait_for_agent()
    second.sh(f"ping -c1 -W2 {outside}")
    _connect_from_outside(machine, "192.0.2.1", 8868)
    drop_leases(machine)


def test_vms_of_before_there_was_our_table(
    machine: Machine, make_vm: Callable[..., VM], outside: str
) -> None:
    """Their plugins still serve and delete them; they had no user namespace."""
    vm = make_vm(properties={"ports": ["8868:6868"], "privileged": True})
    record = machine.host.state / "vms" / vm.cid / "network.json"
    script = f"""
import json, sys
from pathlib import Path
from cpi.cni import attachments
from cpi.cni.networks import Networks
from cpi.config.load import config_of
from cpi.host import syscalls
from cpi.log import Log
networks = Networks(config_of({machine.host.config()!r}), Log())
folder, path = Path({str(record.parent)!r}), Path({str(record)!r})
networks._firewall.dismiss({vm.cid!r}, attachments.attachments_in(path))
[document] = json.loads(path.read_bytes())
del document["bridge"], document["masquerade"]
document["plugins"][0]["ipMasq"] = True
document["plugins"] += [{{"type": "firewall", "backend": "iptables"}},
    {{"type": "portmap", "capabilities": {{"portMappings": True}}, "snat": True}}]
path.write_text(json.dumps([document]))
syscalls.unpin_namespace(networks.namespace({vm.cid!r}))
networks.rebuild({vm.cid!r}, folder)
"""
    machine.host.run(sys.executable, "-c", script)
    assert not machine.leftovers()["elements"]
    machine.call("reboot_vm", vm.cid)
    vm.wait_for_agent()
    vm.sh(f"ping -c1 -W2 {outside}")
    _connect_from_outside(machine, "192.0.2.1", 8868)
    vm.delete()
    assert vm.cid not in machine.host.run("iptables-save").stdout


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


def test_all_is_removed_when_the_cpi_is(
    machine: Machine, make_vm: Callable[..., VM], outside: str
) -> None:
    make_vm().delete()
    script = f"""
from cpi.cni.firewall import Firewall
from cpi.config.load import config_of
from cpi.host.layout import Layout
from cpi.log import Log
Firewall(Layout.of(config_of({machine.host.config()!r})), Log()).remove_all()
"""
    machine.host.run(sys.executable, "-c", script)
    for words in ("nft list tables", "iptables-save", "ip6tables-save"):
        assert "bosh-cpi-" not in machine.host.run(*words.split()).stdout
    machine.host.run(sys.executable, "-c", script)
    make_vm().sh(f"ping -c1 -W2 {outside}")


def _connect_from_outside(machine: Machine, ip: str, port: int) -> None:
    probe = f"import socket; socket.create_connection(({ip!r}, {port}), 2)"
    machine.host.run("ip", "netns", "exec", "outside", sys.executable, "-c", probe)


@contextmanager
def _listening(
    machine: Machine, vm: VM | None, protocol: str, ip: str, port: int
) -> Iterator[Callable[[], str]]:
    """Listen in a VM, or on the host; yield a function that waits for what comes.

    With tcp, that is the address of who has connected; with udp, the text that was received.
    """
    inside = ["nsenter", "--target", str(vm.pid), "--net"] if vm else []
    argv = machine.host.enter(*inside, sys.executable, "-c", _LISTEN, protocol, ip, str(port))
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield lambda: process.communicate(timeout=PATIENCE)[0].strip()
        finally:
            process.kill()


_LISTEN = """
import socket, sys
protocol, ip, port = sys.argv[1:]
family = socket.AF_INET6 if ":" in ip else socket.AF_INET
server = socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind((ip, int(port)))
if protocol == "tcp":
    server.listen()
print("ready", flush=True)
print(server.accept()[1][0] if protocol == "tcp" else server.recv(100).decode())
"""


def _table(machine: Machine) -> str:
    return nftables.table_name(machine.host.state)


_CONNECT = "python3 -c \"import socket; socket.create_connection(('{}', {}), 5)\""
