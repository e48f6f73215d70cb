"""Growing, updating and snapshotting disks, their file systems and stores."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cpi import cid
from cpi.disks import raw_image as images
from cpi.disks.disk import Disk
from cpi.disks.disk_store import DiskStore
from testing.patience import wait_for
from tests.support.containerd.disk_actions import MIN_SIZES, fill, hint, is_sound, look
from tests.support.containerd.machine import VM, Machine, failing


@pytest.mark.parametrize("filesystem", MIN_SIZES)
def test_a_disk_grows_with_its_data(machine: Machine, vm: VM, filesystem: str) -> None:
    size = MIN_SIZES[filesystem]
    disk = machine.create_disk(size, {"filesystem": filesystem})
    checksum = fill(vm, disk)
    assert machine.call("resize_disk", disk, 4 * size) is None
    assert look(vm, disk, "md5sum < file") == checksum
    assert int(look(vm, disk, "df -m . | tail -1").split()[1]) > 3 * size - 32
    assert is_sound(machine, disk)
    table = json.loads(machine.host.run("sfdisk", "--json", str(machine.image(disk))).stdout)
    assert table["partitiontable"]["partitions"][0]["size"] == 4 * size * 2048
    verified = machine.host.run("sfdisk", "--verify", str(machine.image(disk)))
    assert "No errors" in verified.stdout


def test_a_disk_grows_hundredfold(machine: Machine, vm: VM) -> None:
    disk = machine.create_disk(64)
    checksum = fill(vm, disk)
    machine.call("resize_disk", disk, 64 << 10)
    assert look(vm, disk, "md5sum < file") == checksum
    assert int(look(vm, disk, "df -m . | tail -1").split()[1]) > 60 << 10
    assert machine.image(disk).stat().st_blocks * 512 < 512 << 20


def test_a_disk_does_not_shrink_and_is_not_resized_while_attached(machine: Machine, vm: VM) -> None:
    disk = machine.create_disk(64)
    for method, *more in (("resize_disk",), ("update_disk", {})):
        error = failing(lambda m=method, a=more: machine.call(m, disk, 32, *a))  # type: ignore[misc]
        assert (error.type, "cannot shrink" in error.message) == ("NotSupported", True)
    machine.call("attach_disk", vm.cid, disk)
    for method, *more in (("resize_disk",), ("update_disk", {})):
        error = failing(lambda m=method, a=more: machine.call(m, disk, 128, *a))  # type: ignore[misc]
        assert (error.type, vm.cid in error.message) == ("CloudError", True)
    assert machine.facts(disk)["size"] == 64


@pytest.mark.parametrize("table", [0, 2], ids=["of an earlier version", "now"])
def test_a_disk_keeps_the_room_of_its_table(machine: Machine, clean: None, table: int) -> None:
    disk = Disk(cid.new("containerd", cid.DISK), 64, table=table)
    DiskStore({"default": machine.host.state / "disks"}).create(disk)
    for size in (64, 96):
        machine.call("resize_disk", disk.cid, size)
        image = machine.image(disk.cid)
        assert machine.facts(disk.cid)["size"] == size
        assert image.stat().st_size == (size + table) << 20
        assert images.part_of(image).size == (size + table - 2) << 20
        assert is_sound(machine, disk.cid)
    snapshot = machine.call("snapshot_disk", disk.cid, {})
    machine.bosh_cpi("disk", "restore", snapshot, "--yes")
    assert is_sound(machine, disk.cid)
    machine.call("delete_snapshot", snapshot)
    machine.call("delete_disk", disk.cid)


def test_no_room_to_grow_a_preallocated_disk(machine: Machine, clean: None) -> None:
    disk = machine.create_disk(64, {"preallocate": True})
    error = failing(lambda: machine.call("resize_disk", disk, 1 << 20))
    assert error.type == "NoDiskSpace"
    assert "MiB are free" in error.message
    assert machine.image(disk).stat().st_size == 66 << 20
    assert is_sound(machine, disk)


def test_preallocated_disks_have_all_their_blocks(machine: Machine, vm: VM) -> None:
    def reserved(disk: str) -> int:
        return machine.image(disk).stat().st_blocks * 512 >> 20

    disk = machine.create_disk(64, {"preallocate": True})
    assert reserved(disk) >= 64
    machine.call("resize_disk", disk, 96)
    assert reserved(disk) >= 96
    late = machine.create_disk(64)
    checksum = fill(vm, late)
    assert reserved(late) < 32
    assert machine.call("update_disk", late, 64, {"preallocate": True}) == late
    assert reserved(late) >= 64
    assert look(vm, late, "md5sum < file") == checksum


def test_file_systems_are_what_was_asked_for(machine: Machine, make_vm: Callable[..., VM]) -> None:
    env = {"persistent_disk_fs": "xfs", "persistent_disk_mount_options": ["noatime,discard"]}
    vm = make_vm(env=env)
    filesystems = {
        machine.create_disk(320, {}, vm.cid): "xfs",
        machine.create_disk(64, {"filesystem": "ext4"}, vm.cid): "ext4",
        machine.create_disk(64): "ext4",
    }
    for disk, filesystem in filesystems.items():
        machine.call("attach_disk", vm.cid, disk)
        line = vm.sh(f"grep {disk} /proc/self/mountinfo")
        assert f" - {filesystem} " in line
        assert "noatime" in line
        assert "discard" in line.split(" - ")[1]


def test_a_disk_too_small_for_xfs_names_the_minimum(machine: Machine, clean: None) -> None:
    error = failing(lambda: machine.create_disk(64, {"filesystem": "xfs"}))
    assert "304 MiB" in error.message


def test_update_changes_store_and_size(machine: Machine, vm: VM, fast: Path) -> None:
    disk = machine.create_disk(64)
    checksum = fill(vm, disk)
    before = machine.image(disk)
    assert machine.call("update_disk", disk, 128, {"store": "fast", "name": "kept"}) == disk
    facts = machine.facts(disk)
    assert (facts["size"], facts["store"], facts["path"]) == (128, "fast", str(fast / before.name))
    assert facts["cloud_properties"] == {"store": "fast", "name": "kept"}
    assert not before.exists()
    machine.host.run("test", "-s", facts["path"])
    assert look(vm, disk, "md5sum < file") == checksum
    assert machine.call("update_disk", disk, 128, {}) == disk
    assert machine.image(disk) == before
    assert look(vm, disk, "md5sum < file") == checksum


def test_update_refuses_what_takes_a_new_disk_and_changes_nothing(
    machine: Machine, clean: None
) -> None:
    disk = machine.create_disk(64)
    before = machine.facts(disk)
    wish = {"filesystem": "xfs", "preallocate": True}
    error = failing(lambda: machine.call("update_disk", disk, 640, wish))
    assert error.type == "NotSupported"
    error = failing(lambda: machine.call("update_disk", disk, 64, {"store": "gone"}))
    assert "gone" in error.message
    assert "default" in error.message
    error = failing(lambda: machine.call("update_disk", disk, 64, {"stroe": "ssd"}))
    assert "'stroe'" in error.message
    assert machine.facts(disk) == before


@pytest.mark.parametrize("store", ["default", "fast"])
def test_a_snapshot_of_a_disk_in_use_is_consistent_and_restorable(
    machine: Machine, vm: VM, fast: Path, store: str
) -> None:
    disk = machine.create_disk(128, {"store": store})
    machine.call("attach_disk", vm.cid, disk)
    # A writer that syncs every line to the disk before it counts it elsewhere.
    vm.sh(
        f"cd {hint(disk)}; (i=0; while [ $i -lt 100000 ]; do i=$((i+1)); echo $i >> log; "
        "sync -d log; echo $i > /run/n; mv /run/n /run/count; done) > /dev/null 2>&1 & "
        "echo $! > /root/writer"
    )
    wait_for(lambda: vm.sh("cat /run/count 2>/dev/null || true"), "the writer")
    before = int(vm.sh("cat /run/count"))
    metadata = {"deployment": "cf", "index": 0}
    snapshot = machine.call("snapshot_disk", disk, metadata)
    after = int(vm.sh("cat /run/count"))
    wait_for(lambda: int(vm.sh("cat /run/count") or 0) > after, "the writer to go on")
    vm.sh("kill $(cat /root/writer); while kill -0 $(cat /root/writer) 2>/dev/null; do :; done")
    vm.sh(f"rm {hint(disk)}/log; echo later > {hint(disk)}/later")
    machine.call("detach_disk", vm.cid, disk)

    machine.call("resize_disk", disk, 192)
    listed = json.loads(machine.bosh_cpi("disk", "snapshots", disk, "--json").stdout)
    assert [(row["cid"], row["metadata"]) for row in listed] == [
        (snapshot, {"deployment": "cf", "index": "0"})
    ]
    assert machine.bosh_cpi("disk", "restore", snapshot, check=False).returncode == 1
    assert look(vm, disk, "ls").split() == ["later", "lost+found"]
    assert machine.bosh_cpi("disk", "restore", snapshot, "--yes").stdout.strip() == disk
    assert is_sound(machine, disk)
    lines = look(vm, disk, "cat log").split()
    assert lines == [str(number) for number in range(1, len(lines) + 1)]
    assert before <= len(lines) <= after + 1
    assert int(look(vm, disk, "df -m . | tail -1").split()[1]) > 150, "the size stays"
    machine.call("delete_snapshot", snapshot)
    machine.call("delete_snapshot", snapshot)
    assert machine.bosh_cpi("disk", "snapshots").stdout.count("snapshot") == 0


@pytest.mark.parametrize("filesystem", MIN_SIZES)
def test_a_snapshot_outlives_its_disk_and_becomes_a_new_one(
    machine: Machine, vm: VM, filesystem: str
) -> None:
    disk = machine.create_disk(MIN_SIZES[filesystem], {"filesystem": filesystem})
    checksum = fill(vm, disk)
    machine.call("attach_disk", vm.cid, disk)
    vm.sh(f"cp {hint(disk)}/file {hint(disk)}/new")
    snapshot = machine.call("snapshot_disk", disk, {})
    fresh = machine.bosh_cpi("disk", "restore", snapshot, "--new").stdout.strip()
    machine.disks.append(fresh)
    # Both at once: their UUIDs differ.
    machine.call("attach_disk", vm.cid, fresh)
    for name in ("file", "new"):
        assert vm.sh(f"md5sum < {hint(fresh)}/{name}") == checksum
    for attached in (disk, fresh):
        machine.call("detach_disk", vm.cid, attached)
    machine.call("delete_disk", disk)
    later = machine.bosh_cpi("disk", "restore", snapshot, "--new").stdout.strip()
    machine.disks.append(later)
    assert look(vm, later, "md5sum < file") == checksum
    assert is_sound(machine, later)
    machine.call("delete_snapshot", snapshot)


def test_a_snapshot_where_blocks_are_shared_takes_no_room(
    machine: Machine, vm: VM, fast: Path
) -> None:
    disk = machine.create_disk(512, {"store": "fast"})
    fill(vm, disk, 200)

    def used() -> int:
        return int(machine.host.run("df", "-m", str(fast)).stdout.splitlines()[1].split()[2])

    before = used()
    snapshot = machine.call("snapshot_disk", disk, {})
    assert used() - before < 20
    machine.call("delete_snapshot", snapshot)


def test_a_snapshot_keeps_holes(machine: Machine, vm: VM) -> None:
    disk = machine.create_disk(4096)
    fill(vm, disk, 20)
    snapshot = machine.call("snapshot_disk", disk, {})
    raw = machine.image(disk).parent / "snapshots" / snapshot / "disk.raw"
    assert raw.stat().st_size == 4098 << 20
    assert raw.stat().st_blocks * 512 < 200 << 20
    machine.call("delete_snapshot", snapshot)


def test_no_room_for_a_snapshot_is_an_error_and_leaks_nothing(machine: Machine, vm: VM) -> None:
    small = machine.host.folder / "small"
    small.mkdir()
    machine.host.run("mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(small))
    machine.host.write_config(disk_stores={"small": str(small)})
    try:
        disk = machine.create_disk(128, {"store": "small"})
        fill(vm, disk, 50)
        error = failing(lambda: machine.call("snapshot_disk", disk, {}))
        assert error.type == "NoDiskSpace"
        assert "MiB are free" in error.message
        left = machine.host.run("find", str(small), "-name", "*snap*").stdout.split()
        assert left == [str(small / "snapshots")]
        machine.call("attach_disk", vm.cid, disk)
        vm.sh(f"echo goes on > {hint(disk)}/other")
        machine.call("detach_disk", vm.cid, disk)
        machine.call("delete_disk", disk)
    finally:
        machine.host.write_config()
        machine.host.run("umount", str(small))
        small.rmdir()


def test_operators_see_disks(machine: Machine, vm: VM, tmp_path: Path) -> None:
    disk = machine.create_disk(64)
    checksum = fill(vm, disk)
    names = {"deployment": "cf", "instance_group": "db", "instance_id": "77"}
    machine.call("set_disk_metadata", disk, names)
    row = next(
        line for line in machine.bosh_cpi("disk", "list").stdout.splitlines() if disk in line
    )
    assert row.split()[1:] == ["64", "MiB", *row.split()[3:5], "ext4", "default", "detached",
                               "cf", "db/77"]  # fmt: skip
    folder = machine.host.folder / "look"
    folder.mkdir()
    machine.bosh_cpi("disk", "mount", disk, str(folder))
    assert machine.host.run("md5sum", str(folder / "file")).stdout.split()[0] == checksum.split()[0]
    assert machine.host.run("touch", str(folder / "new"), check=False).returncode
    error = failing(lambda: machine.call("attach_disk", vm.cid, disk))
    assert str(folder) in error.message
    assert machine.call("get_disks", vm.cid) == []
    machine.host.run("umount", str(folder))
    machine.call("attach_disk", vm.cid, disk)
    assert "attached" in machine.bosh_cpi("disk", "show", disk).stdout
    assert machine.bosh_cpi("disk", "fsck", disk, check=False).returncode == 1
    machine.bosh_cpi("disk", "mount", disk, str(folder))
    vm.sh(f"echo live > {hint(disk)}/live")
    assert machine.host.run("cat", str(folder / "live")).stdout == "live\n"
    assert machine.host.run("touch", str(folder / "new"), check=False).returncode
    machine.host.run("umount", str(folder))
    machine.call("detach_disk", vm.cid, disk)
    folder.rmdir()


@pytest.mark.parametrize("filesystem", MIN_SIZES)
def test_fsck_finds_and_repairs_damage(machine: Machine, vm: VM, filesystem: str) -> None:
    disk = machine.create_disk(MIN_SIZES[filesystem], {"filesystem": filesystem})
    fill(vm, disk)
    assert is_sound(machine, disk)
    image = machine.image(disk)
    if filesystem == "ext4":  # a name that leads to nothing
        machine.host.run("debugfs", "-w", "-R", "clri /file", f"{image}?offset={1 << 20}")
    else:  # wrong free space counters in the superblock
        with image.open("r+b") as file:
            file.seek((1 << 20) + 144)
            file.write(b"\x01\x02\x03\x04")
    assert not is_sound(machine, disk)
    machine.bosh_cpi("disk", "fsck", disk, "--repair", check=False)
    assert is_sound(machine, disk)


@pytest.mark.parametrize("odd", ["../../etc/passwd", "x", "containerd-vm-00"])
def test_operators_name_disks_only_by_cid(machine: Machine, odd: str) -> None:
    for verb in ("show", "fsck"):
        done = machine.bosh_cpi("disk", verb, odd, check=False)
        assert done.returncode == 2
        assert "is not a disk CID" in done.stderr
