"""CNI configurations and results: the pure part. Real plugins run in tests/integration."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cpi.cni import plugins as cni
from cpi.errors import CloudError, NetworkNotFound
from cpi.model import Network, PortForward
from tests.support.golden_files import matches_golden

LAN = cni.Lan("bosh0", 1500, True, ("10.245.0.0/16", "fd45::/64"), Path("/var/lib/addresses"))
STATIC = Network("default", ip="10.0.0.5", prefix=24, gateway="10.0.0.1")


def test_static_bridge() -> None:
    plugins = cni.bridge_plugins(LAN, STATIC, default_route=True)
    assert matches_golden("cni_static", plugins)


def test_dynamic_bridge_of_both_ip_versions() -> None:
    plugins = cni.bridge_plugins(LAN, Network("default", "dynamic"), default_route=True)
    assert matches_golden("cni_dynamic", plugins)


def test_a_network_without_the_default_has_no_default_route() -> None:
    bridge = cni.bridge_plugins(LAN, STATIC, default_route=False)[0]
    assert bridge["ipam"]["routes"] == []


def test_a_network_without_gateway_gives_the_host_no_address() -> None:
    lone = replace(STATIC, gateway=None)
    assert cni.bridge_plugins(LAN, lone, default_route=False)[0]["isGateway"] is False


def test_host_networks_are_found_by_name(tmp_path: Path) -> None:
    (tmp_path / "10-a.conflist").write_text(json.dumps({"name": "a", "plugins": [{"type": "x"}]}))
    (tmp_path / "20-b.conf").write_text(json.dumps({"name": "b", "type": "y"}))
    (tmp_path / "README").write_text("not JSON")
    assert cni.host_plugins("a", tmp_path) == ({"type": "x"},)
    assert cni.host_plugins("b", tmp_path)[0]["type"] == "y"
    with pytest.raises(NetworkNotFound, match="found: a, b"):
        cni.host_plugins("c", tmp_path)


def test_a_broken_host_network_is_named(tmp_path: Path) -> None:
    (tmp_path / "10-a.conflist").write_text("{")
    with pytest.raises(CloudError, match=r"10-a\.conflist"):
        cni.host_plugins("a", tmp_path)


def test_results_are_read() -> None:
    result = {
        "interfaces": [
            {"name": "bosh0", "mac": "02:00:00:00:00:01"},
            {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/x"},
        ],
        "ips": [
            {"address": "10.0.0.5/24", "gateway": "10.0.0.1"},
            {"address": "fd00::5/64"},
        ],
    }
    assert cni.addresses(result) == [("10.0.0.5", 24, "10.0.0.1"), ("fd00::5", 64, None)]
    assert cni.mac_of(result) == "02:00:00:00:00:02"


def test_port_mappings() -> None:
    ports = [PortForward(8080, 80), PortForward(53, 53, "udp", "127.0.0.1")]
    assert cni.port_mappings(ports) == [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"},
    ]


@pytest.mark.parametrize("name", ["../bin/sh", "/bin/sh", ".hidden"])
def test_a_plugins_name_is_no_path(tmp_path: Path, name: str) -> None:
    attachment = cni.Attachment("n", "eth0", ({"type": name},), {})
    with pytest.raises(CloudError, match="no name of a CNI plugin"):
        cni.Plugins([str(tmp_path)]).add(attachment, "id", tmp_path, print)


def test_a_missing_plugin_is_named(tmp_path: Path) -> None:
    attachment = cni.Attachment("n", "eth0", ({"type": "nope"},), {})
    with pytest.raises(CloudError, match="containernetworking-plugins"):
        cni.Plugins([str(tmp_path)]).add(attachment, "id", tmp_path, print)
