"""Says what a stemcell's `image` file is, by its content and never by its name."""

import tarfile
import zlib
from pathlib import Path

from stemcell_convert.errors import StemcellError, UnsupportedStemcell

GZIP = b"\x1f\x8b"

# First bytes -> what people call it. The contents of a tar.gz are told by its members.
_MAGIC = (
    (b"QFI\xfb", "a qcow2 disk image"),
    (b"KDMV", "a VMDK disk image"),
    (b"conectix", "a VHD disk image"),
    (b"vhdxfile", "a VHDX disk image"),
    (b"BZh", "a bzip2 file, as CloudStack stemcells have"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"\xfd7zXZ", "an xz file"),
    (b"PK\x03\x04", "a zip file"),
)
_DISK_MEMBERS = ("root.img", "root.vhd", "disk.raw", "image.ovf", "box.ovf")
_ROOT_FOLDERS = {
    "bin",
    "boot",
    "dev",
    "etc",
    "home",
    "lib",
    "opt",
    "root",
    "run",
    "sbin",
    "usr",
    "var",
}


def require_warden(image: Path) -> None:
    """Check that `image` is a warden stemcell's: a gzip'd tar of a root file system.

    Reads its beginning only. Raises UnsupportedStemcell, saying what it is instead, and
    StemcellError when it is missing, empty or damaged.
    """
    head = _head(image)
    if not head:
        raise UnsupportedStemcell(
            f"{image} is empty, as in a light stemcell; this runtime takes warden stemcells, "
            "whose image is a root file system"
        )
    if not head.startswith(GZIP):
        kind = next((text for magic, text in _MAGIC if head.startswith(magic)), None)
        if kind is None:
            raise StemcellError(f"{image} is neither a tar.gz nor any disk image: no stemcell's")
        raise UnsupportedStemcell(
            f"{image} is {kind}; this runtime takes warden stemcells, whose image is a tar.gz of a "
            "root file system"
        )
    name = _first_name(image)
    if name.rsplit("/", 1)[-1] in _DISK_MEMBERS:
        raise UnsupportedStemcell(
            f"{image} holds the disk image {name!a}; this runtime takes warden stemcells"
        )
    if name not in (".", "./") and name.removeprefix("./").split("/", 1)[0] not in _ROOT_FOLDERS:
        raise StemcellError(f"{image} begins with {name!a}, which is no root file system's folder")


def _head(image: Path) -> bytes:
    try:
        with image.open("rb") as file:
            return file.read(16)
    except OSError as error:
        raise StemcellError(f"cannot read the stemcell's image {image}: {error.strerror}") from None


def _first_name(image: Path) -> str:
    try:
        with tarfile.open(image, "r|gz") as tar:
            member = tar.next()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise StemcellError(f"{image} is not a tar.gz, or is damaged: {error}") from None
    if member is None:
        raise StemcellError(f"{image} holds an empty tar")
    return member.name
