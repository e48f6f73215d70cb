"""What the fuzz and property tests share: hypothesis as CI needs it, tars, and what was written."""

import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hypothesis import HealthCheck, Phase, settings

from stemcell_convert.convert import Means, Result
from stemcell_convert.partitions import FileSystem
from stemcell_convert.stemcell_errors import StemcellError
from tests.support.stemcells.small_stemcells import Quiet

BLOCK = tarfile.BLOCKSIZE
T = TypeVar("T")


def stable(examples: int, *, shrink: bool = True) -> settings:
    """Settings that try the same examples each time, however slow the machine is.

    shrink: whether a failure is worth the time to look for a smaller one.
    """
    phases = (Phase.explicit, Phase.generate, *((Phase.shrink,) if shrink else ()))
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=phases,
        suppress_health_check=[*checks, HealthCheck.data_too_large],
    )


def tried(call: Callable[[], T], name: str) -> T | None:
    """What a call returns, or None if it refuses with a StemcellError that says this name."""
    try:
        return call()
    except StemcellError as error:
        told = str(error)
    assert name in told
    return None


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytearray:
    """Return one header, which may say what is not so."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return bytearray(info.tobuf(tarfile.GNU_FORMAT)[-BLOCK:])


def sparse_header(name: str, size: int, kept: int) -> bytearray:
    """GNU's header of a file of `size` bytes whose first `kept` are there."""
    made = header(name, kept, tarfile.GNUTYPE_SPARSE)
    made[386:410] = b"%011o\0%011o\0" % (0, kept)
    made[483:495] = b"\x80" + size.to_bytes(11, "big")
    return sealed(made)


def sealed(made: bytearray, at: int = 0) -> bytearray:
    """Return a tar whose header at an offset has the right checksum again."""
    made[at + 148 : at + 156] = b" " * 8
    made[at + 148 : at + 156] = b"%06o\0 " % sum(made[at : at + BLOCK])
    return made


def allocated(folder: Path) -> int:
    """Return bytes that a folder's files take on the disk, whatever size they have."""
    files = [Path(parent) / name for parent, _, names in os.walk(folder) for name in names]
    return sum(path.lstat().st_blocks * 512 for path in files)


def of_root(root: Path, limit: int) -> Means:
    """What a conversion without root works with: the file systems of its disks are all `root`."""

    def mounted(
        raw: Path, system: FileSystem, at: Path, use: Callable[[Path], Result], /
    ) -> Result:
        return use(root)

    return Means(mounted, limit, Quiet())
