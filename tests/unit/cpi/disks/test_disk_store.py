"""Disks as files, as far as that needs neither root nor a mount."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from cpi import cid
from cpi.config.load import config_of
from cpi.disks import raw_image as images
from cpi.disks.disk import Disk, wanted
from cpi.disks.disk_store import DiskStore, folders_of
from cpi.errors import CloudError, CPIError, DiskNotFound, NoDiskSpace
from cpi.model import DiskProperties

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> DiskStore:
    return DiskStore({"default": tmp_path / "usual", "fast": tmp_path / "fast"})


@pytest.fixture
def disk(store: DiskStore) -> Disk:
    made = Disk(cid.new("some", cid.DISK), 16)
    store.create(made)
    return made


def test_a_disk_is_created_found_and_deleted(store: DiskStore, disk: Disk) -> None:
    assert store.find(disk.cid) == disk
    assert list(store.all()) == [disk]
    store.check(disk)
    assert store.image(disk).stat().st_mode & 0o777 == 0o600
    store.delete(disk.cid)
    assert store.find(disk.cid) is None
    assert not list(store.image(disk).parent.iterdir())
    with pytest.raises(DiskNotFound):
        store.delete(disk.cid)


def test_of_two_copies_the_one_that_moved_last_is_right(store: DiskStore, disk: Disk) -> None:
    moved = replace(disk, store="fast", moves=1)
    store.folders["fast"].mkdir()
    images.copy(store.image(disk), store.image(moved))
    store.save(moved)  # a move that was killed before it removed the first
    assert store.find(disk.cid) == moved
    assert list(store.all()) == [moved]
    store.update(disk.cid, 16, DiskProperties(store="fast"))
    assert store.get(disk.cid).store == "fast"
    assert not list(store.folders["default"].iterdir())
    store.delete(disk.cid)
    assert not list(store.folders["fast"].iterdir())


def test_an_attached_disk_is_not_deleted(store: DiskStore, disk: Disk) -> None:
    store.change(disk.cid, attached_to="some-vm-1")
    assert store.attached_to("some-vm-1") == [disk.cid]
    with pytest.raises(CloudError, match="some-vm-1"):
        store.delete(disk.cid)


def test_the_partition_has_the_size_that_was_asked_for(store: DiskStore) -> None:
    disk = wanted(cid.new("some", cid.DISK), 16, DiskProperties(), None)
    store.create(disk)
    assert images.part_of(store.image(disk)).size == 16 * MIB
    assert store.image(disk).stat().st_size == 18 * MIB
    store.check(disk)


def test_a_disk_of_an_earlier_version_stays_as_it_is(store: DiskStore, disk: Disk) -> None:
    facts = store.folders[disk.store] / f"{disk.cid}.json"
    document = json.loads(facts.read_text())
    assert document.pop("table") == 0
    facts.write_text(json.dumps(document))
    store.check(store.get(disk.cid))
    assert store.get(disk.cid) == disk
    assert images.part_of(store.image(disk)).size == (disk.size - 2) * MIB


def test_a_store_that_is_not_configured_is_named(store: DiskStore) -> None:
    with pytest.raises(CloudError, match="no disk store slow; the configuration has default, fast"):
        store.create(Disk(cid.new("some", cid.DISK), 16, store="slow"))


def test_no_more_than_the_host_can_have(store: DiskStore) -> None:
    disk = Disk(cid.new("some", cid.DISK), 1 << 40)
    with pytest.raises(NoDiskSpace):
        store.create(disk)
    assert not list(store.folders["default"].iterdir())


def test_check_tells_other_files_from_the_disk(store: DiskStore, disk: Disk) -> None:
    image = store.image(disk)
    other = Disk(cid.new("some", cid.DISK), 16)
    store.create(other)
    kept = image.read_bytes()
    wrong = {
        "is truncated": kept[:-1],
        "has no GPT": bytes(len(kept)),
        "is another disk": store.image(other).read_bytes(),
        "does not begin at 1 MiB": kept[: 2 * 512 + 32] + b"\1" + kept[2 * 512 + 33 :],
        "none that is known": kept[:MIB] + bytes(len(kept) - MIB),
    }
    for reason, content in wrong.items():
        image.write_bytes(content)
        with pytest.raises(CloudError, match=reason) as caught:
            store.check(disk)
        assert str(image) in caught.value.message
    image.unlink()
    with pytest.raises(CloudError, match="is missing"):
        store.check(disk)
    os.mkfifo(image)  # must not hold us up
    with pytest.raises(CloudError, match="no regular file"):
        store.check(disk)


def test_a_copy_has_the_data_and_the_holes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        for place in (0, 10 * MIB, 99 * MIB):
            file.seek(place)
            file.write(os.urandom(MIB))
        file.truncate(200 * MIB)
    reports: list[tuple[int, int]] = []
    target.write_text("what a killed call left")
    images.copy(source, target, lambda done, total: reports.append((done, total)))
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 < 4 * MIB
    assert target.stat().st_mode & 0o777 == 0o600
    if reports:  # not where the blocks are shared
        assert reports[-1][0] == reports[-1][1]
        assert reports == sorted(reports)


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(CloudError, match="cannot copy"):
        images.copy(tmp_path, target)
    assert not target.exists()


def test_stores_of_the_configuration(tmp_path: Path) -> None:
    config = config_of({"state_dir": "/state", "disk_stores": {"fast": "/mnt/fast"}})
    assert folders_of(config) == {"default": Path("/state/disks"), "fast": Path("/mnt/fast")}
    for stores in ({"default": "/x"}, {"A": "/x"}, {"fast": "x"}, {"fast": "/a/../b"}, {"a": 1}):
        with pytest.raises(CPIError, match="disk_stores"):
            folders_of(config_of({"disk_stores": stores}))


def test_the_guid_is_the_cid() -> None:
    assert images.guid_of("some-disk-00112233445566778899aabbccddeeff") == (
        "00112233-4455-6677-8899-AABBCCDDEEFF"
    )
