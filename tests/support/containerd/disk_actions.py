"""Actions on persistent disks and their content."""

from tests.support.containerd.machine import VM, Machine

MIN_SIZES = {"ext4": 64, "xfs": 320}  # MiB, by file system; about xfs' minimum


def hint(disk: str) -> str:
    return f"/warden-cpi-dev/{disk}"


def attach_and_mount(vm: VM, disk: str) -> None:
    """Attach a disk and have the agent mount it, as the director does."""
    hint_from_cpi = vm.machine.call("attach_disk", vm.cid, disk)
    if vm.cid.startswith("containerd-"):
        assert hint_from_cpi == hint(disk)
    vm.agent("add_persistent_disk", disk, hint_from_cpi)
    vm.agent("mount_disk", disk)


def unmount_and_detach(vm: VM, disk: str) -> None:
    """Have the agent unmount a disk, and detach it, as the director does."""
    vm.agent("unmount_disk", disk)
    vm.agent("remove_persistent_disk", disk)
    vm.machine.call("detach_disk", vm.cid, disk)


def fill(vm: VM, disk: str, mib: int = 5) -> str:
    """Attach a disk, write a file, detach it; return the file's checksum."""
    vm.machine.call("attach_disk", vm.cid, disk)
    vm.sh(f"head -c {mib}M /dev/urandom > {hint(disk)}/file")
    checksum = vm.sh(f"md5sum < {hint(disk)}/file")
    vm.machine.call("detach_disk", vm.cid, disk)
    return checksum


def look(vm: VM, disk: str, script: str) -> str:
    """Attach a disk, run a script in its folder, detach it; return the script's output."""
    vm.machine.call("attach_disk", vm.cid, disk)
    try:
        return vm.sh(f"cd {hint(disk)} && {script}")
    finally:
        vm.machine.call("detach_disk", vm.cid, disk)


def is_sound(machine: Machine, disk: str) -> bool:
    return machine.bosh_cpi("disk", "fsck", disk, check=False).returncode == 0
