"""`bosh-cpi doctor` on a host with two VMs: each test breaks something and applies the fix."""

import json
import sys
from typing import Any

import pytest

from tests.support.containerd.machine import VM, Machine
from tests.support.containerd.operator_output import check


def test_a_healthy_host(machine: Machine, router: VM) -> None:
    done = machine.bosh_cpi("doctor")
    for word in ("✓ containerd: ", "✓ snapshotter: ", "✓ bridge: bosh0 is up", "0 failed"):
        assert word in done.stdout
    assert "(only for runtime kvm)" in done.stdout


@pytest.mark.parametrize(
    ("name", "changes", "fix"),
    [
        ("containerd", {"containerd": {"address": "/nosuch.sock"}}, "containerd --address /nosuch"),
        ("snapshotter", {"containerd": {"snapshotter": "zfs"}}, '"snapshotter": "overlayfs"'),
        ("CNI plugins", {"network": {"cni_plugin_dirs": ["/nosuch"]}}, '["/usr/lib/cni"]'),
        ("libvirt", {"runtimes": ["kvm"]}, "systemctl start libvirtd"),
    ],
)
def test_a_wrong_configuration_has_a_fix(
    machine: Machine, router: VM, name: str, changes: dict[str, Any], fix: str
) -> None:
    own = machine.host.config()
    merged = {
        key: {**own[key], **value} if isinstance(value, dict) else value
        for key, value in changes.items()
    }
    finding = check(machine, name, machine.host.write_config("wrong.json", **merged))
    assert finding["status"] == "failure"
    assert fix in finding["fix"]


@pytest.mark.parametrize(
    ("name", "breaking"),
    [
        ("bridge", "ip link set bosh0 down"),
        ("forwarding", "sysctl -qw net.ipv4.ip_forward=0"),
        ("rp_filter", "sysctl -qw net.ipv4.conf.bosh0.rp_filter=1"),
        ("firewall", "iptables -F FORWARD; iptables -P FORWARD DROP"),
        ("nftables", "nft flush ruleset"),
        ("subnets", "ip route add 10.245.9.0/24 dev lo"),
    ],
)
def test_the_doctors_fix_repairs_what_is_broken(
    machine: Machine, router: VM, name: str, breaking: str
) -> None:
    assert check(machine, name)["status"] == "ok"
    machine.host.run("sh", "-c", breaking)
    try:
        finding = check(machine, name)
        assert finding["status"] != "ok"
        if name == "subnets":
            changes = json.loads(finding["fix"].removeprefix("set in cpi.json: "))
            network = {**machine.host.config()["network"], **changes["network"]}
            fixed_config = machine.host.write_config("mended.json", network=network)
            assert check(machine, name, fixed_config)["status"] == "ok"
        elif finding["fix"].startswith("bosh-cpi "):
            machine.bosh_cpi(*finding["fix"].split()[1:])
            assert check(machine, name)["status"] == "ok"
        else:
            machine.host.run("sh", "-c", finding["fix"])
            assert check(machine, name)["status"] == "ok"
    finally:
        machine.host.run("sh", "-c", _UNDO)


# `bosh-cpi doctor --fix --yes`, but for the network alone: the rest would change this machine.
_FIX = """
import json, sys
from cpi.commands import doctor, network_checks
from cpi.config.load import load_config
config = load_config(sys.argv[1])
look = lambda: [("network", finding) for finding in network_checks.CHECKS.run(config)]
print(json.dumps({finding.check: finding.status for _, finding in doctor.fixed(look, yes=True)}))
"""


def test_fix_repairs_all_that_is_broken(machine: Machine, router: VM) -> None:
    breaking = "ip link set bosh0 down; sysctl -qw net.ipv4.ip_forward=0"
    machine.host.run("sh", "-c", f"{breaking} net.ipv4.conf.bosh0.rp_filter=1")
    try:
        config = str(machine.host.write_config("fixed.json"))
        done = machine.host.run(sys.executable, "-c", _FIX, config)
    finally:
        machine.host.run("sh", "-c", _UNDO)
    status = json.loads(done.stdout)
    broken = ("bridge", "forwarding", "rp_filter")
    assert [status[name] for name in broken] == ["ok", "ok", "ok"]
    for command in ("ip link set bosh0 up", "sysctl -w net.ipv4.ip_forward=1"):
        assert command in done.stderr


_UNDO = """
ip link set bosh0 up; sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.bosh0.rp_filter=0
iptables -P FORWARD ACCEPT; ip route del 10.245.9.0/24 dev lo 2>/dev/null; true
"""
