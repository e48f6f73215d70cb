"""Persistent disks of running VMs, and the agent's part in it."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from testing.patience import wait_for
from tests.support.containerd.disk_actions import attach_and_mount, hint, unmount_and_detach
from tests.support.containerd.machine import VM, Machine, failing

STORE = "/var/vcap/store"


@pytest.fixture
def mounted(machine: Machine, make_vm: Callable[..., VM]) -> tuple[VM, str]:
    """Return a VM, and a disk mounted by its agent."""
    vm, disk = make_vm(), machine.create_disk()
    vm.wait_for_agent()
    attach_and_mount(vm, disk)
    return vm, disk


def test_format_is_gpt_with_one_ext4_partition_at_1_mib(machine: Machine, clean: None) -> None:
    disk = machine.create_disk(64)
    path = machine.host.state / "disks" / f"{disk}.raw"
    assert path.stat().st_size == 66 << 20  # the GPT's two copies take 1 MiB each
    assert path.stat().st_blocks * 512 < 8 << 20  # sparse
    assert path.stat().st_mode & 0o777 == 0o600
    table = json.loads(
        subprocess.run(
            ["sfdisk", "--json", str(path)], check=True, capture_output=True, text=True
        ).stdout
    )["partitiontable"]
    assert table["label"] == "gpt"
    parts = [(part["start"], part["size"]) for part in table["partitions"]]
    assert parts == [(2048, 64 * 2048)]
    probe = ["blkid", "--probe", "--offset", str(1 << 20), "--match-tag", "TYPE", str(path)]
    assert 'TYPE="ext4"' in subprocess.run(probe, check=True, capture_output=True, text=True).stdout


def test_a_vm_sees_a_block_device_of_the_size_that_was_asked_for(
    machine: Machine, mounted: tuple[VM, str]
) -> None:
    vm, disk = mounted
    number = vm.sh(f"stat --format=%Hd:%Ld {hint(disk)}")
    size = int(Path(f"/sys/dev/block/{number}/size").read_text()) * 512
    assert size == machine.facts(disk)["size"] << 20
    unmount_and_detach(vm, disk)


def test_disk_moves_between_running_vms_with_its_data(
    machine: Machine, make_vm: Callable[..., VM]
) -> None:
    first, second = make_vm(), make_vm()
    first.wait_for_agent()
    second.wait_for_agent()
    disk = machine.create_disk()
    init = first.pid
    attach_and_mount(first, disk)
    first.sh(f"echo data > {STORE}/file")
    assert first.agent("list_disk") == [disk]
    unmount_and_detach(first, disk)
    assert disk not in first.sh("cat /proc/mounts")
    assert first.sh(f"ls {STORE} /warden-cpi-dev | grep -c file || true") == "0"

    attach_and_mount(second, disk)
    assert second.sh(f"cat {STORE}/file") == "data"
    assert first.pid == init, "nothing was restarted"


def test_detach_while_a_dead_agent_left_the_store_mounted(
    machine: Machine, mounted: tuple[VM, str]
) -> None:
    vm, disk = mounted
    machine.call("detach_disk", vm.cid, disk)
    assert disk not in vm.sh("cat /proc/mounts")
    assert vm.sh(f"mountpoint -q {STORE} || echo free") == "free"


def test_detach_names_a_process_on_the_disk(machine: Machine, make_vm: Callable[..., VM]) -> None:
    vm = make_vm()
    disk = machine.create_disk()
    machine.call("attach_disk", vm.cid, disk)
    vm.sh(f"sleep 600 > {hint(disk)}/open 2>&1 & echo $! > /root/pid")
    error = failing(lambda: machine.call("detach_disk", vm.cid, disk))
    assert "sleep" in error.message
    assert error.ok_to_retry
    vm.sh("kill $(cat /root/pid); while kill -0 $(cat /root/pid) 2>/dev/null; do :; done")
    machine.call("detach_disk", vm.cid, disk)


def test_two_disks_at_once(machine: Machine, make_vm: Callable[..., VM]) -> None:
    vm = make_vm()
    disks = sorted(machine.create_disk() for _ in range(2))
    for disk in disks:
        machine.call("attach_disk", vm.cid, disk)
    assert machine.call("get_disks", vm.cid) == disks
    for disk in disks:
        vm.sh(f"echo {disk} > {hint(disk)}/name")
    machine.call("detach_disk", vm.cid, disks[0])
    assert vm.sh(f"cat {hint(disks[1])}/name") == disks[1]
    assert machine.call("get_disks", vm.cid) == disks[1:]


def test_size_is_enforced_and_the_job_gets_enospc(
    machine: Machine, make_vm: Callable[..., VM]
) -> None:
    vm = make_vm()
    disk = machine.create_disk(32)
    machine.call("attach_disk", vm.cid, disk)
    fill = f"dd if=/dev/zero of={hint(disk)}/file bs=1M count=40 2>&1"
    assert "No space left on device" in vm.sh(fill, check=False)


def test_the_shared_folder_itself_is_not_writable(make_vm: Callable[..., VM]) -> None:
    vm = make_vm()
    assert "Read-only" in vm.sh("touch /warden-cpi-dev/file 2>&1", check=False)


def test_attach_is_idempotent(machine: Machine, make_vm: Callable[..., VM]) -> None:
    vm = make_vm()
    disk = machine.create_disk()
    hints = {machine.call("attach_disk", vm.cid, disk) for _ in range(2)}
    assert hints == {hint(disk)}
    assert vm.sh("cat /proc/mounts").count(disk) <= 2  # as source and as target of one mount


def test_delete_vm_releases_disks_that_were_never_detached(
    machine: Machine, make_vm: Callable[..., VM], mounted: tuple[VM, str]
) -> None:
    vm, disk = mounted
    vm.sh(f"echo survives > {STORE}/file")
    vm.delete()
    other = make_vm()
    machine.call("attach_disk", other.cid, disk)
    assert other.sh(f"cat {hint(disk)}/file") == "survives"


def test_an_attached_disk_is_not_deleted(machine: Machine, make_vm: Callable[..., VM]) -> None:
    vm = make_vm()
    disk = machine.create_disk()
    machine.call("attach_disk", vm.cid, disk)
    error = failing(lambda: machine.call("delete_disk", disk))
    assert vm.cid in error.message
    assert machine.call("has_disk", disk)


def test_only_one_vm_gets_a_disk(machine: Machine, make_vm: Callable[..., VM]) -> None:
    first, second = make_vm(), make_vm()
    disk = machine.create_disk()
    machine.call("attach_disk", first.cid, disk)
    error = failing(lambda: machine.call("attach_disk", second.cid, disk))
    assert first.cid in error.message
    assert failing(lambda: machine.call("detach_disk", second.cid, disk)).type == "DiskNotAttached"


def test_disks_are_there_after_a_reboot(machine: Machine, make_vm: Callable[..., VM]) -> None:
    vm = make_vm()
    disk = machine.create_disk()
    machine.call("attach_disk", vm.cid, disk)
    vm.sh(f"echo data > {hint(disk)}/file")
    machine.call("reboot_vm", vm.cid)
    assert vm.sh(f"cat {hint(disk)}/file") == "data"


def test_the_store_is_mounted_after_a_reboot(machine: Machine, mounted: tuple[VM, str]) -> None:
    vm, disk = mounted
    vm.sh(f"echo data > {STORE}/file")
    machine.call("reboot_vm", vm.cid)
    vm.wait_for_agent()
    assert vm.sh(f"cat {STORE}/file") == "data"
    assert vm.agent("list_disk") == [disk]
    unmount_and_detach(vm, disk)
    assert vm.sh(f"mountpoint -q {STORE} || echo free") == "free"
    machine.call("reboot_vm", vm.cid)
    assert vm.sh(f"mountpoint -q {STORE} || echo free") == "free"


def test_the_agent_migrates_to_a_bigger_disk(machine: Machine, make_vm: Callable[..., VM]) -> None:
    # What `bosh create-env`, and a director with default settings, do on every change of size.
    vm = make_vm()
    vm.wait_for_agent()
    small, big = machine.create_disk(64), machine.create_disk(128)
    attach_and_mount(vm, small)
    vm.sh(f"echo data > {STORE}/file")
    attach_and_mount(vm, big)
    vm.agent("migrate_disk")
    assert vm.sh(f"cat {STORE}/file") == "data"
    assert int(vm.sh(f"df -m {STORE} | tail -1").split()[1]) > 100
    assert vm.agent("list_disk") == [big]
    vm.agent("remove_persistent_disk", small)
    machine.call("detach_disk", vm.cid, small)
    assert vm.sh(f"cat {STORE}/file") == "data"
    unmount_and_detach(vm, big)


def test_the_agent_sees_a_disk_as_mounted_only_while_it_is(
    machine: Machine, make_vm: Callable[..., VM]
) -> None:
    vm = make_vm()
    vm.wait_for_agent()
    disk = machine.create_disk()
    hint = machine.call("attach_disk", vm.cid, disk)
    vm.agent("add_persistent_disk", disk, hint)
    assert vm.agent("list_disk") == []
    vm.agent("mount_disk", disk)
    assert vm.agent("list_disk") == [disk]
    vm.agent("unmount_disk", disk)
    assert vm.agent("list_disk") == []
    assert vm.sh(f"mountpoint -q {STORE} || echo free") == "free"
    vm.agent("mount_disk", disk)
    assert vm.agent("list_disk") == [disk]


def test_attaching_again_after_the_agent_unmounted_a_disk(
    machine: Machine, mounted: tuple[VM, str]
) -> None:
    # What `bosh cloud-check` does about a disk that is not mounted where it should be.
    vm, disk = mounted
    vm.sh(f"echo data > {STORE}/file")
    vm.agent("unmount_disk", disk)
    attach_and_mount(vm, disk)
    assert vm.sh(f"cat {STORE}/file") == "data"
    assert vm.agent("list_disk") == [disk]
    vm.agent("unmount_disk", disk)
    vm.sh(f"umount {hint(disk)}")
    attach_and_mount(vm, disk)
    assert machine.call("get_disks", vm.cid) == [disk]
    assert vm.sh(f"cat {STORE}/file") == "data"


def test_an_empty_folder_in_place_of_the_disk_goes_with_it(
    machine: Machine, mounted: tuple[VM, str]
) -> None:
    vm, disk = mounted
    vm.agent("unmount_disk", disk)
    # What an agent does without our `mount` and `umount`.
    vm.sh(f"umount {hint(disk)} && mount --bind {hint(disk)} {STORE}")
    machine.call("detach_disk", vm.cid, disk)
    assert vm.sh(f"mountpoint -q {STORE} || echo free") == "free"


def test_services_with_mounts_of_their_own_do_not_keep_a_disk(
    machine: Machine, systemd: str, make_vm: Callable[..., VM]
) -> None:
    # systemd leaves a service's old root, and all mounts in it, where no process sees it.
    vm, disk = make_vm(stemcell=systemd), machine.create_disk()
    vm.wait_for_agent()
    attach_and_mount(vm, disk)
    machine.call("reboot_vm", vm.cid)
    vm.wait_for_agent()
    service = "systemd-run --unit apart --property PrivateTmp=yes sleep 1000"
    wait_for(lambda: "Running as" in vm.sh(f"{service} 2>&1", check=False), "systemd")
    apart = vm.sh("systemctl show --property MainPID --value apart")
    assert vm.sh(f"readlink /proc/{apart}/ns/mnt") != vm.sh("readlink /proc/1/ns/mnt")
    assert disk in vm.sh(f"cat /proc/{apart}/mountinfo")
    unmount_and_detach(vm, disk)
    assert disk not in vm.sh(f"cat /proc/{apart}/mountinfo")
    assert not [file for file in machine.leftovers()["loops"] if disk in file]


def test_api_1_puts_the_hint_into_the_settings(
    machine: Machine, make_vm: Callable[..., VM]
) -> None:
    vm = make_vm()
    disk = machine.create_disk()
    assert machine.call("attach_disk", vm.cid, disk, api_version=1) is None
    settings = json.loads(vm.sh("cat /var/vcap/bosh/warden-cpi-agent-env.json"))
    assert settings["disks"]["persistent"] == {disk: hint(disk)}


def test_unknown_properties_are_refused_by_name(machine: Machine) -> None:
    error = failing(lambda: machine.call("create_disk", 64, {"stroe": "ssd"}, None))
    assert "'stroe'" in error.message


def test_no_room_is_an_error_with_numbers(machine: Machine, clean: None) -> None:
    small = machine.host.folder / "small"
    small.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small))
    machine.host.run(*mount)
    try:
        config = machine.host.write_config("small.json", disk_dir=str(small))
        error = failing(lambda: machine.call("create_disk", 1024, {}, None, config=config))
        assert error.type == "NoDiskSpace"
        assert "1024 MiB" in error.message
        assert machine.host.run("ls", "-A", str(small)).stdout == ""
    finally:
        machine.host.run("umount", str(small))
        small.rmdir()
