"""`make install` on a real host: doctor, units, socket activation, and the demo beside Docker."""

import json
import re
from collections.abc import Iterator

import pytest

from testing.hosts.guest_host import GuestHost
from testing.hosts.guest_image import CHECKOUT
from testing.patience import wait_for
from tests.support.installed_cpi import SERVICE, SOCKET, SOCKET_PATH, InstalledCpi

CONTAINERD = "/run/containerd/containerd.sock"


def test_the_guest_is_a_real_host(guest: GuestHost) -> None:
    assert guest.sh("cat /proc/1/comm") == "systemd"
    assert guest.sh("stat -f -c %T /sys/fs/cgroup") == "cgroup2fs"
    assert guest.sh("cat /sys/module/apparmor/parameters/enabled") == "Y"
    for unit in ("docker", "containerd", "systemd-udevd"):
        assert guest.sh(f"systemctl is-active {unit}") == "active"


def test_no_unit_has_failed(installed: InstalledCpi) -> None:
    assert installed.guest.sh("systemctl list-units --failed --no-legend --plain") == ""


def test_doctor_has_no_failures(installed: InstalledCpi) -> None:
    done = installed.bosh_cpi("doctor", "--json", check=False)
    report = json.loads(done.stdout)
    assert [check for check in report["checks"] if check["status"] == "failure"] == []
    assert done.returncode == 0


def test_the_installed_configuration_is_found(installed: InstalledCpi) -> None:
    """Without --config: the file that `make install` writes, not the defaults."""
    installed.configure(state_dir="/var/lib/elsewhere")
    try:
        shown = installed.guest.run("bosh-cpi", "doctor", "--json", check=False).stdout
    finally:
        installed.configure()
    assert "/var/lib/elsewhere" in shown


def test_the_service_answers_and_reloads(installed: InstalledCpi) -> None:
    guest = installed.guest
    assert guest.sh(f"systemctl is-active {SERVICE}") == "active"
    health = f"curl --silent --fail --unix-socket {SOCKET_PATH} http://localhost/healthz"
    guest.sh(health)
    guest.run("systemctl", "reload", SERVICE)
    guest.run("systemctl", "restart", SERVICE)
    guest.sh(health)


@pytest.fixture
def socket_only(installed: InstalledCpi) -> Iterator[InstalledCpi]:
    """Leave systemd with the socket, and the service stopped."""
    guest = installed.guest
    guest.run("systemctl", "stop", SERVICE)
    guest.run("systemctl", "enable", "--now", SOCKET)
    yield installed
    guest.run("systemctl", "disable", "--now", SOCKET)
    guest.run("systemctl", "restart", SERVICE)


def test_a_call_starts_the_service(socket_only: InstalledCpi) -> None:
    guest = socket_only.guest
    assert guest.run("systemctl", "is-active", SERVICE, check=False).stdout.strip() == "inactive"
    assert re.fullmatch("660 root .*", guest.sh(f"stat -c '%a %U %G' {SOCKET_PATH}"))
    assert socket_only.call("has_vm", "vm-11111111-1111-4111-8111-111111111111") is False
    assert guest.sh(f"systemctl is-active {SERVICE}") == "active"


def test_the_socket_can_be_enabled_after_the_service(installed: InstalledCpi) -> None:
    guest = installed.guest
    try:
        guest.run("systemctl", "enable", "--now", SOCKET)
        guest.sh(f"curl --silent --fail --unix-socket {SOCKET_PATH} http://localhost/healthz")
    finally:
        guest.run("systemctl", "disable", "--now", SOCKET, check=False)
        guest.run("systemctl", "restart", SERVICE)


def test_a_killed_service_is_back(installed: InstalledCpi) -> None:
    guest = installed.guest
    before = guest.sh(f"systemctl show --property MainPID --value {SERVICE}")
    guest.run("systemctl", "kill", "--signal=KILL", SERVICE)

    def is_back() -> bool:
        state = guest.sh(f"systemctl show --property ActiveState,MainPID {SERVICE}")
        return "ActiveState=active" in state and f"MainPID={before}" not in state

    wait_for(is_back, "the service after SIGKILL")


@pytest.mark.parametrize("init", ["systemd", "runit"])
def test_the_demo_runs_on_the_systems_containerd(installed: InstalledCpi, init: str) -> None:
    guest = installed.guest
    docker = guest.sh("docker info --format '{{.ServerVersion}}'")
    namespaces = guest.sh("ctr namespaces ls -q")
    done = guest.run("make", "-C", CHECKOUT, "demo", f"ADDRESS={CONTAINERD}", f"INIT={init}")
    assert "delete_stemcell" in done.stdout
    assert guest.sh("ctr namespaces ls -q") == namespaces
    assert guest.sh("docker info --format '{{.ServerVersion}}'") == docker
