"""What is refused of a disk, and who has it, wherever its facts are kept."""

from pathlib import Path

import pytest

from cpi.disks.disk import Disk
from cpi.disks.disk_store import DiskStore
from cpi.errors import CloudError, CPIError, DiskNotAttached, NotSupported
from cpi.log import Log

DISK, VM, OTHER = "some-disk-1", "some-vm-1", "some-vm-2"
DETACHED, ATTACHED = Disk(DISK, 64), Disk(DISK, 64, attached_to=VM)


def refusal(error: type[CPIError], disk: Disk, rule: str, *arguments: object) -> str:
    with pytest.raises(error) as raised:
        getattr(disk, rule)(*arguments)
    return raised.value.message


def test_a_disk_that_a_vm_has() -> None:
    ATTACHED.require_free_for(VM)
    ATTACHED.require_attached_to(VM)
    said = refusal(CloudError, ATTACHED, "require_detached")
    assert said == f"the disk {DISK} is attached to the VM {VM}; detach it first"
    assert refusal(CloudError, ATTACHED, "require_free_for", OTHER) == said
    assert refusal(CloudError, ATTACHED, "require_detached", "wait").endswith(f"{VM}; wait")
    said = refusal(DiskNotAttached, ATTACHED, "require_attached_to", OTHER)
    assert said == f"the disk {DISK} is attached to {VM}, so not to the VM {OTHER}"


def test_a_disk_that_no_vm_has() -> None:
    DETACHED.require_detached()
    DETACHED.require_free_for(VM)
    said = refusal(DiskNotAttached, DETACHED, "require_attached_to", VM)
    assert said == f"the disk {DISK} is not attached, so not to the VM {VM}"


def test_what_takes_a_new_disk() -> None:
    DETACHED.require_growth(64)
    DETACHED.require_filesystem(None)
    DETACHED.require_filesystem("ext4")
    DETACHED.require_room_for_filesystem()
    assert "cannot shrink to 63 MiB" in refusal(NotSupported, DETACHED, "require_growth", 63)
    assert "has ext4; xfs takes" in refusal(NotSupported, DETACHED, "require_filesystem", "xfs")
    small = Disk(DISK, 64, filesystem="xfs")
    assert "64 MiB is too small" in refusal(CloudError, small, "require_room_for_filesystem")


def test_a_disk_is_taken_from_a_vm_that_is_gone(tmp_path: Path) -> None:
    store = DiskStore({"default": tmp_path})
    store.save(ATTACHED)
    assert store.get_reclaimed(DISK, lambda vm_cid: vm_cid == VM, Log("error")) == ATTACHED
    assert store.user_of(DISK) == VM
    assert store.get_reclaimed(DISK, lambda _: False, Log("error")) == DETACHED
    assert store.find(DISK) == DETACHED
    assert store.user_of(DISK) == store.user_of("some-disk-2") == ""
