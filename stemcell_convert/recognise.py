"""Says what a stemcell's `image` file is, by its content and never by its name.

The formats are those of BOSH's stemcell builder (stemcell_packager.rb): a root file system in a
tar.gz (warden), a disk in a tar.gz or tar (openstack, aws, google, azure, vsphere's OVA), a bzip2'd
disk (cloudstack), and disks as they are.
"""

import tarfile
import zlib
from pathlib import Path

from stemcell_convert.errors import StemcellError, UnsupportedStemcell
from stemcell_convert.partitions import kind_at

GZIP, BZIP2 = b"\x1f\x8b", b"BZh"
ROOTFS, ARCHIVE, BZIPPED, DISK = "rootfs", "archive", "bzip2", "disk"

HEAD = 4096  # bytes that tell what a file is
_USTAR = (257, b"ustar")
_MAGIC = (
    (b"QFI\xfb", "qcow2"),
    (b"KDMV", "vmdk"),
    (b"vhdxfile", "vhdx"),
    (b"conectix", "vpc"),  # a dynamic VHD has a copy of its footer in front; a fixed one has not
)
_OTHER = (
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"\xfd7zXZ", "an xz file"),
    (b"PK\x03\x04", "a zip file"),
)
_ROOT_FOLDERS = {
    "bin", "boot", "dev", "etc", "home", "lib", "opt", "root", "run", "sbin", "usr", "var",
}  # fmt: skip


def disk_format(head: bytes) -> str:
    """The format of a disk by its first 4 KiB, in qemu-img's words, or "" if it is no disk."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[510:512] == b"\x55\xaa" or kind_at(lambda at, size: head[at : at + size], 0):
        return "raw"
    return ""


def recognise(image: Path) -> str:
    """Return what an `image` file is: ROOTFS, ARCHIVE (with a disk in it), BZIPPED or DISK.

    Reads its beginning only. Raises UnsupportedStemcell, saying what it is instead, and
    StemcellError when it is missing, empty or damaged.
    """
    head = _head(image)
    if not head:
        raise UnsupportedStemcell(
            f"{image} is empty, as in a light stemcell; those are not supported yet"
        )
    if head.startswith(GZIP):
        return _in_tar(image, "r|gz", "a tar.gz")
    where, magic = _USTAR
    if head[where:].startswith(magic):
        return _in_tar(image, "r|", "a tar")
    if head.startswith(BZIP2):
        return BZIPPED
    if disk_format(head):
        return DISK
    for magic, text in _OTHER:
        if head.startswith(magic):
            raise UnsupportedStemcell(f"{image} is {text}, which no stemcell of BOSH is")
    raise StemcellError(f"{image} is neither a tar.gz nor any disk image: no stemcell's")


def _in_tar(image: Path, mode: str, told: str) -> str:
    """Tell a root file system from an archive with a disk, by the first thing in it."""
    try:
        with tarfile.open(image, mode) as tar:  # type: ignore[call-overload]
            member = tar.next()
            if member is None:
                raise StemcellError(f"{image} holds an empty tar")
            content = tar.extractfile(member) if member.isreg() else None
            head = content.read(HEAD) if content else b""
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise StemcellError(f"{image} is not {told}, or is damaged: {error}") from None
    name = member.name.removeprefix("./")
    if name in (".", "") or name.split("/", 1)[0] in _ROOT_FOLDERS:
        return ROOTFS
    if disk_format(head) or head.lstrip().startswith(b"<?xml") or b"Envelope" in head:
        return ARCHIVE  # the OVF descriptor comes before its disk
    raise StemcellError(
        f"{image} begins with {member.name!a}, which is no root file system's folder"
    )


def _head(image: Path) -> bytes:
    try:
        with image.open("rb") as file:
            return file.read(HEAD)
    except OSError as error:
        raise StemcellError(f"cannot read the stemcell's image {image}: {error.strerror}") from None
