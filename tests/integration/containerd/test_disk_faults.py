"""Persistent disks when something fails: nothing is lost, nothing is leaked."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from testing.patience import PATIENCE, wait_for
from tests.support.containerd.disk_actions import (
    MIN_SIZES,
    attach_and_mount,
    fill,
    hint,
    is_sound,
    look,
    unmount_and_detach,
)
from tests.support.containerd.killed_calls import killed_at_every_step
from tests.support.containerd.machine import VM, Machine, failing


def traces(machine: Machine, disk: str) -> list[str]:
    """Return a disk's loop devices and mounts on the host; a detached disk has none."""
    left = machine.leftovers()
    return [entry for resource in ("loops", "mounts") for entry in left[resource] if disk in entry]


def files(machine: Machine, disk: str) -> list[str]:
    """Return the names of all files of a disk, in any store."""
    folders = [str(machine.host.state / "disks"), str(machine.host.folder / "fast")]
    paths = machine.host.run("find", *folders, "-name", f"{disk}*", check=False).stdout.split()
    return sorted(Path(path).name for path in paths)


def test_attach_killed_at_every_step(machine: Machine, vm: VM) -> None:
    disk = machine.create_disk(64)
    checksum = fill(vm, disk)
    for step in killed_at_every_step(machine, "attach_disk", vm.cid, disk):
        assert machine.call("attach_disk", vm.cid, disk) == hint(disk)
        assert vm.sh(f"md5sum < {hint(disk)}/file") == checksum, step
        machine.call("detach_disk", vm.cid, disk)
        assert traces(machine, disk) == [], step
    machine.call("detach_disk", vm.cid, disk)
    assert is_sound(machine, disk)


def test_detach_killed_at_every_step(machine: Machine, vm: VM) -> None:
    disk = machine.create_disk(64)
    checksum = fill(vm, disk)

    def attach() -> None:
        machine.call("attach_disk", vm.cid, disk)
        vm.sh(f"mkdir -p /var/vcap/store && mount --bind {hint(disk)} /var/vcap/store")
        assert vm.sh("md5sum < /var/vcap/store/file") == checksum

    attach()
    for step in killed_at_every_step(machine, "detach_disk", vm.cid, disk):
        if machine.facts(disk)["attached_to"]:  # else it was killed after all its work
            machine.call("detach_disk", vm.cid, disk)
        assert traces(machine, disk) == [], step
        assert disk not in vm.sh("cat /proc/self/mountinfo"), step
        attach()
    assert is_sound(machine, disk)


@pytest.mark.parametrize("filesystem", MIN_SIZES)
def test_resize_killed_at_every_step(machine: Machine, vm: VM, filesystem: str) -> None:
    size = MIN_SIZES[filesystem]
    disk = machine.create_disk(size, {"filesystem": filesystem})
    checksum = fill(vm, disk)
    # Each round has another size, used by the killed call and by its retry.
    wanted = size
    sizes = (mib for grown in range(size + 16, 100_000, 16) for mib in (grown, grown))
    for step in killed_at_every_step(machine, "resize_disk", disk, sizes.__next__):
        wanted = next(sizes)
        if step % 3 == 0:  # a disk is usable between the two calls
            assert look(vm, disk, "md5sum < file") == checksum, step
        machine.call("resize_disk", disk, wanted)
        assert machine.facts(disk)["size"] == wanted
        assert traces(machine, disk) == [], step
        assert files(machine, disk) == [f"{disk}.json", f"{disk}.raw"], step
        assert look(vm, disk, "md5sum < file") == checksum, step
        assert int(look(vm, disk, "df -m . | tail -1").split()[1]) > wanted * 0.75 - 32, step
        assert is_sound(machine, disk), step


def test_snapshot_killed_at_every_step(machine: Machine, vm: VM) -> None:
    disk = machine.create_disk(64)
    fill(vm, disk)
    machine.call("attach_disk", vm.cid, disk)
    folder = machine.image(disk).parent / "snapshots"
    for step in killed_at_every_step(machine, "snapshot_disk", disk, {}):
        vm.sh(f"timeout {PATIENCE} sh -c 'echo {step} > {hint(disk)}/step; sync {hint(disk)}/step'")
        snapshot = machine.call("snapshot_disk", disk, {})
        vm.sh(f"timeout {PATIENCE} touch {hint(disk)}/after")
        for path in folder.iterdir():  # a killed call may have finished its work
            assert sorted(file.name for file in path.iterdir()) == ["disk.raw", "facts.json"], step
            machine.call("delete_snapshot", path.name)
            assert not path.exists()
        assert files(machine, disk) == [f"{disk}.json", f"{disk}.raw"], (step, snapshot)
    for path in folder.iterdir():
        machine.call("delete_snapshot", path.name)
    machine.call("detach_disk", vm.cid, disk)
    assert is_sound(machine, disk)


def test_a_disk_that_was_left_frozen_is_detached_and_snapshot(machine: Machine, vm: VM) -> None:
    disk = machine.create_disk(64)
    machine.call("attach_disk", vm.cid, disk)
    target = machine.host.state / "vms" / vm.cid / "disks" / disk
    machine.host.run("fsfreeze", "--freeze", str(target))
    machine.call("delete_snapshot", machine.call("snapshot_disk", disk, {}))
    vm.sh(f"timeout {PATIENCE} touch {hint(disk)}/file")
    machine.host.run("fsfreeze", "--freeze", str(target))
    machine.call("detach_disk", vm.cid, disk)
    assert traces(machine, disk) == []


def test_update_killed_at_every_step(machine: Machine, vm: VM, fast: Path) -> None:
    disk = machine.create_disk(64)
    checksum = fill(vm, disk)
    sizes = (size for grown in range(80, 100_000, 16) for size in (grown, grown))
    stores = (
        {"store": name} for _ in range(1000) for name in ("fast", "fast", "default", "default")
    )
    for step in killed_at_every_step(machine, "update_disk", disk, sizes.__next__, stores.__next__):
        size, properties = next(sizes), next(stores)
        if step % 3 == 0:
            assert look(vm, disk, "md5sum < file") == checksum, step
        assert machine.call("update_disk", disk, size, properties) == disk
        facts = machine.facts(disk)
        assert (facts["size"], facts["store"]) == (size, properties["store"]), step
        assert files(machine, disk) == [f"{disk}.json", f"{disk}.raw"], step
        assert look(vm, disk, "md5sum < file") == checksum, step
        assert is_sound(machine, disk), step


def test_a_hundred_attachments_lose_and_leak_nothing(
    machine: Machine, make_vm: Callable[..., VM]
) -> None:
    vms = [make_vm(), make_vm()]
    disk = machine.create_disk(64)
    before = machine.leftovers()
    for number in range(100):
        vm = vms[number % 2]
        machine.call("attach_disk", vm.cid, disk)
        vm.sh(f"echo {number} >> {hint(disk)}/log; (cd {hint(disk)}; cat log | md5sum > sum)")
        machine.call("detach_disk", vm.cid, disk)
    assert machine.leftovers() == before
    assert look(vms[0], disk, "cat log").split() == [str(number) for number in range(100)]
    assert is_sound(machine, disk)


@pytest.mark.parametrize("filesystem", MIN_SIZES)
def test_sudden_death_of_the_vm_while_it_writes(
    machine: Machine, make_vm: Callable[..., VM], filesystem: str
) -> None:
    vm = make_vm()
    disk = machine.create_disk(MIN_SIZES[filesystem], {"filesystem": filesystem})
    machine.call("attach_disk", vm.cid, disk)
    vm.sh(
        f"cd {hint(disk)}; (i=0; while :; do i=$((i+1)); echo $i >> log; sync -d log; "
        "echo $i > count.new; mv count.new count; done) > /dev/null 2>&1 &"
    )
    wait_for(
        lambda: int(vm.sh(f"cat {hint(disk)}/count 2>/dev/null || echo 0") or 0) > 20, "the writer"
    )
    kill_init(vm)
    assert machine.call("has_vm", vm.cid)
    machine.call("detach_disk", vm.cid, disk)
    assert traces(machine, disk) == []
    assert is_sound(machine, disk)
    machine.call("attach_disk", vm.cid, disk)
    machine.call("reboot_vm", vm.cid)
    lines = vm.sh(f"cat {hint(disk)}/log").split()
    assert len(lines) > 20
    assert lines == [str(number) for number in range(1, len(lines) + 1)]


def kill_init(vm: VM) -> None:
    """Kill a VM's init."""
    vm.machine.host.run("kill", "-KILL", str(vm.pid))
    wait_for(lambda: vm.cid not in _running(vm.machine), "the task's end")


def _running(machine: Machine) -> list[str]:
    lines = machine.ctr("tasks", "ls").splitlines()[1:]
    return [line.split()[0] for line in lines if line.split()[2] == "RUNNING"]


def test_the_store_is_mounted_after_the_task_died(
    machine: Machine, make_vm: Callable[..., VM]
) -> None:
    vm = make_vm()
    vm.wait_for_agent()
    disk = machine.create_disk()
    attach_and_mount(vm, disk)
    vm.sh("echo data > /var/vcap/store/file")
    kill_init(vm)
    machine.call("reboot_vm", vm.cid)
    vm.wait_for_agent()
    assert vm.sh("cat /var/vcap/store/file") == "data"
    assert vm.agent("list_disk") == [disk]


def test_an_agent_forgets_a_disk_that_was_detached_when_it_starts_again(
    machine: Machine, make_vm: Callable[..., VM]
) -> None:
    vm = make_vm()
    vm.wait_for_agent()
    disk = machine.create_disk()
    attach_and_mount(vm, disk)
    unmount_and_detach(vm, disk)
    machine.call("reboot_vm", vm.cid)
    vm.wait_for_agent()
    assert vm.sh("cat /var/vcap/bosh/managed_disk_settings.json") == ""


def _truncated(image: Path, other: Path) -> None:
    os.truncate(image, 40 << 20)


def _foreign(image: Path, other: Path) -> None:
    image.write_bytes(other.read_bytes())


def _garbage(image: Path, other: Path) -> None:
    image.write_bytes(os.urandom(66 << 20))


def _wiped(image: Path, other: Path) -> None:
    with image.open("r+b") as file:
        file.seek(1 << 20)
        file.write(bytes(4096))


def _link(image: Path, other: Path) -> None:
    image.unlink()
    image.symlink_to(other)


DAMAGE: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "truncated": (_truncated, "is truncated"),
    "another disk": (_foreign, "is another disk"),
    "garbage": (_garbage, "has no GPT"),
    "no file system": (_wiped, "should have a file system ext4"),
    "a link": (_link, "is no regular file"),
    "gone": (lambda image, other: image.unlink(), "is missing"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_file_that_is_not_the_disk_is_refused_by_name(
    machine: Machine, vm: VM, name: str
) -> None:
    damage, problem = DAMAGE[name]
    disk, other = machine.create_disk(64), machine.create_disk(64)
    image = machine.image(disk)
    damage(image, machine.image(other))
    calls: list[Callable[[], object]] = [
        lambda: machine.call("attach_disk", vm.cid, disk),
        lambda: machine.call("resize_disk", disk, 128),
        lambda: machine.call("update_disk", disk, 128, {}),
        lambda: machine.call("snapshot_disk", disk, {}),
    ]
    for call in calls:
        error = failing(call)
        assert error.type == "CloudError"
        assert str(image) in error.message
        assert problem in error.message
    assert "damaged" in machine.bosh_cpi("disk", "list").stdout
    assert machine.call("get_disks", vm.cid) == []
    assert traces(machine, disk) == []
    assert machine.call("has_disk", disk) == (name != "gone")
    machine.call("delete_disk", disk)
    assert machine.call("has_disk", other)


def test_damaged_facts_are_named(machine: Machine, clean: None) -> None:
    disk = machine.create_disk(64)
    facts = machine.image(disk).with_suffix(".json")
    kept = facts.read_text()
    for text in ("", "[]", '{"cid": 1, "unknown": 2}', kept[:40]):
        facts.write_text(text)
        assert str(facts) in failing(lambda: machine.call("has_disk", disk)).message
    facts.write_text(kept)


def test_two_vms_at_the_same_moment(machine: Machine, make_vm: Callable[..., VM]) -> None:
    vms = [make_vm(), make_vm()]
    disk = machine.create_disk()
    for _ in range(10):
        answers: dict[str, bool] = {}
        barrier = threading.Barrier(2)

        def attach(
            vm: VM, barrier: threading.Barrier = barrier, answers: dict[str, bool] = answers
        ) -> None:
            barrier.wait()
            response = machine.host.cpi("attach_disk", vm.cid, disk)
            answers[vm.cid] = response["error"] is None

        threads = [threading.Thread(target=attach, args=(vm,)) for vm in vms]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers.values()) == [False, True]
        winner = next(cid for cid, won in answers.items() if won)
        assert [machine.call("get_disks", vm.cid) for vm in vms].count([disk]) == 1
        machine.call("detach_disk", winner, disk)


def test_another_vms_disk_is_out_of_reach(machine: Machine, make_vm: Callable[..., VM]) -> None:
    owner, thief = make_vm(), make_vm()
    disk = machine.create_disk()
    machine.call("attach_disk", owner.cid, disk)
    owner.sh(f"echo secret > {hint(disk)}/file")
    own = int(owner.sh(f"stat -c %d {hint(disk)}/file"))
    root = os.stat("/").st_dev
    numbers = {(os.major(own), minor) for minor in range(os.minor(own) + 4)}  # all loop devices
    numbers |= {(os.major(root), minor) for minor in range(4)}
    nodes = [f"b {major} {minor}" for major, minor in sorted(numbers)] + ["c 10 237"]
    for vm in (owner, thief):
        for node in nodes:  # 10:237 makes loop devices
            vm.sh(f"rm -f /root/stolen; mknod /root/stolen {node}", check=False)
            output = vm.sh("dd if=/root/stolen of=/dev/null count=1 2>&1", check=False)
            assert "not permitted" in output or "No such file" in output, (node, output)
        vm.sh(f"rm -f /root/stolen; mknod /root/stolen b 7 {os.minor(own)}", check=False)
        assert vm.sh("mount /root/stolen /mnt 2>&1 && echo mounted", check=False) != "mounted"


def test_a_disks_superblock_does_not_rule_the_host(machine: Machine, vm: VM) -> None:
    """A full VM writes it as it likes."""
    disk = machine.create_disk(64)
    written = f"{machine.host.state}/disks/{disk}.raw?offset=1048576"
    machine.host.run("tune2fs", "-e", "panic", written)
    machine.call("attach_disk", vm.cid, disk)
    mounted = [line for line in vm.sh("cat /proc/mounts").splitlines() if disk in line]
    assert mounted
    assert all("errors=remount-ro" in line for line in mounted), "after the superblock it panics"
    machine.call("detach_disk", vm.cid, disk)
    machine.host.run("tune2fs", "-E", "mount_opts=debug", written)
    error = failing(lambda: machine.call("attach_disk", vm.cid, disk))
    assert "mount options of its own" in error.message
    assert traces(machine, disk) == []
    machine.call("delete_disk", disk)


@pytest.mark.parametrize("filesystem", MIN_SIZES)
def test_a_full_host_costs_no_data(machine: Machine, vm: VM, filesystem: str) -> None:
    # The disk is larger than the host's free space: a job that fills it fails, the data is kept.
    small, image = machine.host.folder / "small", machine.host.folder / "small.img"
    small.mkdir()
    machine.host.run("truncate", "--size", "120M", str(image))
    machine.host.run("mkfs.ext4", "-q", "-m", "0", str(image))
    machine.host.run("mount", "-o", "loop", str(image), str(small))
    machine.host.write_config(disk_stores={"small": str(small)})
    try:
        size = 2 * MIN_SIZES[filesystem] + 128
        disk = machine.create_disk(size, {"filesystem": filesystem, "store": "small"})
        machine.call("attach_disk", vm.cid, disk)
        vm.sh(
            f"cd {hint(disk)} && head -c 10M /dev/urandom > kept && sync kept && "
            "md5sum kept > /root/sum"
        )
        filled = vm.sh(
            f"dd if=/dev/zero of={hint(disk)}/rest bs=1M count={size - 64} conv=fsync 2>&1",
            check=False,
        )
        assert "error" in filled or "No space" in filled, filled
        error = failing(lambda: machine.create_disk(64, {"store": "small"}))
        assert error.type == "NoDiskSpace"
        assert "MiB are free" in error.message
        machine.call("detach_disk", vm.cid, disk)
        machine.host.run("mount", "-o", "remount", str(small))
        os.truncate(image, 2 << 30)
        machine.host.run("umount", str(small))
        machine.host.run("e2fsck", "-fp", str(image))
        machine.host.run("resize2fs", str(image))
        machine.host.run("mount", "-o", "loop", str(image), str(small))
        machine.call("attach_disk", vm.cid, disk)
        assert vm.sh(f"cd {hint(disk)} && md5sum -c /root/sum") == "kept: OK"
        vm.sh(f"cd {hint(disk)} && rm -f rest && echo on > more && sync")
        machine.call("detach_disk", vm.cid, disk)
        assert is_sound(machine, disk)
        machine.call("delete_disk", disk)
    finally:
        machine.delete_all()
        machine.host.write_config()
        machine.host.run("umount", str(small))
        small.rmdir()
        image.unlink()
