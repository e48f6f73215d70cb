"""Disks that VirtualBox opens: their serials in the guest, and descriptors of raw files.

VirtualBox derives the serial from the medium's UUID (DevATA.cpp: "VB%08x-%08x" of its first and
last four bytes). So the CPI chooses the UUIDs, by the file's name.
"""

import os
import uuid
from pathlib import Path

from cpi.errors import CloudError
from cpi.model import Json
from stemcell_convert.machine_agent import SCSI

_NAMESPACE = uuid.UUID("5b3b6d0e-4f0c-5d0a-9a8e-6f1f2f6f7a10")
_SECTOR = 512
_VDI_SIGNATURE = (0x40, b"\x7f\x10\xda\xbe")  # offset and bytes (QEMU, block/vdi.c)
_VDI_UUID = 0x188  # offset of the image's own

_DESCRIPTOR = """\
# Disk DescriptorFile
version=1
CID=fffffffe
parentCID=ffffffff
createType="monolithicFlat"

# Extent description
RW {sectors} FLAT "{path}" 0

# The disk Data Base
#DDB

ddb.virtualHWVersion = "4"
ddb.adapterType="ide"
ddb.uuid.image="{uuid}"
ddb.uuid.modification="{none}"
ddb.uuid.parent="{none}"
ddb.uuid.parentmodification="{none}"
"""


def uuid_of(name: str) -> uuid.UUID:
    """Return the UUID for a name: a VM's by its CID, a medium's by its file."""
    return uuid.uuid5(_NAMESPACE, name)


def serial_of(name: str) -> str:
    """Return the serial of the medium of this file name in a VM, on SATA."""
    # As VirtualBox keeps it in memory, whose last four bytes it prints as one number.
    raw = uuid_of(name).bytes_le
    first, last = (int.from_bytes(raw[start : start + 4], "little") for start in (0, 12))
    return f"VB{first:08x}-{last:08x}"


def hint_of(name: str, resolution: str) -> Json:
    """Return the hint for the medium of this file name (bosh-agent, devicepathresolver).

    A scsi resolver takes the end of a link's name as a pattern, but takes dashes out of it first. A
    virtio resolver takes a path and follows it.
    """
    serial = serial_of(name)
    if resolution == SCSI:
        return {"id": serial.replace("-", "?")}
    return {"path": f"/dev/disk/by-id/ata-VBOX_HARDDISK_{serial}"}


def descriptor(name: str, raw: Path, size: int) -> str:
    """Return the VMDK descriptor of a raw file of `size` bytes.

    name: of the descriptor's own file. Raises CloudError for a path that it cannot hold.
    """
    path = str(raw)
    if '"' in path or not path.isprintable():
        raise CloudError(f"a VMDK cannot name {path!r}; choose another folder for disks")
    return _DESCRIPTOR.format(
        sectors=size // _SECTOR, path=path, uuid=uuid_of(name), none=uuid.UUID(int=0)
    )


def set_vdi_uuid(image: Path, name: str) -> None:
    """Give an unused VDI the UUID of a file name. Raises CloudError when it is no VDI."""
    fd = os.open(image, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        offset, signature = _VDI_SIGNATURE
        if os.pread(fd, len(signature), offset) != signature:
            raise CloudError(f"{image} is no VDI")
        os.pwrite(fd, uuid_of(name).bytes_le, _VDI_UUID)
    finally:
        os.close(fd)
