"""The doctor's checks of a host's network: one that is well and one that is not for each."""

import json
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from cpi.cni import firewall, host_firewalls, nameservers
from cpi.commands import network_checks
from cpi.config.config import Config
from cpi.findings import FAILURE, OK, WARNING, Finding
from cpi.host import iproute
from cpi.host.iproute import Route
from cpi.host.process import CommandFailed
from tests.support.fake_config import fake_config


def of_network(name: str, config: Config) -> Finding:
    return next(finding for finding in network_checks.CHECKS.run(config) if finding.check == name)


Programs = dict[str, Any]


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Programs:
    """What programs print, by a word in how they are called; an exception is raised.

    Those that are not installed: "missing", a set.
    """
    answers: Programs = {
        "missing": {"firewall-cmd"},
        "--check": b"",
        "table": CommandFailed("no table", status=1, stderr="No such file or directory"),
        "chains": b"{}",
        "-S": b"-P FORWARD ACCEPT\n",
        "-C": CommandFailed("no rule", status=1),
        "--state": b"running\n",
        "--get-zone-of-interface=bosh0": CommandFailed("no zone", status=2),
        "-4": b"[]",
        "-6": b"[]",
        "address": b"[]",
    }

    def run(argv: list[str], **_: Any) -> bytes:
        answer = next(output for word, output in answers.items() if word in argv)
        if isinstance(answer, Exception):
            raise answer
        return bytes(answer)

    for module in (network_checks, iproute, firewall, host_firewalls):
        monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(
        host_firewalls, "is_installed", lambda program: program not in answers["missing"]
    )
    return answers


@pytest.fixture
def vm(config: Config) -> None:
    """A VM on bosh0."""
    folder = Path(config.text("state_dir")) / "vms" / "fake-vm-1"
    folder.mkdir(parents=True)
    attachment = {
        "network": "bosh0",
        "interface": "eth0",
        "plugins": [{"type": "bridge", "bridge": "bosh0"}],
        "runtime": {},
        "result": {"ips": [{"address": "10.245.0.2/16"}]},
        "bridge": "bosh0",
        "masquerade": True,
    }
    (folder / "network.json").write_text(json.dumps([attachment]))
    address = Path(config.text("state_dir")) / "addresses/bosh0/10.245.0.2"
    address.parent.mkdir(parents=True)
    address.write_text("fake-vm-1\r\neth0")
    (Path(config.text("run_dir")) / "bridges").mkdir(parents=True)


@pytest.fixture
def sysctls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Sets a setting of the kernel."""
    folder = tmp_path / "sysctls"
    monkeypatch.setattr(network_checks, "_SYSCTLS", folder)

    def write(name: str, value: str) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{value}\n")

    return write


def _link(name: str = "bosh0", link_type: str = "bridge", *flags: str) -> bytes:
    address = {"local": "10.245.0.1", "prefixlen": 16, "scope": "global"}
    link = {"ifname": name, "mtu": 1500, "flags": flags, "addr_info": [address]}
    return json.dumps([{**link, "linkinfo": {"info_kind": link_type}}]).encode()


def test_cni_plugins(tmp_path: Path) -> None:
    def config(folder: Path) -> Config:
        return fake_config(tmp_path, network={"cni_plugin_dirs": [str(folder)]})

    assert of_network("CNI plugins", config(tmp_path / "nosuch")).status == FAILURE
    folder = tmp_path / "plugins"
    folder.mkdir()
    finding = of_network("CNI plugins", config(folder))
    assert (finding.status, finding.fix) == (FAILURE, "apt-get install containernetworking-plugins")
    _write_plugins(folder, "0.2.0")
    finding = of_network("CNI plugins", config(folder))
    assert (finding.status, "0.8 or later" in finding.message) == (FAILURE, True)
    for version in ("0.4.0", "1.0.0"):
        _write_plugins(folder, version)
        finding = of_network("CNI plugins", config(folder))
        assert (finding.status, version in finding.message) == (OK, True)


def _write_plugins(folder: Path, version: str) -> None:
    for name in network_checks.PLUGINS:
        answer = json.dumps({"supportedVersions": [version]})
        (folder / name).write_text(f"#!/bin/sh\necho '{answer}'\n")
        (folder / name).chmod(0o755)


def test_nftables(config: Config, programs: Programs) -> None:
    assert of_network("nftables", config).status == OK
    programs["--check"] = CommandFailed("no such expression", status=1)
    assert of_network("nftables", config).fix.startswith("modprobe -a nf_tables")
    programs["--check"] = CommandFailed("not installed")
    assert of_network("nftables", config).fix == "apt-get install nftables"


def test_rules_that_were_flushed(config: Config, programs: Programs, vm: None) -> None:
    finding = of_network("nftables", config)
    assert (finding.status, finding.fix) == (FAILURE, "bosh-cpi restore")
    assert "fake-vm-1" in finding.message
    element = {"elem": {"val": "10.245.0.2", "comment": "fake-vm-1"}}
    sets = [{"set": {"name": f"{name}4", "elem": [element]}} for name in ("guests", "masqueraded")]
    programs["table"] = json.dumps({"nftables": sets}).encode()
    assert of_network("nftables", config).status == OK


@pytest.mark.parametrize(
    ("links", "status", "fix"),
    [
        (b"[]", OK, ""),
        (_link("bosh0", "bridge", "UP"), OK, ""),
        (_link(), FAILURE, "ip link set bosh0 up"),
        (_link("bosh0", "dummy"), FAILURE, '"bridge": "bosh9"'),
    ],
)
def test_bridge(config: Config, programs: Programs, links: bytes, status: str, fix: str) -> None:
    programs["address"] = links
    finding = of_network("bridge", config)
    assert (finding.status, fix in finding.fix) == (status, True)


def test_a_bridge_that_vms_miss(config: Config, programs: Programs, vm: None) -> None:
    finding = of_network("bridge", config)
    assert (finding.status, "missing" in finding.message) == (FAILURE, True)


def test_forwarding(
    config: Config, programs: Programs, sysctls: Callable[[str, str], None]
) -> None:
    sysctls("ipv4/ip_forward", "0")
    assert of_network("forwarding", config).status == OK  # no bridge yet
    programs["address"] = _link("bosh0", "bridge", "UP")
    finding = of_network("forwarding", config)
    assert (finding.status, finding.fix) == (FAILURE, "sysctl -w net.ipv4.ip_forward=1")
    sysctls("ipv4/ip_forward", "1")
    assert of_network("forwarding", config).status == OK


@pytest.mark.parametrize(
    ("everywhere", "there", "status"),
    [("0", "0", OK), ("1", "0", WARNING), ("0", "1", WARNING), ("2", "1", OK), ("1", "2", OK)],
)
def test_rp_filter(
    config: Config,
    programs: Programs,
    sysctls: Callable[[str, str], None],
    everywhere: str,
    there: str,
    status: str,
) -> None:
    programs["address"] = _link("bosh0", "bridge", "UP")
    sysctls("ipv4/conf/all/rp_filter", everywhere)
    sysctls("ipv4/conf/bosh0/rp_filter", there)
    finding = of_network("rp_filter", config)
    assert finding.status == status
    assert finding.fix == ("sysctl -w net.ipv4.conf.bosh0.rp_filter=2" if status != OK else "")


def test_a_firewall_before_the_first_vm(config: Config, programs: Programs) -> None:
    programs["-S"] = b"-P FORWARD DROP\n"
    assert of_network("firewall", config).status == OK


@pytest.mark.parametrize(
    "rules", [b"-P FORWARD DROP\n", b"-P FORWARD ACCEPT\n-A FORWARD -j DROP\n"]
)
def test_iptables_that_drop(
    config: Config,
    programs: Programs,
    sysctls: Callable[[str, str], None],
    vm: None,
    rules: bytes,
) -> None:
    assert of_network("firewall", config).status == OK
    programs["-S"] = rules
    finding = of_network("firewall", config)
    assert finding.status == FAILURE
    assert finding.fix.startswith("iptables -I FORWARD -i bosh0 ")
    assert "between VMs" not in finding.message
    sysctls("bridge/bridge-nf-call-iptables", "1")
    assert "between VMs" in of_network("firewall", config).message
    programs["-C"] = b""
    assert of_network("firewall", config).status == OK
    programs |= {"-C": CommandFailed("no rule", status=1), "missing": {"iptables", "ip6tables"}}
    assert of_network("firewall", config).status == FAILURE, "firewalld has no zone"


def test_firewalld_without_a_zone_for_the_bridge(
    config: Config, programs: Programs, vm: None
) -> None:
    programs["missing"] = {"iptables", "ip6tables"}
    finding = of_network("firewall", config)
    assert finding.fix == (
        "firewall-cmd --permanent --zone=trusted --add-interface=bosh0 && "
        "firewall-cmd --zone=trusted --add-interface=bosh0"
    )
    programs["--get-zone-of-interface=bosh0"] = b"internal\n"
    assert of_network("firewall", config).status == OK
    programs["--state"] = CommandFailed("not running", status=252)
    assert of_network("firewall", config).status == OK


def test_a_chain_of_the_administrators_that_drops(
    config: Config, programs: Programs, vm: None
) -> None:
    chain = {"family": "inet", "table": "filter", "name": "forward", "hook": "forward"}
    listed = [{"metainfo": {}}, {"chain": {**chain, "policy": "accept"}}]
    programs["chains"] = json.dumps({"nftables": listed}).encode()
    assert of_network("firewall", config).status == OK
    listed.append({"chain": {**chain, "policy": "drop"}})
    programs["chains"] = json.dumps({"nftables": listed}).encode()
    finding = of_network("firewall", config)
    assert finding.status == WARNING
    assert "nft insert rule inet filter forward iifname bosh0 accept" in finding.fix


def test_dns(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "resolv.conf"
    monkeypatch.setattr(nameservers, "_FILES", (file,))
    assert of_network("DNS", config).status == WARNING
    file.write_text("nameserver 192.0.2.1\n")
    assert "192.0.2.1" in of_network("DNS", config).message


@pytest.mark.parametrize(
    ("route", "status"),
    [
        ("default", OK),
        ("192.168.0.0/16", OK),
        ("fd00::/8", OK),
        ("10.0.0.0/8", WARNING),
        ("10.245.0.0/16", FAILURE),
        ("10.245.3.0/24", FAILURE),
        ("10.245.3.4", FAILURE),
    ],
)
def test_subnets(config: Config, programs: Programs, route: str, status: str) -> None:
    programs["-4"] = json.dumps([{"dst": route, "dev": "tun0"}]).encode()
    finding = of_network("subnets", config)
    assert finding.status == status
    if status != OK:
        assert route.partition("/")[0] in finding.message
        wanted = json.loads(finding.fix.removeprefix("set in cpi.json: "))
        changed = fake_config(Path(config.text("state_dir")), **wanted)
        assert of_network("subnets", changed).status == OK
    programs["-4"] = b'[{"dst": "10.245.0.0/16", "dev": "bosh0"}]'  # our own bridge
    assert of_network("subnets", config).status == OK


def test_a_free_subnet_is_free_of_all() -> None:
    routes = [
        Route(ip_network("10.0.0.0/8"), "a"),
        Route(ip_network("172.16.0.0/15"), "b"),
    ]
    assert network_checks.free_subnet(routes) == "172.18.0.0/16"
