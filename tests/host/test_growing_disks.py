"""Persistent disks on a host with udev and its rules for block devices."""

from collections.abc import Iterator

import pytest

from tests.support.installed_cpi import STATE, InstalledCpi


@pytest.fixture(scope="module")
def vm(cpi: InstalledCpi, runit: str) -> Iterator[str]:
    cid, _ = cpi.create_vm(runit)
    yield cid
    cpi.delete_all()


def test_a_disk_is_used_and_nothing_else_takes_it(cpi: InstalledCpi, vm: str) -> None:
    """udev, udisks2 and partition scanning see the loop device, and leave it alone."""
    disk = cpi.create_disk(128)
    hint = cpi.call("attach_disk", vm, disk)
    cpi.inside(vm, f"echo data >{hint}/file && sync")
    cpi.guest.run("udevadm", "settle")
    snapshot = cpi.call("snapshot_disk", disk, {})
    cpi.call("detach_disk", vm, disk)
    assert disk not in cpi.guest.sh("losetup --list --noheadings")
    cpi.bosh_cpi("disk", "fsck", disk)
    cpi.call("delete_snapshot", snapshot)


@pytest.mark.parametrize(("filesystem", "size"), [("ext4", 64), ("xfs", 304)])
def test_a_disk_grows_with_its_data(cpi: InstalledCpi, vm: str, filesystem: str, size: int) -> None:
    """Mounted, by the kernel: where it may, no copy is made."""
    disk = cpi.create_disk(size, filesystem=filesystem)
    hint = cpi.call("attach_disk", vm, disk)
    cpi.inside(vm, f"echo data >{hint}/file")
    cpi.call("detach_disk", vm, disk)
    inode = cpi.guest.sh(f"stat -c %i {STATE}/disks/{disk}.raw")
    cpi.call("resize_disk", disk, size + 448)
    assert cpi.guest.sh(f"stat -c %i {STATE}/disks/{disk}.raw") == inode
    cpi.call("attach_disk", vm, disk)
    assert int(cpi.inside(vm, f"df -m --output=size {hint} | tail -n1")) > size + 300
    assert cpi.inside(vm, f"cat {hint}/file") == "data"
    cpi.call("detach_disk", vm, disk)
