"""Reads GUID partition tables (UEFI, "GPT Header" and "GPT Partition Entry")."""

import struct
from collections.abc import Callable
from typing import NamedTuple

SECTOR = 512
_HEADER_SIZE = 92
_MAX_ENTRIES = 1024
_ENTRY_SIZES = range(128, 4096 + 1)

Read = Callable[[int, int], bytes]  # offset and size in bytes; short at the end of the disk


class Partition(NamedTuple):
    """A part of a disk, in bytes."""

    offset: int
    size: int


class Table(NamedTuple):
    """A disk's own GUID and its partitions, in the order of their entries."""

    guid: str
    partitions: list[Partition]


def read_table(read: Read, size: int) -> Table:
    """Return the table at the beginning of a disk of `size` bytes.

    Raises ValueError for a missing or corrupt one: "is …".
    """
    header = read(SECTOR, _HEADER_SIZE)
    if len(header) < _HEADER_SIZE or header[:8] != b"EFI PART":
        raise ValueError("is missing or damaged")
    first_entry, count, entry_size = struct.unpack_from("<QII", header, 72)
    if count > _MAX_ENTRIES or entry_size not in _ENTRY_SIZES:
        raise ValueError(f"is damaged: {count} entries of {entry_size} bytes")
    if first_entry * SECTOR >= size:
        raise ValueError("is damaged: its entries are beyond the end of the disk")
    entries = read(first_entry * SECTOR, count * entry_size)
    partitions = []
    for start in range(0, len(entries) - entry_size + 1, entry_size):
        first, last = struct.unpack_from("<QQ", entries, start + 32)
        if any(entries[start : start + 16]) and 0 < first <= last:
            partitions.append(Partition(first * SECTOR, (last - first + 1) * SECTOR))
    return Table(_guid(header[56:72]), partitions)


def _guid(raw: bytes) -> str:
    """Return a GUID as text; its first three fields are little-endian (UEFI, appendix A)."""
    first, second, third, rest = struct.unpack("<IHH8s", raw)
    return f"{first:08X}-{second:04X}-{third:04X}-{rest[:2].hex()}-{rest[2:].hex()}".upper()
