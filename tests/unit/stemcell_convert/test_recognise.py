"""What an `image` file is, and taking the disk out of it."""

import bz2
import gzip
import io
import random
import tarfile
from pathlib import Path

import pytest

from stemcell_convert import oci
from stemcell_convert.convert import raw_disk
from stemcell_convert.recognise import (
    ARCHIVE,
    BZIPPED,
    DISK,
    LIGHT,
    ROOTFS,
    TARBALL,
    recognise,
)
from stemcell_convert.stemcell_errors import StemcellError, UnsupportedStemcell
from stemcell_convert.streams import Source
from stemcell_convert.unwrap import unwrap
from tests.support.stemcells.small_stemcells import means

RAW = bytes(510) + b"\x55\xaa" + bytes(100_000) + b"data" + bytes(1 << 20) + b"end"
QCOW2 = b"QFI\xfb" + bytes(5000)
LIMIT = 64 << 20


def _tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _source(image: Path) -> Source:
    return Source(io.BytesIO(image.read_bytes()), str(image))


class Counted(io.BytesIO):
    """Counts the bytes that are read."""

    delivered = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.delivered += len(data)
        return data


IMAGES = {
    "warden": (gzip.compress(_tar({"./": b"", "./etc/": b""})), ROOTFS),
    "tar.gz of raw": (gzip.compress(_tar({"root.img": RAW})), ARCHIVE),
    "tar.gz of anything that is raw": (gzip.compress(_tar({"../../x": RAW})), ARCHIVE),
    "ova": (_tar({"image.ovf": b"<?xml?>", "image.mf": b"x", "disk": b"KDMV" + RAW}), ARCHIVE),
    "bzip2": (bz2.compress(b"conectix" + RAW), BZIPPED),
    "qcow2": (QCOW2, DISK),
    "raw": (RAW, DISK),
    "light": (b"", LIGHT),
    "stemcell": (gzip.compress(_tar({"image": RAW, "stemcell.MF": b"name: x"})), TARBALL),
    "repacked stemcell": (
        gzip.compress(_tar({"./": b"", "./._image": b"x", "./stemcell.MF": b"", "./image": RAW})),
        TARBALL,
    ),
    "repacked warden": (
        gzip.compress(_tar({"./": b"", ".dockerenv": b"", "./media/": b"", "./etc/": b""})),
        ROOTFS,
    ),
    "warden that begins oddly": (gzip.compress(_tar({"x/y": b"z", "lib64/ld": b""})), ROOTFS),
    "newer stemcell": (gzip.compress(_tar({"dev_tools_file_list.txt": b""})), TARBALL),
}


@pytest.mark.parametrize("name", IMAGES)
def test_by_content(name: str, tmp_path: Path) -> None:
    content, image_format = IMAGES[name]
    image = tmp_path / "root.img.vhd.gz"  # a name says nothing
    image.write_bytes(content)
    source = _source(image)
    assert recognise(source) == image_format
    assert source.drain() == oci.digest(content), "what was looked at is still to be read"


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, (_, image_format) in IMAGES.items()
        if image_format in (ARCHIVE, BZIPPED, DISK)
    ],
)
def test_the_disk_comes_out_whole_and_sparse(name: str, tmp_path: Path) -> None:
    content, image_format = IMAGES[name]
    image = tmp_path / "image"
    image.write_bytes(content)
    disk = unwrap(_source(image), image_format, tmp_path / "disk", LIMIT)
    expected = {"ova": b"KDMV" + RAW, "bzip2": b"conectix" + RAW, "qcow2": QCOW2}.get(name, RAW)
    assert disk.read_bytes() == expected
    assert disk.stat().st_blocks * 512 < 64 << 10
    assert not (tmp_path.parent.parent / "x").exists()


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"PK\x03\x04" + bytes(600), UnsupportedStemcell),
        (b"\x28\xb5\x2f\xfd" + bytes(600), UnsupportedStemcell),
        (_tar({"./": b"", "./etc/": b""}), UnsupportedStemcell),
        (_tar({"stemcell.MF": b"name: x", "image": RAW}), UnsupportedStemcell),
        (gzip.compress(_tar({"blobs/": b"", "oci-layout": b"{}"}), mtime=0), UnsupportedStemcell),
        (b"hello" * 1000, StemcellError),
        (gzip.compress(b"no tar", mtime=0), StemcellError),
        (gzip.compress(_tar({"readme.txt": b"hello"}), mtime=0), StemcellError),
        (gzip.compress(_tar({}), mtime=0)[:20], StemcellError),
    ],
)
def test_what_is_no_stemcell(content: bytes, error: type[Exception], tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(content)
    with pytest.raises(error, match=str(image)):
        recognise(_source(image))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\x28\xb5\x2f\xfd" + bytes(600), "is compressed with zstd, which no stemcell"),
        (_tar({"./": b"", "./etc/": b""}), "is a root file system as a plain tar"),
        (_tar({"stemcell.MF": b"name: x"}), "is a whole stemcell as a plain tar"),
        (gzip.compress(_tar({"manifest.json": b"[]"}), mtime=0), "is an OCI or docker archive"),
    ],
)
def test_what_it_is_instead_is_named(content: bytes, what: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(content)
    with pytest.raises(UnsupportedStemcell, match=what):
        recognise(_source(image))


@pytest.mark.parametrize(
    "first",
    ["./lib64/", "./media/", "./srv/", "./tmp/", "./mnt/", "./proc/", "./sys/", "./run/", "./.x",
     "./lost+found/", "./warden-cpi-dev/", "lib32/", "./lib/x", "./var/"],
)  # fmt: skip
def test_a_root_file_system_may_begin_with_anything(first: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(gzip.compress(_tar({first: b"", "./etc/": b""})))
    assert recognise(_source(image)) == ROOTFS


def test_a_bomb_is_stopped_at_the_limit(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb"
    bomb.write_bytes(bz2.compress(RAW[:512] + bytes(200 << 20), 9))
    with pytest.raises(StemcellError, match="stemcell_limit"):
        unwrap(_source(bomb), BZIPPED, tmp_path / "disk", 1 << 20)
    assert (tmp_path / "disk").stat().st_size <= 2 << 20


def test_an_archive_without_a_disk(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(gzip.compress(_tar({"image.ovf": b"<?xml?>", "other": b"x" * 9000})))
    assert recognise(_source(image)) == ARCHIVE
    with pytest.raises(StemcellError, match="without a disk"):
        unwrap(_source(image), ARCHIVE, tmp_path / "disk", LIMIT)


def test_nothing_that_is_damaged_crashes(tmp_path: Path) -> None:
    chance = random.Random(2)
    image, disk = tmp_path / "image", tmp_path / "disk"
    for number in range(600):
        content = bytearray(chance.choice([data for data, _ in IMAGES.values() if data]))
        for _ in range(chance.randrange(1, 30)):
            content[chance.randrange(min(len(content), 4096))] = chance.randrange(256)
        image.write_bytes(content[: chance.randrange(1, len(content))] if number % 3 else content)
        error = _error_of(image, disk)
        assert not error or str(image) in error
        disk.unlink(missing_ok=True)


def _error_of(image: Path, disk: Path) -> str:
    """Take a disk out; return what an error says, or nothing."""
    try:
        source = _source(image)
        image_format = recognise(source)
        if image_format in (ARCHIVE, BZIPPED, DISK):
            unwrap(source, image_format, disk, LIMIT)
    except StemcellError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", ["tar.gz of raw", "raw"])
def test_a_disk_is_taken_and_hashed_in_one_reading(tmp_path: Path, name: str) -> None:
    data, image_format = IMAGES[name]
    stream = Counted(data)
    source = Source(stream, "image")
    assert recognise(source) == image_format
    disk = raw_disk(source, image_format, tmp_path, means())
    assert disk.read_bytes() == RAW
    assert source.drain() == oci.digest(data)
    assert stream.delivered == len(data)
