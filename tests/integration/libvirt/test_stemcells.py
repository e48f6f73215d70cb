"""Stemcells of other infrastructures: how their agents get settings and find disks."""

import subprocess
from pathlib import Path

import pytest

from testing.stemcells import stemcell_source
from testing.stemcells.machine_stemcell import stand_in_machine
from tests.integration.libvirt.conftest import opened
from tests.support.containerd.disk_actions import attach_and_mount, unmount_and_detach
from tests.support.containerd.machine import failing
from tests.support.libvirt.kvm_machine import KvmMachine
from tests.support.open_counter import counted_opens


@pytest.mark.parametrize("iaas", ["vsphere", "aws"])
def test_its_agent_has_settings_and_disks(
    machine: KvmMachine, clean: None, tmp_path_factory: pytest.TempPathFactory, iaas: str
) -> None:
    image = opened(stand_in_machine(iaas), tmp_path_factory)
    stemcell = machine.call("create_stemcell", str(image), {"infrastructure": iaas})
    guest = machine.create_guest(stemcell, agent_id=f"agent-{iaas}")
    guest.wait_for_agent()
    assert guest.agent("get_state")["agent_id"] == f"agent-{iaas}"
    assert "/var/vcap/data" in guest.sh("mount")
    disk = machine.create_disk(128, vm=guest.cid)
    hint = machine.call("attach_disk", guest.cid, disk)
    serial = disk.rsplit("-", 1)[1][:20]
    path = {"path": f"/dev/disk/by-id/virtio-{serial}"}
    assert hint == ({"id": serial} if iaas == "vsphere" else path)
    attach_and_mount(guest, disk)
    guest.sh("echo data > /var/vcap/store/file; sync")
    unmount_and_detach(guest, disk)
    attach_and_mount(guest, disk)
    assert guest.sh("cat /var/vcap/store/file") == "data"
    unmount_and_detach(guest, disk)
    machine.delete_all()
    machine.call("delete_stemcell", stemcell)


def test_a_raw_disk_and_its_qcow2_boot_alike(
    machine: KvmMachine, image: Path, clean: None, tmp_path: Path
) -> None:
    """A bare disk, in no archive, is taken as well; and the file given is not changed."""
    subprocess.run(["tar", "-xzf", image, "-C", tmp_path], check=True)
    (qcow2,) = tmp_path.iterdir()
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", qcow2, raw], check=True)
    before = raw.stat().st_mtime_ns
    with counted_opens(raw) as opens:
        stemcell = machine.call("create_stemcell", str(raw), {})
        assert opens() == 1
    assert machine.call("create_stemcell", str(raw), {}) == stemcell
    assert raw.stat().st_mtime_ns == before
    guest = machine.create_guest(stemcell)
    guest.wait_for_agent()
    machine.delete_all()
    machine.call("delete_stemcell", stemcell)


def test_the_stemcells_volume_is_not_written_to(
    machine: KvmMachine, stemcell: str, clean: None
) -> None:
    base = machine.host.state / "kvm" / f"{stemcell.rsplit('-', 1)[1]}.stemcell"
    before = base.stat()
    guest = machine.create_guest(stemcell)
    guest.wait_for_agent()
    guest.sh("dd if=/dev/urandom of=/root/file bs=1M count=4; sync")
    assert base.stat().st_mtime_ns == before.st_mtime_ns
    assert base.stat().st_mode & 0o022 == 0
    assert base.stat().st_blocks * 512 < base.stat().st_size  # its holes are holes


def test_a_root_file_system_and_a_light_stemcell_are_refused(
    machine: KvmMachine, clean: None, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    warden = opened(stemcell_source.stand_in("runit"), tmp_path_factory)
    light = tmp_path / "image"
    light.touch()
    for image, word in ((warden, "a root file system"), (light, "an OCI image")):
        error = failing(lambda image=image: machine.call("create_stemcell", str(image), {}))  # type: ignore[misc]
        assert error.type == "NotSupported"
        assert word in error.message
        assert "openstack-qcow2" in error.message


def test_a_disk_without_an_agent_is_refused(
    machine: KvmMachine, clean: None, tmp_path: Path
) -> None:
    raw = tmp_path / "image"
    subprocess.run(["truncate", "--size", "32M", raw], check=True)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", raw], check=True)
    before = machine.volumes()
    error = failing(lambda: machine.call("create_stemcell", str(raw), {}))
    assert error.type == "CloudError"
    assert "/var/vcap/bosh/agent.json" in error.message
    assert machine.volumes() == before


def test_versions_of_one_content_are_two_stemcells(
    machine: KvmMachine, image: Path, clean: None, tmp_path: Path
) -> None:
    """BOSH deletes the old one when the new one is in use."""
    link = tmp_path / "image"
    link.symlink_to(image)
    first, second = (
        machine.call("create_stemcell", str(link), {"name": "s", "version": version})
        for version in ("1", "2")
    )
    assert first != second
    guest = machine.create_guest(second)
    machine.call("delete_stemcell", first)
    assert guest.cid in failing(lambda: machine.call("delete_stemcell", second)).message
    machine.delete_all()
    machine.call("delete_stemcell", second)
