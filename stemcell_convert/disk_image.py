"""Converts disk images to raw with qemu-img, after refusing hostile ones."""

import json
import os
from pathlib import Path
from typing import Any

from stemcell_convert.programs import run
from stemcell_convert.recognise import HEAD, disk_format_of
from stemcell_convert.stemcell_errors import StemcellError

_HINT = "apt-get install qemu-utils"
_FOOTER = 512  # bytes, at the end of a VHD
_VHD_TYPES = (2, 3)  # fixed and dynamic


def raw_size(disk: Path) -> int:
    """Return the bytes of a raw disk in a file, without the footer of a fixed VHD."""
    size = disk.stat().st_size
    footer = _read(disk, size - _FOOTER, 8) if size > _FOOTER else b""
    return size - _FOOTER if footer == b"conectix" else size


def to_raw(disk: Path, target: Path, limit: int) -> Path:
    """Return a disk as a raw file: the file itself, or `target`, sparse.

    Raises StemcellError when it is damaged, refers to other files, or is larger than `limit` bytes.
    """
    fmt = disk_format_of(_read(disk, 0, HEAD))
    if not fmt:
        raise StemcellError(f"{disk} is no disk image that is known")
    if fmt == "raw":
        return disk
    size = _require_standalone(disk, fmt).get("virtual-size", 0)
    if not 0 < size <= limit:
        raise StemcellError(
            f"the disk in the stemcell has {size >> 20} MiB; the limit is {limit >> 20} MiB "
            "(stemcell_limit)"
        )
    # -f: the format is not probed again. -S: holes stay holes.
    run(
        ["qemu-img", "convert", "-f", fmt, "-O", "raw", "-S", "4k", "-W", str(disk), str(target)],
        _HINT,
    )
    return target


def _require_standalone(disk: Path, fmt: str) -> dict[str, Any]:
    """Refuse an image that refers to other files; return qemu-img's facts."""
    if fmt == "vmdk" and int.from_bytes(_read(disk, 12, 8), "little") == 0:
        raise StemcellError("the VMDK has no capacity of its own: it describes other files")
    if fmt == "vpc":
        vhd_type = int.from_bytes(_read(disk, 60, 4), "big")  # "Disk Type" of the footer's copy
        if vhd_type not in _VHD_TYPES:
            raise StemcellError(
                f"the VHD is of type {vhd_type}; a differencing one needs its parent"
            )
    facts = _facts(disk, fmt)
    for name in ("backing-filename", "full-backing-filename"):
        if name in facts:
            raise StemcellError(f"the {fmt} image refers to another file, {facts[name]!a}")
    special = facts.get("format-specific", {}).get("data", {})
    if special.get("data-file"):
        raise StemcellError(f"the {fmt} image refers to another file, {special['data-file']!a}")
    for extent in special.get("extents", []):
        if os.path.realpath(str(extent.get("filename"))) != os.path.realpath(disk):
            raise StemcellError(f"the {fmt} image refers to another file, {extent!a}")
    return facts


def _facts(disk: Path, fmt: str) -> dict[str, Any]:
    document = json.loads(run(["qemu-img", "info", "-f", fmt, "--output=json", str(disk)], _HINT))
    return document if isinstance(document, dict) else {}


def _read(disk: Path, offset: int, size: int) -> bytes:
    with disk.open("rb") as file:
        file.seek(offset)
        return file.read(size)
