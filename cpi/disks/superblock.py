"""Checks superblocks before the kernel mounts what somebody else wrote.

The kernel trusts a superblock in much: ext4's says what happens after an error (a panic of the
whole host, if it likes), which other block device holds its journal, and mount options that nobody
else gave. Only features are allowed that the tools set which make stemcells and disks.

Layouts: fs/ext4/ext4.h (struct ext4_super_block) and fs/xfs/libxfs/xfs_format.h (struct xfs_dsb).
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

SIZE = 4096  # bytes from the beginning of a file system that `problem` reads

_EXT4_START, _EXT4_MAGIC = 1024, 0xEF53
_MAX_BLOCK = 4096  # bytes; larger than a page, ext4 cannot be mounted
_JOURNAL = 0x4  # compat: has_journal

# What mke2fs and resize2fs set (mke2fs.conf of e2fsprogs 1.44 to 1.47), and states of the kernel's.
# Left out: a journal on another device, multiple mount protection, encryption, casefold, verity,
# bigalloc, compression.
_EXT4_COMPAT = 0x1 | _JOURNAL | 0x8 | 0x10 | 0x20 | 0x200 | 0x400 | 0x1000
_EXT4_INCOMPAT = 0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000
_EXT4_RO_COMPAT = 0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | 0x400 | 0x1000 | 0x2000 | 0x10000

_XFS_MAGIC = b"XFSB"
_XFS_VERSION = 0xF  # sb_versionnum: the version's bits
# mkfs.xfs 5.0 to 6.13. Left out: a realtime device, and what needs a repair.
_XFS_RO_COMPAT = 0x1 | 0x2 | 0x4 | 0x8
_XFS_INCOMPAT = 0x1 | 0x2 | 0x4 | 0x8 | 0x20 | 0x40 | 0x80


@dataclass(frozen=True)
class _Field:
    """A number in a superblock. offset: bytes from the beginning; form: as for struct."""

    offset: int
    form: str

    def of(self, head: bytes) -> int:
        (value,) = struct.unpack_from(self.form, head, self.offset)
        return int(value)


def _ext4(offset: int, form: str) -> _Field:
    return _Field(_EXT4_START + offset, f"<{form}")


_EXT4 = {
    "blocks_lo": _ext4(0x4, "I"),
    "first_block": _ext4(0x14, "I"),
    "log_block_size": _ext4(0x18, "I"),
    "blocks_per_group": _ext4(0x20, "I"),
    "inodes_per_group": _ext4(0x28, "I"),
    "magic": _ext4(0x38, "H"),
    "revision": _ext4(0x4C, "I"),
    "inode_size": _ext4(0x58, "H"),
    "compat": _ext4(0x5C, "I"),
    "incompat": _ext4(0x60, "I"),
    "ro_compat": _ext4(0x64, "I"),
    "journal_inode": _ext4(0xE0, "I"),
    "journal_device": _ext4(0xE4, "I"),
    "blocks_hi": _ext4(0x150, "I"),
}
_EXT4_OPTIONS = slice(_EXT4_START + 0x200, _EXT4_START + 0x240)

_XFS = {
    "block_size": _Field(4, ">I"),
    "blocks": _Field(8, ">Q"),
    "realtime_blocks": _Field(16, ">Q"),
    "log_start": _Field(48, ">Q"),
    "group_blocks": _Field(84, ">I"),
    "groups": _Field(88, ">I"),
    "version": _Field(100, ">H"),
    "sector_size": _Field(102, ">H"),
    "inode_size": _Field(104, ">H"),
    "ro_compat": _Field(212, ">I"),
    "incompat": _Field(216, ">I"),
}


def problem(fstype: str, head: bytes, size: int) -> str:
    """Return why a file system should not be mounted, or "".

    head: its first SIZE bytes; size: bytes of what it lies on.
    """
    if len(head) < SIZE:
        return "it is too small for a file system"
    return _CHECKS[fstype](head, size)


def _ext4_problem(head: bytes, size: int) -> str:
    block = {name: field.of(head) for name, field in _EXT4.items()}
    if block["magic"] != _EXT4_MAGIC:
        return "it has no superblock"
    if block["revision"] != 1:
        return f"its revision is {block['revision']}, not 1"
    if unknown := _unknown(
        block,
        {"compat": _EXT4_COMPAT, "incompat": _EXT4_INCOMPAT, "ro_compat": _EXT4_RO_COMPAT},
    ):
        return unknown
    if head[_EXT4_OPTIONS].strip(b"\0"):
        return "it brings mount options of its own (tune2fs -E mount_opts)"
    if block["journal_device"] or (block["compat"] & _JOURNAL and not block["journal_inode"]):
        return "its journal is on another device"
    if block["log_block_size"] > 2:
        return f"its blocks are larger than {_MAX_BLOCK} bytes"
    block_size = 1024 << block["log_block_size"]
    blocks = block["blocks_lo"] | block["blocks_hi"] << 32
    if not block["first_block"] <= 1 or not 0 < blocks * block_size <= size:
        return f"it has {blocks} blocks of {block_size} bytes, on {size} bytes"
    if not 128 <= block["inode_size"] <= block_size or block["inode_size"].bit_count() != 1:
        return f"its inodes have {block['inode_size']} bytes"
    for name in ("blocks_per_group", "inodes_per_group"):  # a bitmap is one block
        if not 0 < block[name] <= 8 * block_size:
            return f"{name} is {block[name]}"
    return ""


def _xfs_problem(head: bytes, size: int) -> str:
    block = {name: field.of(head) for name, field in _XFS.items()}
    if not head.startswith(_XFS_MAGIC):
        return "it has no superblock"
    version = block["version"] & _XFS_VERSION
    if version not in (4, 5):
        return f"its version is {version}, not 4 or 5"
    if version == 5 and (
        unknown := _unknown(block, {"ro_compat": _XFS_RO_COMPAT, "incompat": _XFS_INCOMPAT})
    ):
        return unknown
    if block["realtime_blocks"] or not block["log_start"]:
        return "its journal or its data is on another device"
    for name, smallest in (("block_size", 512), ("sector_size", 512), ("inode_size", 256)):
        if block[name].bit_count() != 1 or not smallest <= block[name] <= 65536:
            return f"{name} is {block[name]}"
    if not 0 < block["blocks"] * block["block_size"] <= size:
        return f"it has {block['blocks']} blocks of {block['block_size']} bytes, on {size} bytes"
    if not block["group_blocks"] or block["groups"] != -(-block["blocks"] // block["group_blocks"]):
        return f"it has {block['groups']} groups of {block['group_blocks']} blocks"
    return ""


def _unknown(block: Mapping[str, int], known: Mapping[str, int]) -> str:
    """Return which features are not allowed, or ""."""
    for name, features in known.items():
        if left := block[name] & ~features:
            return f"it has features that are not allowed ({name} {left:#x})"
    return ""


_CHECKS: Mapping[str, Callable[[bytes, int], str]] = {"ext4": _ext4_problem, "xfs": _xfs_problem}
