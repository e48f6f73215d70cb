"""Faults around a VM: each gives a typed error, or succeeds on retry, and leaks nothing."""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from testing.patience import wait_for
from tests.support.containerd.broken_calls import broken, fails
from tests.support.containerd.machine import failing
from tests.support.libvirt.kvm_machine import Guest, KvmMachine
from tests.support.processes import write_end

Make = Callable[..., Guest]

# The steps of create_vm, each of which fails once before it has done its work, and once after.
STEPS = (
    "runtimes.libvirt.nics:Nics.connect",
    "runtimes.libvirt.volumes:StoragePool.create",
    "runtimes.libvirt.volumes:StoragePool.write",
    "runtimes.libvirt.vms:VMs._root",
    "runtimes.libvirt.vms:VMs._data",
    "runtimes.libvirt.vms:VMs._settings",
    "runtimes.libvirt.vms:VMs._domain",
    "runtimes.libvirt.domains:Domains.set_facts",
)


def create(stemcell: str) -> tuple[Any, ...]:
    return ("create_vm", "a", stemcell, {}, {"default": {"type": "dynamic"}}, [], {})


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_failed_create_leaves_nothing(
    machine: KvmMachine, stemcell: str, clean: None, step: str, when: str
) -> None:
    fails(machine, step, when, *create(stemcell), config=machine.configure())


@pytest.mark.parametrize("step", STEPS[:-1])  # after the last, it is finished
def test_what_a_killed_create_leaves_goes_with_the_next(
    machine: KvmMachine, stemcell: str, clean: None, step: str
) -> None:
    assert broken(machine, step, "kill", *create(stemcell), config=machine.configure()) == ""
    cid, networks = machine.call(*create(stemcell))
    machine.vms.append(Guest(machine, cid, networks))
    assert machine.domains() == [cid]
    assert {name.split(".")[0] for name in machine.volumes() if "-vm-" in name} == {cid}


def test_a_pool_in_the_folder_of_before_is_named(
    machine: KvmMachine, make_guest: Make, tmp_path: Path
) -> None:
    guest = make_guest()
    old = machine.host.state / "kvm"
    moved = machine.configure(state_dir=str(tmp_path))
    error = failing(lambda: machine.call("delete_vm", guest.cid, config=moved))
    assert f"storage pool bosh is in {old}, and the configuration says {tmp_path}/kvm" in (
        error.message
    )
    assert f"set kvm.pool_path to {old}" in error.message
    checks = json.loads(machine.bosh_cpi("doctor", "--json", check=False, config=moved).stdout)
    [check] = [check for check in checks["checks"] if check["check"] == "storage pool"]
    assert (check["status"], f"set kvm.pool_path to {old}" in check["fix"]) == ("failure", True)
    assert machine.domains() == [guest.cid]
    machine.call("delete_vm", guest.cid, config=machine.configure({"pool_path": str(old)}))


def test_a_call_survives_a_restart_of_libvirtd(machine: KvmMachine, make_guest: Make) -> None:
    guest = make_guest()
    guest.wait_for_agent()
    machine.libvirt.stop()
    error = failing(lambda: machine.call("has_vm", guest.cid))
    assert error.type == "CloudError"
    assert "qemu:///system" in error.message
    assert "is libvirt's daemon running" in error.message
    assert error.ok_to_retry
    machine.libvirt.start()
    assert machine.call("has_vm", guest.cid) is True
    assert guest.agent("ping") == "pong"


@pytest.mark.parametrize("step", ["runtimes.libvirt.vms:VMs._settings", STEPS[-1]])
def test_libvirtd_that_restarts_in_the_middle_of_a_create(
    machine: KvmMachine, stemcell: str, clean: None, step: str
) -> None:
    config = machine.configure()
    fifo = machine.host.folder / "fifo"
    os.mkfifo(fifo)
    with ThreadPoolExecutor(1) as threads:
        calling = threads.submit(
            broken, machine, step, f"wait:{fifo}", *create(stemcell), config=config
        )
        with write_end(fifo):  # opens when the call is there
            machine.libvirt.restart()
        response = json.loads(calling.result())
    fifo.unlink()
    if response["error"] is None:
        machine.vms.append(Guest(machine, *response["result"]))
        return
    assert response["error"]["type"].removeprefix("Bosh::Clouds::") in ("CloudError",)
    cid, networks = machine.call(*create(stemcell))
    machine.vms.append(Guest(machine, cid, networks))
    assert machine.domains() == [cid]
    assert {name.split(".")[0] for name in machine.volumes() if "-vm-" in name} == {cid}


def test_a_domain_that_has_the_name_already_stays(
    machine: KvmMachine, stemcell: str, clean: None
) -> None:
    config = machine.configure()
    fifo = machine.host.folder / "fifo"
    os.mkfifo(fifo)
    step = "runtimes.libvirt.vms:VMs._settings"
    with ThreadPoolExecutor(1) as threads:
        calling = threads.submit(
            broken, machine, step, f"wait:{fifo}", *create(stemcell), config=config
        )
        with write_end(fifo):
            (folder,) = (machine.host.state / "vms").iterdir()
            document = machine.host.folder / "other.xml"
            document.write_text(
                f"<domain type='qemu'><name>{folder.name}</name><memory>65536</memory>"
                "<os><type>hvm</type></os></domain>"
            )
            machine.virsh("define", str(document))
        error = json.loads(calling.result())["error"]
    fifo.unlink()
    assert error["type"] == "Bosh::Clouds::CloudError"
    assert "already exists" in error["message"]
    assert machine.domains() == [folder.name]
    assert not [name for name in machine.volumes() if folder.name in name]
    machine.virsh("undefine", folder.name)


def test_a_full_store_is_an_error_and_leaks_nothing(
    machine: KvmMachine, image: Path, clean: None
) -> None:
    """A pool on a file system that is too small for a stemcell."""
    folder = machine.host.folder / "small"
    folder.mkdir()
    machine.host.run("mount", "-t", "tmpfs", "-o", "size=30M,mode=711", "tmpfs", str(folder))
    try:
        machine.configure({"pool": "small", "pool_path": str(folder)})
        error = failing(lambda: machine.call("create_stemcell", str(image), {}))
        assert error.type == "NoDiskSpace"
        assert list(folder.iterdir()) == []
        machine.virsh("pool-destroy", "small")
        machine.virsh("pool-undefine", "small")
    finally:
        machine.host.run("umount", "--lazy", str(folder))
        folder.rmdir()


def test_a_stemcells_killed_import_is_repeated(
    machine: KvmMachine, image: Path, clean: None
) -> None:
    stemcell = machine.call("create_stemcell", str(image), {})
    machine.call("delete_stemcell", stemcell)
    arguments: tuple[Any, ...] = ("create_stemcell", str(image), {})
    upload = "runtimes.libvirt.volumes:StoragePool.upload"
    assert broken(machine, upload, "kill", *arguments, config=machine.configure()) == ""
    assert [name for name in machine.volumes() if name.endswith(".stemcell")]
    assert not [name for name in machine.volumes() if name.endswith(".json")]
    assert machine.call(*arguments) == stemcell


def test_garbage_is_found_and_removed_and_nothing_else(
    machine: KvmMachine, image: Path, make_guest: Make, stemcell: str, tmp_path: Path
) -> None:
    guest = make_guest()
    disk = machine.create_disk(64, vm=guest.cid)
    machine.call("attach_disk", guest.cid, disk)
    config = machine.configure()
    before = machine.leftovers()
    upload = "runtimes.libvirt.volumes:StoragePool.upload"
    os.link(image, tmp_path / "image")  # without a stemcell.MF with its version
    of_another = {"name": "x", "version": "2"}
    arguments: tuple[Any, ...] = ("create_stemcell", str(tmp_path / "image"), of_another)
    assert broken(machine, upload, "kill", *arguments, config=config) == ""
    assert _gc(machine) == {"import", "lock", "volume"}
    assert _gc(machine, "--yes") == {"import", "lock", "volume"}
    for step in ("runtimes.libvirt.nics:Nics.connect", "runtimes.libvirt.domains:Domains.start"):
        assert broken(machine, step, "kill", *create(stemcell), config=config) == ""
        assert _gc(machine) == {"VM", "lock"}
        assert _gc(machine, "--yes") == {"VM", "lock"}
        assert machine.leftovers() == before
    assert _gc(machine) == set()


def _gc(machine: KvmMachine, *words: str) -> set[str]:
    garbage = json.loads(machine.bosh_cpi("gc", "--json", *words).stdout)
    assert all(row["removed"] == ("--yes" in words) for row in garbage)
    return {row["type"] for row in garbage}


def test_a_disk_that_a_vm_does_not_release_stays(machine: KvmMachine, make_guest: Make) -> None:
    guest = make_guest()
    guest.wait_for_agent()
    disk = machine.create_disk(64, vm=guest.cid)
    hint = machine.call("attach_disk", guest.cid, disk)
    path = str(machine.image(disk))
    machine.virsh("suspend", guest.cid)
    machine.configure({"detach_timeout": 3})
    error = failing(lambda: machine.call("detach_disk", guest.cid, disk))
    assert error.ok_to_retry
    assert "did not let go" in error.message
    assert machine.call("get_disks", guest.cid) == [disk]
    # It is released once the guest runs. This polls QEMU's open files, not libvirt: version 9.0
    # uses the disk after it has freed it, and sometimes crashes.
    opened = ["find", "/proc", "-maxdepth", "3", "-path", "*/fd/*", "-lname", path]
    assert machine.host.run(*opened, check=False).stdout
    machine.virsh("resume", guest.cid)
    wait_for(lambda: not machine.host.run(*opened, check=False).stdout, "the release of the disk")
    machine.configure()
    assert machine.call("attach_disk", guest.cid, disk) == hint
    machine.call("detach_disk", guest.cid, disk)
    assert machine.call("get_disks", guest.cid) == []
