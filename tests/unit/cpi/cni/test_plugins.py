"""CNI configurations and results: the pure part. Real plugins run in tests/integration."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cpi.cni import plugins as cni
from cpi.cni.attachments import Attachment, addresses, attachments_in, mac_of, save
from cpi.errors import CloudError, NetworkNotFound
from cpi.model import Network, PortForward
from tests.support.golden_files import matches_golden

LAN = cni.Lan("bosh0", 1500, ("10.245.0.0/16", "fd45::/64"), Path("/var/lib/addresses"))
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
    assert addresses(result) == [("10.0.0.5", 24, "10.0.0.1"), ("fd00::5", 64, None)]
    assert mac_of(result) == "02:00:00:00:00:02"


def test_port_mappings() -> None:
    ports = [PortForward(8080, 80), PortForward(53, 53, "udp", "127.0.0.1")]
    assert cni.port_mappings(ports) == [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"},
    ]


@pytest.mark.parametrize("name", ["../bin/sh", "/bin/sh", ".hidden"])
def test_a_plugins_name_is_no_path(tmp_path: Path, name: str) -> None:
    attachment = Attachment("n", "eth0", ({"type": name},), {})
    with pytest.raises(CloudError, match="no name of a CNI plugin"):
        cni.Plugins([str(tmp_path)]).add(attachment, "id", tmp_path, print)


def test_a_missing_plugin_is_named(tmp_path: Path) -> None:
    attachment = Attachment("n", "eth0", ({"type": "nope"},), {})
    with pytest.raises(CloudError, match="containernetworking-plugins"):
        cni.Plugins([str(tmp_path)]).add(attachment, "id", tmp_path, print)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for plugins that log their calls."""
    return tmp_path


def _write_plugin(folder: Path, name: str, versions: list[str]) -> None:
    """Write a plugin that speaks these versions, as containernetworking's library checks them."""
    result = {"interfaces": [{"name": name}], "ips": [{"address": "10.0.0.5/24"}]}
    script = f"""#!{sys.executable}
import json, os, sys
document, command, versions = json.load(sys.stdin), os.environ["CNI_COMMAND"], {versions!r}
version = document["cniVersion"]
with open({str(folder / "calls")!r}, "a") as file:
    file.write(f"{name} {{command}} {{version}}\\n")
if command == "VERSION":
    print(json.dumps({{"cniVersion": version, "supportedVersions": versions}}))
elif version not in versions:
    print(json.dumps({{"code": 1, "msg": "incompatible CNI versions",
        "details": f'config is "{{version}}", plugin supports {{versions}}'}}))
    sys.exit(1)
elif command == "ADD":
    print(json.dumps({{**{result!r}, "cniVersion": version}}))
"""
    (folder / name).write_text(script)
    (folder / name).chmod(0o755)


def _calls(folder: Path) -> list[str]:
    calls = (folder / "calls").read_text().splitlines()
    (folder / "calls").unlink()
    return calls


def test_plugins_of_this_version_are_not_asked(folder: Path) -> None:
    _write_plugin(folder, "new", ["0.4.0", "1.0.0"])
    attachment = Attachment("n", "eth0", ({"type": "new"},), {})
    plugins = cni.Plugins([str(folder)])
    result = plugins.add(attachment, "id", folder, lambda _: None)
    plugins.delete(replace(attachment, result=result), "id", folder)
    assert _calls(folder) == ["new ADD 1.0.0", "new DEL 1.0.0"]


def test_plugins_of_an_older_version_get_the_newest_that_all_speak(folder: Path) -> None:
    _write_plugin(folder, "new", ["0.3.1", "0.4.0", "1.0.0"])
    _write_plugin(folder, "old", ["0.3.0", "0.3.1", "0.4.0"])
    plugins = cni.Plugins([str(folder)])
    attachment = Attachment("n", "eth0", ({"type": "new"}, {"type": "old"}), {})
    result = plugins.add(attachment, "id", folder, lambda _: None)
    assert result["cniVersion"] == "0.4.0"
    assert _calls(folder) == [
        "new ADD 1.0.0", "old ADD 1.0.0", "new VERSION 1.0.0", "old VERSION 1.0.0",
        "old DEL 0.4.0", "new DEL 0.4.0", "new ADD 0.4.0", "old ADD 0.4.0",
    ]  # fmt: skip
    plugins.add(attachment, "id", folder, lambda _: None)  # it has learned
    cni.Plugins([str(folder)]).delete(replace(attachment, result=result), "id", folder)
    assert _calls(folder) == [
        "new ADD 0.4.0", "old ADD 0.4.0", "old DEL 0.4.0", "new DEL 0.4.0",
    ]  # fmt: skip


def test_an_older_plugin_whose_add_was_killed_is_deleted(folder: Path) -> None:
    _write_plugin(folder, "old", ["0.4.0"])
    attachment = Attachment("n", "eth0", ({"type": "old"},), {})
    cni.Plugins([str(folder)]).delete(attachment, "id", folder)
    assert _calls(folder)[-1] == "old DEL 0.4.0"


def test_plugins_without_a_common_version_are_named(folder: Path) -> None:
    _write_plugin(folder, "oldest", ["0.2.0"])
    attachment = Attachment("n", "eth0", ({"type": "x", "ipam": {"type": "oldest"}},), {})
    _write_plugin(folder, "x", ["0.4.0"])
    with pytest.raises(CloudError, match=r"x speaks 0\.4\.0; oldest speaks 0\.2\.0"):
        cni.Plugins([str(folder)]).add(attachment, "id", folder, lambda _: None)


def test_records_of_vms_made_before_there_was_a_firewall_of_ours_are_read(tmp_path: Path) -> None:
    before = '[{"network": "bosh0", "interface": "eth0", "plugins": [{"type": "bridge"}], '
    (tmp_path / "network.json").write_text(
        before + '"runtime": {}, "arguments": "", "result": {}}]'
    )
    [attachment] = attachments_in(tmp_path / "network.json")
    assert attachment.bridge == ""
    save(tmp_path / "network.json", [attachment])
    assert attachments_in(tmp_path / "network.json") == [attachment]
