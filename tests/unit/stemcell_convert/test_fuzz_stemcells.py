"""Stemcells from anywhere: each becomes an image, or is refused by name, and fills no disk."""

import bz2
import gzip
import io
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from stemcell_convert import oci, oci_layout, unpack as unpacking
from stemcell_convert.convert import convert, extract
from stemcell_convert.recognise import recognise
from stemcell_convert.stemcell_errors import StemcellError
from stemcell_convert.streams import Source
from tests.support.stemcells.fuzzing import (
    BLOCK,
    allocated,
    header,
    of_root,
    sealed,
    sparse_header,
    stable,
    tried,
)
from tests.support.stemcells.small_stemcells import (
    ELF,
    MANIFEST,
    ROOTFS,
    means,
    tar,
    tarball,
    zipped,
)

LIMIT = 2 << 20
SLACK = 64 << 10  # documents, the second layer, folders

# A disk whose partition table names one ext4, as far as can be seen without mounting.
RAW = bytearray(256 << 10)
struct.pack_into("<B3xII", RAW, 446 + 4, 0x83, 63, 400)
RAW[510:512] = b"\x55\xaa"
RAW[63 * 512 + 1080 : 63 * 512 + 1082] = b"\x53\xef"
QCOW2 = b"QFI\xfb" + struct.pack(">I", 3) + bytes(16) + struct.pack(">Q", 1 << 20) + bytes(480)

INNER: dict[str, bytes] = {
    "rootfs": tar(ROOTFS),
    "disk": tar({"root.img": bytes(RAW)}),
    "ova": tar({"image.ovf": b"<?xml", "image.vmdk": b"KDMV" + bytes(2000)}),
    "qcow2": tar({"root.img": QCOW2}),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make the content of a mounted disk."""
    folder = tmp_path / "mounted"
    for name, content in (
        ("bin/sh", ELF),
        ("etc/os-release", b"ID=x\n"),
        ("usr/sbin/runsvdir-start", ELF),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


Change = Callable[[bytearray], bytearray]
_TYPES = b"0125SxgLKXDV\0?"
_NUMBERS = (
    b"\xff" * 12,
    b"\x80" + b"\xff" * 11,
    b"77777777777\0",
    b"00000001000\0",
    b"-1".ljust(12),
)


def _flip(offset: int, value: int) -> Change:
    def change(data: bytearray) -> bytearray:
        data[offset % len(data)] = value
        return data

    return change


def _cut(keep: float) -> Change:
    return lambda data: data[: int(len(data) * keep) + 1]


def _field(block: int, offset: int, value: bytes) -> Change:
    """Return a change of what may be a header, with the checksum right."""

    def change(data: bytearray) -> bytearray:
        start = block % max(1, len(data) // BLOCK) * BLOCK
        if len(data) < start + BLOCK:
            return data
        data[start + offset : start + offset + len(value)] = value
        return sealed(data, start)

    return change


_byte, _block = st.integers(0, 255), st.integers(0, 9)
_flips = st.builds(_flip, st.integers(0, 1 << 14), _byte)
_cuts = st.builds(_cut, st.floats(0, 1))
_types = st.builds(
    _field, _block, st.just(156), st.sampled_from([bytes([byte]) for byte in _TYPES])
)
_sizes = st.builds(_field, _block, st.sampled_from([124, 386, 398, 483]), st.sampled_from(_NUMBERS))
_fields = st.builds(_field, _block, st.integers(0, 500), st.binary(min_size=1, max_size=12))
_of_tar = st.lists(st.one_of(_types, _sizes, _fields, _flips, _cuts), max_size=4)
_of_bytes = st.lists(_flips | _cuts, max_size=1)


def _changed(data: bytes, changes: list[Change]) -> bytes:
    made = bytearray(data)
    for change in changes:
        made = change(made)
    return bytes(made)


@stable(75)
@given(
    st.sampled_from(sorted(INNER)),
    st.sampled_from([zipped, gzip.compress, bz2.compress, bytes]),
    st.tuples(_of_tar, _of_bytes, _of_tar, _of_bytes),
)
def test_a_stemcell_with_anything_wrong_in_it(
    root: Path,
    tmp_path_factory: pytest.TempPathFactory,
    inner: str,
    wrap: Callable[[bytes], bytes],
    changes: tuple[list[Change], ...],
) -> None:
    folder = tmp_path_factory.mktemp("work")
    image = _changed(wrap(_changed(INNER[inner], changes[0])), changes[1])
    outer = _changed(tar({"image": image, "stemcell.MF": MANIFEST}), changes[2])
    for name, content in (("s.tgz", _changed(zipped(outer), changes[3])), ("image", image)):
        stemcell = tmp_path_factory.mktemp("stemcell") / name
        stemcell.write_bytes(content)
        work = folder / f"to-{name}"
        work.mkdir()
        made = tried(lambda s=stemcell, w=work: convert(s, w, of_root(root, LIMIT)), str(stemcell))  # type: ignore[misc]
        assert made is None or oci_layout.of_manifest(made[0].folder, made[0].digest) == made[0]
        assert allocated(work) <= 2 * LIMIT + SLACK


@stable(30)
@given(_of_tar, _of_bytes)
def test_what_is_taken_out_of_a_stemcell(
    tmp_path_factory: pytest.TempPathFactory, first: list[Change], second: list[Change]
) -> None:
    folder = tmp_path_factory.mktemp("work")
    stemcell = tmp_path_factory.mktemp("stemcell") / "s.tgz"
    plain = tar({"../image": b"", "image": zipped(INNER["rootfs"]), "stemcell.MF": MANIFEST})
    stemcell.write_bytes(_changed(zipped(_changed(plain, first)), second))
    tried(lambda: extract(stemcell, folder, means(LIMIT)), str(stemcell))
    assert {path.name for path in folder.iterdir()} <= {"image", "stemcell.MF"}
    assert allocated(folder) <= LIMIT + SLACK


def _gzip_of_zeros(before: bytes, mib: int) -> bytes:
    packer = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    zeros = bytes(1 << 20)
    return b"".join(
        [packer.compress(before), *(packer.compress(zeros) for _ in range(mib)), packer.flush()]
    )


def _member(name: str, size: int) -> bytes:
    return bytes(header(name, size))


TIB = 1 << 40
END = bytes(2 * BLOCK)
_ROOTFS = zipped(INNER["rootfs"])
_SPARSE = bytes(sparse_header("image", TIB, len(_ROOTFS))) + _ROOTFS + bytes(-len(_ROOTFS) % BLOCK)
# Each of these is small, and much when it is taken apart: tarballs, and images in sound tarballs.
TARBALLS = {
    "an image of zeros": zipped(_member("image", 8 << 20)) + _gzip_of_zeros(b"", 8),
    "zeros after the image's end": _gzip_of_zeros(
        _member("image", len(_ROOTFS) + (8 << 20)) + _ROOTFS, 9
    ),
    "a file with holes": zipped(_SPARSE + tar({"stemcell.MF": MANIFEST})),
    "a file that is not wanted": _gzip_of_zeros(_member("packages.txt", 32 << 20), 32),
    "files without end": _gzip_of_zeros(tar({"packages.txt": b""})[:BLOCK] * 50_000, 1),
    "gzip in gzip": _gzip_of_zeros(_member("image", 1 << 20) + _gzip_of_zeros(b"", 8), 1),
}
IMAGES = {
    "a rootfs": _gzip_of_zeros(tar(ROOTFS)[: -20 * BLOCK] + _member("x", 8 << 20), 8),
    "a disk": _gzip_of_zeros(_member("disk", 8 << 20) + RAW, 8),
    "a disk in bzip2": bz2.compress(bytes(RAW) + b"x" * (8 << 20)),
    "a disk with holes": zipped(bytes(sparse_header("disk", TIB, len(RAW)) + RAW) + END),
}


@pytest.mark.parametrize("name", [*TARBALLS, *IMAGES])
def test_a_bomb_fills_no_disk(name: str, root: Path, tmp_path: Path) -> None:
    made = TARBALLS.get(name) or zipped(tar({"image": IMAGES[name], "stemcell.MF": MANIFEST}))
    stemcell = tmp_path / "s.tgz"
    stemcell.write_bytes(made)
    assert len(made) < LIMIT
    _require_refused(convert, stemcell, tmp_path / "work", root)
    if name in TARBALLS:
        _require_refused(extract, stemcell, tmp_path / "out", root)


def test_zeros_after_an_image_are_not_copied(root: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.write(_ROOTFS)
        file.truncate(TIB)
    _require_refused(convert, image, tmp_path / "work", root)


def _require_refused(call: Callable[..., object], what: Path, folder: Path, root: Path) -> None:
    folder.mkdir()
    with pytest.raises(StemcellError, match=str(what)):
        call(what, folder, of_root(root, LIMIT))
    assert allocated(folder) <= LIMIT + SLACK


def test_a_header_of_any_size_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "_MEMORY", 64 << 20)
    packer = zlib.compressobj(1, wbits=zlib.MAX_WBITS | 16)
    made = [packer.compress(bytes(header("x", 80 << 20, tarfile.GNUTYPE_LONGNAME)))]
    made += [packer.compress(b"a" * (1 << 20)) for _ in range(80)]
    bomb = b"".join([*made, packer.compress(tar({"a": b""})), packer.flush()])
    with pytest.raises(StemcellError, match=r"the image cannot be unpacked: .*memory exhausted"):
        unpacking.unpack(io.BytesIO(bomb), "the image", tmp_path, 1 << 30)


@stable(60)
@given(st.sampled_from(sorted(INNER)), _of_tar, st.binary(max_size=9))
def test_recognising_anything(inner: str, changes: list[Change], start: bytes) -> None:
    for data in (_changed(INNER[inner], changes), start + INNER[inner][len(start) :]):
        for content in (data, zipped(data)):
            tried(lambda c=content: recognise(Source(io.BytesIO(c), "the file")), "the file")  # type: ignore[misc]


# Archives of layouts

BLOB = oci.digest(b"blob").partition(":")[2]
_archive_names = st.sampled_from([
    "index.json", "./index.json", "oci-layout", f"blobs/sha256/{BLOB}", BLOB, f"../{BLOB}",
    "../../escaped", "/tmp/escaped", "blobs/sha256/../../escaped", "blobs/sha256", "blobs",
    f"blobs/sha256/{'a' * 64}/x", "index.json/x", "manifest.json",
])  # fmt: skip
_archive_types = st.sampled_from(
    [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE]
)


@stable(60)
@given(st.lists(st.tuples(_archive_names, _archive_types), max_size=6), _of_tar)
def test_an_archive_writes_only_what_a_layout_has(
    tmp_path_factory: pytest.TempPathFactory,
    members: list[tuple[str, bytes]],
    changes: list[Change],
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, member_type in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = member_type, str(outside)
            info.size = 4 if member_type == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(b"blob"))
    path = outside / "archive.tar"
    path.write_bytes(_changed(made.getvalue(), changes))
    folder = outside / "work" / "layout"
    tried(lambda: oci_layout.open_archive(path, folder), str(path))
    wanted = {"index.json", "oci-layout", BLOB, "a" * 64}
    written = {file for file in outside.rglob("*") if not file.is_dir()} - {path}
    assert {file.name for file in written} <= wanted
    assert all(file.is_relative_to(folder) and file.is_file() for file in written)
    assert allocated(folder) <= len(made.getvalue()) + SLACK


def test_an_archive_has_no_holes(tmp_path: Path) -> None:
    path = tmp_path / "archive.tar"
    path.write_bytes(bytes(sparse_header(f"blobs/sha256/{BLOB}", TIB, 4)) + bytes(BLOCK) + END)
    oci_layout.open_archive(path, tmp_path / "layout")
    assert not [file for file in (tmp_path / "layout").rglob("*") if file.is_file()]


def test_an_archive_that_says_it_twice(tmp_path: Path) -> None:
    path = tarball(tmp_path / "archive.tar")
    path.write_bytes(tar({"index.json": b"{}"})[: 2 * BLOCK] * 2 + END)
    with pytest.raises(StemcellError, match=str(path)):
        oci_layout.open_archive(path, tmp_path / "layout")
