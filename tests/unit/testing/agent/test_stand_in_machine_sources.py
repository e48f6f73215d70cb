"""The settings sources of the stand-in agent of a machine, and the network it configures."""

import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from testing.agent.stand_in_disks import AgentError
from testing.agent.stand_in_machine_network import (
    MachineNetwork,
    commands,
    name_servers,
    preconfigured,
)
from testing.agent.stand_in_machine_sources import CDROM, Sources, user_data


class Drives:
    """Recorded programs, and files on a mounted CD-ROM; below a folder as root."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls, self.files = root, list[str](), dict[str, str]()

    def __call__(self, argv: Sequence[str]) -> str:
        self.calls.append(" ".join(argv))
        if argv[0] == "mount":
            for name, text in self.files.items():
                (Path(argv[-1]) / name).write_text(text)
        return ""


@pytest.fixture
def machine(tmp_path: Path) -> Drives:
    (tmp_path / "etc").mkdir()
    return Drives(tmp_path)


STATIC: dict[str, Any] = {
    "type": "manual",
    "ip": "10.0.0.5",
    "netmask": "255.255.255.0",
    "gateway": "10.0.0.1",
}
SIX: dict[str, Any] = {
    "ip": "fd00::5",
    "netmask": "ffff:ffff:ffff:ffff::",
    "gateway": "fd00::1",
    "default": ["gateway"],
    "mac": "b",
}


def lines(networks: dict[str, dict[str, Any]], cards: dict[str, str]) -> list[str]:
    """Return the commands for networks, one a line."""
    return [" ".join(argv) for argv in commands(networks, cards)]


def test_every_network_on_its_card() -> None:
    networks = {"four": {**STATIC, "mac": "a", "default": ["dns"], "dns": ["1.1.1.1"]}, "six": SIX}
    assert lines(networks, {"a": "eth0", "b": "eth1"}) == [
        "ip address replace 10.0.0.5/24 dev eth0",
        "ip link set dev eth0 up",
        "ip address replace fd00::5/64 dev eth1 nodad",
        "ip link set dev eth1 up",
        "ip -6 route replace default via fd00::1 dev eth1",
    ]
    assert name_servers(networks) == ["1.1.1.1"]
    assert name_servers({"four": STATIC, "six": SIX}) == []


def test_addresses_by_dhcp() -> None:
    ask = "udhcpc -q -f -n -t 5 -T 1 -i eth0"
    for network in ({"type": "dynamic"}, {"ip": "10.0.0.5", "prefix": "24"}, {"use_dhcp": True}):
        assert lines({"a": network}, {"a": "eth0"})[-1] == ask
    assert lines({}, {"a": "eth0"})[-1] == ask
    dynamic = {**STATIC, "type": "dynamic", "mac": "a", "alias": "eth7"}
    assert lines({"a": dynamic}, {"a": "eth0"})[0] == "ip address replace 10.0.0.5/24 dev eth0"


def test_routes_and_networks_without_cards() -> None:
    route = {"destination": "10.1.0.0", "netmask": "255.255.0.0", "gateway": "10.0.0.2"}
    networks = {"a": {**STATIC, "routes": [route]}, "vip": {"type": "vip", "ip": "1.2.3.4"}}
    assert lines(networks, {"a": "eth0"})[2:] == [
        "ip -4 route replace default via 10.0.0.1 dev eth0",
        "ip -4 route replace 10.1.0.0/16 via 10.0.0.2 dev eth0",
    ]
    with pytest.raises(AgentError, match="No device found for network 'a' with MAC address 'B'"):
        lines({"a": {**STATIC, "mac": "B"}}, {"b": "eth0"})
    with pytest.raises(AgentError, match="zeros within"):
        lines({"a": {**SIX, "netmask": "ffff:0:ffff::"}}, {"b": "eth0"})
    with pytest.raises(AgentError, match="Calculating"):
        lines({"a": {**STATIC, "netmask": "x"}}, {"b": "eth0"})


def test_networks_that_the_cpi_has_configured(machine: Drives) -> None:
    networks = {"a": {**STATIC, "preconfigured": True, "dns": ["10.0.0.2"]}}
    assert preconfigured(networks)
    MachineNetwork(machine, machine.root).set_up(networks)
    assert machine.calls == []
    assert "10.0.0.2" in (machine.root / "etc/resolv.conf").read_text()
    assert not preconfigured({**networks, "b": STATIC})


def test_settings_from_a_cdrom(machine: Drives) -> None:
    ejected: list[Path] = []
    option = {"Type": "CDROM", "FileName": "env"}
    sources = Sources([option], machine, lambda: None, machine.root)
    sources.eject = ejected.append
    machine.files = {"env": '{"agent_id": "1"}'}
    assert sources.read() == {"agent_id": "1"}
    assert machine.calls[1].startswith(f"mount -o ro {CDROM} ")
    assert ejected == [machine.root / "dev/sr0"]


def test_settings_from_nowhere(machine: Drives) -> None:
    options = [{"Type": "File", "SettingsPath": "/none"}, {"Type": "InstanceMetadata"}]
    with pytest.raises(AgentError, match=r"File: .*; InstanceMetadata: not known"):
        Sources(options, machine, lambda: None, machine.root).read()


class Metadata(BaseHTTPRequestHandler):
    """A metadata service that requires a token."""

    def do_PUT(self) -> None:
        self.answer(b"token" if self.path == "/token" else b"")

    def do_GET(self) -> None:
        known = self.headers.get("X-aws-ec2-metadata-token") == "token"
        self.answer(b'{"agent_id": "1"}' if known and self.path == "/user" else b"{}")

    def answer(self, body: bytes) -> None:
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


def test_settings_from_a_metadata_service(machine: Drives) -> None:
    server, calls = HTTPServer(("127.0.0.1", 0), Metadata), list[str]()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    option = {"Type": "HTTP", "URI": f"http://127.0.0.1:{server.server_port}"}
    option = {**option, "UserDataPath": "/user", "TokenPath": "/token"}

    def read(**changes: str) -> dict[str, Any]:
        network = lambda: calls.append("dhcp")  # noqa: E731
        return Sources([{**option, **changes}], machine, network, machine.root).read()

    try:
        assert read() == {"agent_id": "1"}
        with pytest.raises(AgentError, match="does not provide settings"):
            read(TokenPath="/other")
    finally:
        server.shutdown()
        server.server_close()
    assert calls == ["dhcp", "dhcp"]


def test_user_data() -> None:
    assert user_data(b'{"a": 1}') == {"a": 1}
    assert user_data(b'"eyJhIjogMX0"') == {"a": 1}
    for body in (b"[]", b"W10"):
        with pytest.raises(ValueError):
            user_data(body)
