"""Persistent disks of running VMs: hints for agents, several disks, growth, snapshots."""

import json
from collections.abc import Callable

import pytest

from testing.patience import PATIENCE
from tests.support.containerd.disk_actions import attach_and_mount, unmount_and_detach
from tests.support.containerd.machine import failing
from tests.support.libvirt.kvm_machine import Guest, KvmMachine

Make = Callable[..., Guest]


@pytest.fixture
def guest(make_guest: Make) -> Guest:
    vm = make_guest()
    vm.wait_for_agent()
    return vm


def test_the_agents_own_flow_from_disk_to_disk(machine: KvmMachine, guest: Guest) -> None:
    """Attach, mount, a second disk, migrate, detach the first; as the director changes a size."""
    first = machine.create_disk(128, vm=guest.cid)
    attach_and_mount(guest, first)
    guest.sh("echo data > /var/vcap/store/file; sync")
    second = machine.create_disk(256, vm=guest.cid)
    attach_and_mount(guest, second)
    assert sorted(machine.call("get_disks", guest.cid)) == sorted([first, second])
    guest.agent("migrate_disk", first, second)
    unmount_and_detach(guest, first)
    assert guest.sh("cat /var/vcap/store/file") == "data"
    assert guest.agent("list_disk") == [second]
    assert machine.call("get_disks", guest.cid) == [second]
    # Turned off at once, it might not have written yet what its agent knows of disks.
    machine.configure({"shutdown_timeout": PATIENCE})
    machine.call("reboot_vm", guest.cid)
    guest.wait_for_agent()
    assert guest.sh("cat /var/vcap/store/file") == "data"
    unmount_and_detach(guest, second)


def test_a_snapshot_of_a_disk_in_use_has_that_moments_data(
    machine: KvmMachine, guest: Guest
) -> None:
    disk = machine.create_disk(256, vm=guest.cid)
    attach_and_mount(guest, disk)
    guest.sh("echo before > /var/vcap/store/file; sync")
    guest.sh("(while :; do date >> /var/vcap/store/log; sync; done) >/dev/null 2>&1 & ")
    snapshot = machine.call("snapshot_disk", disk, {"why": "test"})
    guest.sh("pkill -f 'while :' ; echo after > /var/vcap/store/file; sync", check=False)
    image = machine.host.state / "disks" / "snapshots" / snapshot / "disk.raw"
    assert image.stat().st_blocks * 512 < 64 << 20  # its holes are holes
    assert image.stat().st_mode & 0o777 == 0o600
    unmount_and_detach(guest, disk)
    machine.bosh_cpi("disk", "restore", snapshot, "--yes")
    machine.bosh_cpi("disk", "fsck", disk, "--repair")
    attach_and_mount(guest, disk)
    assert guest.sh("cat /var/vcap/store/file") == "before"
    unmount_and_detach(guest, disk)
    machine.call("delete_snapshot", snapshot)


def test_a_disk_grows_in_a_running_vm(machine: KvmMachine, guest: Guest) -> None:
    disk = machine.create_disk(128, vm=guest.cid)
    attach_and_mount(guest, disk)
    guest.sh("echo data > /var/vcap/store/file; sync")
    machine.call("resize_disk", disk, 512)
    device = guest.sh("readlink -f /dev/disk/by-id/virtio-" + disk.rsplit("-", 1)[1][:20])
    assert guest.sh(f"blockdev --getsize64 {device}") == str(514 << 20)
    assert machine.facts(disk)["size"] == 512
    unmount_and_detach(guest, disk)
    attach_and_mount(guest, disk)
    assert int(guest.sh("df -m /var/vcap/store | tail -1").split()[1]) > 400
    assert guest.sh("cat /var/vcap/store/file") == "data"
    unmount_and_detach(guest, disk)
    machine.call("resize_disk", disk, 640)  # now as a file, by the CPI
    attach_and_mount(guest, disk)
    assert int(guest.sh("df -m /var/vcap/store | tail -1").split()[1]) > 500
    unmount_and_detach(guest, disk)


def test_a_disk_that_grew_and_was_not_mounted_again_gets_its_room(
    machine: KvmMachine, guest: Guest
) -> None:
    disk = machine.create_disk(128, vm=guest.cid)
    attach_and_mount(guest, disk)
    guest.sh("echo data > /var/vcap/store/file; sync")
    machine.call("resize_disk", disk, 512)
    unmount_and_detach(guest, disk)
    superblock = machine.host.run("dumpe2fs", "-h", f"{machine.image(disk)}?offset=1048576").stdout
    assert int(superblock.split("Block count:")[1].split()[0]) * 4096 == 512 << 20
    attach_and_mount(guest, disk)
    assert guest.sh("cat /var/vcap/store/file") == "data"
    unmount_and_detach(guest, disk)


def test_a_preallocated_disk_keeps_its_room(machine: KvmMachine, guest: Guest) -> None:
    disk = machine.create_disk(128, {"preallocate": True}, vm=guest.cid)
    attach_and_mount(guest, disk)
    guest.sh("fstrim /var/vcap/store", check=False)
    assert machine.image(disk).stat().st_blocks * 512 >= 128 << 20
    error = failing(lambda: machine.call("resize_disk", disk, 256))
    assert "preallocated" in error.message
    unmount_and_detach(guest, disk)
    machine.call("resize_disk", disk, 256)
    assert machine.image(disk).stat().st_blocks * 512 >= 256 << 20


def test_agents_of_version_1_find_hints_in_their_settings(
    machine: KvmMachine, guest: Guest
) -> None:
    disk = machine.create_disk(128, vm=guest.cid)
    machine.call("attach_disk", guest.cid, disk, api_version=1)
    machine.call("reboot_vm", guest.cid)
    guest.wait_for_agent()
    settings = json.loads(guest.sh("cat /var/vcap/bosh/settings.json"))
    serial = disk.rsplit("-", 1)[1][:20]
    assert settings["disks"]["persistent"] == {disk: {"path": f"/dev/disk/by-id/virtio-{serial}"}}


def test_a_deleted_vms_disk_goes_to_another(
    machine: KvmMachine, guest: Guest, make_guest: Make
) -> None:
    disk = machine.create_disk(128, vm=guest.cid)
    attach_and_mount(guest, disk)
    guest.sh("echo data > /var/vcap/store/file; sync")
    image = machine.image(disk)
    machine.call("delete_vm", guest.cid)
    owner = image.stat()
    assert (owner.st_uid, owner.st_gid, owner.st_mode & 0o777) == (0, 0, 0o600)
    other = make_guest()
    other.wait_for_agent()
    attach_and_mount(other, disk)
    assert other.sh("cat /var/vcap/store/file") == "data"
