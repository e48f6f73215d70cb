"""Images of stemcells of any size for benchmarks: a root file system's tar.gz, and a disk with it.

They grow out of a small stemcell, whose own bytes fill files that are as many and as large as those
of BOSH's Ubuntu. The same size gives the same files.
"""

import io
import random
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from isal import igzip

from testing.stemcells.stemcell_disks import SECTOR, converted, disk

MEGABYTE = 1_000_000
FOLDER = "opt/bench"

# Of BOSH's Ubuntu stemcells, roughly: 60,000 files where the tar.gz has 1 GB. Their sizes lie
# around a few kilobytes and a few are large, so that the mean is ten times the median.
_MEDIAN, _SPREAD = 3600, 2.15  # bytes; the standard deviation of the size's logarithm
_LARGEST = 48 << 20
_PER_FOLDER = 30

# Content comes in pieces, some of which are noise, like compressed files, so that all of it is
# compressed to SHARE.
SHARE = 0.45
_NOISE = 0.09
_PIECE = 32 << 10  # bytes; more would be found again by gzip, which looks as far back

_LAYOUT = "mbr"  # as openstack's
_SPARE_MIB = 256


@dataclass(frozen=True)
class Made:
    """An image: bytes of the file and of the root file system's tar, and how many files are in it.

    offset: where on the disk the root file system is.
    """

    path: Path
    size: int
    unpacked: int
    files: int
    offset: int = 0


def rootfs(base: Path, target: Path, size: int) -> Made:
    """Make a tar.gz of about `size` bytes out of a smaller one."""
    with igzip.open(base, "rb") as file:
        pool = file.read()
    with tarfile.open(fileobj=io.BytesIO(pool)) as tar:
        files = len(tar.getmembers())
        end = tar.offset  # of the members; zeros follow
    with target.open("wb") as file, _compressed(file) as stream:
        stream.write(pool[:end])
        with tarfile.open(fileobj=stream, mode="w|", format=tarfile.GNU_FORMAT) as tar:
            for info, content in _grown(pool, size - base.stat().st_size):
                tar.addfile(info, io.BytesIO(content))
                files += 1
    return Made(target, target.stat().st_size, end + tar.offset, files)


def disk_of(made: Made, folder: Path) -> Made:
    """Make the image that an openstack stemcell would be with this root file system."""
    root = folder / "root"
    root.mkdir()
    subprocess.run(["tar", "-xf", str(made.path), "-C", str(root)], check=True)
    # Blocks that are not full, inodes, and the journal.
    mebibytes = (made.unpacked * 5 // 4 >> 20) + _SPARE_MIB
    raw = disk(root, folder, _LAYOUT, size=mebibytes)
    shutil.rmtree(root)
    compressed = converted(raw, "qcow2", "compat=0.10", compress=True)
    raw.unlink()
    compressed.rename(folder / "root.img")
    image = folder / "disk"
    with image.open("wb") as file, _compressed(file, "-1") as stream:
        subprocess.run(["tar", "-c", "-C", str(folder), "root.img"], stdout=stream, check=True)
    (folder / "root.img").unlink()
    return Made(image, image.stat().st_size, made.unpacked, made.files, 63 * SECTOR)


@contextmanager
def _compressed(file: IO[bytes], level: str = "-6") -> Iterator[IO[bytes]]:
    """Compress with pigz if it is installed, else with gzip."""
    argv = [shutil.which("pigz") or "gzip", "--no-name", level]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=file) as process:
        yield cast(IO[bytes], process.stdin)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, argv, stderr="")


def _grown(pool: bytes, size: int) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Yield folders and files that compress to about `size` bytes."""
    chance = random.Random(size)  # noqa: S311 (nothing secret)
    left, number = size / SHARE, 0
    while left > 0:
        if number % _PER_FOLDER == 0:
            folder = f"{FOLDER}/{number // _PER_FOLDER:04}"
            yield _entry(folder, tarfile.DIRTYPE, 0o755), b""
        length = int(min(_MEDIAN * chance.lognormvariate(0, _SPREAD), _LARGEST, left + 1))
        info = _entry(f"{folder}/file-{number}", tarfile.REGTYPE, 0o644)
        info.size = length
        yield info, _content(pool, length, chance)
        left -= length
        number += 1


def _entry(name: str, entry_type: bytes, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(f"./{name}")
    info.type, info.mode = entry_type, mode
    return info


def _content(pool: bytes, length: int, chance: random.Random) -> bytes:
    pieces = []
    for start in range(0, length, _PIECE):
        size = min(_PIECE, length - start)
        if chance.random() < _NOISE:
            pieces.append(chance.randbytes(size))
        else:
            offset = chance.randrange(len(pool) - size)
            pieces.append(pool[offset : offset + size])
    return b"".join(pieces)
