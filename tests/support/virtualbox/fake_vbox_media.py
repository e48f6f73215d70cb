"""The media registry of the FAKE VirtualBox (see fake_vbox.py): which files it opens as what.

What it takes and refuses was seen with VirtualBox 7.2's own VBoxSVC; the formats are QEMU's and
VMware's documents.
"""

import re
import struct
import uuid
from dataclasses import dataclass, field
from pathlib import Path

_VDI_MAGIC = b"\x7f\x10\xda\xbe"
_EXTENT = re.compile(r'^RW (\d+) FLAT "([^"\n]+)" (\d+)$', re.MULTILINE)
_UUID = re.compile(r'^ddb\.uuid\.image="([0-9a-f-]{36})"$', re.MULTILINE)

NOT_SUPPORTED, FILE_ERROR, INVALID_ARG = 0x80BB0005, 0x80BB0004, 0x80070057


class MediumRefused(Exception):
    """VirtualBox does not open a medium; rc: its result code."""

    def __init__(self, rc: int) -> None:
        super().__init__(f"rc={rc:08x}")
        self.rc = rc


@dataclass
class Media:
    """Media that VirtualBox knows: their paths by UUID."""

    known: dict[str, str] = field(default_factory=dict)

    def open(self, path: str, device: str) -> None:
        """Open a medium as a disk or a cdrom. Raises Refused."""
        file = Path(path)
        if not file.is_absolute() or not file.is_file():
            raise MediumRefused(FILE_ERROR)
        if device == "cdrom":  # any file of sectors; the same one as often as wanted
            if file.stat().st_size % 2048:
                raise MediumRefused(FILE_ERROR)
            return
        name = _uuid_of(file)
        if self.known.get(name, path) != path:
            raise MediumRefused(INVALID_ARG)  # "UUID already exists"
        if path in self.known.values() and self.known.get(name) != path:
            raise MediumRefused(FILE_ERROR)  # it has another UUID than the registry says
        self.known[name] = path

    def close(self, path: str) -> None:
        """Forget a medium."""
        self.known = {name: where for name, where in self.known.items() if where != path}


def _uuid_of(file: Path) -> str:
    """Return the UUID in a VDI or in a VMDK of flat extents. Raises Refused for anything else."""
    with file.open("rb") as opened:
        head = opened.read(4096)
    if head[0x40:0x44] == _VDI_MAGIC:
        (size,) = struct.unpack_from("<Q", head, 0x170)
        if not size:
            raise MediumRefused(FILE_ERROR)
        return str(uuid.UUID(bytes_le=head[0x188:0x198]))
    if not head.startswith(b"# Disk DescriptorFile\n"):
        raise MediumRefused(NOT_SUPPORTED)  # VERR_NOT_SUPPORTED: raw files among others
    text = head.decode("ascii")
    extents, name = _EXTENT.findall(text), _UUID.search(text)
    if len(extents) != 1 or name is None or 'createType="monolithicFlat"' not in text:
        raise MediumRefused(NOT_SUPPORTED)
    sectors, path, offset = extents[0]
    raw = file.parent / path
    if not raw.is_file() or raw.stat().st_size != (int(sectors) + int(offset)) * 512:
        raise MediumRefused(FILE_ERROR)
    return name[1]
