"""`make install` over an installed CPI, while calls are made."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testing.hosts.guest_image import CHECKOUT
from tests.support.certificates import CA
from tests.support.installed_cpi import CONFIG, SERVICE, SOCKET, SOCKET_PATH, InstalledCpi

CALLER = Path(__file__).with_name("upgrade_caller.py")
NEXT = "99.0.0"
PORT = 9443


@pytest.fixture
def tls(cpi: InstalledCpi, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Have the service listen on TCP too; yield what a client needs."""
    guest, folder = cpi.guest, "/root/pki"
    authority = CA(tmp_path / "pki")
    server, client = authority.server("127.0.0.1"), authority.client("director")
    files = {"ca": authority.certificate, "certificate": client.certificate}
    files |= {"private_key": client.key, "server": server.certificate, "server_key": server.key}
    guest.run("mkdir", "-p", folder)
    for name, file in files.items():
        guest.run("tee", f"{folder}/{name}", input=file.read_text())
    service = {"tls_certificate": "server", "tls_private_key": "server_key", "tls_client_ca": "ca"}
    keys = {key: f"{folder}/{name}" for key, name in service.items()}
    cpi.configure(service={"tcp": f"127.0.0.1:{PORT}", **keys})
    cpi.bosh_cpi("setup", "--yes")  # the service restarts with the sockets
    sent = {name: f"{folder}/{name}" for name in ("ca", "certificate", "private_key")}
    yield {"endpoint": f"https://127.0.0.1:{PORT}", "tls": sent}
    cpi.configure()
    cpi.bosh_cpi("setup", "--yes")


def test_no_call_fails_during_an_upgrade(
    cpi: InstalledCpi, runit: str, tls: dict[str, Any]
) -> None:
    """In process, and through the service: systemd holds its sockets while it restarts."""
    guest = cpi.guest
    vm, address = cpi.create_vm(runit)
    assert str(PORT) in guest.sh(f"systemctl show --property Listen {SOCKET}")
    guest.run("tee", "/root/caller.py", input=CALLER.read_text())
    ways = {"cpi": {}, "service": {"endpoint": f"unix://{SOCKET_PATH}"}, "tls": tls}
    caller = ["python3", "/root/caller.py", CONFIG, json.dumps(ways), vm, "/root/calls"]
    guest.run("systemd-run", "--quiet", "--unit=caller", *caller)
    bump = ["sed", "-i", f's/^version = .*/version = "{NEXT}"/', f"{CHECKOUT}/pyproject.toml"]
    guest.run(*bump)
    guest.install()  # which restarts the service
    guest.run("systemctl", "stop", "caller")
    lines = guest.sh("cat /root/calls").splitlines()
    assert [line for line in lines if not line.endswith(" ok")] == []
    for way in ways:
        assert len([line for line in lines if line.startswith(f"{way} ")]) > 10
    assert NEXT in cpi.bosh_cpi("--version").stdout
    program = guest.sh(f"systemctl show --property MainPID --value {SERVICE}")
    release = guest.sh("readlink /opt/bosh-containerd-cpi/current")
    assert release in guest.sh(f"tr '\\0' ' ' </proc/{program}/cmdline")
    cpi.wait_for_agent(address)
    assert cpi.call("has_vm", vm) is True
