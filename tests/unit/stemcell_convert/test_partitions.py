"""Partition tables, from bytes alone."""

import struct
from pathlib import Path

import pytest

from stemcell_convert import convert
from stemcell_convert.partitions import FileSystem, file_systems
from stemcell_convert.stemcell_errors import StemcellError

SECTOR = 512
SIZE = 4 << 20


def _systems(disk: bytes) -> list[FileSystem]:
    return file_systems(lambda offset, size: disk[offset : offset + size], len(disk))


def _disk(*parts: tuple[int, int, int], fstypes: dict[int, str] | None = None) -> bytearray:
    """Make an MBR disk; fstypes: file systems by their first sector."""
    disk = bytearray(SIZE)
    disk[510:512] = b"\x55\xaa"
    for number, (mbr_type, first, count) in enumerate(parts):
        struct.pack_into("<4xB3xII", disk, 446 + 16 * number, mbr_type, first, count)
    for first, name in (fstypes or {}).items():
        _format(disk, first, name)
    return disk


def _format(disk: bytearray, first: int, name: str) -> None:
    offset = first * SECTOR
    if name == "ext4":
        disk[offset + 1080 : offset + 1082] = b"\x53\xef"
    else:
        disk[offset : offset + 4] = b"XFSB"


def _gpt(*parts: tuple[int, int], number: int = 128, each: int = 128) -> bytearray:
    disk = _disk((0xEE, 1, SIZE // SECTOR - 1))
    disk[SECTOR : SECTOR + 8] = b"EFI PART"
    struct.pack_into("<QII", disk, SECTOR + 72, 2, number, each)
    for index, (first, last) in enumerate(parts):
        offset = 2 * SECTOR + index * 128
        disk[offset : offset + 16] = b"t" * 16
        struct.pack_into("<QQ", disk, offset + 32, first, last)
    return disk


def test_one_partition_at_sector_63() -> None:
    disk = _disk((0x83, 63, 1000), fstypes={63: "ext4"})
    assert _systems(bytes(disk)) == [FileSystem("ext4", 63 * 512, 1000 * 512)]


def test_the_last_comes_first_and_an_esp_is_none() -> None:
    disk = _disk(
        (0xEF, 64, 64), (0x83, 200, 100), (0x83, 400, 100), fstypes={200: "xfs", 400: "ext4"}
    )
    assert [(system.fstype, system.offset) for system in _systems(bytes(disk))] == [
        ("ext4", 400 * 512), ("xfs", 200 * 512),
    ]  # fmt: skip


def test_gpt() -> None:
    disk = _gpt((100, 199), (200, 299), (300, 399))
    _format(disk, 300, "ext4")
    assert _systems(bytes(disk)) == [FileSystem("ext4", 300 * 512, 100 * 512)]


def test_a_file_system_without_a_table() -> None:
    disk = bytearray(SIZE)
    _format(disk, 0, "xfs")
    assert _systems(bytes(disk)) == [FileSystem("xfs", 0, SIZE)]


@pytest.mark.parametrize(
    ("where", "magic", "name"),
    [
        (0x10040, b"_BHRfS_M", "btrfs"),
        (512, b"LABELONE", "LVM"),
        (82, b"FAT32   ", "FAT32"),
        (0, b"LUKS\xba\xbe", "LUKS"),
    ],
)
def test_other_roots_are_named(where: int, magic: bytes, name: str, tmp_path: Path) -> None:
    parted = _disk((0xEF, 64, 64), (0x83, 200, 1000), fstypes={})
    parted[64 * SECTOR + 54 : 64 * SECTOR + 62] = b"FAT16   "
    bare = bytearray(SIZE)
    for disk, offset, names in ((parted, 200 * SECTOR, f"{name}, FAT"), (bare, 0, name)):
        disk[offset + where : offset + where + len(magic)] = magic
        raw = tmp_path / "raw"
        raw.write_bytes(disk)
        with pytest.raises(StemcellError) as raised:
            convert.file_systems(raw)
        assert f"the disk has {names}, and neither ext4 nor xfs" in str(raised.value)
    raw.write_bytes(_disk((0x83, 63, 1000), (0x83, 1200, 1000), fstypes={63: "ext4"}))
    assert len(convert.file_systems(raw)) == 1


def test_no_more_than_there_is() -> None:
    disk = _disk((0x83, 63, 1 << 30), (0x83, 1 << 29, 10), fstypes={63: "ext4"})
    assert _systems(bytes(disk)) == [FileSystem("ext4", 63 * 512, SIZE - 63 * 512)]


@pytest.mark.parametrize(
    "disk",
    [
        bytes(SIZE),
        bytes(100),
        b"",
        bytes(_disk((0xEE, 1, 100))),
        bytes(_gpt(number=1 << 31)),
        bytes(_gpt(each=1)),
        bytes(_gpt(each=1 << 31)),
    ],
)
def test_a_damaged_disk_is_said_to_be_one(disk: bytes) -> None:
    with pytest.raises(StemcellError):
        _systems(disk)
