"""Containers and full VMs in one deployment: one bridge, one stemcell, disks that move."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testing.stemcells import stemcell_source
from tests.integration.libvirt.conftest import opened
from tests.support.containerd.disk_actions import attach_and_mount, unmount_and_detach
from tests.support.containerd.machine import failing
from tests.support.libvirt.kvm_machine import KvmMachine

CONTAINER = {"runtime": "containerd"}


def network(ip: str) -> dict[str, Any]:
    return {
        "default": {
            "type": "manual",
            "ip": ip,
            "netmask": "255.255.255.0",
            "gateway": "10.247.0.1",
            "default": ["dns", "gateway"],
            "cloud_properties": {"bridge": "bosh7"},
        }
    }


@pytest.fixture(scope="module")
def warden(machine: KvmMachine, tmp_path_factory: pytest.TempPathFactory) -> str:
    image = opened(stemcell_source.stand_in("runit"), tmp_path_factory)
    machine.configure(runtimes=["containerd"])
    return str(machine.call("create_stemcell", str(image), {}))


@pytest.fixture
def machines(machine: KvmMachine, clean: None) -> Iterator[KvmMachine]:
    machine.configure(runtimes=["containerd"])
    yield machine
    machine.configure(runtimes=["containerd"])
    machine.delete_all()


def test_a_disk_moves_between_a_container_and_a_vm_on_one_bridge(
    machines: KvmMachine, stemcell: str, warden: str
) -> None:
    guest = machines.create_guest(stemcell, networks=network("10.247.0.10"))
    container = machines.create_vm(warden, CONTAINER, network("10.247.0.11"))
    assert (guest.cid.split("-")[0], container.cid.split("-")[0]) == ("kvm", "containerd")
    disk = machines.create_disk(256, vm=container.cid)
    container.wait_for_agent()
    attach_and_mount(container, disk)
    container.sh("echo from a container > /var/vcap/store/one; sync")
    guest.wait_for_agent()
    answer = "python3 -c \"import socket; socket.create_connection(('{}', 6868), 9)\""
    container.sh(answer.format("10.247.0.10"))
    guest.sh(answer.format("10.247.0.11"))
    error = failing(lambda: machines.call("attach_disk", guest.cid, disk))
    assert container.cid in error.message
    unmount_and_detach(container, disk)
    attach_and_mount(guest, disk)
    assert guest.sh("cat /var/vcap/store/one") == "from a container"
    guest.sh("echo from a machine > /var/vcap/store/two; sync")
    assert machines.call("get_disks", guest.cid) == [disk]
    error = failing(lambda: machines.call("attach_disk", container.cid, disk))
    assert guest.cid in error.message
    assert guest.cid in failing(lambda: machines.call("delete_disk", disk)).message
    snapshot = machines.call("snapshot_disk", disk, {"of": "a disk of another runtime"})
    machines.call("resize_disk", disk, 512)
    unmount_and_detach(guest, disk)
    attach_and_mount(guest, disk)  # now its agent makes use of the room
    unmount_and_detach(guest, disk)
    attach_and_mount(container, disk)
    content = container.sh("cat /var/vcap/store/one /var/vcap/store/two")
    assert content == "from a container\nfrom a machine"
    assert int(container.sh("df -m /var/vcap/store | tail -1").split()[1]) > 400
    unmount_and_detach(container, disk)
    machines.bosh_cpi("disk", "fsck", disk)
    machines.bosh_cpi("disk", "restore", snapshot, "--yes", check=False)
    machines.call("delete_snapshot", snapshot)


def test_calls_find_their_runtime_whatever_the_default_is(
    machines: KvmMachine, stemcell: str
) -> None:
    guest = machines.create_guest(stemcell)
    disk = machines.create_disk(64, vm=guest.cid)
    assert disk.startswith("kvm-disk-")
    machines.configure(runtime="containerd", runtimes=["kvm"])
    assert machines.call("has_vm", guest.cid) is True
    assert machines.call("attach_disk", guest.cid, disk)
    assert machines.call("get_disks", guest.cid) == [disk]
    machines.call("set_vm_metadata", guest.cid, {"a": "b"})
    machines.call("delete_vm", guest.cid)
    assert machines.call("has_vm", guest.cid) is False
    assert machines.call("has_disk", disk) is True


@pytest.mark.parametrize(("default", "other"), [("containerd", "kvm"), ("kvm", "containerd")])
def test_a_stemcell_uploaded_once_serves_both(
    machines: KvmMachine, image: Path, default: str, other: str
) -> None:
    machines.configure(runtime=default, runtimes=[other])
    stemcell = machines.call("create_stemcell", str(image), {})
    assert stemcell.startswith(f"{default}-stemcell-")
    guest = machines.create_guest(stemcell, properties={"runtime": "kvm"})
    container = machines.create_vm(stemcell, {"runtime": "containerd"})
    container.wait_for_agent()
    guest.wait_for_agent()
    error = failing(lambda: machines.call("delete_stemcell", stemcell))
    assert guest.cid in error.message
    machines.delete_all()
    machines.call("delete_stemcell", stemcell)
    for runtime in ("kvm", "containerd"):
        call: Any = (
            "create_vm",
            "a",
            stemcell,
            {"runtime": runtime},
            network("10.247.0.9"),
            [],
            {},
        )
        assert failing(lambda call=call: machines.call(*call)).type == "StemcellNotFound"  # type: ignore[misc]


def test_a_stemcell_without_a_kernel_is_only_for_containers(
    machines: KvmMachine, warden: str
) -> None:
    assert warden.startswith("containerd-stemcell-")
    error = failing(lambda: machines.create_guest(warden))
    assert error.type == "StemcellNotFound"
    assert "no kernel" in error.message
