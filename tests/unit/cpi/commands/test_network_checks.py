"""The doctor's checks of a host's network: one that is well and one that is not for each."""

import json
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

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
    """What programs print, by a word in how they are called; an exception is raised."""
    answers: Programs = {
        "POSTROUTING": b"",
        "FORWARD": b"-P FORWARD ACCEPT\n",
        "-4": b"[]",
        "-6": b"[]",
        "address": b"[]",
    }

    def run(argv: list[str], **_: Any) -> bytes:
        answer = next(output for word, output in answers.items() if word in argv)
        if isinstance(answer, Exception):
            raise answer
        return bytes(answer)

    monkeypatch.setattr(network_checks, "run", run)
    monkeypatch.setattr(iproute, "run", run)
    return answers


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
    _write_plugins(folder, "0.4.0")
    assert "CNI 0.4.0" in of_network("CNI plugins", config(folder)).message
    _write_plugins(folder, "1.0.0")
    assert of_network("CNI plugins", config(folder)).status == OK


def _write_plugins(folder: Path, version: str) -> None:
    for name in network_checks.PLUGINS:
        answer = json.dumps({"supportedVersions": [version]})
        (folder / name).write_text(f"#!/bin/sh\necho '{answer}'\n")
        (folder / name).chmod(0o755)


def test_iptables(config: Config, programs: Programs) -> None:
    assert of_network("iptables", config).status == OK
    programs["POSTROUTING"] = CommandFailed("no table", status=3)
    assert of_network("iptables", config).fix == "modprobe iptable_nat"
    programs["POSTROUTING"] = CommandFailed("not installed")
    assert of_network("iptables", config).fix == "apt-get install iptables"


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


def test_a_bridge_that_vms_miss(config: Config, programs: Programs) -> None:
    folder = Path(config.text("state_dir")) / "vms" / "fake-vm-1"
    folder.mkdir(parents=True)
    attachment = {
        "network": "bosh0",
        "interface": "eth0",
        "plugins": [{"type": "bridge", "bridge": "bosh0", "ipMasq": True}],
        "runtime": {},
        "result": {"ips": [{"address": "10.245.0.2/16"}]},
    }
    (folder / "network.json").write_text(json.dumps([attachment]))
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


def test_firewall(config: Config, programs: Programs, sysctls: Callable[[str, str], None]) -> None:
    assert of_network("firewall", config).status == OK
    programs["FORWARD"] = b"-P FORWARD DROP\n"
    assert "CNI-ADMIN" in of_network("firewall", config).fix
    sysctls("bridge/bridge-nf-call-iptables", "1")
    finding = of_network("firewall", config)
    assert finding.fix == "sysctl -w net.bridge.bridge-nf-call-iptables=0"
    programs["FORWARD"] += b"-A FORWARD -m comment -j CNI-FORWARD\n"
    assert "CNI-ADMIN" in of_network("firewall", config).fix


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
