"""Finds the file systems of a raw disk with an MBR, a GPT or neither.

The kernel is not asked: some kernels read no partition tables on loop devices. BOSH's stemcells
have their root on the last partition (stemcell builder, image_create): MBR with ext4 at sector 63,
MBR with an ESP and ext4, or GPT with bios_grub, ESP and ext4.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from stemcell_convert.gpt import SECTOR, Partition, Read, read_table
from stemcell_convert.stemcell_errors import StemcellError

_ENTRIES = 446  # where the MBR's four entries begin
_PROTECTIVE = 0xEE  # the MBR type of a disk with a GPT
_EXTENDED = (0x05, 0x0F, 0x85)  # holds logical partitions; no stemcell has its root in one


# What a partition may hold besides: where its magic bytes are. No root file system of these can be
# read here.
_OTHERS = (
    (0x10040, b"_BHRfS_M", "btrfs"),
    (512, b"LABELONE", "LVM"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (0, b"hsqs", "squashfs"),
    (82, b"FAT32   ", "FAT32"),
    (54, b"FAT1", "FAT"),
    (4086, b"SWAPSPACE2", "swap"),
)


@dataclass(frozen=True)
class FileSystem:
    """A file system: `size` bytes at `offset`; its type is "ext4" or "xfs"."""

    fstype: str
    offset: int
    size: int


def file_systems(read: Read, size: int) -> list[FileSystem]:
    """Return the ext4 and xfs file systems of a disk of `size` bytes, the last one first.

    Raises StemcellError when the disk has neither a partition table nor a file system.
    """
    systems = []
    for offset, length in _parts(read, size):
        if fstype := fstype_at(read, offset):
            # A table may promise a little more than there is; the file system knows its own size.
            systems.append(FileSystem(fstype, offset, min(length, size - offset)))
    return systems


def others(read: Read, size: int) -> list[str]:
    """Return the names of what else a disk's partitions hold, the last one first."""
    names = [other_at(read, offset) for offset, _ in _parts(read, size)]
    return [name for name in names if name]


def other_at(read: Read, offset: int) -> str:
    """Return the name of what is there, "" if it is none of those known."""
    for where, magic, name in _OTHERS:
        if read(offset + where, len(magic)) == magic:
            return name
    return ""


def _parts(read: Read, size: int) -> list[Partition]:
    """Return the partitions of a disk, or all of it if it has a file system; the last one first."""
    whole = [Partition(0, size)]
    if fstype_at(read, 0):
        return whole
    mbr = read(0, SECTOR)
    if len(mbr) < SECTOR or mbr[510:] != b"\x55\xaa":
        if other_at(read, 0):
            return whole
        raise StemcellError("the disk has neither a partition table nor a file system")
    entries = list(_mbr(mbr))
    if any(mbr_type == _PROTECTIVE for mbr_type, _ in entries):
        try:
            partitions = read_table(read, size).partitions
        except ValueError as error:
            raise StemcellError(f"the disk's GPT {error}") from None
    else:
        partitions = [partition for mbr_type, partition in entries if mbr_type not in _EXTENDED]
    there = sorted((part for part in partitions if part.offset < size), reverse=True)
    # The first sector of a FAT file system looks like a table without partitions.
    return there or (whole if other_at(read, 0) else [])


def _mbr(sector: bytes) -> Iterator[tuple[int, Partition]]:
    """Yield the type of each partition in an MBR, and where it is."""
    for number in range(4):
        entry = sector[_ENTRIES + 16 * number :][:16]
        mbr_type, first, count = entry[4], *struct.unpack_from("<II", entry, 8)
        if mbr_type and first and count:
            yield mbr_type, Partition(first * SECTOR, count * SECTOR)


def fstype_at(read: Read, offset: int) -> str:
    """Return a file system's type by its magic bytes (ext4: super.h, xfs: xfs_format.h), or ""."""
    if read(offset, 4) == b"XFSB":
        return "xfs"
    if read(offset + 1080, 2) == b"\x53\xef":
        return "ext4"
    return ""
