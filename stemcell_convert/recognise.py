"""Recognises the format of a stemcell or its `image` file by its content, never by its name.

The formats are those of BOSH's stemcell builder (stemcell_packager.rb): a root file system in a
tar.gz (warden), a disk in a tar.gz or tar (openstack, aws, google, azure, vsphere's OVA), a bzip2'd
disk (cloudstack), and disks as they are.
"""

import io
import itertools
import zlib

from stemcell_convert import tars
from stemcell_convert.partitions import fstype_at, other_at
from stemcell_convert.stemcell_errors import StemcellError, UnsupportedStemcell
from stemcell_convert.streams import Source

GZIP, BZIP2 = b"\x1f\x8b", b"BZh"
ROOTFS, ARCHIVE, BZIPPED, DISK = "rootfs", "archive", "bzip2", "disk"
LIGHT, TARBALL = "light", "tarball"

HEAD = 4096  # bytes to recognise a file by
_INFLATED = 1 << 20  # bytes of a tar to look at
_MAX_LOOK = 200  # members of it
_USTAR = (257, b"ustar")
_MAGIC = (
    (b"QFI\xfb", "qcow2"),
    (b"KDMV", "vmdk"),
    (b"vhdxfile", "vhdx"),
    (b"conectix", "vpc"),  # a dynamic VHD has a copy of its footer in front; a fixed one has not
)
_OTHER = (
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"\xfd7zXZ", "compressed with xz"),
    (b"PK\x03\x04", "a zip file"),
)
# What `tar czf stemcell.tgz *` of the stemcell builder can begin with.
_TARBALL_FILES = ("stemcell.MF", "image", "packages.txt", "dev_tools_file_list.txt")
_ROOT_FOLDERS = {
    "bin", "boot", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "lost+found", "media",
    "mnt", "opt", "proc", "root", "run", "sbin", "snap", "srv", "sys", "tmp", "usr", "var",
    "warden-cpi-dev",
}  # fmt: skip
# What makes a tar an OCI or docker archive (image-layout.md).
_IMAGE_LAYOUT = ("oci-layout", "index.json", "manifest.json")


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
        found = _in_tar(head, source.name)
        if found in (ROOTFS, TARBALL):
            what = "a root file system" if found == ROOTFS else "a whole stemcell"
            raise UnsupportedStemcell(
                f"{source.name} is {what} as a plain tar; BOSH's are compressed: gzip it"
            )
        return found
    if head.startswith(BZIP2):
        return BZIPPED
    if disk_format_of(head):
        return DISK
    for magic, text in _OTHER:
        if head.startswith(magic):
            raise UnsupportedStemcell(
                f"{source.name} is {text}, which no stemcell of BOSH is; repack it as a tar.gz"
            )
    if other := other_at(lambda start, size: head[start : start + size], 0):
        raise UnsupportedStemcell(
            f"{source.name} is a disk with {other}; a stemcell's root is on ext4 or xfs"
        )
    raise StemcellError(f"{source.name} is neither a tar.gz nor any disk image: no stemcell's")


def _inflated(head: bytes, name: str) -> bytes:
    """Return the beginning of a gzip's content, within a limit."""
    try:
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16).decompress(head, _INFLATED)
    except zlib.error as error:
        raise StemcellError(f"{name} is not a tar.gz, or is damaged: {error}") from None


def _in_tar(head: bytes, name: str) -> str:
    """Tell a root file system, a whole stemcell and an archive with a disk by what they begin with.

    Any program packs them, in any order and with files of its own in between. Raises StemcellError
    when nothing at the beginning tells.
    """
    unknown = []
    try:
        with tars.opened(io.BytesIO(head), name, zipped=False) as members:
            for member, content in itertools.islice(members, _MAX_LOOK):
                start = content.read(HEAD) if content else b""
                path = member.name.removeprefix("./").strip("/")
                if found := _sign(path, is_file=content is not None, start=start):
                    return found
                unknown += [member.name] if path not in ("", ".") else []
                if path in _IMAGE_LAYOUT:
                    raise UnsupportedStemcell(
                        f"{name} is an OCI or docker archive; push it to a registry, and use a "
                        "light stemcell that names it there"
                    )
    except UnsupportedStemcell:
        raise
    except StemcellError:  # the beginning ends within a member
        if not unknown:
            raise
    if not unknown:
        raise StemcellError(f"{name} holds an empty tar")
    raise StemcellError(
        f"{name} begins with {unknown[0]!a}, and nothing after it is of a root file system, a disk "
        "or a stemcell"
    )


def _sign(path: str, *, is_file: bool, start: bytes) -> str:
    """Return what a tar is that has such a member, "" if it could be anything."""
    top, _, below = path.partition("/")
    if top in _ROOT_FOLDERS and (below or not is_file):
        return ROOTFS
    if is_file and not below and (path in _TARBALL_FILES or path.startswith("sbom")):
        return TARBALL
    if disk_format_of(start) or start.lstrip().startswith(b"<?xml") or b"Envelope" in start:
        return ARCHIVE  # the OVF descriptor comes before its disk
    return ""
