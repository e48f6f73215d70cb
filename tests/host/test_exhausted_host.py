"""create_vm on a host whose limits leave no room for another VM."""

from collections.abc import Iterator

import pytest

from tests.support.containerd.machine import CallFailed
from tests.support.installed_cpi import InstalledCpi

INSTANCES = "fs.inotify.max_user_instances"
FEW = 200

# Takes all inotify instances as soon as a VM has its cgroup, which is before its init runs.
_TAKE_ALL = """
import ctypes, os, time

libc = ctypes.CDLL(None)

def vms():
    return {entry.path for entry in os.scandir("/sys/fs/cgroup/bosh")}

before = vms()
while vms() <= before:
    time.sleep(0.005)
while libc.inotify_init1(os.O_CLOEXEC) >= 0:
    pass
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _few_instances(cpi: InstalledCpi) -> Iterator[None]:
    guest = cpi.guest
    before = guest.sh(f"sysctl -n {INSTANCES}")
    yield
    guest.run("sysctl", "-qw", f"{INSTANCES}={before}")


def test_a_vm_without_room_is_refused_with_the_limits_name(cpi: InstalledCpi, systemd: str) -> None:
    cpi.guest.run("sysctl", "-qw", f"{INSTANCES}=1")
    with pytest.raises(CallFailed, match=rf"limit {INSTANCES}=1 .*sysctl -w {INSTANCES}="):
        cpi.create_vm(systemd)


def test_a_systemd_that_ends_at_once_is_an_error_with_its_last_words(
    cpi: InstalledCpi, systemd: str
) -> None:
    guest = cpi.guest
    guest.run("sysctl", "-qw", f"{INSTANCES}={FEW}")
    guest.run("mkdir", "-p", "/sys/fs/cgroup/bosh")
    guest.run("systemd-run", "--quiet", "--unit=take-all", "python3", "-c", _TAKE_ALL)
    try:
        with pytest.raises(CallFailed, match="Too many open files"):
            cpi.create_vm(systemd)
    finally:
        guest.run("systemctl", "stop", "take-all")
    assert guest.sh("ctr -n bosh tasks ls -q") == ""
    _, address = cpi.create_vm(systemd)
    cpi.wait_for_agent(address)
    cpi.delete_all()
