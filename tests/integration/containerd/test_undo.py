"""A create that fails at any step leaks nothing; delete_vm removes what a killed one leaks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.containerd.broken_calls import broken, drop_leases, fails
from tests.support.containerd.machine import VM, Machine

CREATE_VM = [
    "runtimes.containerd.vm_folder:VMFolder.create",
    "runtimes.containerd.vm_folder:VMFolder.limit_data",
    "runtimes.containerd.vm_folder:make_sparse",
    "runtimes.containerd.vm_folder:make_ext4",
    "runtimes.containerd.vm_folder:_mount",
    "cpi.host.syscalls:mount_shared_tmpfs",
    "cpi.cni.ports:Ports.reserve",
    "runtimes.containerd.vm_folder:VMFolder.pin_namespaces",
    "cpi.cni.networks:save",
    "cpi.cni.plugins:Plugins.add",
    "cpi.cni.firewall:Firewall.admit",
    "cpi.cni.networks:Networks.connect",
    "runtimes.containerd.image_store:ImageStore.prepare",
    "runtimes.containerd.rootfs:write",
    "runtimes.containerd.oci_spec:render",
    "runtimes.containerd.containers:Containers.create",
    "runtimes.containerd.containers:Containers.start",
    "cpi.host.headroom:require",
    "runtimes.containerd.console_log:logger",
    "runtimes.containerd.init_watch:InitWatch.begin",
    "runtimes.containerd.init_watch:InitWatch.has_come_up",
]
CREATE_DISK = [
    "cpi.disks.raw_image:make_sparse",
    "cpi.disks.raw_image:write_table",
    "cpi.disks.raw_image:create",
    "cpi.disks.disk_store:DiskStore.save",
]
CREATE_STEMCELL = [
    "runtimes.containerd.image_store:ImageStore.prepare",
    "runtimes.containerd.image_store:ImageStore.write_content",
    "stemcell_convert.unpack:unpack",
    "runtimes.containerd.image_writer:read_facts",
    "runtimes.containerd.image_store:ImageStore.commit",
    "runtimes.containerd.image_store:ImageStore.apply",
    "runtimes.containerd.image_store:ImageStore.create_image",
]
PROPERTIES = {"ephemeral_disk": 64, "ports": ["8871:80"]}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("target", CREATE_VM)
def test_create_vm(machine: Machine, stemcell: str, clean: None, target: str, when: str) -> None:
    networks = {"n": {"type": "dynamic"}}
    fails(machine, target, when, "create_vm", "a", stemcell, PROPERTIES, networks, [], {})


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("target", CREATE_DISK)
def test_create_disk(machine: Machine, clean: None, target: str, when: str) -> None:
    fails(machine, target, when, "create_disk", 64, {}, None)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("target", CREATE_STEMCELL)
def test_create_stemcell(
    machine: Machine, small_image: Path, clean: None, target: str, when: str
) -> None:
    def stored() -> str:
        words = (("images", "ls", "-q"), ("content", "ls", "-q"), ("content", "active"))
        return "".join(machine.ctr(*word) for word in words)

    before = stored()
    fails(machine, target, when, "create_stemcell", str(small_image), {})
    assert stored() == before


@pytest.mark.parametrize(
    "target",
    [
        "runtimes.containerd.image_store:ImageStore.write_content",
        "stemcell_convert.unpack:_feed",
        "runtimes.containerd.image_store:ImageStore.commit",
        "runtimes.containerd.image_store:ImageStore.apply",
        "runtimes.containerd.image_store:ImageStore.create_image",
    ],
)
def test_a_killed_import_does_not_block_the_next(
    machine: Machine, small_image: Path, clean: None, target: str
) -> None:
    assert broken(machine, target, "kill", "create_stemcell", str(small_image), {}) == ""
    cid = machine.call("create_stemcell", str(small_image), {})
    machine.call("delete_stemcell", cid)
    drop_leases(machine)


@pytest.mark.parametrize("when", ["before", "after"])
def test_attach_disk(machine: Machine, make_vm: Callable[..., VM], when: str) -> None:
    vm, disk = make_vm(), machine.create_disk()
    target = "runtimes.containerd.vm_folder:VMFolder.mount_disk"
    fails(machine, target, when, "attach_disk", vm.cid, disk)
    machine.call("attach_disk", vm.cid, disk)
    machine.call("detach_disk", vm.cid, disk)


@pytest.mark.parametrize(
    "target",
    [
        "cpi.host.syscalls:mount_shared_tmpfs",
        "cpi.cni.networks:save",
        "cpi.cni.plugins:Plugins.add",
        "cpi.cni.firewall:Firewall.admit",
        "runtimes.containerd.image_store:ImageStore.prepare",
        "runtimes.containerd.containers:Containers.create",
        "runtimes.containerd.containers:Containers.start",
    ],
)
def test_a_killed_create_vm_is_cleaned_up_by_delete_vm(
    machine: Machine, stemcell: str, clean: None, target: str
) -> None:
    before = set((machine.host.state / "vms").glob("*"))
    networks = {"n": {"type": "dynamic"}}
    arguments: tuple[Any, ...] = ("a", stemcell, PROPERTIES, networks, [], {})
    assert broken(machine, target, "kill", "create_vm", *arguments) == ""
    left = set((machine.host.state / "vms").glob("*")) - before
    for folder in left:
        machine.call("delete_vm", folder.name)
    assert len(left) == 1
    drop_leases(machine)
