"""Recognises the format of a stemcell or its `image` file by its content, never by its name.

The formats are those of BOSH's stemcell builder (stemcell_packager.rb): a root file system in a
tar.gz (warden), a disk in a tar.gz or tar (openstack, aws, google, azure, vsphere's OVA), a bzip2'd
disk (cloudstack), and disks as they are.
"""

import io
import zlib

from stemcell_convert import tars
from stemcell_convert.partitions import fstype_at
from stemcell_convert.stemcell_errors import StemcellError, UnsupportedStemcell
from stemcell_convert.streams import Source

GZIP, BZIP2 = b"\x1f\x8b", b"BZh"
ROOTFS, ARCHIVE, BZIPPED, DISK = "rootfs", "archive", "bzip2", "disk"
LIGHT, TARBALL = "light", "tarball"

HEAD = 4096  # bytes to recognise a file by
_INFLATED = 64 << 10  # bytes; a first member's headers and its HEAD
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
# What `tar czf stemcell.tgz *` of the stemcell builder can begin with.
_TARBALL_FILES = ("stemcell.MF", "image", "packages.txt", "dev_tools_file_list.txt")
_ROOT_FOLDERS = {
    "bin", "boot", "dev", "etc", "home", "lib", "opt", "root", "run", "sbin", "usr", "var",
}  # fmt: skip


def disk_format_of(head: bytes) -> str:
    """Return a disk's format by its first 4 KiB, in qemu-img's words, or "" if it is no disk."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[510:512] == b"\x55\xaa" or fstype_at(lambda start, size: head[start : start + size], 0):
        return "raw"
    return ""


def recognise(source: Source) -> str:
    """Return the format of a stemcell, or its `image`, without consuming it.

    ROOTFS, ARCHIVE (with a disk in it), BZIPPED or DISK; LIGHT if it is empty; TARBALL if it is a
    whole stemcell. Raises UnsupportedStemcell naming the format, StemcellError for a corrupt one.
    """
    head = source.peek()
    if not head:
        return LIGHT
    if head.startswith(GZIP):
        return _in_tar(_inflated(head, source.name), source.name)
    where, magic = _USTAR
    if head[where:].startswith(magic):
        return _in_tar(head, source.name)
    if head.startswith(BZIP2):
        return BZIPPED
    if disk_format_of(head):
        return DISK
    for magic, text in _OTHER:
        if head.startswith(magic):
            raise UnsupportedStemcell(f"{source.name} is {text}, which no stemcell of BOSH is")
    raise StemcellError(f"{source.name} is neither a tar.gz nor any disk image: no stemcell's")


def _inflated(head: bytes, name: str) -> bytes:
    """Return the beginning of a gzip's content, within a limit."""
    try:
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16).decompress(head, _INFLATED)
    except zlib.error as error:
        raise StemcellError(f"{name} is not a tar.gz, or is damaged: {error}") from None


def _in_tar(head: bytes, name: str) -> str:
    """Tell a root file system from an archive, by the first thing in it."""
    with tars.opened(io.BytesIO(head), name, zipped=False) as members:
        member, content = next(members, (None, None))
        if member is None:
            raise StemcellError(f"{name} holds an empty tar")
        start = content.read(HEAD) if content else b""
    first = member.name.removeprefix("./")
    if first in (".", "") or first.split("/", 1)[0] in _ROOT_FOLDERS:
        return ROOTFS
    if first in _TARBALL_FILES or first.startswith("sbom"):
        return TARBALL
    if disk_format_of(start) or start.lstrip().startswith(b"<?xml") or b"Envelope" in start:
        return ARCHIVE  # the OVF descriptor comes before its disk
    raise StemcellError(
        f"{name} begins with {member.name!a}, which is no root file system's folder"
    )
