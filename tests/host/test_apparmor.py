"""Full VMs on a host where AppArmor confines QEMU."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from testing.stemcells.machine_stemcell import stand_in_machine
from tests.support.installed_cpi import SERVICE, InstalledCpi

# Emulated in emulation: only as much as has to be, and without waiting for its agent, which takes
# a quarter of an hour. QEMU has opened all files when the VM runs; its firmware does the rest.
SMALL: dict[str, Any] = {"memory": 192, "ephemeral_disk": 128}


@pytest.fixture(scope="module")
def both(installed: InstalledCpi) -> Iterator[InstalledCpi]:
    """Configure both runtimes, and containers alone afterwards."""
    installed.configure(runtimes=["containerd", "kvm"], kvm={"accelerator": "qemu"})
    installed.guest.run("systemctl", "restart", SERVICE)
    yield installed
    installed.delete_all()
    installed.configure()
    installed.guest.run("systemctl", "restart", SERVICE)


@pytest.fixture(scope="module")
def machine(both: InstalledCpi) -> str:
    return both.stemcell(stand_in_machine(), runtime="kvm")


def test_a_full_vm_runs_confined(both: InstalledCpi, machine: str) -> None:
    cpi, guest = both, both.guest
    since = guest.sh("date +%s")
    vm, _ = cpi.create_vm(machine, runtime="kvm", **SMALL)
    assert guest.sh(f"virsh -q domstate {vm}") == "running"
    uuid = guest.sh(f"virsh -q domuuid {vm}")
    status = json.loads(guest.sh("aa-status --json"))
    assert status["profiles"][f"libvirt-{uuid}"] == "enforce"
    disk = cpi.create_disk()
    cpi.call("attach_disk", vm, disk)
    assert disk in cpi.call("get_disks", vm)
    kernel = guest.sh(f"journalctl --dmesg --since=@{since} --output=cat")
    denied = [line for line in kernel.splitlines() if "DENIED" in line and uuid in line]
    assert denied == []
