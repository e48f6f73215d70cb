"""`bosh-cpi setup` and `doctor --fix`: what they propose mends what was broken."""

import json
from collections.abc import Iterator

import pytest

from tests.support.installed_cpi import CONFIG, SERVICE, SOCKET, InstalledCpi

INSTANCES = "fs.inotify.max_user_instances"
SETTINGS = "/etc/sysctl.d/60-bosh-containerd-cpi.conf"
UNIT = f"/etc/systemd/system/{SERVICE}"
# By (scope, check): what breaks it.
BREAKS = {
    ("host", "configuration"): f"chmod 644 {CONFIG}",
    ("host", "preparation"): f"rm {SETTINGS} {UNIT} && sysctl -qw {INSTANCES}=200",
    ("host", "service"): f"systemctl stop {SOCKET}",
    ("network", "bridge"): "ip link set bosh0 down",
    ("network", "forwarding"): "sysctl -qw net.ipv4.ip_forward=0",
    ("network", "rp_filter"): "sysctl -qw net.ipv4.conf.bosh0.rp_filter=1",
    ("containerd", "containerd"): "systemctl stop containerd",
}


@pytest.fixture(scope="module")
def prepared(cpi: InstalledCpi, runit: str) -> Iterator[InstalledCpi]:
    """Yield a host with a bridge, since a VM was there, and with a secret to protect."""
    cpi.create_vm(runit)
    cpi.delete_all()
    cpi.configure(agent={"mbus": "https://mbus:secret@0.0.0.0:6868"})
    cpi.guest.run("chmod", "600", CONFIG)
    yield cpi
    cpi.configure()
    cpi.guest.run("systemctl", "restart", SERVICE)


def problems(cpi: InstalledCpi, *options: str) -> set[tuple[str, str]]:
    """Run doctor; return what is not well, by scope and check."""
    shown = cpi.bosh_cpi("doctor", "--json", *options, check=False).stdout
    checks = json.loads(shown)["checks"]
    return {(check["scope"], check["check"]) for check in checks if check["status"] != "ok"}


def test_doctor_mends_what_is_broken(prepared: InstalledCpi) -> None:
    guest = prepared.guest
    before = problems(prepared)
    assert not before & set(BREAKS)
    for script in BREAKS.values():
        guest.sh(script)
    # While the bridge is down, they do not matter.
    unseen = {("network", "forwarding"), ("network", "rp_filter")}
    assert set(BREAKS) - problems(prepared) == unseen
    assert problems(prepared, "--fix", "--yes") <= before
    assert guest.sh(f"systemctl is-active {SERVICE}") == "active"
    assert guest.sh("sysctl -n net.ipv4.ip_forward net.ipv4.conf.bosh0.rp_filter") == "1\n2"
    assert int(guest.sh(f"sysctl -n {INSTANCES}")) > 200


def test_setup_shows_what_it_would_do(prepared: InstalledCpi) -> None:
    guest = prepared.guest
    guest.run("sysctl", "-qw", f"{INSTANCES}=200")
    shown = prepared.bosh_cpi("setup", "--dry-run").stdout
    assert f"raise {INSTANCES} from 200 to " in shown
    assert "nothing was done" in shown
    refused = prepared.bosh_cpi("setup", check=False)
    assert (refused.returncode, "pass --yes to confirm" in refused.stderr) == (1, True)
    assert guest.sh(f"sysctl -n {INSTANCES}") == "200"
    prepared.bosh_cpi("setup", "--yes")
    assert int(guest.sh(f"sysctl -n {INSTANCES}")) > 200
    assert "nothing to do" in prepared.bosh_cpi("setup", "--dry-run").stdout
