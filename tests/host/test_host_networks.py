"""VMs' networks on a host with firewalls of others: Docker's, ufw, firewalld."""

import json
from collections.abc import Iterator

import pytest

from tests.support.containerd.machine import AGENT_PORT
from tests.support.installed_cpi import InstalledCpi, outside_host

HOST = "192.0.2.1"  # the guest host, as the other host sees it
OUTSIDE = ("ip", "netns", "exec", "outside")
PORT = 8868


@pytest.fixture(autouse=True)
def _deleted(cpi: InstalledCpi) -> Iterator[None]:
    """Delete a test's VMs before the next one makes its own."""
    yield
    cpi.delete_all()


@pytest.fixture(scope="module")
def outside(installed: InstalledCpi) -> Iterator[str]:
    """Yield the address of another host, with a server on port 80."""
    with outside_host(installed.guest) as address:
        serve = ["python3", "-m", "http.server", "80", "--directory", "/opt"]
        unit = ["systemd-run", "--quiet", "--unit=outside-server", *OUTSIDE, *serve]
        installed.guest.run(*unit)
        yield address
        installed.guest.run("systemctl", "stop", "outside-server")


def check_networks(cpi: InstalledCpi, stemcell: str, outside: str) -> None:
    """Make two VMs, and reach everything from everywhere."""
    first, address = cpi.create_vm(stemcell, ports=[f"{PORT}:{AGENT_PORT}"])
    second, other = cpi.create_vm(stemcell)
    for ip in (address, other):
        cpi.wait_for_agent(ip)
    reached = {
        "VM to VM": cpi.reaches(second, address, AGENT_PORT),
        "VM to host": cpi.reaches(first, HOST, 22),
        "VM to the outside": cpi.reaches(first, outside, 80),
        "host to a published port": cpi.can_connect(HOST, PORT),
        "outside to a published port": cpi.can_connect(HOST, PORT, *OUTSIDE),
    }
    assert [way for way, can in reached.items() if not can] == []


def test_beside_docker(cpi: InstalledCpi, runit: str, outside: str) -> None:
    """Docker drops what the host forwards; Docker's containers keep their networks, too."""
    assert "-P FORWARD DROP" in cpi.guest.sh("iptables -S FORWARD")
    check_networks(cpi, runit, outside)
    cpi.guest.sh("tar -C /usr/bin -c busybox | docker import - busybox")
    container = "docker run --rm busybox /busybox"
    cpi.guest.sh(f"{container} wget -q -O /dev/null http://{outside}/requirements.lock")


@pytest.fixture
def ufw(installed: InstalledCpi) -> Iterator[None]:
    guest = installed.guest
    guest.run("ufw", "allow", "22/tcp")
    guest.run("ufw", "--force", "enable")
    yield
    guest.run("ufw", "--force", "reset")
    guest.run("systemctl", "restart", "docker")  # ufw has taken its rules away


@pytest.mark.usefixtures("ufw")
def test_with_ufw(cpi: InstalledCpi, runit: str, outside: str) -> None:
    check_networks(cpi, runit, outside)


@pytest.fixture
def firewalld(installed: InstalledCpi) -> Iterator[None]:
    guest = installed.guest
    guest.run("systemctl", "start", "firewalld")
    yield
    guest.run("systemctl", "stop", "firewalld")
    guest.run("systemctl", "restart", "docker")


@pytest.mark.usefixtures("firewalld")
def test_with_firewalld(cpi: InstalledCpi, runit: str, outside: str) -> None:
    """VMs reach each other and the outside, or doctor says what to do, and then they do."""
    for fix in firewall_fixes(cpi):
        cpi.guest.sh(fix)
    check_networks(cpi, runit, outside)


def firewall_fixes(cpi: InstalledCpi) -> list[str]:
    """Return the commands with which doctor would mend firewalld's zones."""
    report = json.loads(cpi.bosh_cpi("doctor", "--json", check=False).stdout)
    return [check["fix"] for check in report["checks"] if "firewall-cmd" in check["fix"]]
