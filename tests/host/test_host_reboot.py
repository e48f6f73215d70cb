"""A reboot of the host: VMs are shut down before it, and are back after it."""

import re

import pytest

from testing.patience import wait_for
from tests.support.installed_cpi import SERVICE, STATE, InstalledCpi

_SHUTDOWN_SECONDS = 90  # half of it in emulation; a unit that does not end takes 90 more

# In a VM: leaves a file when the VM is shut down in order.
_MARKER = """\
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
ExecStop=/bin/touch /var/vcap/data/stopped
"""


@pytest.fixture
def vms(cpi: InstalledCpi, systemd: str, runit: str) -> dict[str, str]:
    """Return two VMs with their addresses, the systemd one first."""
    made = dict([cpi.create_vm(systemd, memory=256), cpi.create_vm(runit)])
    for address in made.values():
        cpi.wait_for_agent(address)
    [vm, _] = made
    unit = "/etc/systemd/system/marker.service"
    cpi.inside(vm, f"cat >{unit} <<'END'\n{_MARKER}END\nsystemctl start marker")
    return made


def test_vms_are_shut_down_and_back(cpi: InstalledCpi, vms: dict[str, str]) -> None:
    guest = cpi.guest
    systemd_vm, _ = vms
    disk = cpi.create_disk()
    hint = cpi.call("attach_disk", systemd_vm, disk)
    cpi.inside(systemd_vm, f"echo data >{hint}/file")
    guest.run("systemctl", "enable", SERVICE)
    guest.reboot()
    wait_for(lambda: _is_active(cpi), "the service after the reboot", 600)
    for vm, address in vms.items():
        assert cpi.call("has_vm", vm) is True
        cpi.wait_for_agent(address)
    folder = guest.sh(f"find /sys/fs/cgroup -type d -name {systemd_vm}")
    assert guest.sh(f"cat {folder}/memory.max") == str(256 << 20)
    assert cpi.inside(systemd_vm, f"cat {hint}/file") == "data"
    assert guest.sh(f"ls {STATE}/vms/{systemd_vm}/data/stopped")
    cpi.call("detach_disk", systemd_vm, disk)
    forwarded = guest.sh("iptables -S FORWARD").splitlines()
    assert len(forwarded) == len(set(forwarded)), forwarded
    _check_shutdown(cpi)


def _is_active(cpi: InstalledCpi) -> bool:
    return cpi.guest.run("systemctl", "is-active", SERVICE, check=False).returncode == 0


def _check_shutdown(cpi: InstalledCpi) -> None:
    """Fail unless the boot before this one ended without a unit that had to be killed."""
    log = cpi.guest.sh("journalctl --boot=-1 --output=short-unix --no-pager")
    lines = log.splitlines()
    starts = [n for n, line in enumerate(lines) if "System is rebooting" in line]
    start = float(lines[starts[-1]].split()[0])
    seconds = float(lines[-1].split()[0]) - start
    killed = [line for line in lines if re.search("timed out. Killing|Killing process", line)]
    assert killed == []
    assert seconds < _SHUTDOWN_SECONDS, f"the shutdown took {seconds:.0f} s"
