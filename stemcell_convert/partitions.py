"""Where file systems lie in a raw disk: MBR, GPT or none, read from the bytes.

The kernel is not asked: some kernels read no partition tables on loop devices. BOSH's stemcells
have their root on the last partition (stemcell builder, image_create): MBR with ext4 at sector 63,
MBR with an ESP and ext4, or GPT with bios_grub, ESP and ext4.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from stemcell_convert.stemcell_errors import StemcellError

SECTOR = 512
_ENTRIES = 446  # where the MBR's four entries begin
_PROTECTIVE = 0xEE  # the MBR type that says: look at the GPT
_EXTENDED = (0x05, 0x0F, 0x85)  # a box of logical partitions; no stemcell has its root in one
_MOST_ENTRIES = 1024
_ENTRY_SIZES = range(128, 4096 + 1)

Read = Callable[[int, int], bytes]  # offset and size in bytes; short at the end of the disk


@dataclass(frozen=True)
class FileSystem:
    """A file system: `size` bytes at `offset`."""

    kind: str
    offset: int
    size: int


def file_systems(read: Read, size: int) -> list[FileSystem]:
    """Return the ext4 and xfs file systems of a disk of `size` bytes, the last one first.

    Raises StemcellError when the disk has neither a partition table nor a file system.
    """
    if kind := kind_at(read, 0):
        return [FileSystem(kind, 0, size)]
    mbr = read(0, SECTOR)
    if len(mbr) < SECTOR or mbr[510:] != b"\x55\xaa":
        raise StemcellError("the disk has neither a partition table nor a file system")
    parts = list(_mbr(mbr))
    if any(kind == _PROTECTIVE for kind, _, _ in parts):
        found = list(_gpt(read, size))
    else:
        found = [(first, count) for kind, first, count in parts if kind not in _EXTENDED]
    systems = []
    for first, count in sorted(found, reverse=True):
        offset, length = first * SECTOR, count * SECTOR
        if 0 < offset < size and (kind := kind_at(read, offset)):
            # A table may promise a little more than there is; the file system knows its own size.
            systems.append(FileSystem(kind, offset, min(length, size - offset)))
    return systems


def _mbr(sector: bytes) -> Iterator[tuple[int, int, int]]:
    for number in range(4):
        entry = sector[_ENTRIES + 16 * number :][:16]
        kind, first, count = entry[4], *struct.unpack_from("<II", entry, 8)
        if kind and first and count:
            yield kind, first, count


def _gpt(read: Read, size: int) -> Iterator[tuple[int, int]]:
    """UEFI, "GPT Header" and "GPT Partition Entry"."""
    header = read(SECTOR, 92)
    if len(header) < 92 or header[:8] != b"EFI PART":
        raise StemcellError("the disk's GPT is missing or damaged")
    start, number, each = struct.unpack_from("<QII", header, 72)
    if number > _MOST_ENTRIES or each not in _ENTRY_SIZES:
        raise StemcellError(f"the disk's GPT is damaged: {number} entries of {each} bytes")
    if start * SECTOR >= size:
        raise StemcellError("the disk's GPT is damaged: its entries are beyond the end of the disk")
    table = read(start * SECTOR, number * each)
    for at in range(0, len(table) - each + 1, each):
        first, last = struct.unpack_from("<QQ", table, at + 32)
        if any(table[at : at + 16]) and 0 < first <= last:
            yield first, last - first + 1


def kind_at(read: Read, offset: int) -> str:
    """The file system at an offset, by its magic bytes (ext4: super.h, xfs: xfs_format.h)."""
    if read(offset, 4) == b"XFSB":
        return "xfs"
    if read(offset + 1080, 2) == b"\x53\xef":
        return "ext4"
    return ""
